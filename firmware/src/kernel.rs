//! Loads the kernel, its initrd and its command line straight to where they run.

use abi::e820::Map;
use abi::fw_cfg::key;
use abi::layout;
use abi::linux::{
    self, BOOT_PARAMS_SIZE, ENTRY_64_OFFSET, Entry, HEADER_END, Handoff, SETUP_STACK, SetupHeader,
    fill_boot_params, patch_setup,
};
use abi::placement::plan;
use abi::range::Range;

use crate::error::Error;
use crate::fw_cfg::FwCfg;
use crate::log;
use crate::machine::Machine;
use crate::pvh::load_pvh;
use crate::real_mode::write_real_mode_data;

/// How to enter the kernel that is in place: its first instruction and what it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launch {
    /// By the Linux boot protocol.
    Linux {
        /// 16-, 32- or 64-bit.
        protocol: Entry,
        /// The kernel's first instruction; the start of the setup code for 16-bit.
        entry: u64,
        /// The zero page; 16-bit setup code makes its own.
        boot_params: u64,
    },
    /// By the PVH protocol.
    Pvh {
        /// The kernel's first instruction.
        entry: u64,
        /// `struct hvm_start_info`.
        start_info: u64,
    },
}

impl Launch {
    /// The protocol's name and the kernel's first instruction, for people.
    pub fn describe(&self) -> (&'static str, u64) {
        match *self {
            Self::Linux { protocol: Entry::Bits16, entry, .. } => ("16-bit", entry),
            Self::Linux { protocol: Entry::Bits32, entry, .. } => ("32-bit", entry),
            Self::Linux { protocol: Entry::Bits64, entry, .. } => ("64-bit", entry),
            Self::Pvh { entry, .. } => ("PVH", entry),
        }
    }
}

/// Puts the kernel that the host offers in place, with all that it is told.
pub fn load_kernel<M: Machine>(
    fw_cfg: &mut FwCfg<'_, M>,
    map: &Map,
    rsdp: u64,
) -> Result<Launch, Error> {
    let mut image = [0; HEADER_END];
    fw_cfg.read(key::SETUP_DATA, &mut image)?;
    let choice = read_choice(fw_cfg)?;
    let header = match SetupHeader::parse(&image) {
        Ok(header) => header,
        Err(linux::Error::Elf) => {
            return if matches!(choice, None | Some(Choice::Pvh)) {
                load_pvh(fw_cfg, map, rsdp)
            } else {
                Err(Error::NoSuchEntry)
            };
        }
        // An absent item reads as zeroes.
        Err(_) if image.iter().all(|byte| *byte == 0) => {
            // An entry point without a setup header: QEMU makes a multiboot kernel of these.
            let entry = fw_cfg.read_u32(key::KERNEL_ENTRY)?;
            return Err(if entry == 0 { Error::NoKernel } else { Error::Multiboot });
        }
        Err(error) => return Err(error.into()),
    };
    let protocol = choose_protocol(choice, &header)?;
    let size = fw_cfg.read_u32(key::KERNEL_SIZE)?.into();
    header.check_size(size)?;
    let offset = if protocol == Entry::Bits64 { ENTRY_64_OFFSET } else { 0 };
    // The first instruction must be one that was loaded.
    if protocol != Entry::Bits16 && size <= offset {
        return Err(linux::Error::CutOff(offset + 1 - size).into());
    }
    let mut kernel = header.kernel(size);
    // The 16-bit protocol has 32 bits for the initrd's address.
    kernel.initrd_above_4g &= protocol != Entry::Bits16;
    let initrd_size = fw_cfg.read_u32(key::INITRD_SIZE)?.into();
    // An absent command line is an empty one: a NUL.
    let cmdline_size = u64::from(fw_cfg.read_u32(key::CMDLINE_SIZE)?).max(1);
    let plan = plan(map, &kernel, cmdline_size, initrd_size)?;

    fw_cfg.load(key::KERNEL_DATA, plan.kernel)?;
    fw_cfg.load(key::INITRD_DATA, plan.initrd)?;
    load_command_line(fw_cfg, plan.command_line)?;
    log::loaded(fw_cfg, "kernel", plan.kernel);
    log::loaded(fw_cfg, "initrd", plan.initrd);
    let handoff = Handoff {
        kernel: plan.kernel.start(),
        command_line: plan.command_line.start(),
        initrd: plan.initrd,
        rsdp,
        map,
    };
    if protocol == Entry::Bits16 {
        return load_setup(fw_cfg, header.setup_size.into(), &handoff);
    }
    write_boot_params(fw_cfg.machine(), &image, &handoff)?;
    Ok(Launch::Linux {
        protocol,
        entry: plan.kernel.start() + offset,
        boot_params: layout::BOOT_PARAMS.start(),
    })
}

/// What the user asks for by `opt/org.microvm/entry`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Bits16,
    Bits32,
    Bits64,
    Pvh,
}

fn read_choice<M: Machine>(fw_cfg: &mut FwCfg<'_, M>) -> Result<Option<Choice>, Error> {
    let Some(option) = fw_cfg.known().entry else { return Ok(None) };
    match fw_cfg.read_file(option)?.trim_ascii_end() {
        b"16" => Ok(Some(Choice::Bits16)),
        b"32" => Ok(Some(Choice::Bits32)),
        b"64" => Ok(Some(Choice::Bits64)),
        b"pvh" => Ok(Some(Choice::Pvh)),
        _ => Err(Error::EntryOption),
    }
}

/// The entry that the user asks for, or the cheapest one.
fn choose_protocol(choice: Option<Choice>, header: &SetupHeader) -> Result<Entry, Error> {
    match choice {
        Some(Choice::Bits16) => Ok(Entry::Bits16),
        Some(Choice::Bits32) => Ok(Entry::Bits32),
        Some(Choice::Bits64) if header.has_64_bit_entry() => Ok(Entry::Bits64),
        Some(Choice::Bits64 | Choice::Pvh) => Err(Error::NoSuchEntry),
        None if header.has_64_bit_entry() => Ok(Entry::Bits64),
        // Before kernels could be relocated, the protected-mode part was the setup code's own
        // affair; loaders that look like kernels (iPXE) still have nothing to enter there.
        None if header.relocatable => Ok(Entry::Bits32),
        None => Ok(Entry::Bits16),
    }
}

/// Loads the setup code, for the 16-bit entry, and what the interrupt services need.
fn load_setup<M: Machine>(
    fw_cfg: &mut FwCfg<'_, M>,
    size: u64,
    handoff: &Handoff<'_>,
) -> Result<Launch, Error> {
    // At most 256 sectors, by the width of the header's field.
    let range = Range::new(layout::SETUP.start(), size)
        .filter(|range| range.len() < SETUP_STACK.into())
        .ok_or(Error::Kernel(linux::Error::Truncated))?;
    fw_cfg.load(key::SETUP_DATA, range)?;
    patch_setup(fw_cfg.machine().memory(range), handoff)?;
    write_real_mode_data(fw_cfg.machine(), handoff.map);
    Ok(Launch::Linux { protocol: Entry::Bits16, entry: range.start(), boot_params: 0 })
}

/// Loads the command line and ends it with the NUL that kernels rely on.
pub(crate) fn load_command_line<M: Machine>(
    fw_cfg: &mut FwCfg<'_, M>,
    range: Range,
) -> Result<(), Error> {
    fw_cfg.load(key::CMDLINE_DATA, range)?;
    // The host says that its last byte is one; that is an allegation.
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
