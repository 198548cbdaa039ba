//! The time-stamp counter, and how fast it counts.
#![expect(unsafe_code, reason = "CPUID, RDTSC, and a page that the hypervisor writes")]

use core::arch::x86_64::{__cpuid, _rdtsc};

use x86_64::registers::model_specific::Msr;

/// CPUID leaves of a hypervisor (KVM, Documentation/virt/kvm/x86/cpuid.rst): its signature and last
/// leaf, its features, and by VMware's convention the counter's rate in kHz.
const SIGNATURE_LEAF: u32 = 0x4000_0000;
const FEATURES_LEAF: u32 = 0x4000_0001;
const FREQUENCY_LEAF: u32 = 0x4000_0010;
/// `KVMKVMKVM`, NUL-padded.
const KVM: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x4d];
/// There is [`SYSTEM_TIME`].
const CLOCKSOURCE2: u32 = 1 << 3;
/// MSR_KVM_SYSTEM_TIME_NEW (KVM, Documentation/virt/kvm/x86/msr.rst).
const SYSTEM_TIME: u32 = 0x4b56_4d01;
const SYSTEM_TIME_ON: u64 = 1;

/// `struct pvclock_vcpu_time_info`.
#[repr(C, align(4))]
#[derive(Default)]
struct TimeInfo {
    version: u32,
    _pad: u32,
    tsc_timestamp: [u32; 2],
    system_time: [u32; 2],
    tsc_to_system_mul: u32,
    tsc_shift: i8,
    _flags: [u8; 3],
}

/// The time-stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: every CPU of 64 bits has the instruction, and this ring may use it.
    unsafe { _rdtsc() }
}

/// The counter's rate in kHz, if the hypervisor says it.
pub fn tsc_khz() -> Option<u32> {
    const HYPERVISOR: u32 = 1 << 31;
    if __cpuid(1).ecx & HYPERVISOR == 0 {
        return None;
    }
    let signature = __cpuid(SIGNATURE_LEAF);
    if signature.eax >= FREQUENCY_LEAF {
        return Some(__cpuid(FREQUENCY_LEAF).eax).filter(|khz| *khz != 0);
    }
    let is_kvm = [signature.ebx, signature.ecx, signature.edx] == KVM;
    (is_kvm && __cpuid(FEATURES_LEAF).eax & CLOCKSOURCE2 != 0).then(kvm_clock)?
}

/// The rate by which KVM makes nanoseconds of the counter: `(tsc << shift) * mul >> 32`.
fn kvm_clock() -> Option<u32> {
    let mut info = TimeInfo::default();
    let mut msr = Msr::new(SYSTEM_TIME);
    // SAFETY: the structure lives until the second write, and memory is identity-mapped.
    unsafe { msr.write((&raw mut info) as u64 | SYSTEM_TIME_ON) };
    // SAFETY: a reference is readable; volatile because the hypervisor wrote it.
    let info = unsafe { (&raw const info).read_volatile() };
    // SAFETY: KVM forgets the structure.
    unsafe { msr.write(0) };
    khz(info.tsc_to_system_mul, info.tsc_shift)
}

fn khz(mul: u32, shift: i8) -> Option<u32> {
    const NANOSECONDS: u64 = 1_000_000;
    let rate = (NANOSECONDS << 32).checked_div(mul.into())?;
    let distance = u32::from(shift.unsigned_abs());
    let rate = if shift < 0 { rate.checked_shl(distance)? } else { rate.checked_shr(distance)? };
    u32::try_from(rate).ok().filter(|khz| *khz != 0)
}
