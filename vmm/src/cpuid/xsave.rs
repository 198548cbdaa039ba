//! Leaf 0xd: which registers XSAVE can save.

use super::features;
use super::leaves::Leaves;

/// Bits of XCR0, bits of IA32_XSS, and the feature without which a CPU does not have them (Intel
/// SDM volume 1, 13.1). All other bits come and go with no feature that has a name.
const COMPONENTS: [(u32, u32, &str); 7] = [
    (1 << 2, 0, "avx"),
    (0b11 << 3, 0, "mpx"),
    (0b111 << 5, 0, "avx512f"),
    (0, 1 << 8, "intel-pt"),
    (1 << 9, 0, "pku"),
    (0, 1 << 15, "arch-lbr"),
    (0b11 << 17, 0, "amx-tile"),
];

const LEAF: u32 = 0xd;
/// Bytes of an area of x87 and SSE registers: the legacy region and the header.
const SIZE_MIN: u32 = 576;

/// Takes features away whose registers KVM does not save: AMX, in a process that did not ask the
/// kernel for it.
pub fn drop_features(leaves: &mut Leaves) {
    let Some(saved) = leaves.get(LEAF, 0).map(|entry| entry.eax) else { return };
    for (_, _, name) in COMPONENTS.iter().filter(|(xcr0, _, _)| saved & xcr0 != *xcr0) {
        if let Some(feature) = features::find(name) {
            leaves.change(feature.word, 0, feature.mask);
        }
    }
}

/// Takes registers away whose features are not there.
pub fn drop_registers(leaves: &mut Leaves) {
    let absent =
        |name: &str| features::find(name).is_some_and(|f| leaves.register(f.word) & f.mask == 0);
    let gone = COMPONENTS.iter().filter(|(_, _, name)| absent(name));
    let (xcr0, xss) = gone.fold((0, 0), |sum, (xcr0, xss, _)| (sum.0 | xcr0, sum.1 | xss));
    leaves.retain(|entry| {
        let bit = 1u32.checked_shl(entry.index).unwrap_or(0);
        entry.function != LEAF || entry.index < 2 || (xcr0 | xss) & bit == 0
    });
    // The bytes of all registers, each at its own offset; those of IA32_XSS have none.
    let end = leaves
        .all_mut(LEAF)
        .filter(|entry| entry.index >= 2 && entry.ecx & 1 == 0)
        .map(|entry| entry.ebx.saturating_add(entry.eax));
    let size = end.fold(SIZE_MIN, u32::max);
    if let Some(all) = leaves.get_mut(LEAF, 0) {
        // EBX is what the guest has switched on: KVM keeps it.
        (all.eax, all.ecx) = (all.eax & !xcr0, size);
    }
    if let Some(supervisor) = leaves.get_mut(LEAF, 1) {
        supervisor.ecx &= !xss;
    }
}
