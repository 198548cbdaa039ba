//! The first instructions and the last: assembly entry and the jump into the kernel.
#![expect(unsafe_code, reason = "assembly that Rust cannot check")]

use abi::layout;
use abi::linux::{BOOT_CS, BOOT_DS, Entry};
use firmware::kernel::Launch;

/// The GDT's selector of 32-bit code, on the way up and down.
const CODE32: u16 = 0x08;

core::arch::global_asm!(
    include_str!("start.S"),
    BIOS_START = const layout::BIOS_LOW.start(),
    CODE32 = const CODE32,
    BOOT_CS = const BOOT_CS,
    BOOT_DS = const BOOT_DS,
    options(att_syntax)
);

// The order of the descriptors in start.S.
const _: () = assert!(CODE32 == 0x08 && BOOT_CS == 0x10 && BOOT_DS == 0x18);

unsafe extern "C" {
    fn enter_32(entry: u32, boot_params: u32) -> !;
    fn enter_64(entry: u32, boot_params: u32) -> !;
}

/// Enters the kernel.
pub fn enter(launch: Launch) -> ! {
    // The planner keeps the kernel below 1 GiB (`layout::IDENTITY_MAPPED`).
    let address = u32::try_from(launch.address).expect("the kernel is below 4 GiB");
    let boot_params = u32::try_from(launch.boot_params).expect("the zero page is below 4 GiB");
    match launch.entry {
        // SAFETY: start.S set up the state that the protocol asks for and nothing changed it;
        // `boot` put the kernel and its zero page at these addresses. Nothing of ours is used
        // after the jump.
        Entry::Bits64 => unsafe { enter_64(address, boot_params) },
        // SAFETY: as above; the routine itself makes the 32-bit state.
        Entry::Bits32 => unsafe { enter_32(address, boot_params) },
    }
}
