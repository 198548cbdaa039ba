//! Finds the MP table as a kernel does, and counts its processors.
//!
//! Source: Intel MultiProcessor Specification 1.4, 4.1 and 4.2.

use abi::bytes::{get_u16, get_u32};

use crate::hardware::physical;

/// Where the floating pointer may be: the last KiB of base memory, and the BIOS.
const AREAS: [(u64, u64); 2] = [(0x9_fc00, 0x400), (0xf_0000, 0x1_0000)];

/// What the table says.
pub struct MpTable {
    /// Where it is.
    pub start: u64,
    /// Its size.
    pub size: usize,
    /// Enabled processors.
    pub cpus: usize,
    /// Whether both checksums are right and the entries fill the table.
    pub sound: bool,
}

/// The table; `None` when there is none.
pub fn find() -> Option<MpTable> {
    let pointer = AREAS.iter().find_map(|&(start, size)| {
        physical(start, size)?.chunks_exact(16).find(|c| c.starts_with(b"_MP_") && sum(c) == 0)
    })?;
    let at = u64::from(get_u32(pointer, 4)?);
    let length = get_u16(physical(at, 44)?, 4)?;
    let table = physical(at, length.into())?;
    let (mut cpus, mut left) = (0, get_u16(table, 34)?);
    let mut entries = table.get(44..)?;
    while let (Some(kind), 1..) = (entries.first(), left) {
        let size = if *kind == 0 { 20 } else { 8 };
        cpus += usize::from(*kind == 0 && entries.get(3)? & 1 == 1);
        entries = entries.get(size..)?;
        left -= 1;
    }
    let sound = table.starts_with(b"PCMP") && sum(table) == 0 && left == 0 && entries.is_empty();
    Some(MpTable { start: at, size: table.len(), cpus, sound })
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}
