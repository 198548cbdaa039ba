//! Features of CPUs by QEMU's names: the bit of CPUID that tells each.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use super::leaves::{Register, Word};

/// A feature: some bits of CPUID, all set where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// QEMU's name.
    pub name: &'static str,
    /// Where its bits are.
    pub word: Word,
    /// Its bits there.
    pub mask: u32,
}

/// Every name by its bit. A number among the names is the next name's bit; the first bit is 0.
///
/// The bits: Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E; Linux,
/// Documentation/virt/kvm/x86/cpuid.rst; VIA PadLock Programming Guide. The names: QEMU 7.2,
/// `-cpu help`, and those that versions 8 to 10 added.
const NAMES: [(Word, &str); 26] = [
    (
        Word::new(0x1, 0, Register::Ecx),
        "pni pclmulqdq dtes64 monitor ds-cpl vmx smx est tm2 ssse3 cid 12 fma cx16 xtpr pdcm 17 \
         pcid dca sse4.1 sse4.2 x2apic movbe popcnt tsc-deadline aes xsave 28 avx f16c rdrand \
         hypervisor",
    ),
    (
        Word::new(0x1, 0, Register::Edx),
        "fpu vme de pse tsc msr pae mce cx8 apic 11 sep mtrr pge mca cmov pat pse36 pn clflush \
         21 ds acpi mmx fxsr sse sse2 ss ht tm ia64 pbe",
    ),
    (Word::new(0x6, 0, Register::Eax), "2 arat"),
    (
        Word::new(0x7, 0, Register::Ebx),
        "fsgsbase tsc-adjust sgx bmi1 hle avx2 fdp-excptn-only smep bmi2 erms invpcid rtm 13 \
         zero-fcs-fds mpx 16 avx512f avx512dq rdseed adx smap avx512ifma pcommit clflushopt \
         clwb intel-pt avx512pf avx512er avx512cd sha-ni avx512bw avx512vl",
    ),
    (
        Word::new(0x7, 0, Register::Ecx),
        "1 avx512vbmi umip pku 5 waitpkg avx512vbmi2 8 gfni vaes vpclmulqdq avx512vnni \
         avx512bitalg 14 avx512-vpopcntdq 16 la57 22 rdpid 24 bus-lock-detect cldemote 27 \
         movdiri movdir64b 30 sgxlc pks",
    ),
    (
        Word::new(0x7, 0, Register::Edx),
        "2 avx512-4vnniw avx512-4fmaps fsrm 8 avx512-vp2intersect 10 md-clear 14 serialize 16 \
         tsx-ldtrk 19 arch-lbr 22 amx-bf16 avx512-fp16 amx-tile amx-int8 spec-ctrl stibp \
         flush-l1d arch-capabilities core-capability ssbd",
    ),
    (
        Word::new(0x7, 1, Register::Eax),
        "sha512 sm3 sm4 4 avx-vnni avx512-bf16 7 cmpccxadd 10 fzrm fsrs fsrc 17 fred lkgs \
         wrmsrns 21 amx-fp16 23 avx-ifma 26 lam",
    ),
    (
        Word::new(0x7, 1, Register::Edx),
        "4 avx-vnni-int8 avx-ne-convert 8 amx-complex 10 avx-vnni-int16 14 prefetchiti 19 avx10",
    ),
    (Word::new(0x7, 2, Register::Edx), "intel-psfd ipred-ctrl rrsba-ctrl ddpd-u bhi-ctrl mcdt-no"),
    (Word::new(0xd, 1, Register::Eax), "xsaveopt xsavec xgetbv1 xsaves xfd"),
    (Word::new(0x12, 0, Register::Eax), "sgx1 sgx2 11 sgx-edeccssa"),
    (Word::new(0x12, 0, Register::Ebx), "sgx-exinfo"),
    (
        Word::new(0x12, 1, Register::Eax),
        "1 sgx-debug sgx-mode64 4 sgx-provisionkey sgx-tokenkey 7 sgx-kss 10 sgx-aex-notify",
    ),
    (Word::new(0x14, 0, Register::Ecx), "31 intel-pt-lip"),
    (Word::new(0x24, 0, Register::Ebx), "16 avx10-128 avx10-256 avx10-512"),
    (
        Word::new(0x4000_0001, 0, Register::Eax),
        "kvmclock kvm-nopiodelay kvm-mmu kvmclock kvm-asyncpf kvm-steal-time kvm-pv-eoi \
         kvm-pv-unhalt 9 kvm-pv-tlb-flush kvm-asyncpf-vmexit kvm-pv-ipi kvm-poll-control \
         kvm-pv-sched-yield kvm-asyncpf-int kvm-msi-ext-dest-id 24 kvmclock-stable-bit",
    ),
    (Word::new(0x4000_0001, 0, Register::Edx), "kvm-hint-dedicated"),
    (
        Word::new(0x8000_0001, 0, Register::Ecx),
        "lahf-lm cmp-legacy svm extapic cr8legacy abm sse4a misalignsse 3dnowprefetch osvw ibs \
         xop skinit wdt 15 lwp fma4 tce 19 nodeid-msr 21 tbm topoext perfctr-core perfctr-nb",
    ),
    (
        Word::new(0x8000_0001, 0, Register::Edx),
        "11 syscall 20 nx 22 mmxext 25 fxsr-opt pdpe1gb rdtscp 29 lm 3dnowext 3dnow",
    ),
    (Word::new(0x8000_0007, 0, Register::Ebx), "overflow-recov succor"),
    (Word::new(0x8000_0007, 0, Register::Edx), "8 invtsc"),
    (
        Word::new(0x8000_0008, 0, Register::Ebx),
        "clzero 2 xsaveerptr 9 wbnoinvd 12 ibpb 14 ibrs amd-stibp 17 stibp-always-on 24 \
         amd-ssbd virt-ssbd amd-no-ssb 28 amd-psfd",
    ),
    (
        Word::new(0x8000_000a, 0, Register::Edx),
        "npt lbrv svm-lock nrip-save tsc-scale vmcb-clean flushbyasid decodeassists 10 \
         pause-filter 12 pfthreshold avic 15 v-vmsave-vmload vgif 25 vnmi 28 svme-addr-chk",
    ),
    (
        Word::new(0x8000_0021, 0, Register::Eax),
        "no-nested-data-bp 2 lfence-always-serializing 6 null-sel-clr-base 8 auto-ibrs 24 eraps \
         27 sbpb ibpb-brtype srso-no srso-user-kernel-no",
    ),
    (Word::new(0x8000_0022, 0, Register::Eax), "perfmon-v2"),
    (
        Word::new(0xc000_0001, 0, Register::Edx),
        "2 xstore xstore-en 6 xcrypt xcrypt-en ace2 ace2-en phe phe-en pmm pmm-en",
    ),
];

/// Other names of some, with dashes (QEMU takes underscores too).
const ALIASES: [(&str, &str); 7] = [
    ("ffxsr", "fxsr-opt"),
    ("i64", "lm"),
    ("pclmuldq", "pclmulqdq"),
    ("sse3", "pni"),
    ("sse4-1", "sse4.1"),
    ("sse4-2", "sse4.2"),
    ("xd", "nx"),
];

/// QEMU's names of bits that are in MSRs: IA32_ARCH_CAPABILITIES (0x10a), IA32_CORE_CAPABILITIES
/// (0xcf), IA32_PERF_CAPABILITIES (0x345); those of VMX's MSRs begin with `vmx-`.
const IN_MSRS: &str = "rdctl-no ibrs-all rsba skip-l1dfl-vmentry ssb-no mds-no pschange-mc-no \
                       tsx-ctrl taa-no sbdr-ssdp-no fbsdp-no psdp-no fb-clear rrsba \
                       bhi-no pbrsb-no gds-no rfds-no split-lock-detect full-width-write";

/// Every feature by its name. KVM's clock has two bits.
static FEATURES: LazyLock<BTreeMap<&str, Feature>> = LazyLock::new(|| {
    let mut features: BTreeMap<_, Feature> = BTreeMap::new();
    for bit in bits() {
        features.entry(bit.name).and_modify(|known| known.mask |= bit.mask).or_insert(bit);
    }
    features
});

/// The feature of this name.
pub fn find(name: &str) -> Option<Feature> {
    if let Some(feature) = FEATURES.get(name) {
        return Some(*feature);
    }
    let name = name.replace('_', "-");
    let alias = ALIASES.iter().find(|(alias, _)| *alias == name);
    FEATURES.get(alias.map_or(name.as_str(), |(_, name)| name)).copied()
}

/// Whether QEMU knows a feature of this name in an MSR.
pub fn is_in_msr(name: &str) -> bool {
    let name = name.replace('_', "-");
    name.starts_with("vmx-") || IN_MSRS.split_ascii_whitespace().any(|known| known == name)
}

/// All names, sorted.
pub fn names() -> impl Iterator<Item = &'static str> {
    FEATURES.keys().copied()
}

/// Every bit that has a name.
fn bits() -> impl Iterator<Item = Feature> {
    NAMES.iter().flat_map(|(word, names)| {
        let mut bit = 0;
        names.split_ascii_whitespace().filter_map(move |name| {
            if let Ok(number) = name.parse() {
                bit = number;
                return None;
            }
            let mask = 1u32.checked_shl(bit)?;
            bit += 1;
            Some(Feature { name, word: *word, mask })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, leaf: u32, subleaf: u32, register: Register, mask: u32) {
        let feature = find(name).unwrap_or_else(|| panic!("{name}"));
        assert_eq!((feature.word, feature.mask), (Word::new(leaf, subleaf, register), mask));
    }

    #[test]
    fn names_have_the_manuals_bits() {
        check("pni", 1, 0, Register::Ecx, 1);
        check("hypervisor", 1, 0, Register::Ecx, 1 << 31);
        check("avx512f", 7, 0, Register::Ebx, 1 << 16);
        check("avx-vnni", 7, 1, Register::Eax, 1 << 4);
        check("intel-pt-lip", 0x14, 0, Register::Ecx, 1 << 31);
        check("svm", 0x8000_0001, 0, Register::Ecx, 1 << 2);
        check("invtsc", 0x8000_0007, 0, Register::Edx, 1 << 8);
        check("kvmclock", 0x4000_0001, 0, Register::Eax, 1 << 3 | 1);
        check("kvmclock-stable-bit", 0x4000_0001, 0, Register::Eax, 1 << 24);
    }

    #[test]
    fn underscores_dashes_and_old_names_are_the_same() {
        for name in ["sse4_1", "sse4-1", "sse4.1"] {
            check(name, 1, 0, Register::Ecx, 1 << 19);
        }
        check("kvm_steal_time", 0x4000_0001, 0, Register::Eax, 1 << 5);
        check("xd", 0x8000_0001, 0, Register::Edx, 1 << 20);
        for name in ["", ".", "11", "AVX", "avx ", "pni pclmulqdq"] {
            assert_eq!(find(name), None, "{name:?}");
        }
    }

    #[test]
    fn no_bit_has_two_names_and_no_name_two_bits() {
        for (number, (word, names)) in NAMES.iter().enumerate() {
            assert!(NAMES[..number].iter().all(|(other, _)| other != word), "{word:?}: twice");
            let here: Vec<_> = bits().filter(|feature| feature.word == *word).collect();
            assert!(here.is_sorted_by(|one, next| one.mask < next.mask), "{word:?}: out of order");
            let last = here.last().unwrap().name;
            assert!(names.ends_with(last), "{word:?}: {names:?} goes past bit 31");
        }
        // But for KVM's clock.
        assert_eq!(names().count(), bits().count() - 1);
        assert!(ALIASES.iter().all(|(_, name)| find(name).is_some()));
    }

    #[test]
    fn bits_of_msrs_are_known_for_what_they_are() {
        for name in ["vmx-ept", "mds-no", "mds_no", "split-lock-detect", "full-width-write"] {
            assert!(is_in_msr(name) && find(name).is_none(), "{name}");
        }
        assert!(!is_in_msr("vmx") && !is_in_msr("arch-capabilities"));
    }
}
