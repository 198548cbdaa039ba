//! Requests to a disk, so many at a time; round trips over TCP.
//!
//! The disk is read and written past the guest's page cache.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Buffers for direct I/O begin at multiples of this.
pub(crate) const ALIGNMENT: usize = 4096;
/// `O_DIRECT` on x86.
pub(crate) const DIRECT: i32 = libc::O_DIRECT;

/// What is asked of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// 4 KiB anywhere.
    RandomRead,
    /// 128 KiB, one after the other.
    Read,
    /// Likewise.
    Write,
}

impl Pattern {
    /// Reads its name.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "random-read" => Some(Self::RandomRead),
            "read" => Some(Self::Read),
            "write" => Some(Self::Write),
            _ => None,
        }
    }

    const fn size(self) -> usize {
        match self {
            Self::RandomRead => 4 << 10,
            Self::Read | Self::Write => 128 << 10,
        }
    }
}

/// Makes `requests` requests of the disk, `depth` at a time; how long that took.
pub fn disk(path: &str, pattern: Pattern, depth: u64, requests: u64) -> io::Result<Duration> {
    let write = pattern == Pattern::Write;
    let file = OpenOptions::new().read(true).write(write).custom_flags(DIRECT).open(path)?;
    let blocks = size(&file)? / pattern.size() as u64;
    let next = AtomicU64::new(0);
    // The first request finds out what only the first one has to.
    request(&file, pattern, 0, &mut buffer(pattern))?;
    let start = Instant::now();
    thread::scope(|scope| {
        let work = || -> io::Result<()> {
            let mut buffer = buffer(pattern);
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= requests {
                    return Ok(());
                }
                let block = match pattern {
                    Pattern::RandomRead => number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20,
                    _ => number,
                };
                request(&file, pattern, block % blocks, &mut buffer)?;
            }
        };
        let threads: Vec<_> = (0..depth).map(|_| scope.spawn(work)).collect();
        let panicked = |_| io::Error::other("a thread panicked");
        threads.into_iter().try_for_each(|thread| thread.join().map_err(panicked)?)
    })?;
    Ok(start.elapsed())
}

/// Bytes of a disk.
pub(crate) fn size(file: &File) -> io::Result<u64> {
    use std::io::Seek as _;
    (&mut &*file).seek(io::SeekFrom::End(0))
}

/// A buffer with room for a request wherever it is to begin.
fn buffer(pattern: Pattern) -> Vec<u8> {
    vec![0x5a; pattern.size() + ALIGNMENT]
}

fn request(file: &File, pattern: Pattern, block: u64, buffer: &mut [u8]) -> io::Result<()> {
    let (size, skip) = (pattern.size(), buffer.as_ptr().align_offset(ALIGNMENT));
    let bytes = &mut buffer[skip..skip + size];
    match pattern {
        Pattern::Write => file.write_all_at(bytes, block * size as u64),
        _ => file.read_exact_at(bytes, block * size as u64),
    }
}

/// Sends a byte there and waits for it to come back, `rounds` times; how long that took.
pub fn ping(address: &str, rounds: u64) -> io::Result<Duration> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut round = || stream.write_all(b"x").and_then(|()| stream.read_exact(&mut [0]));
    round()?;
    let start = Instant::now();
    (0..rounds).try_for_each(|_| round())?;
    Ok(start.elapsed())
}

/// Sends back what comes, until the other end has gone.
pub fn echo(address: &str) -> io::Result<()> {
    let mut stream = TcpListener::bind(address)?.accept()?.0;
    stream.set_nodelay(true)?;
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 {
        stream.write_all(&byte)?;
    }
    Ok(())
}
