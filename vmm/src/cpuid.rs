//! What CPUID tells the guest: the host's CPU by KVM, the machine's topology.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// Entries that KVM may return, with room to grow.
pub const ENTRIES_MAX: usize = 128;

/// The CPU that CPUID is for.
#[derive(Clone, Copy, Debug)]
pub struct Topology {
    /// Its APIC id.
    pub id: u8,
    /// CPUs of the machine; all are cores of one package.
    pub cpus: u8,
}

/// Leaf 1, ECX: the local APIC's timer has a TSC deadline mode.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX: there is a hypervisor, and leaves from 0x4000_0000 on.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, ECX: x2APIC.
const X2APIC: u32 = 1 << 21;
/// Leaf 1, EDX: leaf 1's count of logical processors is valid.
const HTT: u32 = 1 << 28;

/// Fits what KVM supports to one CPU of the machine.
pub fn fit(cpuid: &mut CpuId, topology: Topology, tsc_deadline: bool) {
    for entry in cpuid.as_mut_slice() {
        fit_entry(entry, topology, tsc_deadline);
    }
}

fn fit_entry(entry: &mut kvm_cpuid_entry2, topology: Topology, tsc_deadline: bool) {
    let Topology { id, cpus } = topology;
    let (id, cpus) = (u32::from(id), u32::from(cpus));
    // Bits of an APIC id that number the cores of a package.
    let bits = cpus.next_power_of_two().trailing_zeros();
    match entry.function {
        0x1 => {
            // Bits 31 to 24: initial APIC id; 23 to 16: ids in a package; 15 to 8: cache line.
            entry.ebx = entry.ebx & 0xffff | id << 24 | (1 << bits) << 16;
            entry.ecx |= HYPERVISOR | X2APIC;
            if tsc_deadline {
                entry.ecx |= TSC_DEADLINE;
            }
            entry.edx = if cpus > 1 { entry.edx | HTT } else { entry.edx & !HTT };
        }
        // Caches, of Intel and of AMD. Bits 25 to 14: ids that share the cache, less one; and for
        // Intel, 31 to 26: ids of cores in the package, less one. Caches of level 3 are shared.
        0x4 | 0x8000_001d if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 { (1 << bits) - 1 } else { 0 };
            let cores = if entry.function == 0x4 { (1 << bits) - 1 } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharing << 14 | cores << 26;
        }
        // Extended topology: threads (one a core), cores, and the end.
        0xb | 0x1f => {
            let (kind, shift, count) = match entry.index {
                0 => (1, 0, 1),
                1 => (2, bits, cpus),
                _ => (0, 0, 0),
            };
            entry.eax = shift;
            entry.ebx = count;
            entry.ecx = kind << 8 | entry.index & 0xff;
            entry.edx = id;
        }
        // AMD. Bits 15 to 12: bits of an id that number cores; 7 to 0: cores, less one.
        0x8000_0008 => entry.ecx = entry.ecx & !0xf0ff | bits << 12 | (cpus - 1),
        // AMD: id; unit, with one thread; node.
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fitted(function: u32, index: u32, topology: Topology) -> kvm_cpuid_entry2 {
        let ones = u32::MAX;
        let mut entry = kvm_cpuid_entry2 {
            function,
            index,
            eax: ones,
            ebx: ones,
            ecx: ones & !(TSC_DEADLINE | HYPERVISOR),
            edx: ones,
            ..Default::default()
        };
        fit_entry(&mut entry, topology, true);
        entry
    }

    const ONE: Topology = Topology { id: 0, cpus: 1 };
    const LAST_OF_SIX: Topology = Topology { id: 5, cpus: 6 };

    #[test]
    fn leaf_1_has_the_apic_id_and_the_hypervisor() {
        let entry = fitted(1, 0, LAST_OF_SIX);
        assert_eq!(entry.ebx, 5 << 24 | 8 << 16 | 0xffff);
        assert_eq!(entry.ecx & (TSC_DEADLINE | HYPERVISOR), TSC_DEADLINE | HYPERVISOR);
        assert_eq!(fitted(1, 0, ONE).edx & HTT, 0);
    }

    #[test]
    fn the_extended_topology_has_two_levels() {
        let threads = fitted(0xb, 0, LAST_OF_SIX);
        assert_eq!((threads.eax, threads.ebx, threads.ecx, threads.edx), (0, 1, 0x100, 5));
        let cores = fitted(0xb, 1, LAST_OF_SIX);
        assert_eq!((cores.eax, cores.ebx, cores.ecx), (3, 6, 0x201));
        let end = fitted(0x1f, 2, LAST_OF_SIX);
        assert_eq!((end.eax, end.ebx, end.ecx), (0, 0, 2));
        assert_eq!(fitted(0xb, 1, ONE).eax, 0);
    }

    #[test]
    fn amd_counts_its_cores() {
        assert_eq!(fitted(0x8000_0008, 0, LAST_OF_SIX).ecx & 0xf0ff, 3 << 12 | 5);
        assert_eq!(fitted(0x8000_001e, 0, LAST_OF_SIX).eax, 5);
    }
}
