//! POST codes: how far start-up has come, one byte on port 0x80.
//!
//! The firmware writes one when it enters a stage, the guest's init writes one when it runs.
//! The VMM stamps them, so the same marks time every way to boot. Linux writes port 0x80 too
//! (as a delay, any value): after [`KERNEL_ENTRY`] only [`GUEST_INIT`] means anything.

/// The firmware runs in 64-bit mode.
pub const FIRMWARE_START: u8 = 0x10;
/// Memory map and ACPI tables are in place; the kernel is loaded next.
pub const LOAD_KERNEL: u8 = 0x20;
/// The next instruction but a few is the kernel's first.
pub const KERNEL_ENTRY: u8 = 0x30;
/// The guest's init process runs.
pub const GUEST_INIT: u8 = 0xe0;
/// The firmware gave up: the line on the serial port says why.
pub const FIRMWARE_FAILED: u8 = 0xef;

/// The stage's name, for people.
pub const fn name(code: u8) -> Option<&'static str> {
    match code {
        FIRMWARE_START => Some("firmware start"),
        LOAD_KERNEL => Some("kernel load"),
        KERNEL_ENTRY => Some("kernel entry"),
        GUEST_INIT => Some("guest init"),
        FIRMWARE_FAILED => Some("firmware failed"),
        _ => None,
    }
}
