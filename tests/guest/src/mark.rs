//! The mark by which the VMM knows when init runs: one byte on the POST port.
//!
//! /dev/port would need no unsafe code, but distributions build their cloud kernels without it
//! (`CONFIG_DEVPORT`), so the process asks for the port and writes it by itself. That also needs
//! no mount: the mark is the very first thing that init does.
#![expect(unsafe_code, reason = "an OUT instruction and the system call that permits it")]

use std::arch::asm;
use std::io;

use abi::{ports, post};

/// Tells the VMM that the guest's init runs.
///
/// # Errors
/// The kernel does not let the process use ports (`CONFIG_X86_IOPL_IOPERM`, lockdown).
pub fn mark_init() -> io::Result<()> {
    let port = ports::POST;
    permit(port, true)?;
    // SAFETY: the kernel has just permitted this process the port, so the instruction does not
    // fault; port 0x80 is a diagnostic latch, which nothing but a POST display listens to.
    unsafe {
        asm!("out dx, al", in("dx") port, in("al") post::GUEST_INIT,
            options(nomem, nostack, preserves_flags));
    }
    permit(port, false)
}

fn permit(port: u16, allowed: bool) -> io::Result<()> {
    // SAFETY: `ioperm` takes plain numbers and changes only which ports this thread may use.
    match unsafe { libc::ioperm(port.into(), 1, allowed.into()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
