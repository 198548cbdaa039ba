//! QEMU's isa-debug-exit: a write ends the process with a status the guest chose.

use crate::bus::{Action, Device};

/// The device.
pub struct DebugExit;

impl Device for DebugExit {
    fn name(&self) -> &'static str {
        "isa-debug-exit"
    }

    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _: u64, data: &[u8]) -> Action {
        // QEMU exits with `(value << 1) | 1`, of which a status has the low 8 bits.
        data.first().map_or(Action::None, |low| Action::Exit(low << 1 | 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_qemu_s() {
        for (data, status) in [(&[0x10][..], 33), (&[0, 0, 0, 0], 1), (&[0xff, 1], 0xff)] {
            assert_eq!(DebugExit.write(0, data), Action::Exit(status));
        }
        assert_eq!(DebugExit.write(0, &[]), Action::None);
    }
}
