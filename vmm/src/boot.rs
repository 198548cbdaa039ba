//! The ways to boot. Each fills guest memory and returns how the CPU starts.

pub mod elf;
pub mod firmware;
pub mod linux;
mod state;

use abi::e820::{Entry, Map, kind};
use abi::range::Range;
use abi::{bda, layout, mp_table, ports};

use crate::acpi;
use crate::config::Config;
use crate::fw_cfg::Items;
use crate::image::{Format, Images};
use crate::memory::{self, GuestRam};
use crate::virtio::slots;
pub use state::{CODE_OR_DATA, Cpu, InitState, Segment, Table};

/// Why a machine cannot boot.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file.
    #[error(transparent)]
    Image(#[from] crate::image::Error),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// Something does not fit.
    #[error("{what} '{path}': {why}; {remedy}")]
    Placement {
        /// What does not fit.
        what: &'static str,
        /// Its file.
        path: std::path::PathBuf,
        /// What it needs and what there is.
        why: abi::placement::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// An ELF file that cannot be loaded.
    #[error("-kernel '{path}': {problem}")]
    Elf {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The kernel's header.
    #[error("-kernel: {0}")]
    Header(abi::linux::Error),
    /// The memory map.
    #[error("the memory map has too many entries ({0:?})")]
    Map(abi::e820::Error),
    /// A structure that is bigger than its place: a mistake of this program.
    #[error("{0} do not fit where they go; please report this")]
    TooBig(&'static str),
}

/// What every way to boot is made of.
pub struct Source<'a> {
    /// The machine.
    pub config: &'a Config,
    /// The files.
    pub images: &'a Images,
    /// The ACPI tables; without them, the machine has an MP table.
    pub acpi: Option<&'a acpi::Tables>,
}

impl Source<'_> {
    /// The command line with its NUL, and with the devices that only it can tell of.
    pub fn command_line_bytes(&self) -> Vec<u8> {
        let mut text = self.config.append.clone();
        // ACPI lists them itself.
        if !self.config.acpi && self.config.auto_kernel_cmdline {
            let slots = slots::in_order(false).take(self.config.virtio.len());
            text.extend(slots.map(slots::parameter));
        }
        text.push('\0');
        text.into_bytes()
    }

    /// Bytes of the initrd.
    pub fn initrd_size(&self) -> u64 {
        self.images.initrd.as_ref().map_or(0, |initrd| initrd.size())
    }

    /// An error line about the part of the boot that does not fit.
    fn placement_error(&self, why: abi::placement::Error) -> Error {
        use abi::placement::Error as E;
        let kernel = self.images.kernel.as_ref().map(|kernel| kernel.image.path());
        let initrd = self.images.initrd.as_ref().map(|initrd| initrd.path());
        let (what, path, remedy) = match why {
            E::Initrd { .. } => ("-initrd", initrd, "give more by -m"),
            E::CommandLine { .. } => ("-append for", kernel, "shorten it"),
            E::Kernel { .. } | E::LowMemory => ("-kernel", kernel, "give more by -m"),
        };
        Error::Placement { what, path: path.unwrap_or("".as_ref()).into(), why, remedy }
    }
}

/// Prepares guest memory for the way that `source` asks for; with a BIOS, also what it is to
/// find in fw_cfg.
pub fn prepare(source: &Source<'_>, ram: &GuestRam) -> Result<(InitState, Option<Items>), Error> {
    if source.images.bios.is_some() {
        let (state, items) = firmware::prepare(source, ram)?;
        return Ok((state, Some(items)));
    }
    let state = match source.images.kernel.as_ref().map(|kernel| &kernel.format) {
        Some(Format::BzImage(header, setup)) => linux::prepare(source, header, setup, ram)?,
        Some(Format::Elf) | None => elf::prepare(source, ram)?,
    };
    Ok((state, None))
}

/// What KVM on Intel keeps for itself below the BIOS.
const KVM_PAGES: Range =
    Range::between(layout::KVM_IDENTITY_MAP, layout::KVM_TSS + 3 * layout::PAGE);

/// `etc/e820`: KVM's own pages first, as in QEMU, then RAM.
pub fn e820_bytes(memory: u64) -> Vec<u8> {
    let reserved = Entry { range: KVM_PAGES, kind: kind::RESERVED };
    let ram = memory::ranges(memory).into_iter().map(|range| Entry { range, kind: kind::RAM });
    std::iter::once(reserved).chain(ram).flat_map(|entry| entry.encode()).collect()
}

/// The memory map that a kernel gets: what the firmware makes of `etc/e820`.
pub fn memory_map(memory: u64) -> Result<Map, Error> {
    let mut map = Map::parse(&e820_bytes(memory)).map_err(Error::Map)?;
    map.reserve_legacy().map_err(Error::Map)?;
    Ok(map)
}

/// What pin 0's interrupt comes by, as fw_cfg has it: ISA's interrupt 0 is on pin 2, as on QEMU's
/// microvm.
const IRQ0_OVERRIDE: bool = true;

/// Describes the machine below 1 MiB, by ACPI tables or an MP table; where the RSDP is, or 0.
fn place_description(source: &Source<'_>, ram: &GuestRam) -> Result<u64, Error> {
    let Some(acpi) = source.acpi else {
        let cpus = u32::from(source.config.cpus).clamp(1, mp_table::CPUS_MAX);
        let size = usize::try_from(mp_table::size(cpus, IRQ0_OVERRIDE)).unwrap_or(0);
        let mut table = vec![0; size];
        mp_table::write_table(&mut table, cpus, IRQ0_OVERRIDE);
        ram.write(mp_table::TABLE, &table)?;
        let pointer = mp_table::floating_pointer(mp_table::TABLE);
        ram.write(mp_table::POINTER.start(), &pointer)?;
        return Ok(0);
    };
    let placed = acpi.place().ok_or(Error::TooBig("the ACPI tables"))?;
    ram.write(layout::ACPI_TABLES.start(), &placed.bytes)?;
    Ok(placed.rsdp)
}

/// What stands where a BIOS would: whoever jumps to the reset vector below 1 MiB gets a reset.
/// Linux does so to reboot when ACPI is hardware-reduced and there is no EFI. Real mode:
/// `mov al, 0xfe; out 0x64, al; again: hlt; jmp again`.
const RESET_STUB: [u8; 7] = {
    let [port, 0] = ports::I8042_COMMAND.to_le_bytes() else { panic!("the port is a byte") };
    [0xb0, ports::I8042_RESET, 0xe6, port, 0xf4, 0xeb, 0xfd]
};

/// The reset vector's alias below 1 MiB.
const RESET_VECTOR_LOW: u64 =
    layout::BIOS_LOW.end() - (layout::BIOS_HIGH.end() - layout::RESET_VECTOR);

/// Puts there what a BIOS leaves for kernels below 1 MiB: its data area, and a reset vector.
fn place_bios_remains(ram: &GuestRam) -> Result<(), Error> {
    for (address, value) in bda::FIELDS {
        ram.write(address, &value.to_le_bytes())?;
    }
    Ok(ram.write(RESET_VECTOR_LOW, &RESET_STUB)?)
}

/// Puts the initrd where it was planned.
fn place_initrd(source: &Source<'_>, at: Range, ram: &GuestRam) -> Result<(), Error> {
    if let Some(initrd) = &source.images.initrd {
        ram.load(at.start(), initrd.file(), 0, at.len())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
