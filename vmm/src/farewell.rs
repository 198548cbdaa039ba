//! An end that does not wait for the end of a virtual machine.
//!
//! When the last descriptor of a virtual machine closes, KVM waits for grace periods of RCU and
//! SRCU, one after the other: tens of milliseconds in which nothing is done (Linux 6.1,
//! virt/kvm/kvm_main.c, `kvm_destroy_vm`). A process that ends would sleep through them, and
//! whoever waits for it too. What an io_uring has registered, a worker of the kernel closes, some
//! time after the ring (io_uring/io_uring.c, `io_ring_exit_work`); so the last descriptor is left
//! to one. Guest memory is not: it goes with the process's own, at once.
//!
//! What kernel threads close, one of them does for all of the host, file after file (fs/
//! file_table.c, `delayed_fput`): machines that end faster than that would heap up, and others'
//! files with them. So only one machine of a program is left at a time; who ends meanwhile waits,
//! beside others.
#![expect(unsafe_code, reason = "io_uring's calls have no safe form")]

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::{self, fcntl_dupfd_cloexec};
use rustix::io_uring::{IoringRegisterOp, io_uring_params, io_uring_register, io_uring_setup};

/// Has `vm` closed some time after what this returns is dropped, if all others have closed it by
/// then. Where another machine is being left, or the kernel has no io_uring, or does not lend it to
/// us (`kernel.io_uring_disabled`, seccomp), whoever closes `vm` last waits, as anybody else does.
pub fn keep(vm: &impl AsRawFd) -> Option<OwnedFd> {
    hand_over(vm.as_raw_fd(), &take_turn()?).ok()
}

/// Lets go of `vm`, that nobody else has. If it is left, no other descriptor gets its number while
/// what this returns is there: KVM's accounts of a machine have that number as their name, and of
/// two machines the second would have none. By the time that another one is left, it is gone.
pub fn leave(vm: impl AsRawFd) -> Option<OwnedFd> {
    let ring = keep(&vm)?;
    // Before the number is free: it would be the one that this gets.
    let null = File::open("/dev/null").ok()?;
    let number = vm.as_raw_fd();
    drop(vm);
    let holder = fcntl_dupfd_cloexec(&null, number).ok();
    drop(ring);
    holder
}

/// The turn of this program's machines: a lock of its file, which is everybody's who runs it, and
/// lost with the last descriptor.
fn take_turn() -> Option<File> {
    let program = File::open("/proc/self/exe").ok()?;
    program.try_lock().ok()?;
    Some(program)
}

fn hand_over(descriptor: i32, turn: &File) -> io::Result<OwnedFd> {
    let mut parameters = io_uring_params::default();
    // SAFETY: the call reads and writes the parameters, which ask for no other ring's workers.
    let ring = unsafe { io_uring_setup(1, &mut parameters) }?;
    // The ring lets go of its files from the first to the last, or the other way round since Linux
    // 6.13; and what was let go last is closed first. Either way that is the machine.
    let descriptors = [descriptor, turn.as_raw_fd(), descriptor];
    // SAFETY: the call reads three descriptors from the array, and takes references of their files.
    unsafe {
        let array = descriptors.as_ptr().cast();
        io_uring_register(&ring, IoringRegisterOp::RegisterFiles, array, 3)
    }?;
    Ok(ring)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::thread;
    use std::time::{Duration, Instant};

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    #[test]
    fn a_file_is_open_as_long_as_the_ring_and_the_turn_is_taken_longer() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::open(file.path()).unwrap();
        let turn = open();
        turn.lock().unwrap();
        let Ok(ring) = hand_over(theirs.as_raw_fd(), &turn) else {
            eprintln!("this kernel lends no io_uring: nothing to test");
            return;
        };
        let is_closed = |wait| {
            let mut wanted = [PollFd::new(&ours, PollFlags::IN)];
            let wait = Timespec { tv_sec: wait, tv_nsec: 0 };
            poll(&mut wanted, Some(&wait)).unwrap() == 1
        };
        drop((theirs, turn));
        assert!(!is_closed(0));
        let next = open();
        assert!(next.try_lock().is_err());
        drop(ring);
        let begun = Instant::now();
        while next.try_lock().is_err() {
            assert!(begun.elapsed() < Duration::from_secs(10));
            thread::yield_now();
        }
        assert!(is_closed(0), "the file is closed before the turn is given up");
    }

    #[test]
    fn the_number_of_what_is_left_is_taken() {
        let begun = Instant::now();
        loop {
            let (_ours, theirs) = UnixStream::pair().unwrap();
            let number = theirs.as_raw_fd();
            if hand_over(number, &File::open("/dev/null").unwrap()).is_err() {
                eprintln!("this kernel lends no io_uring: nothing to test");
                return;
            }
            // The turn of the one before may not be over, and other tests open files.
            if leave(theirs).is_some_and(|holder| holder.as_raw_fd() == number) {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(10));
        }
    }
}
