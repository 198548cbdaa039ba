//! Where the transports are: slots from the top down, each with its interrupt.
//!
//! As in QEMU's microvm (hw/i386/microvm.c): the first device of the command line takes the
//! highest slot, and kernels number devices in the order in which the machine lists them.

use abi::layout;

/// Slots of a machine with one I/O APIC.
pub const COUNT: u32 = 8;

/// A slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its number, from the lowest address on.
    pub number: u32,
    /// The first address of its registers.
    pub address: u64,
    /// Its interrupt.
    pub gsi: u32,
}

/// The slot `number` of a machine with ACPI or without.
pub const fn slot(number: u32, acpi: bool) -> Slot {
    let first = if acpi { layout::VIRTIO_GSI } else { layout::VIRTIO_IRQ };
    Slot {
        number,
        address: layout::VIRTIO_MMIO + number as u64 * layout::VIRTIO_MMIO_STRIDE,
        gsi: first + number,
    }
}

/// The slots in the order in which devices take them.
pub fn in_order(acpi: bool) -> impl Iterator<Item = Slot> {
    (0..COUNT).rev().map(move |number| slot(number, acpi))
}

/// How a slot is told to a Linux without ACPI (its Documentation/admin-guide/kernel-parameters).
pub fn parameter(slot: Slot) -> String {
    let Slot { address, gsi, .. } = slot;
    format!(" virtio_mmio.device={}@{address:#x}:{gsi}", layout::VIRTIO_MMIO_STRIDE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_qemu_s() {
        let first = in_order(false).next().unwrap();
        assert_eq!(parameter(first), " virtio_mmio.device=512@0xfeb00e00:12");
        assert_eq!(
            parameter(in_order(false).nth(2).unwrap()),
            " virtio_mmio.device=512@0xfeb00a00:10"
        );
        assert_eq!(
            in_order(true).map(|slot| slot.gsi).collect::<Vec<_>>(),
            [23, 22, 21, 20, 19, 18, 17, 16]
        );
        assert_eq!(in_order(true).last().unwrap().address, 0xfeb0_0000);
    }
}
