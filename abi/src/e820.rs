//! The memory map: the wire format of `etc/e820`, and a map that is always sorted.
//!
//! The host's entries are allegations: they may overlap, be empty, or wrap. [`Map`] takes them
//! in, lets the cautious claim win (what any entry calls reserved is not RAM), and hands out
//! ascending entries that do not overlap.

use crate::bytes::{get_u32, get_u64};
use crate::layout;
use crate::range::Range;

/// Kinds of memory (ACPI 6.5, table 15.4).
pub mod kind {
    /// Usable RAM.
    pub const RAM: u32 = 1;
    /// Not to be used.
    pub const RESERVED: u32 = 2;
    /// ACPI tables, RAM once they were read.
    pub const ACPI: u32 = 3;
    /// ACPI non-volatile storage.
    pub const NVS: u32 = 4;
}

/// A range of memory of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it is.
    pub range: Range,
    /// One of [`kind`], or a number that this crate does not know.
    pub kind: u32,
}

impl Entry {
    /// Bytes of a packed entry: u64 address, u64 length, u32 kind.
    pub const SIZE: usize = 20;

    /// Packed and little-endian, as in `etc/e820` and in `boot_params.e820_table`.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..8].copy_from_slice(&self.range.start().to_le_bytes());
        bytes[8..16].copy_from_slice(&self.range.len().to_le_bytes());
        bytes[16..].copy_from_slice(&self.kind.to_le_bytes());
        bytes
    }
}

/// Why a memory map was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The bytes are not a whole number of entries.
    Length(usize),
    /// The entry of this index ends past 2^64.
    Wraps(usize),
    /// More than [`Map::CAPACITY`] entries.
    TooMany,
}

/// Ascending entries that neither overlap nor touch an entry of the same kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    entries: [Entry; Self::CAPACITY],
    len: usize,
}

impl Default for Map {
    fn default() -> Self {
        Self::new()
    }
}

impl Map {
    /// Entries at the most. `boot_params.e820_table` has 128; machines of QEMU use less than ten.
    pub const CAPACITY: usize = 32;

    /// A map with nothing in it.
    pub const fn new() -> Self {
        let nothing = Entry { range: Range::between(0, 0), kind: 0 };
        Self { entries: [nothing; Self::CAPACITY], len: 0 }
    }

    /// The map in the contents of `etc/e820`. RAM is entered first, so that a reserved entry
    /// wins over RAM wherever it stands in the file.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let mut map = Self::new();
        map.take_in(bytes)?;
        Ok(map)
    }

    /// Takes in the contents of `etc/e820`, in place: see [`Self::parse`].
    pub fn take_in(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if !bytes.len().is_multiple_of(Entry::SIZE) {
            return Err(Error::Length(bytes.len()));
        }
        for ram_pass in [true, false] {
            for (index, raw) in bytes.chunks_exact(Entry::SIZE).enumerate() {
                let entry = decode(raw).ok_or(Error::Wraps(index))?;
                if (entry.kind == kind::RAM) == ram_pass {
                    self.set(entry.range, entry.kind)?;
                }
            }
        }
        Ok(())
    }

    /// The entries, ascending.
    pub fn entries(&self) -> &[Entry] {
        &self.entries[..self.len]
    }

    /// Usable RAM, ascending.
    pub fn ram(&self) -> impl DoubleEndedIterator<Item = Range> + '_ {
        self.entries().iter().filter(|e| e.kind == kind::RAM).map(|e| e.range)
    }

    /// Whether all of `range` is usable RAM.
    pub fn is_ram(&self, range: Range) -> bool {
        self.ram().any(|ram| ram.contains(range))
    }

    /// Bytes of usable RAM.
    pub fn ram_bytes(&self) -> u64 {
        self.ram().map(Range::len).sum()
    }

    /// Makes `range` memory of `kind`, whatever it was before.
    pub fn set(&mut self, range: Range, kind: u32) -> Result<(), Error> {
        if range.is_empty() {
            return Ok(());
        }
        self.remove(range)?;
        let mut at = self.entries().partition_point(|e| e.range.start() < range.start());
        let mut merged = range;
        // What touches the new entry and is of its kind becomes part of it.
        if at < self.len && self.continues(at, merged.end(), kind) {
            merged = Range::between(merged.start(), self.take(at).range.end());
        }
        if at > 0 && self.entries[at - 1].kind == kind {
            let before = self.entries[at - 1].range;
            if before.end() == merged.start() {
                at -= 1;
                self.take(at);
                merged = Range::between(before.start(), merged.end());
            }
        }
        self.insert(at, Entry { range: merged, kind })
    }

    /// Makes `range` a hole: no memory of any kind.
    pub fn remove(&mut self, range: Range) -> Result<(), Error> {
        if range.is_empty() {
            return Ok(());
        }
        let mut at = 0;
        while at < self.len && self.entries[at].range.start() < range.end() {
            let Entry { range: old, kind } = self.entries[at];
            if old.end() <= range.start() {
                at += 1;
                continue;
            }
            let left =
                (old.start() < range.start()).then(|| Range::between(old.start(), range.start()));
            let right = (range.end() < old.end()).then(|| Range::between(range.end(), old.end()));
            match (left, right) {
                (Some(left), Some(right)) => {
                    self.entries[at].range = left;
                    return self.insert(at + 1, Entry { range: right, kind });
                }
                (Some(part), None) | (None, Some(part)) => {
                    self.entries[at].range = part;
                    at += 1;
                }
                (None, None) => {
                    self.take(at);
                }
            }
        }
        Ok(())
    }

    /// Takes out of RAM what a PC has below 1 MiB: the EBDA, the video hole, and the segments
    /// of ACPI tables and BIOS.
    pub fn reserve_legacy(&mut self) -> Result<(), Error> {
        self.set(layout::EBDA, kind::RESERVED)?;
        self.remove(layout::LEGACY_HOLE)?;
        let tables_and_bios =
            Range::between(layout::ACPI_TABLES.start(), layout::LEGACY_HOLE.end());
        self.set(tables_and_bios, kind::RESERVED)
    }

    fn continues(&self, at: usize, end: u64, kind: u32) -> bool {
        let entry = self.entries[at];
        entry.kind == kind && entry.range.start() == end
    }

    fn insert(&mut self, at: usize, entry: Entry) -> Result<(), Error> {
        if self.len == Self::CAPACITY {
            return Err(Error::TooMany);
        }
        self.entries.copy_within(at..self.len, at + 1);
        self.entries[at] = entry;
        self.len += 1;
        Ok(())
    }

    fn take(&mut self, at: usize) -> Entry {
        let entry = self.entries[at];
        self.entries.copy_within(at + 1..self.len, at);
        self.len -= 1;
        entry
    }
}

fn decode(raw: &[u8]) -> Option<Entry> {
    let range = Range::new(get_u64(raw, 0)?, get_u64(raw, 8)?)?;
    Some(Entry { range, kind: get_u32(raw, 16)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(entries: &[(u64, u64, u32)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (address, len, kind) in entries {
            bytes.extend(address.to_le_bytes());
            bytes.extend(len.to_le_bytes());
            bytes.extend(kind.to_le_bytes());
        }
        bytes
    }

    fn check(entries: &[(u64, u64, u32)], expected: &[(u64, u64, u32)]) {
        let map = Map::parse(&file(entries)).unwrap();
        let seen: Vec<_> =
            map.entries().iter().map(|e| (e.range.start(), e.range.end(), e.kind)).collect();
        assert_eq!(seen, expected);
    }

    #[test]
    fn sorts_and_joins() {
        check(&[(0x2000, 0x1000, 1), (0, 0x2000, 1)], &[(0, 0x3000, 1)]);
        check(&[(0x2000, 0x1000, 2), (0, 0x2000, 1)], &[(0, 0x2000, 1), (0x2000, 0x3000, 2)]);
    }

    #[test]
    fn reserved_wins_over_ram_in_any_order() {
        let expected = [(0, 0x1000, 1), (0x1000, 0x2000, 2), (0x2000, 0x4000, 1)];
        check(&[(0, 0x4000, 1), (0x1000, 0x1000, 2)], &expected);
        check(&[(0x1000, 0x1000, 2), (0, 0x4000, 1)], &expected);
    }

    #[test]
    fn empty_entries_leave_no_trace() {
        check(&[(0x1000, 0, 1), (0, 0, 0)], &[]);
        check(&[], &[]);
    }

    #[test]
    fn an_empty_hole_leaves_the_map_as_it_is() {
        let map = Map::parse(&file(&[(0, 0x12, 1)])).unwrap();
        let mut same = map.clone();
        same.remove(Range::between(1, 1)).unwrap();
        same.set(Range::between(1, 1), kind::RESERVED).unwrap();
        assert_eq!(same, map);
    }

    #[test]
    fn refuses_what_is_no_map() {
        assert_eq!(Map::parse(&[0; 21]), Err(Error::Length(21)));
        assert_eq!(Map::parse(&file(&[(0, 1, 1), (u64::MAX, 2, 1)])), Err(Error::Wraps(1)));
        let many: Vec<_> = (0..33).map(|i| (i * 0x2000, 0x1000, 1)).collect();
        assert_eq!(Map::parse(&file(&many)), Err(Error::TooMany));
    }

    #[test]
    fn the_legacy_areas_are_no_ram() {
        let mut map = Map::parse(&file(&[(0, 0x800_0000, 1)])).unwrap();
        map.reserve_legacy().unwrap();
        let ram: Vec<_> = map.ram().collect();
        assert_eq!(ram, [layout::LOW_RAM, Range::between(0x10_0000, 0x800_0000)]);
    }

    proptest! {
        /// Each address has the kind that the last claim on it gave, reserved over RAM.
        #[test]
        fn agrees_with_a_map_of_single_pages(
            claims in prop::collection::vec((0u64..32, 0u64..16, 1u32..4), 0..20)
        ) {
            let entries: Vec<_> =
                claims.iter().map(|&(a, l, k)| (a * 4096, l * 4096, k)).collect();
            let map = Map::parse(&file(&entries)).unwrap();
            for page in 0..64u64 {
                let claims = || entries.iter().filter(|(a, l, _)| {
                    *a <= page * 4096 && page * 4096 < a + l
                });
                let expected = claims().rfind(|c| c.2 != kind::RAM).or_else(|| claims().next());
                let at = Range::new(page * 4096, 4096).unwrap();
                let seen = map.entries().iter().find(|e| e.range.contains(at));
                prop_assert_eq!(seen.map(|e| e.kind), expected.map(|c| c.2));
            }
            for pair in map.entries().windows(2) {
                prop_assert!(pair[0].range.end() <= pair[1].range.start());
                prop_assert!(
                    pair[0].range.end() < pair[1].range.start() || pair[0].kind != pair[1].kind
                );
            }
        }
    }
}
