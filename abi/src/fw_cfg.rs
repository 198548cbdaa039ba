//! The fw_cfg device: selectors, the file directory and the DMA interface.
//!
//! Source: QEMU, docs/specs/fw_cfg.rst. Scalars in items are little-endian; the directory and
//! the DMA descriptor are big-endian.

use crate::bytes::array;
use crate::range::Range;

/// Contents of the item [`key::SIGNATURE`].
pub const SIGNATURE: [u8; 4] = *b"QEMU";
/// What a 32-bit read of the DMA address register gives, high half first in guest byte order:
/// the interface's presence test.
pub const DMA_SIGNATURE: [u8; 8] = *b"QEMU CFG";
/// Bit of [`key::ID`]: the selector and data registers work.
pub const ID_TRADITIONAL: u32 = 1;
/// Bit of [`key::ID`]: the DMA interface works.
pub const ID_DMA: u32 = 2;

/// Item selectors (include/standard-headers/linux/qemu_fw_cfg.h, include/hw/nvram/fw_cfg_keys.h).
pub mod key {
    /// `"QEMU"`.
    pub const SIGNATURE: u16 = 0x00;
    /// Interface features, u32.
    pub const ID: u16 = 0x01;
    /// Bytes of guest RAM, u64.
    pub const RAM_SIZE: u16 = 0x03;
    /// Whether there is no graphical display, u16.
    pub const NOGRAPHIC: u16 = 0x04;
    /// CPUs at start, u16.
    pub const NB_CPUS: u16 = 0x05;
    /// Where QEMU wants the kernel, u32.
    pub const KERNEL_ADDR: u16 = 0x07;
    /// Bytes of [`KERNEL_DATA`], u32.
    pub const KERNEL_SIZE: u16 = 0x08;
    /// Where QEMU wants the initrd, u32.
    pub const INITRD_ADDR: u16 = 0x0a;
    /// Bytes of [`INITRD_DATA`], u32.
    pub const INITRD_SIZE: u16 = 0x0b;
    /// CPUs at most, u16.
    pub const MAX_CPUS: u16 = 0x0f;
    /// Entry point of an ELF kernel, u32.
    pub const KERNEL_ENTRY: u16 = 0x10;
    /// The protected-mode part of a bzImage.
    pub const KERNEL_DATA: u16 = 0x11;
    /// The initial RAM disk.
    pub const INITRD_DATA: u16 = 0x12;
    /// Where QEMU wants the command line, u32.
    pub const CMDLINE_ADDR: u16 = 0x13;
    /// Bytes of [`CMDLINE_DATA`] with its NUL, u32.
    pub const CMDLINE_SIZE: u16 = 0x14;
    /// The command line with its NUL.
    pub const CMDLINE_DATA: u16 = 0x15;
    /// Where QEMU wants the setup code, u32.
    pub const SETUP_ADDR: u16 = 0x16;
    /// Bytes of [`SETUP_DATA`], u32.
    pub const SETUP_SIZE: u16 = 0x17;
    /// The real-mode part of a bzImage with its setup header.
    pub const SETUP_DATA: u16 = 0x18;
    /// The file directory.
    pub const FILE_DIR: u16 = 0x19;
    /// The first selector of a file.
    pub const FILE_FIRST: u16 = 0x20;
    /// Whether IRQ 0 is on pin 2 of the I/O APIC, u32.
    pub const IRQ0_OVERRIDE: u16 = 0x8002;
}

/// File names.
pub mod file {
    /// The memory map: packed entries of [`crate::e820`], no header.
    pub const E820: &str = "etc/e820";
    /// The script of [`crate::table_loader`] that links the ACPI tables.
    pub const TABLE_LOADER: &str = "etc/table-loader";
    /// The RSDP.
    pub const ACPI_RSDP: &str = "etc/acpi/rsdp";
    /// All other ACPI tables.
    pub const ACPI_TABLES: &str = "etc/acpi/tables";
    /// What a BIOS boots from, in this order: device paths by line.
    pub const BOOT_ORDER: &str = "bootorder";
    /// The geometry of disks, for a BIOS that cannot ask them.
    pub const BIOS_GEOMETRY: &str = "bios-geometry";
    /// Milliseconds after which a BIOS that found nothing to boot resets, i32; -1 for never.
    pub const BOOT_FAIL_WAIT: &str = "etc/boot-fail-wait";
    /// The SMBIOS anchor, without the address of its tables.
    pub const SMBIOS_ANCHOR: &str = "etc/smbios/smbios-anchor";
    /// The SMBIOS structures.
    pub const SMBIOS_TABLES: &str = "etc/smbios/smbios-tables";
    /// The end of what the host keeps above 4 GiB for memory that comes later, u64.
    pub const RESERVED_MEMORY_END: &str = "etc/reserved-memory-end";
    /// An MSR's value that the host wants in every CPU, u64 (`IA32_FEATURE_CONTROL`).
    pub const FEATURE_CONTROL: &str = "etc/msr_feature_control";
    /// The pvpanic device's port, u16.
    pub const PVPANIC_PORT: &str = "etc/pvpanic-port";
    /// Items that our firmware is going to read, all in one: see [`super::Record`].
    pub const PREFETCH: &str = "etc/microvm/prefetch";
    /// Where our firmware writes its [`crate::boot_trace`].
    pub const BOOT_TRACE: &str = "etc/microvm/boot-trace";
    /// Which entry our firmware takes into the kernel: `16`, `32`, `64` or `pvh`, in ASCII.
    pub const ENTRY: &str = "opt/org.microvm/entry";
    /// Whether our firmware tells what it does: `on` or `off`, in ASCII.
    pub const VERBOSE: &str = "opt/org.microvm/verbose";
}

/// Bits of the DMA descriptor's control word. Precedence: READ, WRITE, SKIP.
pub mod dma {
    /// The transfer failed.
    pub const ERROR: u32 = 1;
    /// Copy from the item to memory; past its end, zeroes.
    pub const READ: u32 = 1 << 1;
    /// Move on in the item without a copy.
    pub const SKIP: u32 = 1 << 2;
    /// First select the item in bits 31 to 16.
    pub const SELECT: u32 = 1 << 3;
    /// Copy from memory to the item.
    pub const WRITE: u32 = 1 << 4;
}

/// `FWCfgDmaAccess`: what the address register points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaAccess {
    /// Bits of [`dma`], and the selector in bits 31 to 16.
    pub control: u32,
    /// Bytes.
    pub length: u32,
    /// Guest-physical address of the bytes.
    pub address: u64,
}

impl DmaAccess {
    /// Bytes on the wire.
    pub const SIZE: usize = 16;

    /// Big-endian, as the device reads it.
    pub fn encode(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..4].copy_from_slice(&self.control.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.length.to_be_bytes());
        bytes[8..].copy_from_slice(&self.address.to_be_bytes());
        bytes
    }

    /// The inverse of [`Self::encode`].
    pub fn decode(bytes: [u8; Self::SIZE]) -> Self {
        let [c0, c1, c2, c3, l0, l1, l2, l3, address @ ..] = bytes;
        Self {
            control: u32::from_be_bytes([c0, c1, c2, c3]),
            length: u32::from_be_bytes([l0, l1, l2, l3]),
            address: u64::from_be_bytes(address),
        }
    }

    /// The selector, when [`dma::SELECT`] asks for one.
    pub fn selector(self) -> Option<u16> {
        let [hi, lo, ..] = self.control.to_be_bytes();
        (self.control & dma::SELECT != 0).then_some(u16::from_be_bytes([hi, lo]))
    }
}

/// A control word that selects `selector` and then does `operation` of [`dma`].
pub const fn select_and(selector: u16, operation: u32) -> u32 {
    (selector as u32) << 16 | dma::SELECT | operation
}

/// Longest file name with its NUL.
pub const FILE_NAME_SIZE: usize = 56;

/// `FWCfgFile`: one entry of the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct File {
    /// Bytes of the file.
    pub size: u32,
    /// Its item.
    pub selector: u16,
    /// Its name, NUL-padded.
    pub name: [u8; FILE_NAME_SIZE],
}

impl File {
    /// Bytes on the wire.
    pub const SIZE: usize = 64;

    /// Names the file; `None` when the name with its NUL is too long or has a NUL in it.
    pub fn new(name: &str, selector: u16, size: u32) -> Option<Self> {
        if name.len() >= FILE_NAME_SIZE || name.bytes().any(|b| b == 0) {
            return None;
        }
        let mut padded = [0; FILE_NAME_SIZE];
        padded[..name.len()].copy_from_slice(name.as_bytes());
        Some(Self { size, selector, name: padded })
    }

    /// Big-endian size and selector, two reserved bytes, the name.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..4].copy_from_slice(&self.size.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.selector.to_be_bytes());
        bytes[8..].copy_from_slice(&self.name);
        bytes
    }

    /// The entry in `bytes`.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Self {
        let [s0, s1, s2, s3, k0, k1, _, _, name @ ..] = *bytes;
        Self {
            size: u32::from_be_bytes([s0, s1, s2, s3]),
            selector: u16::from_be_bytes([k0, k1]),
            name,
        }
    }

    /// Whether the file has this name.
    pub fn is_named(&self, name: &str) -> bool {
        name_matches(&self.name, name)
    }
}

/// A record of the file [`file::PREFETCH`]: the start of an item.
///
/// The file saves its reader a transfer for each item. A record is the item's selector and the
/// number of its bytes that follow, both u16 and little-endian, and these bytes. What has no
/// record, or a shorter one than is wanted, is read from its item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// The item.
    pub selector: u16,
    /// Its first bytes.
    pub bytes: &'a [u8],
}

/// Bytes in front of a record's own.
const RECORD_HEADER: usize = 4;

impl<'a> Record<'a> {
    /// Takes the first record off `bytes`; `None` at the end, and where a record is cut off.
    pub fn take(bytes: &mut &'a [u8]) -> Option<Self> {
        let selector = u16::from_le_bytes(array(bytes, 0)?);
        let length = u16::from_le_bytes(array(bytes, 2)?);
        let (item, rest) = bytes.get(RECORD_HEADER..)?.split_at_checked(length.into())?;
        *bytes = rest;
        Some(Self { selector, bytes: item })
    }

    /// The header of a record; the item's bytes follow. `None` when there are too many of them.
    pub fn header(selector: u16, length: usize) -> Option<[u8; RECORD_HEADER]> {
        let [a, b] = selector.to_le_bytes();
        let [c, d] = u16::try_from(length).ok()?.to_le_bytes();
        Some([a, b, c, d])
    }
}

/// An item that the host has put into guest memory already, where it expects its reader to want it.
/// Who finds it exactly where it wants it saves the transfer.
///
/// In the prefetch file these are the bytes of the record [`Placed::RECORD`]: the selector (u16),
/// the address and the number of the item's first bytes there (u64), all little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The item.
    pub selector: u16,
    /// Where its first bytes are.
    pub range: Range,
}

impl Placed {
    /// The selector of the record of all of them; it is no item's.
    pub const RECORD: u16 = 0xffff;
    /// Bytes of each.
    pub const SIZE: usize = 18;

    /// The wire format.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        let (selector, rest) = bytes.split_at_mut(2);
        let (address, length) = rest.split_at_mut(8);
        selector.copy_from_slice(&self.selector.to_le_bytes());
        address.copy_from_slice(&self.range.start().to_le_bytes());
        length.copy_from_slice(&self.range.len().to_le_bytes());
        bytes
    }
}

/// Compares a NUL-padded name with `name`.
#[inline(never)]
pub fn name_matches(padded: &[u8; FILE_NAME_SIZE], name: &str) -> bool {
    // In words, up to the first that differs: most names differ in the first, and a call to compare
    // memory costs more than that.
    let (words, rest) = name.as_bytes().as_chunks::<8>();
    let mut padded = padded.as_chunks::<8>().0.iter();
    let same = |word: &[u8; 8]| {
        padded.next().is_some_and(|other| u64::from_le_bytes(*other) == u64::from_le_bytes(*word))
    };
    words.iter().all(same)
        && padded
            .next()
            .is_some_and(|last| last.starts_with(rest) && last.get(rest.len()) == Some(&0))
}

/// Compares two NUL-padded names, bytes behind the NUL included.
pub fn same_name(a: &[u8; FILE_NAME_SIZE], b: &[u8; FILE_NAME_SIZE]) -> bool {
    // In words, up to the first that differs; 56 bytes are seven of them.
    let words = a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0);
    words.into_iter().all(|(a, b)| u64::from_le_bytes(*a) == u64::from_le_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dma_access_is_big_endian() {
        let access = DmaAccess {
            control: select_and(key::FILE_DIR, dma::READ),
            length: 0x40,
            address: 0x1234_5678,
        };
        let bytes = access.encode();
        assert_eq!(bytes, [0, 0x19, 0, 0x0a, 0, 0, 0, 0x40, 0, 0, 0, 0, 0x12, 0x34, 0x56, 0x78]);
        assert_eq!(DmaAccess::decode(bytes), access);
        assert_eq!(access.selector(), Some(key::FILE_DIR));
        assert_eq!(DmaAccess { control: dma::READ, ..access }.selector(), None);
    }

    #[test]
    fn directory_entry_round_trips() {
        let file = File::new(file::E820, 0x22, 60).unwrap();
        let bytes = file.encode();
        assert_eq!(&bytes[..8], &[0, 0, 0, 60, 0, 0x22, 0, 0]);
        assert_eq!(File::decode(&bytes), file);
    }

    #[test]
    fn records_round_trip_and_a_cut_one_is_none() {
        let mut bytes = Record::header(key::KERNEL_SIZE, 4).unwrap().to_vec();
        bytes.extend([1, 2, 3, 4]);
        bytes.extend(Record::header(0x8002, 0).unwrap());
        bytes.extend(Record::header(1, 3).unwrap());
        bytes.extend([5, 6]);
        let rest = &mut bytes.as_slice();
        let first = Record { selector: key::KERNEL_SIZE, bytes: &[1, 2, 3, 4] };
        assert_eq!(Record::take(rest), Some(first));
        assert_eq!(Record::take(rest), Some(Record { selector: 0x8002, bytes: &[] }));
        assert_eq!(Record::take(rest), None);
        assert_eq!(Record::header(0, 0x1_0000), None);
    }

    #[test]
    fn names_match_whole() {
        let file = File::new("etc/e820", 0x20, 0).unwrap();
        assert!(file.is_named("etc/e820"));
        assert!(!file.is_named("etc/e82"));
        assert!(!file.is_named("etc/e8200"));
        assert!(!name_matches(&[b'a'; FILE_NAME_SIZE], "a"), "no NUL, no name");
        assert!(same_name(&file.name, &file.name));
        assert!(!same_name(&file.name, &File::new("etc/e821", 0x20, 0).unwrap().name));
        let long = |last| File::new(&format!("{}{last}", "x".repeat(54)), 0x20, 0).unwrap().name;
        assert!(!same_name(&long('a'), &long('b')));
        assert_eq!(File::new(&"x".repeat(FILE_NAME_SIZE), 0x20, 0), None);
    }
}
