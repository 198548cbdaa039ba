//! Which CPU of how many: the leaves in which each differs from the others.

use kvm_bindings::kvm_cpuid_entry2;

use super::leaves::Leaves;

/// The CPU that CPUID is for.
#[derive(Clone, Copy, Debug)]
pub struct Topology {
    /// Its APIC id.
    pub id: u8,
    /// CPUs of the machine; all are cores of one package.
    pub cpus: u8,
}

/// Leaf 1, EDX: its count of logical processors is valid.
const HTT: u32 = 1 << 28;
/// AMD's leaf 0x8000_0001, ECX: that count is of cores, not of threads.
const CMP_LEGACY: u32 = 1 << 1;

/// The most that a field of 6 bits and one of 8 bits say.
const MAX_6_BITS: u32 = 0x3f;
const MAX_8_BITS: u32 = 0xff;

/// Leaves 0xb and 0x1f: kinds of levels.
const THREADS: u32 = 1;
const CORES: u32 = 2;

/// Describes one CPU (Intel SDM volume 3, 9.9; AMD APM volume 3, E.5).
///
/// Of the host's topology nothing may be left. Linux lists the host's caches, but of its cores
/// since 6.2 a single empty subleaf, and AMD's 0x8000_0026 may come.
pub fn describe(leaves: &mut Leaves, topology: Topology) {
    let Topology { id, cpus } = topology;
    let (id, cpus) = (u32::from(id), u32::from(cpus));
    // Bits of an APIC id that number the cores of a package.
    let bits = cpus.next_power_of_two().trailing_zeros();
    let ids = 1 << bits;

    leaves.retain(|entry| entry.function != 0x8000_0026);
    let last = leaves.last();
    for leaf in [0xb, 0x1f].into_iter().filter(|leaf| *leaf <= last) {
        leaves.put_subleaves(leaf, &levels(id, cpus, bits));
    }
    let is_amd = leaves.is_amd();
    if let Some(entry) = leaves.get_mut(1, 0) {
        // Bits 31 to 24: initial APIC id; 23 to 16: cores, for Intel rounded up to a power of two;
        // 15 to 8: cache line.
        let cores = if is_amd { cpus } else { ids.min(MAX_8_BITS) };
        entry.ebx = entry.ebx & 0xffff | id << 24 | cores << 16;
        entry.edx = if cpus > 1 { entry.edx | HTT } else { entry.edx & !HTT };
    }
    leaves.all_mut(0x4).for_each(|entry| share_cache(entry, ids, (ids - 1).min(MAX_6_BITS)));
    if !is_amd {
        return;
    }
    leaves.all_mut(0x8000_001d).for_each(|entry| share_cache(entry, ids, 0));
    if let Some(entry) = leaves.get_mut(0x8000_0001, 0).filter(|_| cpus > 1) {
        entry.ecx |= CMP_LEGACY;
    }
    // Bits 15 to 12: bits of an id that number cores; 7 to 0: cores, less one.
    if let Some(entry) = leaves.get_mut(0x8000_0008, 0) {
        entry.ecx = entry.ecx & !0xf0ff | bits << 12 | (cpus - 1);
    }
    // Id; core, with one thread; node, the only one.
    if let Some(entry) = leaves.get_mut(0x8000_001e, 0) {
        (entry.eax, entry.ebx, entry.ecx) = (id, id, 0);
    }
}

/// The subleaves of 0xb and 0x1f: one thread in a core, the cores, the end. EDX is the x2APIC id.
fn levels(id: u32, cpus: u32, bits: u32) -> [[u32; 4]; 3] {
    [[0, 1, THREADS << 8, id], [bits, cpus, CORES << 8 | 1, id], [0, 0, 2, id]]
}

/// Describes who shares a cache, in Intel's leaf or AMD's: level 3 all CPUs, the others one alone.
fn share_cache(entry: &mut kvm_cpuid_entry2, ids: u32, cores: u32) {
    // Bits 4 to 0: kind, 0 for none; 7 to 5: level; 25 to 14: ids that share it, less one; for
    // Intel, 31 to 26: ids of cores in the package, less one.
    if entry.eax & 0x1f != 0 {
        let sharing = if entry.eax >> 5 & 7 >= 3 { ids - 1 } else { 0 };
        entry.eax = entry.eax & 0x3fff | sharing << 14 | cores << 26;
    }
}

#[cfg(test)]
mod tests;
