//! Everything that can stop the firmware, each with its number and its line.
//!
//! The numbers are part of the interface (docs/firmware.md lists them): a number is never given
//! a second meaning.

use core::fmt;

use abi::{e820, linux, placement, table_loader};

/// Why there is no kernel to enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The heap is too small for a file of this many bytes.
    HeapFull(usize),
    /// No fw_cfg device.
    NoFwCfg,
    /// The device reported an error for this item.
    Dma(u16),
    /// A file directory of this many entries.
    Directory(u32),
    /// This item goes where only DMA reaches, and the device has none.
    NeedsDma(u16),
    /// No file `etc/e820`.
    NoE820,
    /// A memory map that is none.
    E820(e820::Error),
    /// A command of the table-loader script (its index) that cannot be carried out.
    TableLoader(usize, TableError),
    /// So many of so many other CPUs have set their registers.
    CpusSilent(u32, u32),
    /// The CPU does not take the value of a register.
    MsrRefused,
    /// The host offers no kernel.
    NoKernel,
    /// The kernel is no bzImage.
    Kernel(linux::Error),
    /// Something does not fit into memory.
    Placement(placement::Error),
    /// `opt/org.microvm/entry` holds something unknown.
    EntryOption,
    /// The kernel does not have the entry that was asked for.
    NoSuchEntry,
    /// An ELF kernel whose PVH entry is not in it.
    NoPvhEntry,
    /// A multiboot kernel.
    Multiboot,
    /// An ELF kernel at an address, of a size, where it cannot be.
    ElfPlace(u32, u32),
}

/// What is wrong with a table-loader command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// A field that cannot be.
    Command(table_loader::Error),
    /// It names a file that the directory does not have.
    NoFile,
    /// It names a file that was not allocated before.
    NotAllocated,
    /// It allocates a file for the second time.
    AllocatedTwice,
    /// No room for a file of this many bytes.
    NoRoom(u32),
    /// It reaches past the end of a file.
    OutOfBounds,
}

impl Error {
    /// The number on the serial line, the value for isa-debug-exit.
    pub const fn code(self) -> u8 {
        match self {
            Self::HeapFull(_) => 2,
            Self::NoFwCfg => 10,
            Self::Dma(_) => 11,
            Self::Directory(_) => 12,
            Self::NeedsDma(_) => 13,
            Self::NoE820 => 20,
            Self::E820(_) => 21,
            Self::TableLoader(..) => 30,
            Self::CpusSilent(..) => 35,
            Self::MsrRefused => 36,
            Self::NoKernel => 40,
            Self::Kernel(_) => 41,
            Self::Placement(placement::Error::LowMemory) => 42,
            Self::Placement(placement::Error::CommandLine { .. }) => 43,
            Self::Placement(placement::Error::Kernel { .. }) => 44,
            Self::Placement(placement::Error::Initrd { .. }) => 45,
            Self::EntryOption => 46,
            Self::NoSuchEntry => 47,
            Self::NoPvhEntry => 48,
            Self::ElfPlace(..) => 49,
            Self::Multiboot => 50,
        }
    }
}

/// The number of a bug in this firmware.
pub const PANIC_CODE: u8 = 1;

/// The number that `start.S` leaves, without a line, where the image finds no RAM to run in.
pub const NO_SHADOW_CODE: u8 = 3;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HeapFull(size) => write!(f, "no heap left for a fw_cfg file of {size} bytes"),
            Self::NoFwCfg => write!(f, "this machine has no fw_cfg device at port 0x510"),
            Self::Dma(item) => write!(f, "fw_cfg reports an error for item {item:#x}"),
            Self::NeedsDma(item) => write!(
                f,
                "fw_cfg has no DMA, and item {item:#x} goes above 1 GiB: give less memory (-m 1G)"
            ),
            Self::Directory(count) => write!(f, "fw_cfg lists {count} files, more than can be"),
            Self::NoE820 => write!(f, "fw_cfg has no file etc/e820, so there is no memory map"),
            Self::E820(e820::Error::Length(n)) => {
                write!(f, "etc/e820 has {n} bytes, no multiple of 20")
            }
            Self::E820(e820::Error::Wraps(i)) => write!(f, "etc/e820: entry {i} passes 2^64"),
            Self::E820(e820::Error::TooMany) => {
                write!(f, "etc/e820 has more than {} entries", e820::Map::CAPACITY)
            }
            Self::TableLoader(index, error) => {
                write!(f, "etc/table-loader: command {index} {error}")
            }
            Self::CpusSilent(answers, others) => {
                write!(f, "{answers} of {others} other CPUs could be started")
            }
            Self::MsrRefused => write!(f, "the CPU refuses the value in etc/msr_feature_control"),
            Self::NoKernel => write!(f, "no kernel: start the VMM with -kernel FILE"),
            Self::Kernel(error) => write!(f, "the kernel cannot be booted: {error}"),
            Self::Placement(error) => write!(f, "{error}"),
            Self::EntryOption => write!(f, "opt/org.microvm/entry is none of 16, 32, 64 and pvh"),
            Self::NoSuchEntry => {
                write!(f, "the kernel does not have the entry that opt/org.microvm/entry names")
            }
            Self::NoPvhEntry => write!(f, "the ELF kernel has no PVH entry within its segments"),
            Self::Multiboot => write!(f, "multiboot kernels are not known, only bzImages and PVH"),
            Self::ElfPlace(start, size) => {
                write!(f, "the ELF kernel at {start:#x}, {size} bytes, is not all in free RAM")
            }
        }
    }
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command(table_loader::Error::Truncated) => write!(f, "is cut off"),
            Self::Command(table_loader::Error::Alignment(a)) => {
                write!(f, "asks for alignment {a:#x}, no power of two")
            }
            Self::Command(table_loader::Error::Zone(z)) => write!(f, "asks for zone {z}"),
            Self::Command(table_loader::Error::PointerSize(n)) => {
                write!(f, "patches a pointer of {n} bytes")
            }
            Self::NoFile => write!(f, "names a file that fw_cfg does not have"),
            Self::NotAllocated => write!(f, "names a file that was not allocated"),
            Self::AllocatedTwice => write!(f, "allocates a file again"),
            Self::NoRoom(size) => write!(f, "allocates {size} bytes: no room"),
            Self::OutOfBounds => write!(f, "reaches past the end of its file"),
        }
    }
}

impl From<placement::Error> for Error {
    fn from(error: placement::Error) -> Self {
        Self::Placement(error)
    }
}

impl From<linux::Error> for Error {
    fn from(error: linux::Error) -> Self {
        Self::Kernel(error)
    }
}

impl From<e820::Error> for Error {
    fn from(error: e820::Error) -> Self {
        Self::E820(error)
    }
}
