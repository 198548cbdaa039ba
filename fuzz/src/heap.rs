//! A heap that ends: what it cannot give must be an error, never a panic.

use std::alloc::System;

use cap::Cap;

#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, usize::MAX);

/// Runs the firmware with so many bytes of heap. The limit is the process's: other threads stand
/// still meanwhile.
pub fn with_limit<T>(bytes: usize, boot: impl FnOnce() -> T) -> T {
    let limit = HEAP.allocated() + bytes;
    HEAP.set_limit(limit).expect("more than what is in use");
    let result = boot();
    HEAP.set_limit(usize::MAX).expect("no limit");
    result
}

/// Allocates for the host, beside the limit.
pub fn lifted<T>(allocate: impl FnOnce() -> T) -> T {
    let (limit, before) = (HEAP.limit(), HEAP.allocated());
    HEAP.set_limit(usize::MAX).expect("no limit");
    let result = allocate();
    let more = HEAP.allocated().saturating_sub(before);
    HEAP.set_limit(limit.saturating_add(more)).expect("more than what is in use");
    result
}
