//! What the firmware has to say, and a stop that a machine can see.
//!
//! COM1 and the debug console are left alone until there is something to say: each of their
//! registers costs an exit to the VMM.

use core::fmt::{self, Write};

use abi::{ports, post};
use firmware::fw_cfg::FwCfg;
use firmware::machine::Machine;
use uart_16550::Config;

use crate::hardware::{self, Hardware};

/// Polls of the transmitter before a byte is given up: a port that is not there never gets ready.
const POLLS_MAX: u32 = 100_000;
/// What the debug console's port reads as, where there is one.
const DEBUG_CONSOLE: u8 = 0xe9;
/// pvpanic: the guest has panicked (QEMU, docs/specs/pvpanic.rst).
const PANICKED: u8 = 1;

/// Prints `bios-microvm: error CODE: REASON`, leaves by isa-debug-exit or tells pvpanic where there
/// is one, and halts for good.
pub fn stop(machine: &mut Hardware, code: u8, reason: fmt::Arguments<'_>) -> ! {
    machine.print(format_args!("error {code}: {reason}"));
    machine.out8(ports::POST, post::FIRMWARE_FAILED);
    machine.out8(ports::DEBUG_EXIT, code);
    if let Some(port) = FwCfg::probe(machine).ok().and_then(|mut fw_cfg| fw_cfg.pvpanic_port()) {
        machine.out8(port, PANICKED);
    }
    hardware::halt()
}

/// The two places where lines go.
pub struct Console {
    com1: bool,
    debug_console: bool,
}

impl Console {
    /// Sets COM1 up, and looks for the debug console.
    pub fn open(machine: &mut Hardware) -> Self {
        let com1 = hardware::com1().is_some_and(|mut uart| uart.init(Config::default()).is_ok());
        Self { com1, debug_console: machine.in8(ports::DEBUG_CONSOLE) == DEBUG_CONSOLE }
    }

    /// Prints a line.
    pub fn print(&mut self, machine: &mut Hardware, line: fmt::Arguments<'_>) {
        // The line is all there is; there is nobody to tell that it was cut.
        let _ = write!(Writer { console: self, machine }, "bios-microvm: {line}\r\n");
    }
}

struct Writer<'a> {
    console: &'a mut Console,
    machine: &'a mut Hardware,
}

impl fmt::Write for Writer<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // Made anew each time, so that the compiler sees its port.
            if let Some(mut uart) = hardware::com1().filter(|_| self.console.com1) {
                // The first that succeeds ends it.
                let _ = (0..POLLS_MAX).any(|_| uart.try_send_byte(byte).is_ok());
            }
            if self.console.debug_console {
                self.machine.out8(ports::DEBUG_CONSOLE, byte);
            }
        }
        Ok(())
    }
}
