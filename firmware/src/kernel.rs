//! Loads a bzImage, its initrd and its command line straight to where they run.

use abi::e820::Map;
use abi::fw_cfg::{file, key};
use abi::layout;
use abi::linux::{
    BOOT_PARAMS_SIZE, ENTRY_64_OFFSET, Entry, HEADER_END, Handoff, SetupHeader, fill_boot_params,
};
use abi::placement::plan;
use abi::range::Range;

use crate::error::Error;
use crate::fw_cfg::FwCfg;
use crate::machine::Machine;

/// How to enter the kernel that is in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The protocol.
    pub entry: Entry,
    /// The kernel's first instruction.
    pub address: u64,
    /// The zero page.
    pub boot_params: u64,
}

/// Puts the kernel that the host offers in place, with all that it is told.
pub fn load_kernel<M: Machine>(
    fw_cfg: &mut FwCfg<'_, M>,
    map: &Map,
    rsdp: u64,
) -> Result<Launch, Error> {
    let mut image = [0; HEADER_END];
    fw_cfg.read(key::SETUP_DATA, &mut image)?;
    let header = SetupHeader::parse(&image).map_err(|error| {
        // An absent item reads as zeroes.
        if image.iter().all(|byte| *byte == 0) { Error::NoKernel } else { error.into() }
    })?;
    let kernel = header.kernel(fw_cfg.read_u32(key::KERNEL_SIZE)?.into());
    let initrd_size = fw_cfg.read_u32(key::INITRD_SIZE)?.into();
    // An absent command line is an empty one: a NUL.
    let cmdline_size = u64::from(fw_cfg.read_u32(key::CMDLINE_SIZE)?).max(1);
    let plan = plan(map, &kernel, cmdline_size, initrd_size)?;
    let entry = choose_entry(fw_cfg, &header)?;

    fw_cfg.load(key::KERNEL_DATA, plan.kernel)?;
    fw_cfg.load(key::INITRD_DATA, plan.initrd)?;
    load_command_line(fw_cfg, plan.command_line)?;
    let handoff = Handoff {
        kernel: plan.kernel.start(),
        command_line: plan.command_line.start(),
        initrd: plan.initrd,
        rsdp,
        map,
    };
    write_boot_params(fw_cfg.machine(), &image, &handoff)?;
    let offset = if entry == Entry::Bits64 { ENTRY_64_OFFSET } else { 0 };
    Ok(Launch {
        entry,
        address: plan.kernel.start() + offset,
        boot_params: layout::BOOT_PARAMS.start(),
    })
}

/// The 64-bit entry when the kernel has it, unless the host's user asks for another.
fn choose_entry<M: Machine>(
    fw_cfg: &mut FwCfg<'_, M>,
    header: &SetupHeader,
) -> Result<Entry, Error> {
    let Some(option) = fw_cfg.find(file::ENTRY) else {
        return Ok(if header.has_64_bit_entry() { Entry::Bits64 } else { Entry::Bits32 });
    };
    match fw_cfg.read_file(&option)?.trim_ascii_end() {
        b"32" => Ok(Entry::Bits32),
        b"64" if header.has_64_bit_entry() => Ok(Entry::Bits64),
        b"64" => Err(Error::No64BitEntry),
        _ => Err(Error::EntryOption),
    }
}

fn load_command_line<M: Machine>(fw_cfg: &mut FwCfg<'_, M>, range: Range) -> Result<(), Error> {
    fw_cfg.load(key::CMDLINE_DATA, range)?;
    // The host says that its last byte is a NUL. The kernel relies on it.
    if let Some(last) = fw_cfg.machine().memory(range).last_mut() {
        *last = 0;
    }
    Ok(())
}

fn write_boot_params<M: Machine>(
    machine: &mut M,
    image: &[u8],
    handoff: &Handoff<'_>,
) -> Result<(), Error> {
    let memory = machine.memory(layout::BOOT_PARAMS);
    // The area is one page by an assertion in `abi::layout`.
    let page: &mut [u8; BOOT_PARAMS_SIZE] =
        memory.try_into().map_err(|_| Error::Placement(abi::placement::Error::LowMemory))?;
    page.fill(0);
    fill_boot_params(page, image, handoff)?;
    Ok(())
}
