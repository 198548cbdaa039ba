//! Machines of one CPU to 254, on both makers' hosts.

use super::*;
use crate::cpuid::{Register, Word};

const INTEL: u32 = 0x756e_6547;
const AMD: u32 = 0x6874_7541;

/// A host's leaves, all bits set that are not decided here, the host's own topology among them.
fn host(vendor: u32) -> Leaves {
    let ones = u32::MAX;
    let entry = |function, index, eax| kvm_cpuid_entry2 {
        function,
        index,
        eax,
        ebx: ones,
        ecx: ones,
        edx: ones,
        ..Default::default()
    };
    let mut entries = vec![entry(0, 0, 0x1f), entry(1, 0, ones), entry(0xb, 0, ones)];
    entries[0].ebx = vendor;
    // A cache of level 1, one of level 3, and none.
    for (index, kind) in [(0, 1 << 5 | 1), (1, 3 << 5 | 3), (2, 0)] {
        entries.push(entry(0x4, index, kind));
        entries.push(entry(0x8000_001d, index, kind));
    }
    let amd = [0x8000_0001, 0x8000_0008, 0x8000_001e, 0x8000_0026];
    entries.extend(amd.map(|function| entry(function, 0, ones)));
    Leaves::new(&entries)
}

fn described(vendor: u32, id: u8, cpus: u8) -> Leaves {
    let mut leaves = host(vendor);
    describe(&mut leaves, Topology { id, cpus });
    leaves
}

fn registers(leaves: &Leaves, leaf: u32, subleaf: u32) -> [u32; 4] {
    let entry = leaves.get(leaf, subleaf).unwrap();
    [entry.eax, entry.ebx, entry.ecx, entry.edx]
}

/// CPUs, and the bits that number them.
const MACHINES: [(u8, u32); 9] =
    [(1, 0), (2, 1), (3, 2), (16, 4), (64, 6), (65, 7), (128, 7), (129, 8), (254, 8)];

#[test]
fn every_cpu_has_its_own_id_in_every_leaf() {
    for (vendor, (cpus, _)) in [INTEL, AMD].into_iter().flat_map(|v| MACHINES.map(|m| (v, m))) {
        for id in 0..cpus {
            let leaves = described(vendor, id, cpus);
            let number = u32::from(id);
            assert_eq!(registers(&leaves, 1, 0)[1] >> 24, number, "{id} of {cpus}");
            for leaf in [0xb, 0x1f] {
                for subleaf in 0..3 {
                    assert_eq!(registers(&leaves, leaf, subleaf)[3], number, "{id} of {cpus}");
                }
            }
            if vendor == AMD {
                assert_eq!(registers(&leaves, 0x8000_001e, 0)[..3], [number, number, 0]);
            }
        }
    }
}

#[test]
fn the_extended_topology_has_threads_and_cores() {
    for (cpus, bits) in MACHINES {
        let leaves = described(INTEL, 0, cpus);
        for leaf in [0xb, 0x1f] {
            assert_eq!(registers(&leaves, leaf, 0), [0, 1, 0x100, 0], "{cpus}");
            assert_eq!(registers(&leaves, leaf, 1), [bits, cpus.into(), 0x201, 0], "{cpus}");
            assert_eq!(registers(&leaves, leaf, 2), [0, 0, 2, 0], "{cpus}");
        }
    }
    // A leaf past the last is not put there.
    let mut leaves = host(INTEL);
    leaves.change(Word::new(0, 0, Register::Eax), 0xb, !0);
    describe(&mut leaves, Topology { id: 0, cpus: 2 });
    assert!(leaves.get(0xb, 1).is_some() && leaves.get(0x1f, 0).is_none());
}

#[test]
fn intel_counts_ids_in_fields_that_do_not_overflow() {
    for (cpus, ids, cores) in
        [(1, 1, 0), (2, 2, 1), (3, 4, 3), (64, 64, 63), (65, 128, 63), (254, 255, 63)]
    {
        let leaves = described(INTEL, cpus - 1, cpus);
        let [_, ebx, _, edx] = registers(&leaves, 1, 0);
        assert_eq!(ebx >> 16 & 0xff, ids, "{cpus}");
        assert_eq!(ebx & 0xffff, 0xffff, "the rest is the host's");
        assert_eq!(edx & HTT != 0, cpus > 1, "{cpus}");
        let sharing = u32::from(cpus).next_power_of_two() - 1;
        let caches = [0, 1, 2].map(|index| registers(&leaves, 4, index)[0]);
        assert_eq!(caches, [cores << 26 | 0x21, cores << 26 | sharing << 14 | 0x63, 0], "{cpus}");
    }
    let leaves = described(INTEL, 0, 4);
    assert_eq!(registers(&leaves, 0x8000_0008, 0), [u32::MAX; 4], "reserved");
}

#[test]
fn amd_counts_cores() {
    for (cpus, bits) in MACHINES {
        let leaves = described(AMD, 0, cpus);
        let count = u32::from(cpus);
        assert_eq!(registers(&leaves, 1, 0)[1] >> 16 & 0xff, count, "{cpus}");
        let sizes = registers(&leaves, 0x8000_0008, 0)[2];
        assert_eq!(sizes, 0xffff_0f00 | bits << 12 | (count - 1), "{cpus}");
        let sharing = count.next_power_of_two() - 1;
        let caches = [0, 1, 2].map(|index| registers(&leaves, 0x8000_001d, index)[0]);
        assert_eq!(caches, [0x21, sharing << 14 | 0x63, 0], "{cpus}");
        assert!(leaves.get(0x8000_0026, 0).is_none());
    }
}
