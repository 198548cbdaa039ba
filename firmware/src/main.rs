//! The BIOS image: reset vector, hardware access, and the end of every failure.
//!
//! `start.S` gets from the reset vector to [`rust_main`]; [`firmware::boot`] does the work; this
//! file enters the kernel, or says why not.
#![cfg_attr(firmware, no_std, no_main)]

#[cfg(firmware)]
mod clock;
#[cfg(firmware)]
mod console;
#[cfg(firmware)]
mod entry;
#[cfg(firmware)]
mod hardware;
#[cfg(firmware)]
mod heap;
#[cfg(firmware)]
mod msrs;

/// Called by `start.S` in long mode, once. The host bridge is for [`Machine::host_bridge`].
///
/// [`Machine::host_bridge`]: firmware::machine::Machine::host_bridge
#[cfg(firmware)]
#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "start.S calls this symbol by its name")]
extern "C" fn rust_main(host_bridge: u32) -> ! {
    // This is the only call, and nothing was allocated or borrowed before it.
    let mut machine = hardware::Hardware::take(host_bridge);
    match firmware::boot::boot(&mut machine) {
        Ok(launch) => entry::enter(launch),
        Err(error) => console::stop(&mut machine, error.code(), format_args!("{error}")),
    }
}

#[cfg(firmware)]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    use firmware::error::PANIC_CODE;
    use firmware::log::Text;
    let (file, line) = info.location().map_or(("", 0), |place| (place.file(), place.line()));
    let (file, message) = (Text(file), info.message());
    let reason = format_args!("firmware bug at {file}:{line}: {message}");
    console::stop(&mut hardware::Hardware::take_again(), PANIC_CODE, reason)
}

/// The host has no use for this program; `cargo xtask build-firmware` builds the image.
#[cfg(not(firmware))]
fn main() {
    eprintln!("firmware: this is the source of bios-microvm.bin; run `cargo xtask build-firmware`");
    std::process::exit(1);
}
