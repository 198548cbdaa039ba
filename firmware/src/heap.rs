//! The heap: what was allocated stays until the kernel runs.
//!
//! A boot allocates a dozen times and frees nothing that it needs again, so the heap is an arena:
//! an allocation is an addition and a comparison, and nothing is given back.
#![expect(unsafe_code, reason = "the allocator behind `Vec`")]

use core::alloc::{GlobalAlloc, Layout};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use abi::layout::FIRMWARE_HEAP;

#[global_allocator]
static HEAP: Arena = Arena { used: AtomicU64::new(0) };

/// The bytes of [`FIRMWARE_HEAP`], given out from the bottom up.
struct Arena {
    /// Bytes given out. There is one CPU and no interrupt: `Relaxed` is a plain access.
    used: AtomicU64,
}

// SAFETY: `layout` gives the area to the heap and to nothing else, and it is RAM on every machine
// with 640 KiB. What is given out lies within it, aligned, and above everything given out before.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let place = place(self.used.load(Relaxed), layout);
        let Some((start, used)) = place else { return core::ptr::null_mut() };
        self.used.store(used, Relaxed);
        start as *mut u8
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

/// The address of an allocation after `used` bytes, and how many are used then.
fn place(used: u64, layout: Layout) -> Option<(u64, u64)> {
    let next = FIRMWARE_HEAP.start() + used;
    let start = abi::range::align_up(next, layout.align() as u64)?;
    let used = (start - FIRMWARE_HEAP.start()).checked_add(layout.size() as u64)?;
    (used <= FIRMWARE_HEAP.len()).then_some((start, used))
}
