//! RAM that is made once: only the pages that were touched are made anew.

use std::cell::Cell;

use abi::layout::{HIGH_RAM_START, PAGE};
use abi::range::Range;

/// Bytes of RAM that have contents. What lies above is as good as any for the host's DMA, but the
/// firmware itself reaches nothing there.
pub const SIZE: u64 = 16 << 20;

/// What memory below 1 MiB holds at first; above it, zeroes.
const POISON: u8 = 0xa5;

thread_local! {
    static SPARE: Cell<Option<Ram>> = const { Cell::new(None) };
}

/// Guest RAM.
pub struct Ram {
    bytes: Vec<u8>,
    is_touched: Vec<bool>,
    touched: Vec<usize>,
}

impl Ram {
    /// Untouched RAM.
    pub fn take() -> Self {
        SPARE.take().unwrap_or_else(|| {
            let mut bytes = vec![0; SIZE as usize];
            bytes[..HIGH_RAM_START as usize].fill(POISON);
            let pages = (SIZE / PAGE) as usize;
            Self { bytes, is_touched: vec![false; pages], touched: Vec::with_capacity(pages) }
        })
    }

    /// Gives it back, untouched again.
    pub fn give_back(mut self) {
        for page in self.touched.drain(..) {
            self.is_touched[page] = false;
            let start = page * PAGE as usize;
            let filling = if start < HIGH_RAM_START as usize { POISON } else { 0 };
            self.bytes[start..start + PAGE as usize].fill(filling);
        }
        SPARE.set(Some(self));
    }

    /// To be read; out of range panics.
    pub fn get(&self, range: Range) -> &[u8] {
        &self.bytes[range.start() as usize..range.end() as usize]
    }

    /// To be written; out of range panics.
    pub fn get_mut(&mut self, range: Range) -> &mut [u8] {
        if range.is_empty() {
            // Wherever that is.
            return &mut [];
        }
        for page in (range.start() / PAGE) as usize..range.end().div_ceil(PAGE) as usize {
            if !std::mem::replace(&mut self.is_touched[page], true) {
                self.touched.push(page);
            }
        }
        &mut self.bytes[range.start() as usize..range.end() as usize]
    }

    /// What of `range` has contents.
    pub fn part(range: Range) -> Range {
        let end = range.end().min(SIZE);
        Range::between(range.start().min(end), end)
    }
}
