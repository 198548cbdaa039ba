//! The escape key of `mon:stdio` and `mux=on`: Ctrl-A.

use std::io::{self, Write};
use std::sync::Arc;

use super::Taker;
use crate::control::{Control, Request};

/// Ctrl-A.
const ESCAPE: u8 = 1;

const HELP: &str = "\nC-a h    print this help\nC-a x    exit microvm\nC-a C-a  send C-a\n";

/// What has been seen of the escape, and whom it asks to quit.
pub(super) struct Escape {
    control: Arc<Control>,
    filter: Filter,
}

impl Escape {
    pub(super) fn new(control: Arc<Control>) -> Self {
        Self { control, filter: Filter::default() }
    }

    /// Passes `input` on without its escapes; false when one of them said to quit.
    pub(super) fn pass(&mut self, input: &[u8], taker: &Taker) -> bool {
        let (plain, commands) = self.filter.pass(input);
        if !plain.is_empty() {
            taker(&plain);
        }
        for command in commands {
            match command {
                Command::Quit => {
                    self.control.request(Request::QuitByUser);
                    return false;
                }
                Command::Help => {
                    let _ = io::stderr().write_all(HELP.as_bytes());
                }
            }
        }
        true
    }
}

/// Whether the last key was Ctrl-A.
#[derive(Default)]
struct Filter {
    pending: bool,
}

impl Filter {
    fn pass(&mut self, input: &[u8]) -> (Vec<u8>, Vec<Command>) {
        let mut plain = Vec::with_capacity(input.len());
        let mut commands = Vec::new();
        for byte in input {
            match (std::mem::take(&mut self.pending), *byte) {
                (false, ESCAPE) => self.pending = true,
                (true, ESCAPE) => plain.push(ESCAPE),
                (true, b'x' | b'X') => commands.push(Command::Quit),
                (true, b'h' | b'H' | b'?') => commands.push(Command::Help),
                // As in QEMU, another key after the escape is dropped with it.
                (true, _) => {}
                (false, byte) => plain.push(byte),
            }
        }
        (plain, commands)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Quit,
    Help,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_taken_out_also_across_reads() {
        let mut filter = Filter::default();
        assert_eq!(filter.pass(b"ab\x01"), (b"ab".to_vec(), vec![]));
        assert_eq!(filter.pass(b"hc"), (b"c".to_vec(), vec![Command::Help]));
        assert_eq!(filter.pass(b"\x01\x01d\x01q"), (b"\x01d".to_vec(), vec![]));
        assert_eq!(filter.pass(b"\x01x"), (vec![], vec![Command::Quit]));
    }
}
