//! The first instructions and the last: assembly entry, jump into the kernel.
#![expect(unsafe_code, reason = "assembly that Rust cannot check")]

use abi::linux::{BOOT_CS, BOOT_DS, Entry, SETUP_STACK};
use abi::{layout, pci, ports, post};
use firmware::error::NO_SHADOW_CODE;
use firmware::kernel::Launch;

/// The GDT's selector of 32-bit code, on the way up and down.
const CODE32: u16 = 0x08;
/// The second GDT's selectors of 16-bit code and data, on the way to real mode.
const CODE16: u16 = 0x08;
const DATA16: u16 = 0x20;
/// The image as a real-mode segment.
const BIOS_SEGMENT: u64 = layout::BIOS_LOW.start() >> 4;

core::arch::global_asm!(
    include_str!("start.S"),
    BIOS_START = const layout::BIOS_LOW.start(),
    CODE32 = const CODE32,
    BOOT_CS = const BOOT_CS,
    BOOT_DS = const BOOT_DS,
    CODE16 = const CODE16,
    DATA16 = const DATA16,
    LOCAL_APIC = const layout::LOCAL_APIC,
    GED_RESET = const layout::GED_REGISTERS + layout::GED_RESET,
    GED_RESET_VALUE = const layout::GED_RESET_VALUE,
    I8042_COMMAND = const ports::I8042_COMMAND,
    I8042_RESET = const ports::I8042_RESET,
    BIOS_SEGMENT = const BIOS_SEGMENT,
    ALIAS_TO_HIGH = const layout::BIOS_HIGH.start() - layout::BIOS_LOW.start(),
    PCI_ADDRESS = const ports::PCI_ADDRESS,
    PCI_DATA = const ports::PCI_DATA,
    ID_I440FX = const pci::I440FX,
    ID_Q35 = const pci::Q35,
    PAM_I440FX = const pci::I440FX_PAM,
    PAM_Q35 = const pci::Q35_PAM,
    POST = const ports::POST,
    POST_FAILED = const post::FIRMWARE_FAILED,
    DEBUG_EXIT = const ports::DEBUG_EXIT,
    ERROR_NO_SHADOW = const NO_SHADOW_CODE,
    options(att_syntax)
);

core::arch::global_asm!(
    include_str!("bios16.S"),
    BIOS_START = const layout::BIOS_LOW.start(),
    BIOS_SEGMENT = const BIOS_SEGMENT,
    REAL_MODE_DATA = const layout::REAL_MODE_DATA.start(),
    EBDA = const layout::EBDA.start(),
    COM1 = const ports::COM1,
    options(att_syntax)
);

// The order of the descriptors in start.S.
const _: () = assert!(CODE32 == 0x08 && BOOT_CS == 0x10 && BOOT_DS == 0x18);

unsafe extern "C" {
    fn enter_16(segment: u32, stack: u32) -> !;
    fn enter_32(entry: u32, esi: u32, ebx: u32) -> !;
    fn enter_64(entry: u32, esi: u32) -> !;
}

/// Enters the kernel.
pub fn enter(launch: Launch) -> ! {
    match launch {
        Launch::Linux { protocol: Entry::Bits64, entry, boot_params } => {
            // SAFETY: start.S set up the state that the protocol asks for and nothing changed
            // it; `boot` put the kernel and its zero page at these addresses. Nothing of ours is
            // used after the jump.
            unsafe { enter_64(low(entry), low(boot_params)) }
        }
        Launch::Linux { protocol: Entry::Bits32, entry, boot_params } => {
            // SAFETY: as above; the routine itself makes the 32-bit state.
            unsafe { enter_32(low(entry), low(boot_params), 0) }
        }
        Launch::Linux { protocol: Entry::Bits16, entry, .. } => {
            // SAFETY: as above; `entry` is the setup code, loaded below 1 MiB.
            unsafe { enter_16(low(entry) >> 4, SETUP_STACK.into()) }
        }
        Launch::Pvh { entry, start_info } => {
            // SAFETY: as above, with the start info in the zero page's place.
            unsafe { enter_32(low(entry), 0, low(start_info)) }
        }
    }
}

/// The planner keeps what the kernel is entered with below 4 GiB.
fn low(address: u64) -> u32 {
    u32::try_from(address).unwrap_or_else(|_| panic!("an entry above 4 GiB"))
}
