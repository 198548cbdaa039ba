//! Dumps fw_cfg: the numbered items, and the files with their sizes and hashes.
//!
//! An item without a size is read as 16 bytes: what is behind its end reads as zeroes, so that an
//! item that is not there is one that is all zeroes.

use core::fmt::{self, Write as _};
use core::hash::Hasher as _;

use abi::fw_cfg::{File, dma, key, select_and};
use fnv::FnvHasher;

use crate::hardware::{self, Console};

/// The items that only x86 has.
const OF_THIS_ARCHITECTURE: core::ops::RangeInclusive<u16> = 0x8000..=0x8004;
/// The items whose sizes other items say: kernel, initrd, command line and setup code.
const SIZED: [(u16, u16); 4] = [
    (key::KERNEL_DATA, key::KERNEL_SIZE),
    (key::INITRD_DATA, key::INITRD_SIZE),
    (key::CMDLINE_DATA, key::CMDLINE_SIZE),
    (key::SETUP_DATA, key::SETUP_SIZE),
];
/// Bytes of the longest item without a size, the UUID.
const NUMBER_SIZE: u32 = 16;
/// Bytes that are read at a time; an item that is no longer is printed.
const PIECE: usize = 1024;
/// Files at the most, so that a directory of nonsense has an end.
const FILES_MAX: u32 = 256;
/// The file that asks for the dump where there is no command line to ask with.
const REQUEST: &str = "opt/org.example/dump";

/// Whether the file that asks for the dump is there.
pub fn is_asked() -> bool {
    let mut found = false;
    each_file(|file| found |= file.is_named(REQUEST));
    found
}

/// Prints every item: `fw_cfg_item_KEY` or `fw_cfg_file_NAME`, as `SIZE:HASH:HEX`, without `HEX`
/// when it is long.
pub fn dump() {
    for key in (key::SIGNATURE..key::FILE_DIR).chain(OF_THIS_ARCHITECTURE) {
        let size_key = SIZED.iter().find(|(data, _)| *data == key).map(|(_, size)| *size);
        let size = size_key.map_or(NUMBER_SIZE, number);
        dump_item(format_args!("fw_cfg_item_{key:#06x}"), key, size);
    }
    each_file(|file| {
        dump_item(format_args!("fw_cfg_file_{}", Name(&file.name)), file.selector, file.size);
    });
}

fn number(key: u16) -> u32 {
    let mut bytes = [0; 4];
    hardware::fw_cfg_read(select_and(key, dma::READ), &mut bytes);
    u32::from_le_bytes(bytes)
}

fn each_file(mut act: impl FnMut(File)) {
    let mut directory = [0; 4];
    if !hardware::fw_cfg_read(select_and(key::FILE_DIR, dma::READ), &mut directory) {
        return;
    }
    for index in 0..u32::from_be_bytes(directory).min(FILES_MAX) {
        // What `act` reads moves the device on to another item: back to this entry.
        hardware::fw_cfg_skip(key::FILE_DIR, 4 + index * 64);
        let mut entry = [0; File::SIZE];
        hardware::fw_cfg_read(dma::READ, &mut entry);
        act(File::decode(&entry));
    }
}

fn dump_item(name: fmt::Arguments<'_>, selector: u16, size: u32) {
    let mut piece = [0; PIECE];
    let mut hasher = FnvHasher::default();
    let mut control = select_and(selector, dma::READ);
    let mut left = size as usize;
    while left > 0 {
        let part = &mut piece[..left.min(PIECE)];
        if !hardware::fw_cfg_read(control, part) {
            let _ = writeln!(Console, "{name}=[error]");
            return;
        }
        hasher.write(part);
        left -= part.len();
        control = dma::READ;
    }
    let _ = write!(Console, "{name}={size}:{:016x}", hasher.finish());
    if let Some(bytes) = piece.get(..size as usize) {
        let _ = write!(Console, ":{}", Hex(bytes));
    }
    let _ = writeln!(Console);
}

/// Prints bytes, two digits each.
pub struct Hex<'a>(pub &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the formatter of numbers, which costs more than the console does.
        let digit = |nibble: u8| char::from(b"0123456789abcdef"[usize::from(nibble & 0xf)]);
        self.0.iter().try_for_each(|byte| {
            f.write_char(digit(byte >> 4))?;
            f.write_char(digit(*byte))
        })
    }
}

/// Prints a file's name up to its NUL.
struct Name<'a>(&'a [u8]);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.iter().take_while(|byte| **byte != 0);
        bytes.into_iter().try_for_each(|byte| write!(f, "{}", byte.escape_ascii()))
    }
}
