//! Features that are asked for, refused and lost.

use super::*;
use kvm_bindings::kvm_cpuid_entry2;
use proptest::prelude::*;

const AMD: u32 = 0x6874_7541;
const XSAVE_AREA: [(u32, u32, u32); 5] =
    [(2, 256, 576), (5, 64, 832), (6, 512, 896), (7, 1024, 1408), (9, 8, 2432)];

/// What KVM may list on a host with AVX-512 and a nested hypervisor; AMD's, with all of AMX but its
/// registers.
fn kvm() -> Leaves {
    let entry = |function, index| kvm_cpuid_entry2 { function, index, ..Default::default() };
    let mut entries = vec![
        kvm_cpuid_entry2 { eax: 0x1f, ebx: AMD, ..entry(0, 0) },
        kvm_cpuid_entry2 { eax: 0x2e7, ebx: 576, ecx: 2440, ..entry(0xd, 0) },
        kvm_cpuid_entry2 { eax: 0xf, ..entry(0xd, 1) },
        kvm_cpuid_entry2 { eax: 1, ..entry(0x8000_000a, 0) },
    ];
    for (function, index) in [
        (1, 0),
        (6, 0),
        (7, 0),
        (7, 1),
        (0x1d, 0),
        (0x4000_0001, 0),
        (0x8000_0001, 0),
        (0x8000_0007, 0),
    ] {
        entries.push(entry(function, index));
    }
    entries.extend(XSAVE_AREA.map(|(index, eax, ebx)| kvm_cpuid_entry2 {
        eax,
        ebx,
        ..entry(0xd, index)
    }));
    let mut leaves = Leaves::new(&entries);
    let names = "fpu mmx apic pni xsave avx fma f16c avx2 vaes avx512f avx512bw avx-vnni pku svm \
                 npt invtsc kvmclock kvm-pv-unhalt amx-tile amx-int8 perfctr-core arat";
    set_all(&mut leaves, names, true);
    leaves
}

/// The features of `text`, as `+name -name`, applied; and what is said of them.
fn applied(text: &str, migratable: bool) -> (Leaves, Vec<String>) {
    let feature = |word: &str| (features::find(&word[1..]).unwrap(), word.starts_with('+'));
    let features = text.split_ascii_whitespace().map(feature).collect();
    let cpu = Cpu { features, migratable, ..Cpu::default() };
    let mut leaves = kvm();
    let missing = apply(&mut leaves, true, &cpu);
    (leaves, missing.iter().map(ToString::to_string).collect())
}

fn check(text: &str, there: &str, absent: &str) {
    let (leaves, missing) = applied(text, true);
    assert_eq!(missing, [""; 0], "{text}");
    for name in there.split_ascii_whitespace() {
        assert!(has(&leaves, name), "{text}: {name} is missing");
    }
    for name in absent.split_ascii_whitespace() {
        assert!(!has(&leaves, name), "{text}: {name} is there");
    }
}

#[test]
fn the_default_is_what_kvm_offers() {
    check(
        "",
        "pni avx avx512bw svm kvmclock hypervisor x2apic tsc-deadline arat",
        "hle invtsc kvm-hint-dedicated kvm-msi-ext-dest-id amx-tile amx-int8",
    );
    assert!(has(&applied("", false).0, "invtsc"));
    let mut without_deadline = kvm();
    apply(&mut without_deadline, false, &Cpu::default());
    assert!(!has(&without_deadline, "tsc-deadline"));
}

#[test]
fn features_come_and_go() {
    check("+invtsc +kvm-hint-dedicated", "invtsc kvm-hint-dedicated", "");
    check("-hypervisor -x2apic -tsc-deadline", "apic kvmclock", "hypervisor x2apic tsc-deadline");
    check("-kvmclock -hle", "kvm-pv-unhalt", "kvmclock hle");
    // Instructions on registers that are gone.
    check("-avx", "xsave pku pni", "avx avx2 fma f16c vaes avx512f avx512bw avx-vnni");
    check("-avx512f", "avx avx2 fma avx-vnni", "avx512f avx512bw");
    check("-xsave", "pni", "xsave xsaveopt xsaves avx avx2 avx512f pku");
    check("-svm", "avx", "svm npt");
}

#[test]
fn what_the_host_does_not_have_is_told_in_qemu_s_words() {
    for (text, expected) in [
        ("+hle", &["host doesn't support requested feature: CPUID.07H:EBX.hle [bit 4]"][..]),
        ("+vmx +avx", &["host doesn't support requested feature: CPUID.01H:ECX.vmx [bit 5]"]),
        ("+xop", &["host doesn't support requested feature: CPUID.80000001H:ECX.xop [bit 11]"]),
        // A leaf that is not there.
        ("+sgx1", &["host doesn't support requested feature: CPUID.12H:EAX.sgx1 [bit 0]"]),
        // Its registers are not there.
        ("+amx-tile", &["host doesn't support requested feature: CPUID.07H:EDX.amx-tile [bit 24]"]),
        (
            "-avx +avx2",
            &["This feature depends on other features that were not requested: \
               CPUID.07H:EBX.avx2 [bit 5]"],
        ),
    ] {
        assert_eq!(applied(text, true).1, expected, "{text}");
    }
}

#[test]
fn registers_go_with_their_features() {
    let saved = |text| {
        let (leaves, _) = applied(text, true);
        let entry = |index| leaves.get(0xd, index).copied().unwrap_or_default();
        let subleaves: Vec<_> = (2..64).filter(|index| leaves.get(0xd, *index).is_some()).collect();
        (entry(0).eax, entry(0).ecx, subleaves)
    };
    assert_eq!(saved(""), (0x2e7, 2440, vec![2, 5, 6, 7, 9]));
    assert_eq!(saved("-pku"), (0xe7, 2432, vec![2, 5, 6, 7]));
    assert_eq!(saved("-avx512f -pku"), (7, 832, vec![2]));
    assert_eq!(saved("-avx"), (0x203, 2440, vec![9]));
    assert_eq!(saved("-avx -pku"), (3, 576, vec![]));
    assert_eq!(saved("-xsave"), (0, 0, vec![]));
}

#[test]
fn leaves_go_with_their_features() {
    let leaf = |text, leaf| applied(text, true).0.get(leaf, 0).is_some();
    assert!(leaf("", 0x8000_000a) && !leaf("-svm", 0x8000_000a));
    assert!(!leaf("", 0x1d), "AMX without registers");
}

#[test]
fn amd_repeats_what_leaf_1_says() {
    let repeated = |text| applied(text, true).0.register(REPEATED_IN);
    // FPU, APIC, MMX.
    assert_eq!(repeated(""), 1 << 23 | 1 << 9 | 1);
    assert_eq!(repeated("-mmx"), 1 << 9 | 1);
}

#[test]
fn counters_go_with_their_features() {
    let (mut leaves, _) = applied("", true);
    assert!(has(&leaves, "perfctr-core"));
    drop_counters(&mut leaves);
    assert!(!has(&leaves, "perfctr-core"));
}

#[test]
fn every_name_in_the_tables_is_a_feature() {
    let lists = DEPENDENTS.iter().flat_map(|(name, dependents)| [*name, *dependents]);
    let lists = lists.chain(DESCRIPTIONS.map(|(name, _)| name));
    for name in lists.chain([OURS, ON_REQUEST, NOT_MIGRATABLE, COUNTERS]) {
        for name in name.split_ascii_whitespace() {
            assert!(features::find(name).is_some(), "{name}");
        }
    }
}

proptest! {
    /// Nothing is there that KVM does not offer, and what was taken away is gone.
    #[test]
    fn no_wish_is_granted_beyond_what_there_is(
        wishes in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..12),
    ) {
        let names: Vec<_> = features::names().collect();
        let mut all = kvm();
        apply(&mut all, true, &Cpu { migratable: false, ..Cpu::default() });
        set_all(&mut all, ON_REQUEST, true);
        let mut cpu = Cpu::default();
        for (index, on) in wishes {
            let feature = features::find(names[index.index(names.len())]).unwrap();
            cpu.features.retain(|(known, _)| *known != feature);
            cpu.features.push((feature, on));
        }
        let mut leaves = kvm();
        let missing = apply(&mut leaves, true, &cpu);
        for feature in names.iter().filter_map(|name| features::find(name)) {
            let there = leaves.register(feature.word) & feature.mask;
            prop_assert_eq!(there & !all.register(feature.word), 0, "{}", feature.name);
        }
        for (feature, on) in &cpu.features {
            if *on {
                let told = missing.iter().any(|missing| missing.feature.name == feature.name);
                prop_assert_ne!(told, is_there(&leaves, feature), "{}", feature.name);
            } else {
                let there = leaves.register(feature.word) & feature.mask;
                prop_assert_eq!(there, 0, "{}", feature.name);
            }
        }
    }
}
