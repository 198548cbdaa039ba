//! Blocks that are written to a disk and flushed, and how to know them again.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::load::{ALIGNMENT, DIRECT, size};

/// Bytes of a block.
pub const BLOCK: usize = 4096;

/// Where block `number` is on a disk of `blocks` blocks, a power of two: all over the place, and
/// no two at the same.
pub const fn place(number: u64, blocks: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b1) % blocks
}

/// What block `number` holds: no part of it is part of any other, and none is zero.
pub fn contents(number: u64) -> [u8; BLOCK] {
    let mut bytes = [0; BLOCK];
    for (part, word) in (0_u64..).zip(bytes.chunks_exact_mut(8)) {
        word.copy_from_slice(&(((number + 1) << 16) | part).to_le_bytes());
    }
    bytes
}

/// Writes blocks to the disk at `path` past the page cache, `writers` at a time, and flushes after
/// each; `flushed` is told when that is done. Ends when the disk is full.
pub fn write(path: &str, writers: usize, flushed: impl Fn(u64) + Sync) -> io::Result<()> {
    let file = OpenOptions::new().write(true).custom_flags(DIRECT).open(path)?;
    let blocks = size(&file)? / BLOCK as u64;
    if !blocks.is_power_of_two() {
        return Err(io::Error::other("a disk of 2^n blocks is wanted"));
    }
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        let work = || -> io::Result<()> {
            let mut buffer = vec![0; BLOCK + ALIGNMENT];
            let skip = buffer.as_ptr().align_offset(ALIGNMENT);
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= blocks {
                    return Ok(());
                }
                let block = &mut buffer[skip..skip + BLOCK];
                block.copy_from_slice(&contents(number));
                file.write_all_at(block, place(number, blocks) * BLOCK as u64)?;
                file.sync_data()?;
                flushed(number);
            }
        };
        let threads: Vec<_> = (0..writers).map(|_| scope.spawn(work)).collect();
        let panicked = |_| io::Error::other("a thread panicked");
        threads.into_iter().try_for_each(|thread| thread.join().map_err(panicked)?)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn blocks_have_places_of_their_own() {
        let places: BTreeSet<u64> = (0..16_384).map(|number| place(number, 16_384)).collect();
        assert_eq!(places.len(), 16_384);
    }

    #[test]
    fn sectors_are_unlike_all_others() {
        let blocks: Vec<_> = (0..1000).map(contents).collect();
        let sectors: BTreeSet<_> = blocks.iter().flat_map(|block| block.chunks(512)).collect();
        assert_eq!(sectors.len(), 8000);
        assert!(!sectors.contains(&[0; 512][..]));
    }
}
