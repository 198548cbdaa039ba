//! The Linux x86 boot protocol: setup header and zero page.
//!
//! Source: Linux, Documentation/arch/x86/boot.rst. Offsets are those of the bzImage file, which
//! from 0x1f1 on are also those of `struct boot_params`.

use core::fmt;

use crate::bytes::{get_u8, get_u16, get_u32, get_u64, put};
use crate::e820::Map;
use crate::layout::PAGE;
use crate::placement::Kernel;
use crate::range::Range;

/// Bytes of `struct boot_params`, the zero page.
pub const BOOT_PARAMS_SIZE: usize = 4096;
const _: () = assert!(BOOT_PARAMS_SIZE as u64 == PAGE);
/// Bytes at the start of a bzImage in which every header field lies.
pub const HEADER_END: usize = 0x290;
/// A sector, the unit of `setup_sects`.
pub const SECTOR: u32 = 512;
/// The unit of `syssize`.
const PARAGRAPH: u64 = 16;
/// Entry of the 64-bit protocol, from the start of the protected-mode part.
pub const ENTRY_64_OFFSET: u64 = 0x200;
/// Code segment selector that both protocols ask for (`__BOOT_CS`).
pub const BOOT_CS: u16 = 0x10;
/// Data segment selector that both protocols ask for (`__BOOT_DS`).
pub const BOOT_DS: u16 = 0x18;
/// `type_of_loader` of QEMU, whose protocol both of our paths speak.
pub const LOADER_QEMU: u8 = 0xb0;

/// `loadflags`: `heap_end_ptr` is valid.
const CAN_USE_HEAP: u8 = 1 << 7;
/// `loadflags`: the protected-mode part goes to 1 MiB or above.
const LOADED_HIGH: u8 = 1;
/// `xloadflags`: there is a 64-bit entry.
const XLF_KERNEL_64: u16 = 1;
/// `xloadflags`: kernel, initrd and the rest may lie above 4 GiB.
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 2;
/// `initrd_addr_max` before protocol 2.03 had the field.
const INITRD_ADDR_MAX_OLD: u32 = 0x37ff_ffff;
/// `cmdline_size` before protocol 2.06 had the field.
const CMDLINE_SIZE_OLD: u32 = 255;

/// Offsets of the fields that a boot loader reads or writes.
mod offset {
    pub const ACPI_RSDP_ADDR: usize = 0x070;
    pub const EXT_RAMDISK_IMAGE: usize = 0x0c0;
    pub const EXT_RAMDISK_SIZE: usize = 0x0c4;
    pub const E820_ENTRIES: usize = 0x1e8;
    pub const SETUP_SECTS: usize = 0x1f1;
    pub const SYSSIZE: usize = 0x1f4;
    pub const BOOT_FLAG: usize = 0x1fe;
    pub const JUMP_LENGTH: usize = 0x201;
    pub const MAGIC: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const TYPE_OF_LOADER: usize = 0x210;
    pub const LOADFLAGS: usize = 0x211;
    pub const CODE32_START: usize = 0x214;
    pub const RAMDISK_IMAGE: usize = 0x218;
    pub const RAMDISK_SIZE: usize = 0x21c;
    pub const HEAP_END_PTR: usize = 0x224;
    pub const CMD_LINE_PTR: usize = 0x228;
    pub const INITRD_ADDR_MAX: usize = 0x22c;
    pub const KERNEL_ALIGNMENT: usize = 0x230;
    pub const RELOCATABLE_KERNEL: usize = 0x234;
    pub const XLOADFLAGS: usize = 0x236;
    pub const CMDLINE_SIZE: usize = 0x238;
    pub const SETUP_DATA: usize = 0x250;
    pub const PREF_ADDRESS: usize = 0x258;
    pub const INIT_SIZE: usize = 0x260;
    pub const E820_TABLE: usize = 0x2d0;
}

/// How a kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Real mode, at the start of the setup code's second sector.
    Bits16,
    /// Protected mode without paging, at the start of the protected-mode part.
    Bits32,
    /// Long mode, 0x200 into the protected-mode part.
    Bits64,
}

/// Why a file is not taken as a bzImage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The file ends within the header.
    Truncated,
    /// An ELF file, for example a vmlinux.
    Elf,
    /// Bytes that the header promises and the file does not have.
    CutOff(u64),
    /// Neither `HdrS` nor anything else that is known.
    NoMagic,
    /// A protocol before 2.02 (value: the version).
    TooOld(u16),
    /// A zImage: its protected-mode part does not go to 1 MiB.
    NotLoadedHigh,
    /// A relocatable kernel's `kernel_alignment` is no power of two (value: the field).
    Alignment(u32),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => write!(f, "the file ends within its setup header"),
            Self::CutOff(missing) => write!(f, "it is cut off: {missing} bytes are missing"),
            Self::Elf => write!(f, "it is an ELF file where a bzImage is needed"),
            Self::NoMagic => write!(f, "it has no HdrS magic, so it is no bzImage"),
            Self::TooOld(v) => {
                write!(f, "boot protocol {}.{:02} is older than 2.02", v >> 8, v & 0xff)
            }
            Self::NotLoadedHigh => write!(f, "it is a zImage, not a bzImage"),
            Self::Alignment(a) => write!(f, "kernel_alignment {a:#x} is no power of two"),
        }
    }
}

impl core::error::Error for Error {}

/// The setup header's fields that matter to a boot loader, with the defaults that the protocol
/// gives to those newer than the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetupHeader {
    /// Bytes of the real-mode part: the protected-mode part starts here in the file.
    pub setup_size: u32,
    /// Bytes of the protected-mode part, rounded up to a paragraph; 0 when it does not say.
    promised_size: u64,
    /// Protocol version, 0x020c for 2.12.
    pub version: u16,
    /// `xloadflags`, 0 before 2.12.
    xloadflags: u16,
    /// Highest address that the initrd's last byte may have.
    pub initrd_addr_max: u32,
    /// Longest command line in bytes, without its NUL.
    pub cmdline_size: u32,
    /// `kernel_alignment` in bytes; 1 when it is not relocatable.
    pub kernel_alignment: u32,
    /// Whether it runs where it is loaded.
    pub relocatable: bool,
    /// Where it would like to run; 0 before 2.10.
    pub pref_address: u64,
    /// Bytes of memory it needs from where it runs until it reads the memory map; 0 before 2.10.
    pub init_size: u32,
    /// Address of a list of `struct setup_data`, placed by the host; 0 for none.
    pub setup_data: u64,
}

impl SetupHeader {
    /// Reads the header from the first bytes of a bzImage, [`HEADER_END`] of them if there are
    /// that many.
    pub fn parse(image: &[u8]) -> Result<Self, Error> {
        if image.starts_with(b"\x7fELF") {
            return Err(Error::Elf);
        }
        let boot_flag = get_u16(image, offset::BOOT_FLAG);
        let magic = image.get(offset::MAGIC..offset::VERSION).ok_or(Error::Truncated)?;
        if boot_flag != Some(0xaa55) || magic != b"HdrS" {
            return Err(Error::NoMagic);
        }
        let version = get_u16(image, offset::VERSION).ok_or(Error::Truncated)?;
        if version < 0x0202 {
            return Err(Error::TooOld(version));
        }
        Self::read_fields(image, version)
    }

    fn read_fields(image: &[u8], version: u16) -> Result<Self, Error> {
        let since = |first: u16, default: u32, at: usize| {
            if version < first { Some(default) } else { get_u32(image, at) }.ok_or(Error::Truncated)
        };
        let loadflags = get_u8(image, offset::LOADFLAGS).ok_or(Error::Truncated)?;
        if loadflags & LOADED_HIGH == 0 {
            return Err(Error::NotLoadedHigh);
        }
        let newer = |first: u16, at: usize| {
            if version < first { Some(0) } else { get_u64(image, at) }.ok_or(Error::Truncated)
        };
        // 0 stands for 4, from the days of fixed-size setup code.
        let sectors = match get_u8(image, offset::SETUP_SECTS).ok_or(Error::Truncated)? {
            0 => 4,
            sectors => u32::from(sectors),
        };
        // Who is not relocatable may leave the alignment 0, as iPXE does.
        let relocatable = version >= 0x0205 && get_u8(image, offset::RELOCATABLE_KERNEL) != Some(0);
        let kernel_alignment =
            if relocatable { get_u32(image, offset::KERNEL_ALIGNMENT) } else { Some(1) }
                .ok_or(Error::Truncated)?;
        if !kernel_alignment.is_power_of_two() {
            return Err(Error::Alignment(kernel_alignment));
        }
        let xloadflags = match version {
            ..0x020c => 0,
            _ => get_u16(image, offset::XLOADFLAGS).ok_or(Error::Truncated)?,
        };
        Ok(Self {
            setup_size: (sectors + 1) * SECTOR,
            promised_size: match version {
                // Two bytes before 2.04.
                ..0x0204 => 0,
                _ => {
                    u64::from(get_u32(image, offset::SYSSIZE).ok_or(Error::Truncated)?) * PARAGRAPH
                }
            },
            version,
            xloadflags,
            initrd_addr_max: since(0x0203, INITRD_ADDR_MAX_OLD, offset::INITRD_ADDR_MAX)?,
            cmdline_size: since(0x0206, CMDLINE_SIZE_OLD, offset::CMDLINE_SIZE)?,
            kernel_alignment,
            relocatable,
            pref_address: newer(0x020a, offset::PREF_ADDRESS)?,
            init_size: since(0x020a, 0, offset::INIT_SIZE)?,
            setup_data: newer(0x0209, offset::SETUP_DATA)?,
        })
    }

    /// Whether the kernel offers the 64-bit entry.
    pub fn has_64_bit_entry(&self) -> bool {
        self.xloadflags & XLF_KERNEL_64 != 0
    }

    /// Whether the initrd may lie above 4 GiB: the kernel says so, and is of an age (2.12) that
    /// reads `ext_ramdisk_image`.
    pub fn can_load_above_4g(&self) -> bool {
        self.has_64_bit_entry() && self.xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0
    }

    /// Whether a protected-mode part of `size` bytes is all that the header promises.
    pub fn check_size(&self, size: u64) -> Result<(), Error> {
        // The promise is in whole paragraphs.
        match self.promised_size.saturating_sub(size) {
            ..PARAGRAPH => Ok(()),
            missing => Err(Error::CutOff(missing)),
        }
    }

    /// What the placement has to know, for a protected-mode part of `size` bytes.
    pub fn kernel(&self, size: u64) -> Kernel {
        Kernel {
            size,
            init_size: u64::from(self.init_size),
            alignment: u64::from(self.kernel_alignment),
            pref_address: self.pref_address,
            // Nodes of `setup_data` were placed by the host behind the kernel, for the kernel's
            // customary address.
            relocatable: self.relocatable && self.setup_data == 0,
            cmdline_max: u64::from(self.cmdline_size),
            initrd_addr_max: u64::from(self.initrd_addr_max),
            initrd_above_4g: self.can_load_above_4g(),
        }
    }
}

/// What the zero page tells the kernel beside its own header.
#[derive(Clone, Copy, Debug)]
pub struct Handoff<'a> {
    /// Where the protected-mode part is.
    pub kernel: u64,
    /// Where the command line is.
    pub command_line: u64,
    /// Where the initrd is; empty for none.
    pub initrd: Range,
    /// Where the RSDP is; 0 for none.
    pub rsdp: u64,
    /// The memory map.
    pub map: &'a Map,
}

/// Fills a zeroed zero page from the first bytes of the bzImage (`image`) and `handoff`.
///
/// The header is copied up to its own end, which it gives in a byte of its own, and never past
/// [`HEADER_END`]: that byte is the host's word.
pub fn fill_boot_params(
    page: &mut [u8; BOOT_PARAMS_SIZE],
    image: &[u8],
    handoff: &Handoff<'_>,
) -> Result<(), Error> {
    let length = usize::from(get_u8(image, offset::JUMP_LENGTH).ok_or(Error::Truncated)?);
    let end = (offset::MAGIC + length).min(HEADER_END);
    let header = image.get(offset::SETUP_SECTS..end).ok_or(Error::Truncated)?;
    page[offset::SETUP_SECTS..end].copy_from_slice(header);
    page[offset::TYPE_OF_LOADER] = LOADER_QEMU;
    let [kernel, _] = halves(handoff.kernel);
    let [command_line, _] = halves(handoff.command_line);
    let [initrd, initrd_high] = halves(handoff.initrd.start());
    let [initrd_size, initrd_size_high] = halves(handoff.initrd.len());
    let fields = [
        (offset::CODE32_START, kernel),
        (offset::CMD_LINE_PTR, command_line),
        (offset::RAMDISK_IMAGE, initrd),
        (offset::RAMDISK_SIZE, initrd_size),
        (offset::EXT_RAMDISK_IMAGE, initrd_high),
        (offset::EXT_RAMDISK_SIZE, initrd_size_high),
    ];
    for (at, value) in fields {
        page[at..at + 4].copy_from_slice(&value);
    }
    page[offset::ACPI_RSDP_ADDR..offset::ACPI_RSDP_ADDR + 8]
        .copy_from_slice(&handoff.rsdp.to_le_bytes());
    fill_e820(page, handoff.map);
    Ok(())
}

/// The stack pointer of the 16-bit entry, in the setup code's segment.
pub const SETUP_STACK: u16 = 0xfff0;
/// What the setup code keeps between its heap and its stack.
const SETUP_STACK_SIZE: u16 = 0x200;

/// Tells setup code, as loaded, where everything is: the 16-bit protocol's part of the bargain.
/// `handoff.initrd` lies below 4 GiB.
pub fn patch_setup(setup: &mut [u8], handoff: &Handoff<'_>) -> Result<(), Error> {
    let loadflags = get_u8(setup, offset::LOADFLAGS).ok_or(Error::Truncated)? | CAN_USE_HEAP;
    let heap_end = SETUP_STACK - SETUP_STACK_SIZE;
    let [kernel, _] = halves(handoff.kernel);
    let [command_line, _] = halves(handoff.command_line);
    let [initrd, _] = halves(handoff.initrd.start());
    let [initrd_size, _] = halves(handoff.initrd.len());
    for (at, value) in [
        (offset::TYPE_OF_LOADER, &[LOADER_QEMU, loadflags][..]),
        (offset::CODE32_START, &kernel),
        (offset::RAMDISK_IMAGE, &initrd),
        (offset::RAMDISK_SIZE, &initrd_size),
        (offset::HEAP_END_PTR, &heap_end.to_le_bytes()),
        (offset::CMD_LINE_PTR, &command_line),
    ] {
        put(setup, at, value).ok_or(Error::Truncated)?;
    }
    Ok(())
}

fn fill_e820(page: &mut [u8; BOOT_PARAMS_SIZE], map: &Map) {
    const _: () = assert!(Map::CAPACITY <= 128, "boot_params.e820_table has 128 entries");
    let mut at = offset::E820_TABLE;
    for entry in map.entries() {
        let bytes = entry.encode();
        // Cannot fail, by the assertion above.
        let _ = put(page, at, &bytes);
        at += bytes.len();
        page[offset::E820_ENTRIES] += 1;
    }
}

/// Low and high 32 bits, little-endian.
fn halves(value: u64) -> [[u8; 4]; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [[a, b, c, d], [e, f, g, h]]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::e820::kind;
    use proptest::prelude::*;

    /// A header as a current x86-64 kernel has it.
    fn image() -> Vec<u8> {
        let mut image = vec![0; HEADER_END];
        image[offset::SETUP_SECTS] = 39;
        for (at, value) in [
            (offset::BOOT_FLAG, &b"\x55\xaa"[..]),
            (offset::JUMP_LENGTH - 1, b"\xeb\x6a"),
            (offset::MAGIC, b"HdrS\x0f\x02"),
            (offset::LOADFLAGS, b"\x01"),
            (offset::INITRD_ADDR_MAX, &0x7fff_ffffu32.to_le_bytes()),
            (offset::KERNEL_ALIGNMENT, &0x20_0000u32.to_le_bytes()),
            (offset::RELOCATABLE_KERNEL, b"\x01\x15\x3f\x00"),
            (offset::CMDLINE_SIZE, &2047u32.to_le_bytes()),
            (offset::PREF_ADDRESS, &0x100_0000u64.to_le_bytes()),
            (offset::INIT_SIZE, &0x200_0000u32.to_le_bytes()),
        ] {
            put(&mut image, at, value).unwrap();
        }
        image
    }

    fn with(at: usize, value: &[u8]) -> Vec<u8> {
        let mut image = image();
        put(&mut image, at, value).unwrap();
        image
    }

    #[test]
    fn reads_a_current_header() {
        let header = SetupHeader::parse(&image()).unwrap();
        assert_eq!(header.setup_size, 40 * 512);
        assert!(header.has_64_bit_entry() && header.can_load_above_4g() && header.relocatable);
        assert_eq!((header.pref_address, header.init_size), (0x100_0000, 0x200_0000));
    }

    #[test]
    fn old_protocols_get_their_defaults() {
        let header = SetupHeader::parse(&with(offset::VERSION, &[2, 2])).unwrap();
        assert_eq!(header.initrd_addr_max, INITRD_ADDR_MAX_OLD);
        assert_eq!(header.cmdline_size, CMDLINE_SIZE_OLD);
        assert!(!header.relocatable && !header.has_64_bit_entry());
        assert_eq!((header.kernel_alignment, header.init_size), (1, 0));
        let fixed = [&[0; 4][..], &[0]].concat();
        let ipxe = SetupHeader::parse(&with(offset::KERNEL_ALIGNMENT, &fixed)).unwrap();
        assert_eq!((ipxe.kernel_alignment, ipxe.relocatable), (1, false));
        let four = SetupHeader::parse(&with(offset::SETUP_SECTS, &[0])).unwrap();
        assert_eq!(four.setup_size, 5 * 512);
    }

    #[test]
    fn a_file_shorter_than_its_header_says_is_cut_off() {
        let header = SetupHeader::parse(&with(offset::SYSSIZE, &[2, 0, 0, 0])).unwrap();
        assert_eq!(header.check_size(32), Ok(()));
        assert_eq!(header.check_size(17), Ok(()), "less than a paragraph");
        assert_eq!(header.check_size(16), Err(Error::CutOff(16)));
        assert_eq!(SetupHeader::parse(&image()).unwrap().check_size(0), Ok(()), "no promise");
    }

    #[test]
    fn refuses_what_is_no_bzimage() {
        let refused = |bytes: &[u8]| SetupHeader::parse(bytes).unwrap_err();
        assert_eq!(refused(b"\x7fELF\x02"), Error::Elf);
        assert_eq!(refused(&[0; 4096]), Error::NoMagic);
        assert_eq!(refused(&image()[..0x230]), Error::Truncated);
        assert_eq!(refused(&[]), Error::Truncated);
        assert_eq!(refused(&with(offset::VERSION, &[1, 2])), Error::TooOld(0x0201));
        assert_eq!(refused(&with(offset::LOADFLAGS, &[0])), Error::NotLoadedHigh);
        assert_eq!(refused(&with(offset::KERNEL_ALIGNMENT, &[3])), Error::Alignment(0x20_0003));
    }

    #[test]
    fn the_zero_page_holds_what_it_was_told() {
        let mut map = Map::new();
        map.set(Range::between(0, 0x1000), kind::RAM).unwrap();
        map.set(Range::between(0x2000, 0x3000), kind::RESERVED).unwrap();
        let handoff = Handoff {
            kernel: 0x100_0000,
            command_line: 0x2_0000,
            initrd: Range::new(0x1_2345_6000, 0x777).unwrap(),
            rsdp: 0xe_0400,
            map: &map,
        };
        let mut page = [0; BOOT_PARAMS_SIZE];
        fill_boot_params(&mut page, &with(offset::JUMP_LENGTH, &[0xff]), &handoff).unwrap();
        assert_eq!(get_u32(&page, offset::CODE32_START), Some(0x100_0000));
        assert_eq!(get_u32(&page, offset::RAMDISK_IMAGE), Some(0x2345_6000));
        assert_eq!(get_u32(&page, offset::EXT_RAMDISK_IMAGE), Some(1));
        assert_eq!(get_u32(&page, offset::RAMDISK_SIZE), Some(0x777));
        assert_eq!(get_u64(&page, offset::ACPI_RSDP_ADDR), Some(0xe_0400));
        assert_eq!(page[offset::E820_ENTRIES], 2);
        assert_eq!(get_u64(&page, offset::E820_TABLE + 20), Some(0x2000));
        assert!(page[..offset::ACPI_RSDP_ADDR].iter().all(|&b| b == 0));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..0x300),
            patch in any::<bool>()
        ) {
            let mut bytes = bytes;
            if patch {
                let _ = put(&mut bytes, offset::BOOT_FLAG, b"\x55\xaa");
                let _ = put(&mut bytes, offset::MAGIC, b"HdrS");
            }
            let handoff = Handoff {
                kernel: 0, command_line: 0, initrd: Range::between(0, 0), rsdp: 0,
                map: &Map::new(),
            };
            if SetupHeader::parse(&bytes).is_ok() {
                let mut page = [0; BOOT_PARAMS_SIZE];
                let _ = fill_boot_params(&mut page, &bytes, &handoff);
                prop_assert_eq!(page[0x1ef], 0, "the sentinel stays 0");
            }
        }
    }
}
