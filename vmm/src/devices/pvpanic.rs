//! QEMU's pvpanic: the guest's kernel says that it gives up.
//!
//! Source: QEMU, docs/specs/pvpanic.rst: one port, which reads as the events that there are and
//! takes those that happened.

use crate::bus::{Action, Device};

/// The kernel panicked.
pub const PANICKED: u8 = 1;
/// The kernel panicked, and a crash kernel takes over.
pub const CRASH_LOADED: u8 = 2;

/// The device, with the events that it takes.
pub struct PvPanic(pub u8);

impl Device for PvPanic {
    fn name(&self) -> &'static str {
        "pvpanic"
    }

    fn read(&self, _: u64, data: &mut [u8]) {
        if let Some(events) = data.first_mut() {
            *events = self.0;
        }
    }

    fn write(&self, _: u64, data: &[u8]) -> Action {
        let events = data.first().map_or(0, |events| events & self.0);
        match events {
            events if events & PANICKED != 0 => Action::Panicked,
            events if events & CRASH_LOADED != 0 => Action::CrashLoaded,
            _ => Action::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_events_that_are_enabled_count() {
        let device = PvPanic(PANICKED);
        let mut events = [0xff, 0xff];
        device.read(0, &mut events);
        assert_eq!(events, [1, 0xff]);
        for (written, action) in [
            (&[1][..], Action::Panicked),
            (&[3], Action::Panicked),
            (&[2], Action::None),
            (&[0xfc], Action::None),
            (&[], Action::None),
        ] {
            assert_eq!(device.write(0, written), action, "{written:?}");
        }
        assert_eq!(PvPanic(3).write(0, &[2]), Action::CrashLoaded);
    }
}
