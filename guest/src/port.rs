//! The port to the host, and the frames on it (`abi::workload`).

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use abi::workload::{HEADER, Kind, PAYLOAD_MAX, PORT, header, parse};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

/// Where the kernel lists ports.
const PORTS: &str = "/sys/class/virtio-ports";
/// How long the kernel may take to find the port.
const PATIENCE: Duration = Duration::from_secs(5);
const GLANCE: Duration = Duration::from_micros(200);
/// Bytes that wait for the host, at the most, before no more are made.
const WAITING_MAX: usize = 64 << 10;

/// The port, which never waits.
pub struct Port {
    fd: OwnedFd,
    /// Bytes that are no whole frame yet.
    received: Vec<u8>,
    /// Bytes that the host has not taken yet.
    waiting: Vec<u8>,
}

impl Port {
    /// Opens it, as soon as the kernel has found it.
    pub fn open() -> io::Result<Self> {
        let since = Instant::now();
        let path = loop {
            match find() {
                Some(path) => break path,
                None if since.elapsed() > PATIENCE => return Err(missing()),
                None => std::thread::sleep(GLANCE),
            }
        };
        let fd = open(&path, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { fd, received: Vec::new(), waiting: Vec::new() })
    }

    /// Has the host hear of a frame; `payload` may be longer than fits in one.
    pub fn send(&mut self, kind: Kind, payload: &[u8]) {
        if payload.is_empty() {
            self.waiting.extend(header(kind, 0));
        }
        for piece in payload.chunks(PAYLOAD_MAX.into()) {
            let length = u16::try_from(piece.len()).unwrap_or(PAYLOAD_MAX);
            self.waiting.extend(header(kind, length));
            self.waiting.extend(piece);
        }
    }

    /// Whether so much waits that no more is to be made.
    pub fn is_full(&self) -> bool {
        self.waiting.len() >= WAITING_MAX
    }

    /// What it is to be polled for.
    pub fn interest(&self) -> PollFlags {
        if self.waiting.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT }
    }

    /// Passes on what waits, as far as that goes.
    pub fn pass_on(&mut self) -> io::Result<()> {
        while !self.waiting.is_empty() {
            match rustix::io::write(&self.fd, &self.waiting) {
                Ok(count) => drop(self.waiting.drain(..count)),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Has the host hear of the last frame, and waits until it did, and passed on all before it: a
    /// reader there may take its time.
    pub fn conclude(&mut self, kind: Kind, payload: &[u8]) -> io::Result<()> {
        self.send(kind, payload);
        loop {
            self.pass_on()?;
            self.receive()?;
            while let Some((kind, _)) = self.next()? {
                if kind == Kind::Heard {
                    return Ok(());
                }
            }
            poll(&mut [PollFd::new(&self.fd, self.interest())], None)?;
        }
    }

    /// Why there is no command.
    pub fn fail(&mut self, error: &io::Error) -> io::Result<()> {
        self.conclude(Kind::Failed, error.to_string().as_bytes())
    }

    /// Takes what has come.
    pub fn receive(&mut self) -> io::Result<()> {
        let mut bytes = [0; 4096];
        loop {
            match rustix::io::read(&self.fd, &mut bytes) {
                Ok(0) => return Err(io::Error::other("the host has closed its port")),
                Ok(count) => self.received.extend(bytes.get(..count).unwrap_or_default()),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The next whole frame.
    pub fn next(&mut self) -> io::Result<Option<(Kind, Vec<u8>)>> {
        let Some(first) = self.received.first_chunk::<HEADER>() else { return Ok(None) };
        let unknown = || io::Error::other("the host sends what is no frame");
        let (kind, length) = parse(*first).ok_or_else(unknown)?;
        let end = HEADER + usize::from(length);
        let Some(payload) = self.received.get(HEADER..end) else { return Ok(None) };
        let payload = payload.to_vec();
        self.received.drain(..end);
        Ok(Some((kind, payload)))
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The device of the port with our name, when it is there.
fn find() -> Option<PathBuf> {
    let ports = fs::read_dir(PORTS).ok()?;
    let ours = ports.filter_map(Result::ok).find(|port| {
        let name = fs::read_to_string(port.path().join("name"));
        name.is_ok_and(|name| name.trim_end() == PORT)
    })?;
    Some(PathBuf::from("/dev").join(ours.file_name()))
}

/// What a kernel lacks that has found no port.
fn missing() -> io::Error {
    let lacks = |what: &str| io::Error::other(format!("the kernel lacks {what}"));
    let has_devices = fs::read_dir("/sys/bus/virtio/devices").is_ok_and(|found| found.count() > 0);
    if !has_devices {
        lacks("CONFIG_VIRTIO_MMIO, or CONFIG_ACPI to find such devices")
    } else if !fs::exists(PORTS).unwrap_or(false) {
        lacks("CONFIG_VIRTIO_CONSOLE")
    } else {
        io::Error::other(format!("there is no port {PORT}"))
    }
}
