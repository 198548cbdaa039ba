//! A freestanding kernel that tells how it was entered and what it was told.
//!
//! It speaks the Linux boot protocol as a bzImage with 16-, 32- and 64-bit entries, and PVH as an
//! ELF file, so every way to boot can be tried where Linux is too big or cannot run. It reads the
//! zero page by offsets of its own, so that it checks the loader and not the loader's constants.
#![cfg_attr(firmware, no_std, no_main)]

#[cfg(firmware)]
mod acpi;
#[cfg(firmware)]
mod cpus;
#[cfg(firmware)]
mod entry;
#[cfg(firmware)]
mod facts;
#[cfg(firmware)]
mod fw_cfg;
#[cfg(firmware)]
mod generation_id;
#[cfg(firmware)]
mod hardware;
#[cfg(firmware)]
mod hostile;
#[cfg(firmware)]
mod mp_table;
#[cfg(firmware)]
mod pvh;

#[cfg(firmware)]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    use core::fmt::Write as _;
    let _ = writeln!(hardware::Console, "payload-panic={info}");
    hardware::debug_exit(hardware::EXIT_PANIC)
}

/// The host has no use for this program; `cargo xtask build` builds the image.
#[cfg(not(firmware))]
fn main() {
    eprintln!("payload: this is the source of payload.bzImage; run `cargo xtask build`");
    std::process::exit(1);
}
