//! An end that does not wait for the end of a virtual machine.
//!
//! When the last descriptor of a virtual machine closes, KVM waits for grace periods of RCU and
//! SRCU, one after the other: tens of milliseconds in which nothing is done (Linux 6.1,
//! virt/kvm/kvm_main.c, `kvm_destroy_vm`). A process that ends would sleep through them, and
//! whoever waits for it too. What an io_uring has registered, a worker of the kernel closes, some
//! time after the ring (io_uring/io_uring.c, `io_ring_exit_work`); so the last descriptor is left
//! to one. Guest memory is not: it goes with the process's own, at once.
#![expect(unsafe_code, reason = "io_uring's calls have no safe form")]

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io;
use rustix::io_uring::{IoringRegisterOp, io_uring_params, io_uring_register, io_uring_setup};

/// Has `vm` closed some time after what this returns is dropped. Where the kernel has no io_uring,
/// or does not lend it to us (`kernel.io_uring_disabled`, seccomp), whoever closes `vm` waits, as
/// anybody else does.
pub fn keep(vm: &impl AsRawFd) -> Option<OwnedFd> {
    hand_over(vm.as_raw_fd()).ok()
}

fn hand_over(descriptor: i32) -> io::Result<OwnedFd> {
    let mut parameters = io_uring_params::default();
    // SAFETY: the call reads and writes the parameters, which ask for no other ring's workers.
    let ring = unsafe { io_uring_setup(1, &mut parameters) }?;
    let descriptors = [descriptor];
    // SAFETY: the call reads one descriptor from the array, and takes a reference of its file.
    unsafe {
        let array = descriptors.as_ptr().cast();
        io_uring_register(&ring, IoringRegisterOp::RegisterFiles, array, 1)
    }?;
    Ok(ring)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    #[test]
    fn a_file_is_open_as_long_as_the_ring() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let Ok(ring) = hand_over(theirs.as_raw_fd()) else {
            eprintln!("this kernel lends no io_uring: nothing to test");
            return;
        };
        let is_closed = |wait| {
            let mut wanted = [PollFd::new(&ours, PollFlags::IN)];
            let wait = Timespec { tv_sec: wait, tv_nsec: 0 };
            poll(&mut wanted, Some(&wait)).unwrap() == 1
        };
        drop(theirs);
        assert!(!is_closed(0));
        drop(ring);
        assert!(is_closed(10));
    }
}
