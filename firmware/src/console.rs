//! The firmware's last words: one line on COM1, then a stop that a machine can see.
//!
//! The serial port is left alone until then: each of its registers costs an exit to the VMM.

use core::fmt::{self, Write};

use abi::{ports, post};
use firmware::machine::Machine;
use uart_16550::{Config, Uart16550, backend::PioBackend};

use crate::hardware::{self, Hardware};

/// Polls of the transmitter before a byte is given up: a port that is not there never gets ready.
const POLLS_MAX: u32 = 100_000;

/// Prints `bios-microvm: error CODE: REASON`, leaves by isa-debug-exit where there is one, and
/// halts for good.
pub fn stop(machine: &mut Hardware, code: u8, reason: fmt::Arguments<'_>) -> ! {
    if let Some(mut console) = Console::open() {
        // The line is all there is; there is nobody to tell that it was cut.
        let _ = write!(console, "bios-microvm: error {code}: {reason}\r\n");
    }
    machine.out8(ports::POST, post::FIRMWARE_FAILED);
    machine.out8(ports::DEBUG_EXIT, code);
    hardware::halt()
}

struct Console(Uart16550<PioBackend>);

impl Console {
    fn open() -> Option<Self> {
        let mut uart = hardware::com1()?;
        uart.init(Config::default()).ok()?;
        Some(Self(uart))
    }

    fn send(&mut self, byte: u8) {
        for _ in 0..POLLS_MAX {
            if self.0.try_send_byte(byte).is_ok() {
                return;
            }
        }
    }
}

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| self.send(byte));
        Ok(())
    }
}
