//! The CPU's features: what KVM offers, and what the user makes of it.

use std::fmt;

use super::features::{self, Feature};
use super::leaves::{Leaves, Register, Word};
use super::xsave;
use crate::config::Cpu;

/// What is not there without another feature, which comes first. QEMU 7.2 knows the last line only;
/// the others are instructions on registers that are gone (Intel SDM volume 1, 13.1, 14.3, 15.2;
/// AMD APM volume 3, appendix D).
const DEPENDENTS: [(&str, &str); 6] = [
    ("xsave", "xsaveopt xsavec xgetbv1 xsaves xfd avx mpx pku amx-tile arch-lbr"),
    (
        "avx",
        "f16c fma fma4 xop avx2 vaes vpclmulqdq avx-vnni avx-ifma avx-vnni-int8 avx-vnni-int16 \
         avx-ne-convert avx512f avx10 sha512 sm3 sm4",
    ),
    ("avx2", "avx512f"),
    (
        "avx512f",
        "avx512dq avx512ifma avx512pf avx512er avx512cd avx512bw avx512vl avx512vbmi avx512vbmi2 \
         avx512vnni avx512bitalg avx512-vpopcntdq avx512-4vnniw avx512-4fmaps \
         avx512-vp2intersect avx512-bf16 avx512-fp16 avx10",
    ),
    ("amx-tile", "amx-bf16 amx-int8 amx-fp16 amx-complex"),
    ("sgx", "sgxlc"),
];

/// Leaves that describe a feature.
const DESCRIPTIONS: [(&str, u32); 8] = [
    ("xsave", 0xd),
    ("sgx", 0x12),
    ("intel-pt", 0x14),
    ("arch-lbr", 0x1c),
    ("amx-tile", 0x1d),
    ("amx-tile", 0x1e),
    ("avx10", 0x24),
    ("svm", 0x8000_000a),
];

/// What this program does, or needs no help for, and KVM does not list.
const OURS: &str = "hypervisor x2apic";
/// Features that are there only when they are asked for: a hint that is true of few hosts.
const ON_REQUEST: &str = "kvm-hint-dedicated";
/// Features that a guest must not have that is to go on on another host.
const NOT_MIGRATABLE: &str = "invtsc";
/// Features of performance counters, and their leaves.
const COUNTERS: &str = "pdcm perfctr-core perfctr-nb";
const COUNTER_LEAVES: [u32; 2] = [0xa, 0x8000_0022];

/// AMD's leaf 0x8000_0001 has these bits of leaf 1 once more (AMD APM volume 3, E.4.2).
const REPEATED: u32 = 0x0183_f3ff;
const REPEATED_IN: Word = Word::new(0x8000_0001, 0, Register::Edx);

/// A feature that was asked for and cannot be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    feature: Feature,
    /// Another feature, which is not there, is why.
    dependent: bool,
}

/// In QEMU's words.
impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Feature { name, word, mask } = self.feature;
        let why = if self.dependent {
            "This feature depends on other features that were not requested"
        } else {
            "host doesn't support requested feature"
        };
        let register = match word.register {
            Register::Eax => "EAX",
            Register::Ebx => "EBX",
            Register::Ecx => "ECX",
            Register::Edx => "EDX",
        };
        let bit = mask.trailing_zeros();
        write!(f, "{why}: CPUID.{:02X}H:{register}.{name} [bit {bit}]", word.leaf)
    }
}

/// Makes of what KVM offers what the user wants; what cannot be had.
pub fn apply(leaves: &mut Leaves, tsc_deadline: bool, cpu: &Cpu) -> Vec<Missing> {
    set_all(leaves, OURS, true);
    if tsc_deadline {
        set_all(leaves, "tsc-deadline", true);
    }
    set_all(leaves, ON_REQUEST, true);
    xsave::drop_features(leaves);

    let offered = leaves.clone();
    set_all(leaves, ON_REQUEST, false);
    if cpu.migratable {
        set_all(leaves, NOT_MIGRATABLE, false);
    }
    let mut missing = Vec::new();
    for (feature, on) in &cpu.features {
        let there = offered.register(feature.word) & feature.mask;
        if !on {
            leaves.change(feature.word, 0, feature.mask);
        } else if there == feature.mask {
            leaves.change(feature.word, feature.mask, 0);
        } else {
            leaves.change(feature.word, there, 0);
            let mask = feature.mask & !there;
            missing.push(Missing { feature: Feature { mask, ..*feature }, dependent: false });
        }
    }
    drop_dependents(leaves);
    let wanted = cpu.features.iter().filter(|(feature, on)| *on && is_there(&offered, feature));
    let dropped = wanted.filter(|(feature, _)| !is_there(leaves, feature));
    missing.extend(dropped.map(|(feature, _)| Missing { feature: *feature, dependent: true }));
    missing
}

/// Takes away what is nothing without other features, and describes what is left.
fn drop_dependents(leaves: &mut Leaves) {
    for (name, dependents) in DEPENDENTS {
        if !has(leaves, name) {
            set_all(leaves, dependents, false);
        }
    }
    for (name, leaf) in DESCRIPTIONS {
        if !has(leaves, name) {
            leaves.retain(|entry| entry.function != leaf);
        }
    }
    xsave::drop_registers(leaves);
    if leaves.is_amd() {
        let bits = leaves.register(Word::new(1, 0, Register::Edx)) & REPEATED;
        leaves.change(REPEATED_IN, bits, REPEATED);
    }
}

/// Takes the performance counters away.
pub fn drop_counters(leaves: &mut Leaves) {
    leaves.retain(|entry| !COUNTER_LEAVES.contains(&entry.function));
    set_all(leaves, COUNTERS, false);
}

fn set_all(leaves: &mut Leaves, names: &str, on: bool) {
    for feature in names.split_ascii_whitespace().filter_map(features::find) {
        let (set, clear) = if on { (feature.mask, 0) } else { (0, feature.mask) };
        leaves.change(feature.word, set, clear);
    }
}

fn has(leaves: &Leaves, name: &str) -> bool {
    features::find(name).is_some_and(|feature| is_there(leaves, &feature))
}

fn is_there(leaves: &Leaves, feature: &Feature) -> bool {
    leaves.register(feature.word) & feature.mask == feature.mask
}

#[cfg(test)]
mod tests;
