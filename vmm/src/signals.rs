//! Signals: those from outside, and the one that calls a CPU.
//!
//! A thread of its own takes the signals of the outside; every other thread has them blocked. What
//! it wants of a CPU it writes down, and then wakes the CPU's thread. The handler of that wake-up
//! sets the `immediate_exit` of the CPU that its thread runs, which KVM_RUN looks at after the
//! signal can no longer be missed: so there is no gap between "nothing to do yet" and "in the
//! guest".
#![expect(unsafe_code, reason = "signal handlers and masks have no safe form")]

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;
use std::thread::Scope;
use std::time::Duration;

thread_local! {
    /// `kvm_run.immediate_exit` of the vCPU that this thread runs. Made without code and never
    /// dropped, so that a handler may look at it at any time.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// The signals that are taken: those that ask a process to end, and the one that stops it from
/// the terminal, which is in a mode of the guest's then, and those that tell that it goes on, and
/// of the terminal's size.
const TAKEN: [i32; 7] = [
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGHUP,
    libc::SIGTSTP,
    libc::SIGCONT,
    libc::SIGWINCH,
];
/// Those of them that were not ignored when this process began: who starts it with nohup, or in the
/// background of a script, wants it so.
static HEEDED: OnceLock<Vec<i32>> = OnceLock::new();
/// Has a CPU leave the guest.
const WAKE: i32 = libc::SIGUSR1;

/// Prepares this thread, and those that it starts: from now on only [`wait`] takes the signals of
/// the outside.
pub fn block() {
    let mut wake = action(handle as *const () as usize);
    // SAFETY: fills the set: nothing else runs on a thread within the handler.
    unsafe { libc::sigfillset(&raw mut wake.sa_mask) };
    // SAFETY: `wake` is valid, and its handler does nothing but one volatile store (see there).
    unsafe { libc::sigaction(WAKE, &raw const wake, ptr::null_mut()) };
    // SAFETY: the set is filled; no memory is involved but it.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const *taken(), ptr::null_mut()) };
}

fn action(handler: usize) -> libc::sigaction {
    // SAFETY: a sigaction of zeroes is a valid one: no flags, nothing blocked.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = handler;
    action
}

fn taken() -> Box<libc::sigset_t> {
    set_of(HEEDED.get_or_init(|| TAKEN.into_iter().filter(|signal| !is_ignored(*signal)).collect()))
}

fn is_ignored(signal: i32) -> bool {
    let mut found = action(libc::SIG_DFL);
    // SAFETY: `found` is valid, and nothing is changed.
    unsafe { libc::sigaction(signal, ptr::null(), &raw mut found) };
    found.sa_sigaction == libc::SIG_IGN
}

fn set_of(signals: &[i32]) -> Box<libc::sigset_t> {
    // SAFETY: a set of zeroes is a valid one.
    let mut set: Box<libc::sigset_t> = Box::new(unsafe { MaybeUninit::zeroed().assume_init() });
    // SAFETY: empties the set, whatever zeroes mean.
    unsafe { libc::sigemptyset(&raw mut *set) };
    for signal in signals {
        // SAFETY: the set is valid.
        unsafe { libc::sigaddset(&raw mut *set, *signal) };
    }
    set
}

extern "C" fn handle(_: i32) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: the pointer is of a live kvm_run: who sets it clears it before unmapping
        // (`Interruptible`).
        unsafe { flag.write_volatile(1) };
    }
}

/// Waits for the next signal of the outside; `None` when `limit` has passed before.
pub fn wait(limit: Option<Duration>) -> Option<i32> {
    let set = taken();
    let limit = limit.map(|limit| libc::timespec {
        tv_sec: limit.as_secs().cast_signed(),
        tv_nsec: limit.subsec_nanos().into(),
    });
    let limit = limit.as_ref().map_or(ptr::null(), ptr::from_ref);
    loop {
        // SAFETY: the set is valid, `limit` is null or valid, and nobody wants the details.
        let signal = unsafe { libc::sigtimedwait(&raw const *set, ptr::null_mut(), limit) };
        match signal {
            -1 if io::Error::last_os_error().raw_os_error() == Some(libc::EINTR) => {}
            -1 => return None,
            signal => return Some(signal),
        }
    }
}

/// Stops this process, as Ctrl-Z does, until somebody continues it. Where nobody would (nobody
/// controls its jobs), the kernel does not stop it.
pub fn stop_process() {
    let set = set_of(&[libc::SIGTSTP]);
    // To this thread, which has it blocked: what it does next, it does when the process goes on.
    // SAFETY: no memory is involved; the default action stops the process.
    unsafe { libc::raise(libc::SIGTSTP) };
    // SAFETY: the set is valid.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const *set, ptr::null_mut()) };
    // SAFETY: the set is valid.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const *set, ptr::null_mut()) };
}

/// While it lives, a wake-up of this thread sets the flag that it was made with.
pub struct Interruptible(());

impl Interruptible {
    /// # Safety
    ///
    /// 1. `immediate_exit` must be writable until the value is dropped.
    pub unsafe fn new(immediate_exit: *mut u8) -> Self {
        IMMEDIATE_EXIT.set(immediate_exit);
        Self(())
    }
}

impl Drop for Interruptible {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}

/// A thread of this process, as the system's library names it: a number or a pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thread(usize);

/// The thread that asks.
pub fn this_thread() -> Thread {
    // SAFETY: no memory is involved.
    let thread = unsafe { libc::pthread_self() };
    // As wide as a pointer with every library, which to a lint it is not.
    #[expect(clippy::cast_possible_truncation, reason = "64 bits either way")]
    Thread(thread as usize)
}

/// Has a thread that runs a vCPU look whether it is to go on. The thread must not have ended.
pub fn wake(thread: Thread) {
    // SAFETY: the thread lives, says the caller, and has a handler for the signal (`block`).
    unsafe { libc::pthread_kill(thread.0 as libc::pthread_t, WAKE) };
}

/// Whether the vCPU of this thread was called out of the guest; no thread else is.
pub fn is_called() -> bool {
    let flag = IMMEDIATE_EXIT.get();
    // SAFETY: the pointer is null or of a live kvm_run: who sets it clears it before unmapping
    // (`Interruptible`).
    !flag.is_null() && unsafe { flag.read_volatile() } != 0
}

/// Starts a thread that takes no signals.
pub fn spawn(
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<std::thread::JoinHandle<()>> {
    let builder = std::thread::Builder::new().name(name.into()).stack_size(128 << 10);
    masked(&[], || builder.spawn(body))
}

/// Starts a thread for a vCPU, which only [`wake`] interrupts.
pub fn spawn_cpu<'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: String,
    body: impl FnOnce() + Send + 'scope,
) -> io::Result<()> {
    let builder = std::thread::Builder::new().name(name).stack_size(256 << 10);
    masked(&[WAKE], || builder.spawn_scoped(scope, body).map(drop))
}

/// Does something with all signals but `open` blocked, which threads started by it inherit.
pub fn masked<T>(open: &[i32], body: impl FnOnce() -> T) -> T {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: fills the set.
    unsafe { libc::sigfillset(set.as_mut_ptr()) };
    for signal in open {
        // SAFETY: the set was filled.
        unsafe { libc::sigdelset(set.as_mut_ptr(), *signal) };
    }
    // SAFETY: `set` is filled, `before` has room. A new thread inherits the mask.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), before.as_mut_ptr()) };
    let result = body();
    // SAFETY: `before` was filled above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut()) };
    result
}

/// Ends the process by `signal`, so that its parent sees what happened.
pub fn die_of(signal: i32) {
    // SAFETY: no memory is involved; the default action ends the process.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    // SAFETY: the set is valid. What is blocked cannot end the process.
    unsafe {
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const *set_of(&[signal]), ptr::null_mut())
    };
    // SAFETY: as the first.
    unsafe { libc::raise(signal) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_hears_that_it_is_called() {
        block();
        let mut flag = 0;
        assert!(!is_called());
        // SAFETY: `flag` outlives the value.
        let interruptible = unsafe { Interruptible::new(&raw mut flag) };
        assert!(!is_called());
        wake(this_thread());
        assert!(is_called());
        drop(interruptible);
        assert!(!is_called());
    }
}
