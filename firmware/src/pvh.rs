//! PVH: an ELF kernel that the host has loaded already.
//!
//! QEMU puts an ELF's segments into guest RAM itself and gives the entry of its PVH note. What is
//! left is the initrd, the command line, and `hvm_start_info`.

use abi::e820::Map;
use abi::fw_cfg::key;
use abi::layout;
use abi::placement::{plan_command_line, plan_initrd_beside};
use abi::pvh::StartInfo;
use abi::range::Range;

use crate::error::Error;
use crate::fw_cfg::FwCfg;
use crate::kernel::{Launch, load_command_line};
use crate::log;
use crate::machine::Machine;

/// Describes the machine to the kernel that lies in RAM.
pub fn load_pvh<M: Machine>(
    fw_cfg: &mut FwCfg<'_, M>,
    map: &Map,
    rsdp: u64,
) -> Result<Launch, Error> {
    let entry = fw_cfg.read_u32(key::KERNEL_ENTRY)?;
    let start = fw_cfg.read_u32(key::KERNEL_ADDR)?;
    let size = fw_cfg.read_u32(key::KERNEL_SIZE)?;
    let kernel = Range::new(start.into(), size.into()).ok_or(Error::ElfPlace(start, size))?;
    let entry_point = Range::new(entry.into(), 1).ok_or(Error::NoPvhEntry)?;
    if entry == 0 || !kernel.contains(entry_point) {
        return Err(Error::NoPvhEntry);
    }
    // ACPI tables are no RAM in the map: a kernel that they lie in is refused here.
    if !map.is_ram(kernel) || start < HIGH_RAM_START {
        return Err(Error::ElfPlace(start, size));
    }
    let initrd_size = fw_cfg.read_u32(key::INITRD_SIZE)?.into();
    let cmdline_size = u64::from(fw_cfg.read_u32(key::CMDLINE_SIZE)?).max(1);
    let initrd = plan_initrd_beside(map, kernel, initrd_size)?;
    let command_line = plan_command_line(u64::MAX, cmdline_size)?;

    fw_cfg.load(key::INITRD_DATA, initrd)?;
    load_command_line(fw_cfg, command_line)?;
    log::loaded(fw_cfg, "ELF kernel", kernel);
    log::loaded(fw_cfg, "initrd", initrd);
    let info = StartInfo { command_line: command_line.start(), initrd, rsdp, map };
    let area = layout::PVH_INFO;
    // An assertion in `abi::pvh` says that the largest start info fits its area.
    info.encode(area.start(), fw_cfg.machine().memory(area)).ok_or(Error::NoPvhEntry)?;
    Ok(Launch::Pvh { entry: entry.into(), start_info: area.start() })
}

#[expect(clippy::cast_possible_truncation, reason = "1 MiB")]
const HIGH_RAM_START: u32 = layout::HIGH_RAM_START as u32;
