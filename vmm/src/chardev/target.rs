//! Something that takes bytes: what it is says how it is asked whether it would.

use std::io::IsTerminal;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::FileType;
use rustix::io::Errno;

/// Bytes that whoever is ready takes at once: a page of a pipe (Linux, fs/pipe.c), and less than
/// the quarter of its buffer that a socket has free then.
const PIECE: usize = 4096;
/// The same for a terminal and whoever waits for it: little, so that progress shows.
const TERMINAL_PIECE: usize = 256;
const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Where bytes go.
pub(super) struct Target {
    fd: Fd,
    kind: Kind,
    /// Nobody is told when it goes: another may come.
    pub(super) may_leave: bool,
}

enum Fd {
    Stdout,
    Owned(OwnedFd),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Never waits for a reader: a file, a disk, /dev/null.
    File,
    /// A pipe or a socket: when it is ready, it takes [`PIECE`] bytes.
    Stream,
    /// When it is ready, it takes at least one byte, and waits for room for the others.
    Terminal,
    /// The controlling side of a pty, which never waits.
    Pty,
}

impl Target {
    /// Standard output. Its mode is not ours to change: the shell has it too.
    pub(super) fn stdout() -> Arc<Self> {
        let kind = kind_of(rustix::stdio::stdout());
        Arc::new(Self { fd: Fd::Stdout, kind, may_leave: false })
    }

    /// Something of ours.
    pub(super) fn owned(fd: impl Into<OwnedFd>) -> Arc<Self> {
        let fd = fd.into();
        Arc::new(Self { kind: kind_of(fd.as_fd()), fd: Fd::Owned(fd), may_leave: false })
    }

    /// A peer that may leave as it came.
    pub(super) fn guest(fd: impl Into<OwnedFd>) -> Arc<Self> {
        Arc::new(Self { fd: Fd::Owned(fd.into()), kind: Kind::Stream, may_leave: true })
    }

    /// The controlling side of a pty, in non-blocking mode.
    pub(super) fn pty(fd: OwnedFd) -> Arc<Self> {
        Arc::new(Self { fd: Fd::Owned(fd), kind: Kind::Pty, may_leave: true })
    }

    /// Writes what it takes without waiting: 0 bytes, perhaps.
    pub(super) fn offer(&self, bytes: &[u8]) -> Result<usize, Errno> {
        let flags = match self.kind {
            Kind::File => PollFlags::OUT,
            // More than the first byte could have to wait.
            Kind::Terminal if bytes.len() > 1 => return Ok(0),
            _ => self.poll(Some(&AT_ONCE))?,
        };
        if flags.is_empty() { Ok(0) } else { self.write(bytes, flags) }
    }

    /// Waits until it takes some, and writes that.
    pub(super) fn deliver(&self, bytes: &[u8]) -> Result<usize, Errno> {
        let flags = self.poll(None)?;
        self.write(bytes, flags)
    }

    fn poll(&self, limit: Option<&Timespec>) -> Result<PollFlags, Errno> {
        let mut ready = [PollFd::new(self, PollFlags::OUT)];
        match rustix::event::poll(&mut ready, limit) {
            Ok(_) => Ok(ready[0].revents()),
            Err(Errno::INTR | Errno::AGAIN) => Ok(PollFlags::empty()),
            Err(error) => Err(error),
        }
    }

    /// Writes to who is said to be ready, or to have gone.
    fn write(&self, bytes: &[u8], flags: PollFlags) -> Result<usize, Errno> {
        if flags.is_empty() {
            return Ok(0);
        }
        // Nobody has the pty open, and what they will find when they come is all that fits.
        let nobody = self.kind == Kind::Pty && flags.contains(PollFlags::HUP);
        if nobody && !flags.contains(PollFlags::OUT) {
            return Ok(bytes.len());
        }
        let most = match self.kind {
            Kind::File => bytes.len(),
            Kind::Stream | Kind::Pty => PIECE,
            Kind::Terminal => TERMINAL_PIECE,
        };
        match rustix::io::write(self, bytes.get(..most).unwrap_or(bytes)) {
            // A pipe that others write to as well may be full by now.
            Err(Errno::INTR | Errno::AGAIN) => Ok(0),
            Err(Errno::IO) if nobody => Ok(bytes.len()),
            result => result,
        }
    }
}

impl Target {
    /// Whether it may take bytes again after an error: a disk that is full now.
    pub(super) fn may_recover(&self) -> bool {
        self.kind == Kind::File
    }
}

impl AsFd for Target {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.fd {
            Fd::Stdout => rustix::stdio::stdout(),
            Fd::Owned(fd) => fd.as_fd(),
        }
    }
}

fn kind_of(fd: BorrowedFd<'_>) -> Kind {
    // What cannot be looked at is found out by writing.
    let Ok(stat) = rustix::fs::fstat(fd) else { return Kind::Stream };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile | FileType::BlockDevice => Kind::File,
        FileType::CharacterDevice if fd.is_terminal() => Kind::Terminal,
        FileType::CharacterDevice if crate::console::is_null_device(&stat) => Kind::File,
        _ => Kind::Stream,
    }
}
