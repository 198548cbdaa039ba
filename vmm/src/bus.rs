//! Port and MMIO ranges and the devices behind them.

use std::sync::Arc;

/// What a guest's access asks of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    None,
    /// A reset; the text says by what.
    Reset(&'static str),
    /// Power off.
    PowerOff,
    /// The process ends with this status.
    Exit(u8),
    /// A POST code was written.
    Post(u8),
    /// The guest's kernel gave up.
    Panicked,
    /// The guest's kernel gave up, and goes on to save what it knows.
    CrashLoaded,
}

/// A device: bytes in and out at an offset into its range.
///
/// An access may be wider than the register it begins at and reach past the range; the device
/// takes what it understands and leaves the rest.
pub trait Device: Send + Sync {
    /// For people, and for counting.
    fn name(&self) -> &'static str;
    /// Fills `data`, which holds ones: what a device does not answer floats.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes `data`.
    fn write(&self, offset: u64, data: &[u8]) -> Action;
}

/// Address ranges in ascending order.
#[derive(Default)]
pub struct Bus {
    entries: Vec<Entry>,
}

struct Entry {
    first: u64,
    last: u64,
    device: Arc<dyn Device>,
}

/// Two devices claim one address.
#[derive(Debug, thiserror::Error)]
#[error("{new} at {first:#x} overlaps {old}: give it another place")]
pub struct Overlap {
    new: &'static str,
    old: &'static str,
    first: u64,
}

impl Bus {
    /// Puts `device` at `length` addresses from `first` on.
    pub fn insert(
        &mut self,
        first: u64,
        length: u64,
        device: Arc<dyn Device>,
    ) -> Result<(), Overlap> {
        let last = first.saturating_add(length.saturating_sub(1));
        if let Some(old) = self.entries.iter().find(|e| e.first <= last && first <= e.last) {
            return Err(Overlap { new: device.name(), old: old.device.name(), first });
        }
        let at = self.entries.partition_point(|e| e.first < first);
        self.entries.insert(at, Entry { first, last, device });
        Ok(())
    }

    /// The name of the device at `address`.
    pub fn name_at(&self, address: u64) -> &'static str {
        self.at(address).map_or("unclaimed", |entry| entry.device.name())
    }

    /// Reads; where there is no device, ones.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(entry) = self.at(address) {
            entry.device.read(address - entry.first, data);
        }
    }

    /// Writes; where there is no device, to nothing.
    pub fn write(&self, address: u64, data: &[u8]) -> Action {
        match self.at(address) {
            Some(entry) => entry.device.write(address - entry.first, data),
            None => Action::None,
        }
    }

    fn at(&self, address: u64) -> Option<&Entry> {
        let after = self.entries.partition_point(|e| e.first <= address);
        self.entries[..after].last().filter(|e| address <= e.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(u8);

    impl Device for Fixed {
        fn name(&self) -> &'static str {
            "fixed"
        }
        fn read(&self, offset: u64, data: &mut [u8]) {
            if let (0, Some(first)) = (offset, data.first_mut()) {
                *first = self.0;
            }
        }
        fn write(&self, _: u64, data: &[u8]) -> Action {
            Action::Exit(data[0])
        }
    }

    fn bus() -> Bus {
        let mut bus = Bus::default();
        bus.insert(0x20, 2, Arc::new(Fixed(2))).unwrap();
        bus.insert(0x10, 4, Arc::new(Fixed(1))).unwrap();
        bus
    }

    fn read(address: u64) -> [u8; 2] {
        let mut data = [0; 2];
        bus().read(address, &mut data);
        data
    }

    #[test]
    fn finds_the_device_at_an_address() {
        assert_eq!(read(0x10), [1, 0xff]);
        assert_eq!(read(0x20), [2, 0xff]);
        assert_eq!(bus().write(0x21, &[7]), Action::Exit(7));
    }

    #[test]
    fn what_nobody_claims_floats() {
        for address in [0, 0xf, 0x14, 0x1f, 0x22, u64::MAX] {
            assert_eq!(read(address), [0xff; 2]);
            assert_eq!(bus().write(address, &[7]), Action::None);
            assert_eq!(bus().name_at(address), "unclaimed");
        }
    }

    #[test]
    fn overlaps_are_refused() {
        for (first, length) in [(0x13, 1), (0xf, 2), (0, 0x100), (0x21, u64::MAX)] {
            let error = bus().insert(first, length, Arc::new(Fixed(0))).unwrap_err();
            assert!(error.to_string().contains("overlaps fixed"), "{error}");
        }
    }
}
