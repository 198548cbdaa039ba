//! The ACPI generic event device and its sleep and reset registers.
//!
//! As in QEMU's microvm (hw/acpi/generic_event_device.c): the guest reads what happened from the
//! selector, which forgets it, and powers off or resets by the registers.

use std::sync::atomic::{AtomicU32, Ordering};

use abi::layout;

use crate::bus::{Action, Device};

/// Selector bit: the power button was pressed.
pub const POWER_BUTTON: u32 = layout::GED_POWER_BUTTON;
/// The sleep type of "off", which `\_S5` names.
pub const SLEEP_TYPE_OFF: u8 = 5;
/// Sleep control: go to sleep now.
const SLEEP_ENABLE: u8 = 1 << 5;
/// Sleep control: where the sleep type is.
const SLEEP_TYPE_SHIFT: u8 = 2;

/// The selector: events that the guest has not yet read.
#[derive(Default)]
pub struct Selector(AtomicU32);

impl Selector {
    /// Notes `event`; the caller raises the interrupt.
    pub fn note(&self, event: u32) {
        self.0.fetch_or(event, Ordering::SeqCst);
    }
}

impl Device for Selector {
    fn name(&self) -> &'static str {
        "GED"
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        if offset == 0 {
            let events = self.0.swap(0, Ordering::SeqCst).to_le_bytes();
            for (to, from) in data.iter_mut().zip(events) {
                *to = from;
            }
        }
    }

    fn write(&self, _: u64, _: &[u8]) -> Action {
        Action::None
    }
}

/// Sleep control, sleep status and reset.
pub struct Registers;

impl Device for Registers {
    fn name(&self) -> &'static str {
        "GED registers"
    }

    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        match (offset, data.first()) {
            (layout::GED_SLEEP_CONTROL, Some(control)) => {
                let kind = control >> SLEEP_TYPE_SHIFT & 7;
                let off = control & SLEEP_ENABLE != 0 && kind == SLEEP_TYPE_OFF;
                if off { Action::PowerOff } else { Action::None }
            }
            (layout::GED_RESET, Some(&layout::GED_RESET_VALUE)) => {
                Action::Reset("the ACPI reset register")
            }
            _ => Action::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_values_count() {
        for (offset, value, action) in [
            (0, SLEEP_ENABLE | 5 << 2, Action::PowerOff),
            (0, 5 << 2, Action::None),
            (0, SLEEP_ENABLE | 4 << 2, Action::None),
            (1, SLEEP_ENABLE | 5 << 2, Action::None),
            (2, 0x42, Action::Reset("the ACPI reset register")),
            (2, 1, Action::None),
        ] {
            assert_eq!(Registers.write(offset, &[value]), action, "{offset} {value:#x}");
        }
    }

    #[test]
    fn an_event_is_read_once() {
        let selector = Selector::default();
        selector.note(POWER_BUTTON);
        let mut data = [0xff; 4];
        selector.read(0, &mut data);
        assert_eq!(u32::from_le_bytes(data), POWER_BUTTON);
        selector.read(0, &mut data);
        assert_eq!(data, [0; 4]);
    }
}
