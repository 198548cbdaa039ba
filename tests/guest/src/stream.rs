//! Bytes through a connection: both ends say what they were.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use vsock::{VMADDR_CID_ANY, VsockListener, VsockStream};

/// Bytes of one write: as many as a stack takes at once.
const CHUNK: usize = 256 << 10;
/// How long, and how often, a connection is tried for.
const TRIES: u32 = 300;
const PAUSE: Duration = Duration::from_millis(100);

/// The other end, or where to wait for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `tcp:HOST:PORT`.
    Tcp(String),
    /// `vsock:CID:PORT`.
    Vsock(u32, u32),
    /// `hybrid:PATH:PORT`, on the host: a guest's socket in the scheme of Firecracker (its
    /// docs/vsock.md). The guest's ports are behind PATH, the host's are at PATH_PORT.
    Hybrid(String, u32),
}

impl Address {
    /// Reads `tcp:HOST:PORT`, `vsock:CID:PORT` or `hybrid:PATH:PORT`.
    pub fn parse(text: &str) -> Option<Self> {
        match text.split_once(':')? {
            ("tcp", rest) => Some(Self::Tcp(rest.into())),
            ("vsock", rest) => {
                let (cid, port) = rest.split_once(':')?;
                Some(Self::Vsock(cid.parse().ok()?, port.parse().ok()?))
            }
            ("hybrid", rest) => {
                let (path, port) = rest.rsplit_once(':')?;
                Some(Self::Hybrid(path.into(), port.parse().ok()?))
            }
            _ => None,
        }
    }

    /// Connects, once somebody listens.
    pub fn connect(&self) -> io::Result<Box<dyn ReadWrite>> {
        let mut tries = 0;
        loop {
            let connected: io::Result<Box<dyn ReadWrite>> = match self {
                Self::Tcp(address) => TcpStream::connect(address).map(|s| Box::new(s) as _),
                Self::Vsock(cid, port) => {
                    VsockStream::connect_with_cid_port(*cid, *port).map(|s| Box::new(s) as _)
                }
                Self::Hybrid(path, port) => ask_for(path, *port).map(|s| Box::new(s) as _),
            };
            tries += 1;
            match connected {
                Err(_) if tries < TRIES => std::thread::sleep(PAUSE),
                outcome => return outcome,
            }
        }
    }

    /// Waits for one connection.
    pub fn accept(&self) -> io::Result<Box<dyn ReadWrite>> {
        Ok(match self {
            Self::Tcp(address) => Box::new(TcpListener::bind(address)?.accept()?.0),
            Self::Vsock(_, port) => {
                let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, *port)?;
                Box::new(listener.accept()?.0)
            }
            Self::Hybrid(path, port) => {
                let path = format!("{path}_{port}");
                let connection = UnixListener::bind(&path)?.accept()?.0;
                std::fs::remove_file(path)?;
                Box::new(connection)
            }
        })
    }
}

/// A connection to the guest's `port`, by who serves its socket at `path`.
fn ask_for(path: &str, port: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(path)?;
    writeln!(stream, "CONNECT {port}")?;
    // The answer is a line; what follows is the guest's.
    let mut answer = Vec::new();
    while answer.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        answer.extend(byte);
    }
    match answer.starts_with(b"OK ") {
        true => Ok(stream),
        false => Err(io::ErrorKind::ConnectionRefused.into()),
    }
}

/// A connection.
pub trait ReadWrite: Read + Write {}

impl<T: Read + Write> ReadWrite for T {}

/// What went through a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum {
    /// Bytes.
    pub bytes: u64,
    hash: u64,
}

impl std::fmt::Display for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes {:016x}", self.bytes, self.hash)
    }
}

impl Sum {
    const fn new() -> Self {
        Self { bytes: 0, hash: 0x9e37_79b9_7f4a_7c15 }
    }

    /// Takes bytes in, of which each call but the last has a multiple of eight.
    fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        for word in bytes.chunks(8) {
            let mut whole = [0; 8];
            whole.iter_mut().zip(word).for_each(|(to, from)| *to = *from);
            let mixed = self.hash ^ u64::from_le_bytes(whole);
            self.hash = mixed.wrapping_mul(0x0100_0000_01b3).rotate_left(23);
        }
    }
}

/// Sends `bytes` bytes that no other `seed` gives.
pub fn send(to: &mut dyn Write, bytes: u64, seed: u64) -> io::Result<Sum> {
    let (mut sum, mut state) = (Sum::new(), seed | 1);
    let mut chunk = vec![0; CHUNK];
    while sum.bytes < bytes {
        for word in chunk.chunks_exact_mut(8) {
            // Marsaglia's xorshift.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        let left = usize::try_from(bytes - sum.bytes).unwrap_or(CHUNK).min(CHUNK);
        to.write_all(&chunk[..left])?;
        sum.add(&chunk[..left]);
    }
    to.flush()?;
    Ok(sum)
}

/// Receives `bytes` bytes, or as many as come.
pub fn receive(from: &mut dyn Read, bytes: u64) -> io::Result<Sum> {
    let (mut sum, mut chunk, mut filled) = (Sum::new(), vec![0; CHUNK], 0);
    loop {
        let wanted = usize::try_from(bytes - sum.bytes - filled as u64).unwrap_or(CHUNK);
        let end = (filled + wanted).min(CHUNK);
        let count = from.read(&mut chunk[filled..end])?;
        filled += count;
        if count == 0 || filled == CHUNK || sum.bytes + filled as u64 == bytes {
            sum.add(&chunk[..filled]);
            filled = 0;
        }
        if count == 0 || sum.bytes == bytes {
            return Ok(sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Slowly<'a>(&'a [u8]);

    impl Read for Slowly<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = buffer.len().min(4099).min(self.0.len());
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    #[test]
    fn both_ends_say_the_same() {
        let mut wire = Vec::new();
        let sent = send(&mut wire, 1_000_003, 7).unwrap();
        assert_eq!(receive(&mut Slowly(&wire), 1_000_003).unwrap(), sent);
        assert_eq!(receive(&mut Slowly(&wire[..999_999]), 1_000_003).unwrap().bytes, 999_999);
        wire[700_000] ^= 1;
        assert_ne!(receive(&mut Slowly(&wire), 1_000_003).unwrap(), sent);
    }

    #[test]
    fn addresses_are_read() {
        assert_eq!(Address::parse("vsock:3:1024"), Some(Address::Vsock(3, 1024)));
        assert_eq!(Address::parse("tcp:10.0.0.1:80"), Some(Address::Tcp("10.0.0.1:80".into())));
        assert_eq!(Address::parse("hybrid:/a:b:7"), Some(Address::Hybrid("/a:b".into(), 7)));
        assert_eq!(Address::parse("udp:x"), None);
    }
}
