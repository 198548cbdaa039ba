//! A half-open range of guest-physical addresses that cannot wrap.

/// `start..end` in bytes of guest-physical address space, with `start <= end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    start: u64,
    end: u64,
}

impl Range {
    /// `len` bytes from `start`; `None` when the end would pass 2^64.
    pub const fn new(start: u64, len: u64) -> Option<Self> {
        match start.checked_add(len) {
            Some(end) => Some(Self { start, end }),
            None => None,
        }
    }

    /// From `start` up to, not including, `end`. Panics at compile time when they are reversed,
    /// so it is for constants only.
    pub const fn between(start: u64, end: u64) -> Self {
        assert!(start <= end);
        Self { start, end }
    }

    /// The first address.
    pub const fn start(self) -> u64 {
        self.start
    }

    /// The address after the last one.
    pub const fn end(self) -> u64 {
        self.end
    }

    /// Bytes.
    pub const fn len(self) -> u64 {
        self.end - self.start
    }

    /// No byte at all.
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// At least one byte in common.
    pub const fn overlaps(self, other: Self) -> bool {
        !self.is_empty() && !other.is_empty() && self.start < other.end && other.start < self.end
    }

    /// Every byte of `other` is in `self`.
    pub const fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }
}

/// `value` rounded up to a multiple of `alignment`, a power of two; `None` past 2^64.
pub const fn align_up(value: u64, alignment: u64) -> Option<u64> {
    match value.checked_add(alignment - 1) {
        Some(sum) => Some(align_down(sum, alignment)),
        None => None,
    }
}

/// `value` rounded down to a multiple of `alignment`, a power of two.
pub const fn align_down(value: u64, alignment: u64) -> u64 {
    value & !(alignment - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_cannot_wrap() {
        assert_eq!(Range::new(u64::MAX, 1), None);
        assert!(Range::new(u64::MAX, 0).is_some_and(Range::is_empty));
    }

    #[test]
    fn neighbours_do_not_overlap() {
        let low = Range::between(0, 10);
        let high = Range::between(10, 20);
        assert!(!low.overlaps(high));
        assert!(low.overlaps(Range::between(9, 11)));
        assert!(Range::between(0, 20).contains(high));
        assert!(!low.overlaps(Range::between(5, 5)), "nothing overlaps with no byte");
    }

    #[test]
    fn alignment_stops_at_the_end_of_the_address_space() {
        assert_eq!(align_up(4097, 4096), Some(8192));
        assert_eq!(align_up(u64::MAX, 4096), None);
        assert_eq!(align_down(8191, 4096), 4096);
    }
}
