//! The boot path, from fw_cfg to a kernel in place: read it top to bottom.

use abi::e820::Map;
use abi::fw_cfg::file;
use abi::{layout, ports, post};

use crate::chipset::set_up_chipset;
use crate::error::Error;
use crate::fw_cfg::FwCfg;
use crate::kernel::{Launch, load_kernel};
use crate::machine::Machine;
use crate::mp_table::load_mp_table;
use crate::tables::load_tables;

/// Puts everything in place. What is left is to enter the kernel.
pub fn boot<M: Machine>(machine: &mut M) -> Result<Launch, Error> {
    machine.out8(ports::POST, post::FIRMWARE_START);
    let mut fw_cfg = FwCfg::probe(machine)?;
    let mut map = Map::new();
    extract_e820(&mut fw_cfg, &mut map)?;
    // Before the tables: the host describes in them what it finds set up.
    set_up_chipset(&mut fw_cfg, &mut map)?;
    let rsdp = load_tables(&mut fw_cfg, &mut map)?;
    if rsdp == 0 {
        load_mp_table(&mut fw_cfg)?;
    }

    fw_cfg.machine().out8(ports::POST, post::LOAD_KERNEL);
    let launch = load_kernel(&mut fw_cfg, &map, rsdp)?;

    machine.out8(ports::POST, post::KERNEL_ENTRY);
    Ok(launch)
}

/// The host's memory map, less what a PC has below 1 MiB.
fn extract_e820<M: Machine>(fw_cfg: &mut FwCfg<'_, M>, map: &mut Map) -> Result<(), Error> {
    let file = fw_cfg.find(file::E820).ok_or(Error::NoE820)?;
    map.take_in(&fw_cfg.read_file(&file)?)?;
    // Everything the firmware writes below 1 MiB lies in RAM that the host promised: boot
    // parameters and heap low down, tables in the E-segment.
    if !map.is_ram(layout::LOW_RAM) || !map.is_ram(layout::ACPI_TABLES) {
        return Err(Error::Placement(abi::placement::Error::LowMemory));
    }
    map.reserve_legacy()?;
    Ok(())
}
