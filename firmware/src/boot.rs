//! The boot path, from fw_cfg to a kernel in place: read it top to bottom.

use abi::boot_trace::BootTrace;
use abi::e820::Map;
use abi::range::Range;
use abi::{bda, layout, ports, post};

use crate::chipset::set_up_chipset;
use crate::cpus::set_up_cpus;
use crate::error::Error;
use crate::fpdt::Performance;
use crate::fw_cfg::FwCfg;
use crate::kernel::{Launch, load_kernel};
use crate::log;
use crate::machine::Machine;
use crate::mp_table::load_mp_table;
use crate::tables::load_tables;

/// Puts everything in place. What is left is to enter the kernel.
pub fn boot<M: Machine>(machine: &mut M) -> Result<Launch, Error> {
    let start = machine.tsc();
    machine.out8(ports::POST, post::FIRMWARE_START);
    let mut fw_cfg = FwCfg::probe(machine)?;
    let mut map = Map::new();
    extract_e820(&mut fw_cfg, &mut map)?;
    log::host(&mut fw_cfg, &map);
    // Before the tables: the host describes in them what it finds set up.
    set_up_chipset(&mut fw_cfg, &mut map)?;
    set_up_cpus(&mut fw_cfg)?;
    let tables = load_tables(&mut fw_cfg, &mut map)?;
    // They have the same place.
    if fw_cfg.known().table_loader.is_none() {
        load_mp_table(&mut fw_cfg)?;
    }
    log::tables(&mut fw_cfg, &tables);

    let loading = fw_cfg.machine().tsc();
    fw_cfg.machine().out8(ports::POST, post::LOAD_KERNEL);
    let launch = load_kernel(&mut fw_cfg, &map, tables.rsdp)?;

    let kernel_entry = fw_cfg.machine().tsc();
    let trace = BootTrace { start, load_kernel: loading, kernel_entry };
    hand_on(&mut fw_cfg, &trace, tables.performance);
    if fw_cfg.is_verbose() {
        log::launch(fw_cfg.machine(), &launch, &trace);
    }
    machine.out8(ports::POST, post::KERNEL_ENTRY);
    Ok(launch)
}

/// Tells host and kernel what the stages took.
fn hand_on<M: Machine>(
    fw_cfg: &mut FwCfg<'_, M>,
    trace: &BootTrace,
    performance: Option<Performance>,
) {
    if let Some(performance) = performance {
        performance.write(fw_cfg.machine(), trace);
    }
    if let Some(file) = fw_cfg.known().boot_trace {
        // A host that does not take what it asks for misses the stamps, no more.
        let _ = fw_cfg.write(file.selector, 0, &trace.encode());
    }
}

/// The host's memory map, less what a PC has below 1 MiB; the BIOS data area says the same.
fn extract_e820<M: Machine>(fw_cfg: &mut FwCfg<'_, M>, map: &mut Map) -> Result<(), Error> {
    let file = fw_cfg.known().e820.ok_or(Error::NoE820)?;
    map.take_in(&fw_cfg.read_file(file)?)?;
    // Everything the firmware writes below 1 MiB lies in RAM that the host promised.
    if !map.is_ram(layout::BASE_MEMORY) || !map.is_ram(layout::E_SEGMENT) {
        return Err(Error::Placement(abi::placement::Error::LowMemory));
    }
    map.reserve_legacy()?;
    for (address, value) in bda::FIELDS {
        let field = Range::between(address, address + 4);
        fw_cfg.machine().memory(field).copy_from_slice(&value.to_le_bytes());
    }
    Ok(())
}
