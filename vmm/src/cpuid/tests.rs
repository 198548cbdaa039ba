//! CPUID as a whole.

use super::*;
use crate::config::Cpu;

fn entry(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() }
}

fn kvm() -> [kvm_cpuid_entry2; 4] {
    [
        entry(0, [0x10, 0, 0, 0]),
        entry(0xa, [2, 0, 0, 0]),
        // "KVMKVMKVM", and what an old KVM says of its last leaf.
        entry(0x4000_0000, [0, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
        entry(0x4000_0001, [0x0100_7efb, 0, 0, 0]),
    ]
}

fn leaf(cpu: &Cpu, leaf: u32) -> Option<[u32; 4]> {
    let mut cpuid = Cpuid::new(&kvm(), true, cpu);
    cpuid.set_tsc_khz(2_596_120);
    let all = cpuid.of(Topology { id: 0, cpus: 1 }).unwrap();
    let found = all.as_slice().iter().find(|entry| entry.function == leaf);
    found.map(|entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
}

#[test]
fn the_guest_is_told_how_fast_its_clocks_are() {
    let cpu = Cpu::default();
    assert_eq!(leaf(&cpu, RATES), Some([2_596_120, 1_000_000, 0, 0]));
    assert_eq!(leaf(&cpu, 0x4000_0000).map(|[last, ..]| last), Some(RATES));
    assert_eq!(leaf(&cpu, 0x4000_0001), Some([0x0100_7efb, 0, 0, 0]));

    let without = Cpu { rates: false, ..cpu };
    assert_eq!(leaf(&without, RATES), None);
    assert_eq!(leaf(&without, 0x4000_0000).map(|[last, ..]| last), Some(0));
}

#[test]
fn kvm_and_its_counters_can_be_hidden() {
    let hidden = Cpu { kvm: false, counters: false, ..Cpu::default() };
    for number in [0xa, 0x4000_0000, 0x4000_0001, RATES] {
        assert!(leaf(&Cpu::default(), number).is_some(), "{number:#x}");
        assert_eq!(leaf(&hidden, number), None, "{number:#x}");
    }
}

#[test]
fn leaves_that_kvm_could_not_take_are_an_error() {
    let many: Vec<_> = (0..300).map(|n| entry(n, [0; 4])).collect();
    assert!(Cpuid::new(&many, true, &Cpu::default()).of(Topology { id: 0, cpus: 1 }).is_none());
}
