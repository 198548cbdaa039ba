//! Writes model-specific registers on all CPUs.
#![expect(unsafe_code, reason = "assembly that Rust cannot check")]

use abi::layout;
use abi::linux::BOOT_CS;
use firmware::machine::Msr;

core::arch::global_asm!(
    include_str!("msrs.S"),
    BIOS_START = const layout::BIOS_LOW.start(),
    BOOT_CS = const BOOT_CS,
    LOCAL_APIC = const layout::LOCAL_APIC,
    options(att_syntax)
);

mod routine {
    use super::Msr;
    unsafe extern "C" {
        pub fn set_msrs(list: *const Msr, others: u32) -> u32;
    }
}

/// See [`Machine::set_msrs`](firmware::machine::Machine::set_msrs).
pub fn set_msrs(list: &[Msr; 3], others: u32) -> Option<u32> {
    // SAFETY: the list ends with register 0, by the contract of `Msr`, and outlives the call; the
    // registers are those of `cpus`, which decide about caching and about virtualization, not about
    // what Rust relies on. A value that the CPU refuses is caught.
    let answers = unsafe { routine::set_msrs(list.as_ptr(), others) };
    (answers != u32::MAX).then_some(answers)
}

/// Whether CPUID says that this CPU has memory type range registers.
pub fn has_mtrrs() -> bool {
    const MTRR: u32 = 1 << 12;
    core::arch::x86_64::__cpuid(1).edx & MTRR != 0
}
