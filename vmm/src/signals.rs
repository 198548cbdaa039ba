//! Stops from outside: a terminating signal, or Ctrl-A X.
//!
//! A stop must end KVM_RUN without a race between "not yet stopped" and "now in the guest". The
//! handler therefore also sets the vCPU's `immediate_exit`, which KVM_RUN looks at after the
//! signal can no longer be missed. Handlers run on the vCPU's thread only: every thread that
//! this program starts has the signals blocked.
#![expect(unsafe_code, reason = "signal handlers and masks have no safe form")]

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, Ordering};

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

/// `kvm_run.immediate_exit` of the vCPU that the handler interrupts.
static IMMEDIATE_EXIT: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());

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
    // started this thread), by the vCPU's thread.
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
    let flag = IMMEDIATE_EXIT.load(Ordering::SeqCst);
    if !flag.is_null() {
        // SAFETY: the pointer is of a live kvm_run: who sets it clears it before unmapping
        // (`Interruptible`).
        unsafe { flag.write_volatile(1) };
    }
}

/// While it lives, a stop sets the flag that it was made with.
pub struct Interruptible(());

impl Interruptible {
    /// # Safety
    ///
    /// 1. `immediate_exit` must be writable until the value is dropped.
    pub unsafe fn new(immediate_exit: *mut u8) -> Self {
        IMMEDIATE_EXIT.store(immediate_exit, Ordering::SeqCst);
        Self(())
    }
}

impl Drop for Interruptible {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.store(ptr::null_mut(), Ordering::SeqCst);
    }
}

/// Starts a thread that takes no signals.
pub fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: fills the set.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: `all` is filled, `before` has room. A new thread inherits the mask.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
    let builder = std::thread::Builder::new().name(name.into()).stack_size(64 << 10);
    let result = builder.spawn(body).map(drop);
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
