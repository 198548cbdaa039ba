//! Ports and physical memory, as the payload sees them.
#![expect(unsafe_code, reason = "port I/O and physical memory")]

use core::fmt;

use abi::fw_cfg::{DmaAccess, dma, select_and};
use abi::ports;
use x86_64::instructions::port::Port;
use x86_64::registers::model_specific::Msr;

/// Left by isa-debug-exit when every check passed: status 33.
pub const EXIT_OK: u8 = 0x10;
/// Left when a check failed: status 35.
pub const EXIT_FAILED: u8 = 0x11;
/// Left after a panic: status 37.
pub const EXIT_PANIC: u8 = 0x12;

/// Physical memory; `None` above the 4 GiB that the payload maps.
pub fn physical(address: u64, length: u64) -> Option<&'static [u8]> {
    let end = address.checked_add(length)?;
    if address == 0 || end > abi::layout::FOUR_GIB {
        return None;
    }
    // SAFETY: start.S maps these addresses; after the entry nothing writes to them but the
    // payload's own stack and console, which no caller asks for.
    Some(unsafe {
        core::slice::from_raw_parts(address as *const u8, usize::try_from(length).ok()?)
    })
}

/// Writes a byte to a port.
pub fn out8(port: u16, value: u8) {
    // SAFETY: port writes of the payload reach devices that do not touch memory.
    unsafe { Port::new(port).write(value) }
}

/// Writes two bytes to a port.
pub fn out16(port: u16, value: u16) {
    // SAFETY: as `out8`.
    unsafe { Port::new(port).write(value) }
}

/// Reads a byte from a port.
pub fn in8(port: u16) -> u8 {
    // SAFETY: as `out8`.
    unsafe { Port::new(port).read() }
}

/// Writes a byte to a memory-mapped register.
pub fn mmio_write8(address: u64, value: u8) {
    // SAFETY: identity-mapped, and a device register, which Rust knows nothing of.
    unsafe { (address as *mut u8).write_volatile(value) }
}

/// Reads four bytes from a memory-mapped register.
pub fn mmio_read32(address: u64) -> u32 {
    // SAFETY: as `mmio_write8`.
    unsafe { (address as *const u32).read_volatile() }
}

/// Writes four bytes to a memory-mapped register.
pub fn mmio_write32(address: u64, value: u32) {
    // SAFETY: as `mmio_write8`.
    unsafe { (address as *mut u32).write_volatile(value) }
}

/// Writes to the free memory behind the BIOS data area, and to real mode's vectors.
pub fn write_low(address: u16, bytes: &[u8]) {
    for (at, byte) in (u64::from(address)..).zip(bytes) {
        mmio_write8(at, *byte);
    }
}

/// Reads what other CPUs may have written there.
pub fn read_low(address: u16) -> u16 {
    // SAFETY: identity-mapped RAM that Rust knows nothing of.
    unsafe { (usize::from(address) as *const u16).read_volatile() }
}

/// Reads a model-specific register.
pub fn read_msr(number: u32) -> u64 {
    // SAFETY: reading has no effect on memory. A register that is not there is an exception, by the
    // command line's fault.
    unsafe { Msr::new(number).read() }
}

/// The time stamp counter.
pub fn cycles() -> u64 {
    // SAFETY: every CPU with long mode has it, and reading has no effect.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Reads a byte from COM1, waiting for it.
pub fn read_console() -> u8 {
    const DATA_READY: u8 = 1;
    while in8(ports::COM1 + 5) & DATA_READY == 0 {}
    in8(ports::COM1)
}

/// Copies from an item of fw_cfg, as `control` says, to `buffer`; whether the device did.
pub fn fw_cfg_read(control: u32, buffer: &mut [u8]) -> bool {
    let address = buffer.as_mut_ptr() as u64;
    let length = u32::try_from(buffer.len()).unwrap_or(0);
    fw_cfg_transfer(DmaAccess { control, length, address })
}

/// Selects an item of fw_cfg and moves on in it by `length` bytes; whether the device did.
pub fn fw_cfg_skip(key: u16, length: u32) -> bool {
    fw_cfg_transfer(DmaAccess { control: select_and(key, dma::SKIP), length, address: 0 })
}

/// Runs a transfer, whose memory the caller lends; whether the device did.
fn fw_cfg_transfer(access: DmaAccess) -> bool {
    let mut descriptor = access.encode();
    let low = u32::try_from(descriptor.as_mut_ptr().addr()).unwrap_or(0).swap_bytes();
    // SAFETY: the device writes to the descriptor and to the buffer of the two functions above,
    // both of which are borrowed mutably. Not `nomem`: what it writes is to be seen afterwards.
    unsafe {
        core::arch::asm!("out dx, eax", in("dx") ports::FW_CFG_DMA_LOW, in("eax") low,
            options(nostack, preserves_flags));
    }
    // Without the device the descriptor stays as it was. QEMU and our VMM are done by now.
    let [a, b, c, d, ..] = descriptor;
    u32::from_be_bytes([a, b, c, d]) == 0
}

/// COM1, used as it comes: no set-up, polled.
pub struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        const THR_EMPTY: u8 = 1 << 5;
        for byte in text.bytes() {
            while in8(ports::COM1 + 5) & THR_EMPTY == 0 {}
            out8(ports::COM1, byte);
        }
        Ok(())
    }
}

/// Ends the VMM with status `code * 2 + 1`, or halts when it has no isa-debug-exit.
pub fn debug_exit(code: u8) -> ! {
    out8(ports::DEBUG_EXIT, code);
    halt()
}

/// Stops for good: interrupts are off.
pub fn halt() -> ! {
    loop {
        x86_64::instructions::hlt();
    }
}
