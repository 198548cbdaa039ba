//! The BIOS data area, as far as kernels look at it.
//!
//! Linux takes the EBDA's place and the size of base memory from it after every entry
//! (arch/x86/kernel/ebda.c). What is not listed here stays as it is: nobody reads it without a BIOS
//! to ask.
//!
//! Source: IBM PS/2 and PC BIOS Interface Technical Reference, section 3.

use crate::layout::{BDA, EBDA};
use crate::ports::COM1;

/// Addresses and what goes there, 32 bits each.
pub const FIELDS: [(u64, u32); 5] = [
    // The ports of COM1 and COM2.
    (BDA.start(), COM1 as u32),
    // The port of LPT3, and the EBDA's segment.
    (BDA.start() + 0x0c, EBDA_START >> 4 << 16),
    // The equipment word, a byte of tests, the low byte of the KiB of base memory.
    (BDA.start() + 0x10, BASE_MEMORY_KIB << 24),
    // Its high byte, and the keyboard's state.
    (BDA.start() + 0x14, BASE_MEMORY_KIB >> 8),
    // Timer ticks since midnight.
    (BDA.start() + 0x6c, 0),
];

#[expect(clippy::cast_possible_truncation, reason = "below 1 MiB, by the assertion")]
const EBDA_START: u32 = EBDA.start() as u32;
const BASE_MEMORY_KIB: u32 = EBDA_START >> 10;
const _: () = assert!(EBDA.end() <= 1 << 20 && EBDA.start().is_multiple_of(1 << 10));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::{get_u16, put};

    #[test]
    fn the_fields_lie_where_kernels_read_them() {
        let mut memory = [0xa5; 0x500];
        for (address, value) in FIELDS {
            put(&mut memory, usize::try_from(address).unwrap(), &value.to_le_bytes()).unwrap();
        }
        let word = |at| get_u16(&memory, at).unwrap();
        assert_eq!([0x400, 0x40e, 0x410, 0x413].map(word), [0x3f8, 0x9fc0, 0, 639]);
        assert_eq!([0x46c, 0x46e].map(word), [0, 0]);
        assert!(FIELDS.iter().all(|(address, _)| BDA.start() <= *address && *address < BDA.end()));
    }
}
