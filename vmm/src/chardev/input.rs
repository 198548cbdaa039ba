//! Reading, as bytes come.

use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fd::AsFd;
use rustix::io::Errno;

use super::Taker;
use crate::console;

/// Reads `file` to its end, or until `pass` has had enough.
pub(super) fn read_all(file: impl AsFd, mut pass: impl FnMut(&[u8]) -> bool) {
    let mut buffer = [0; 4096];
    loop {
        match rustix::io::read(&file, &mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                if !pass(buffer.get(..count).unwrap_or(&[])) {
                    return;
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let mut ready = [PollFd::new(&file, PollFlags::IN)];
                let _ = rustix::event::poll(&mut ready, None);
                if !ready[0].revents().contains(PollFlags::IN) {
                    // Hung up.
                    return;
                }
            }
            // A terminal that was hung up.
            Err(_) => return,
        }
    }
}

/// How often a terminal that another job has is looked at.
const AGAIN: Duration = Duration::from_millis(200);

/// Reads standard input likewise. A terminal that is another job's has nothing for us, until it is
/// ours again.
pub(crate) fn read_terminal(mut pass: impl FnMut(&[u8]) -> bool) {
    let mut wanted = true;
    while wanted {
        read_all(rustix::stdio::stdin(), |bytes| {
            wanted = pass(bytes);
            wanted
        });
        if !console::is_lent() {
            return;
        }
        std::thread::sleep(AGAIN);
        console::resume();
    }
}

/// Hands all of it on, and wants more.
pub(super) fn pass_all(bytes: &[u8], taker: &Taker) -> bool {
    taker(bytes);
    true
}
