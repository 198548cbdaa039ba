//! Stops from outside: a terminating signal, or Ctrl-A X.
//!
//! A stop must end KVM_RUN without a race between "not yet stopped" and "now in the guest". The
//! handler therefore also sets the `immediate_exit` of the vCPU that its thread runs, which KVM_RUN
//! looks at after the signal can no longer be missed. Handlers run on the vCPUs' threads only, and
//! all but the first take nothing but a wake-up: every other thread has the signals blocked.
#![expect(unsafe_code, reason = "signal handlers and masks have no safe form")]

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread::Scope;

/// Why the guest is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The user asked for it at the console.
    Quit,
    /// This signal.
    Signal(i32),
}

/// 0 for no stop, `QUIT`, or a signal's number.
static STOP: AtomicI32 = AtomicI32::new(0);
const QUIT: i32 = -1;

thread_local! {
    /// `kvm_run.immediate_exit` of the vCPU that this thread runs. Made without code and never
    /// dropped, so that a handler may look at it at any time.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

static CAUGHT: AtomicBool = AtomicBool::new(false);

/// The signals that end a process, which leave a terminal or a trace to take care of.
const SIGNALS: [i32; 5] = [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGHUP, WAKE];
/// Interrupts the vCPU on behalf of another thread.
const WAKE: i32 = libc::SIGUSR1;

/// The stop that was asked for.
pub fn stop() -> Option<Stop> {
    match STOP.load(Ordering::SeqCst) {
        0 => None,
        QUIT => Some(Stop::Quit),
        signal => Some(Stop::Signal(signal)),
    }
}

/// Asks for a stop from another thread than the vCPU's.
pub fn request(stop: Stop) {
    let value = match stop {
        Stop::Quit => QUIT,
        Stop::Signal(signal) => signal,
    };
    STOP.store(value, Ordering::SeqCst);
    let process = std::process::id().cast_signed();
    // SAFETY: no memory is involved. The signal is handled (`catch` was called by whoever
    // started this thread), by a vCPU's thread.
    unsafe { libc::kill(process, WAKE) };
}

/// Makes the terminating signals ask for a stop from now on.
pub fn catch() {
    if CAUGHT.swap(true, Ordering::SeqCst) {
        return;
    }
    for signal in SIGNALS {
        // SAFETY: a sigaction of zeroes is a valid one: no flags, nothing blocked.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = handle as *const () as usize;
        // SAFETY: `action` is valid, and the handler does nothing but atomic stores and a
        // volatile one (see there).
        unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
    }
}

extern "C" fn handle(signal: i32) {
    if signal != WAKE {
        STOP.store(signal, Ordering::SeqCst);
    }
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: the pointer is of a live kvm_run: who sets it clears it before unmapping
        // (`Interruptible`).
        unsafe { flag.write_volatile(1) };
    }
}

/// While it lives, a stop that this thread hears of sets the flag that it was made with.
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
    // SAFETY: the thread lives, says the caller, and has a handler for the signal (`catch`).
    unsafe { libc::pthread_kill(thread.0 as libc::pthread_t, WAKE) };
}

/// Starts a thread that takes no signals.
pub fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let builder = std::thread::Builder::new().name(name.into()).stack_size(64 << 10);
    masked(&[], || builder.spawn(body).map(drop))
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
fn masked<T>(open: &[i32], body: impl FnOnce() -> T) -> T {
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
    // SAFETY: as above.
    unsafe { libc::raise(signal) };
}
