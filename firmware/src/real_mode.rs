//! What the real-mode services answer from: the memory map in the forms of int 15h.

use abi::e820::{Entry, Map};
use abi::layout::REAL_MODE_DATA;
use abi::range::Range;

use crate::machine::Machine;

/// Bytes in front of the entries: their count and three answers, see bios16.S.
const HEADER: usize = 8;
const MIB: u64 = 1 << 20;

const _: () = assert!(
    (HEADER + Map::CAPACITY * Entry::SIZE) as u64 <= REAL_MODE_DATA.len(),
    "the largest memory map fits its area"
);

/// Leaves the memory map where the services find it.
pub fn write_real_mode_data<M: Machine>(machine: &mut M, map: &Map) {
    let area = machine.memory(REAL_MODE_DATA);
    let (header, table) = area.split_at_mut(HEADER);
    for (field, value) in header.chunks_exact_mut(2).zip(answers(map)) {
        field.copy_from_slice(&value.to_le_bytes());
    }
    for (slot, entry) in table.chunks_exact_mut(Entry::SIZE).zip(map.entries()) {
        slot.copy_from_slice(&entry.encode());
    }
}

/// Count of entries; E801's KiB from 1 to 16 MiB and 64 KiB blocks above; 88h's KiB above 1 MiB.
fn answers(map: &Map) -> [u16; 4] {
    let size = |at: u64, limit: u64| {
        let bounds = Range::between(at, limit);
        map.ram()
            .find(|ram| ram.start() <= at && at < ram.end())
            .map_or(0, |ram| ram.end().min(bounds.end()) - at)
    };
    let low = size(MIB, 16 * MIB);
    let high = if low == 15 * MIB { size(16 * MIB, 1 << 32) } else { 0 };
    let word = |value: u64| u16::try_from(value).unwrap_or(u16::MAX);
    [word(map.entries().len() as u64), word(low >> 10), word(high >> 16), word((low + high) >> 10)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::e820::kind;

    fn check(end: u64, expected: [u16; 3]) {
        let mut map = Map::new();
        map.set(Range::between(0, end), kind::RAM).unwrap();
        map.reserve_legacy().unwrap();
        assert_eq!(answers(&map)[1..], expected, "{end:#x}");
    }

    #[test]
    fn the_old_services_agree_with_the_map() {
        check(2 * MIB, [1024, 0, 1024]);
        check(16 * MIB, [15 * 1024, 0, 15 * 1024]);
        check(32 * MIB, [15 * 1024, 256, 31 * 1024]);
        check(128 * MIB, [15 * 1024, 0x700, u16::MAX]);
        check(3072 * MIB, [15 * 1024, 0xbf00, u16::MAX]);
    }

    #[test]
    fn a_hole_ends_what_the_old_services_tell() {
        let mut map = Map::new();
        map.set(Range::between(0, 64 * MIB), kind::RAM).unwrap();
        map.set(Range::between(8 * MIB, 9 * MIB), kind::RESERVED).unwrap();
        assert_eq!(answers(&map)[1..], [7 * 1024, 0, 7 * 1024]);
    }
}
