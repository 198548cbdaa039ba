//! The reset line of the 8042 keyboard controller, and nothing else of it.

use abi::ports;

use crate::bus::{Action, Device};

/// The controller's ports, from its data port on.
pub struct I8042;

/// Offset of the command and status port.
const COMMAND: u64 = (ports::I8042_COMMAND - ports::I8042_DATA) as u64;

impl I8042 {
    /// Ports.
    pub const PORTS: u64 = COMMAND + 1;
}

impl Device for I8042 {
    fn name(&self) -> &'static str {
        "i8042"
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        // Ready for a command, with nothing to say: who wants to reset waits for that.
        if let (COMMAND, Some(status)) = (offset, data.first_mut()) {
            *status = 0;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        match (offset, data.first()) {
            (COMMAND, Some(&ports::I8042_RESET)) => Action::Reset("the 8042's reset line"),
            _ => Action::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reset_command_resets() {
        assert!(matches!(I8042.write(4, &[0xfe]), Action::Reset(_)));
        assert_eq!(I8042.write(0, &[0xfe]), Action::None);
        assert_eq!(I8042.write(4, &[0xff]), Action::None);
        let mut status = [0xff];
        I8042.read(4, &mut status);
        assert_eq!(status, [0]);
    }
}
