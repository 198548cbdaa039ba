//! A pseudo-terminal: whoever opens it is at the other end.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{self, OptionalActions};

use super::Taker;
use super::target::Target;

/// How often is looked whether somebody has opened it: nothing tells of that.
const GLANCE: Duration = Duration::from_millis(200);

/// A new one, in raw mode, and its name.
pub(super) fn open() -> io::Result<(Arc<Target>, String)> {
    let fd = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&fd)?;
    unlockpt(&fd)?;
    let mut mode = termios::tcgetattr(&fd)?;
    mode.make_raw();
    termios::tcsetattr(&fd, OptionalActions::Now, &mode)?;
    let name = ptsname(&fd, Vec::new())?;
    // It counts as hung up, as long as nobody has it open, only after somebody had.
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    drop(rustix::fs::open(&name, flags, Mode::empty())?);
    nonblocking(&fd)?;
    Ok((Target::pty(fd), name.to_string_lossy().into_owned()))
}

fn nonblocking(fd: &OwnedFd) -> Result<(), Errno> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)
}

/// Hands what comes to `taker`, whoever opens it, for good.
pub(super) fn serve(target: &Target, taker: &Taker) {
    let mut buffer = [0; 4096];
    loop {
        match rustix::io::read(target, &mut buffer) {
            Ok(count @ 1..) => {
                taker(buffer.get(..count).unwrap_or(&[]));
                continue;
            }
            Err(Errno::INTR) => continue,
            // Nobody has it open (EIO), or they have nothing to say.
            Ok(_) | Err(_) => {}
        }
        let mut ready = [PollFd::new(target, PollFlags::IN)];
        let _ = rustix::event::poll(&mut ready, None);
        if !ready[0].revents().contains(PollFlags::IN) {
            std::thread::sleep(GLANCE);
        }
    }
}
