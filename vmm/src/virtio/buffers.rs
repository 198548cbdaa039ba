//! What a chain of descriptors points at: pieces of guest memory, in their order.
//!
//! The guest may change the bytes at any time, so they are copied or handed to the host's kernel,
//! and never looked at in place.
#![expect(unsafe_code, reason = "the kernel reads and writes guest memory in place")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::{Bytes, VolatileSlice};

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From a file to the guest.
    FromFile,
    /// From the guest to a file.
    ToFile,
    /// From the guest to a file, and to the medium below it before the call returns.
    ToMedium,
}

/// Pieces that the kernel takes in one call (Linux, `UIO_MAXIOV`).
const PIECES_MAX: usize = 1024;

/// Pieces of guest memory.
#[derive(Clone, Debug, Default)]
pub struct Buffers<'a> {
    pieces: Vec<VolatileSlice<'a>>,
    length: usize,
}

impl<'a> Buffers<'a> {
    /// Adds a piece at the end.
    pub fn push(&mut self, piece: VolatileSlice<'a>) {
        if !piece.is_empty() {
            self.length += piece.len();
            self.pieces.push(piece);
        }
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there is not a byte.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Whether each piece begins and ends at a multiple of `unit` bytes.
    pub fn is_aligned(&self, unit: usize) -> bool {
        let aligned = |piece: &VolatileSlice<'_>| {
            (piece.ptr_guard().as_ptr().addr() | piece.len()).is_multiple_of(unit)
        };
        self.pieces.iter().all(aligned)
    }

    /// The first `count` bytes and the others; `None` when there are fewer.
    pub fn split_at(&self, count: usize) -> Option<(Self, Self)> {
        let (mut front, mut back) = (Self::default(), Self::default());
        for piece in &self.pieces {
            let wanted = count.checked_sub(front.length)?.min(piece.len());
            front.push(piece.subslice(0, wanted).ok()?);
            back.push(piece.offset(wanted).ok()?);
        }
        (front.length == count).then_some((front, back))
    }

    /// Copies the first bytes out; `None` when there are fewer.
    pub fn read<const N: usize>(&self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        (self.copy_to(&mut bytes) == N).then_some(bytes)
    }

    /// Copies out what there is and fits; how much that was.
    pub fn copy_to(&self, mut bytes: &mut [u8]) -> usize {
        let mut copied = 0;
        for piece in &self.pieces {
            let count = piece.read(bytes, 0).unwrap_or(0);
            copied += count;
            bytes = bytes.get_mut(count..).unwrap_or_default();
        }
        copied
    }

    /// Copies in what there is and fits; how much that was.
    pub fn copy_from(&self, mut bytes: &[u8]) -> usize {
        let mut copied = 0;
        for piece in &self.pieces {
            let count = piece.write(bytes, 0).unwrap_or(0);
            copied += count;
            bytes = bytes.get(count..).unwrap_or_default();
        }
        copied
    }

    /// The first `count` bytes, or all if there are fewer.
    pub fn truncated(&self, count: usize) -> Self {
        match self.split_at(count) {
            Some((front, _)) => front,
            None => self.clone(),
        }
    }

    /// Has the kernel move bytes between here and `file`, at this position of it; how many there
    /// were, which is fewer than there are here at the end of a file only.
    pub fn transfer(
        &self,
        file: BorrowedFd<'_>,
        offset: u64,
        direction: Direction,
    ) -> io::Result<usize> {
        let mut done = 0;
        while done < self.length {
            let (_, rest) = self.split_at(done).unwrap_or_default();
            match rest.transfer_once(file, offset + done as u64, direction) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn transfer_once(
        &self,
        file: BorrowedFd<'_>,
        offset: u64,
        direction: Direction,
    ) -> io::Result<usize> {
        let pieces = self.iovecs();
        let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let (fd, at) = (file.as_raw_fd(), pieces.as_ptr());
        // At most `PIECES_MAX`.
        let count = i32::try_from(pieces.len()).unwrap_or(0);
        let moved = match direction {
            // SAFETY: each iovec is a piece of guest memory, which is mapped as long as `self`'s
            // lifetime lasts and which nothing of Rust's refers to; `fd` is open.
            Direction::FromFile => unsafe { libc::preadv(fd, at, count, offset) },
            // SAFETY: as above.
            Direction::ToFile => unsafe { libc::pwritev(fd, at, count, offset) },
            // SAFETY: as above.
            Direction::ToMedium => unsafe {
                libc::pwritev2(fd, at, count, offset, libc::RWF_DSYNC)
            },
        };
        usize::try_from(moved).map_err(|_| io::Error::last_os_error())
    }

    /// Where the pieces are in this process, and how long: for those who manage its memory.
    pub fn host_ranges(&self) -> impl Iterator<Item = (u64, usize)> + '_ {
        self.pieces.iter().map(|piece| (piece.ptr_guard().as_ptr().addr() as u64, piece.len()))
    }

    /// The pieces as the kernel's interfaces have them, as many as it takes at once. Valid as long
    /// as the guest's memory is mapped: for calls of the kernel only.
    pub fn iovecs(&self) -> Vec<libc::iovec> {
        let iovec = |piece: &VolatileSlice<'_>| libc::iovec {
            iov_base: piece.ptr_guard_mut().as_ptr().cast(),
            iov_len: piece.len(),
        };
        self.pieces.iter().take(PIECES_MAX).map(iovec).collect()
    }
}
