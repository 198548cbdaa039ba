//! Guest-physical addresses: every one of them, once.
//!
//! The map of QEMU's `-M microvm` (hw/i386/microvm.c), and below 1 MiB what our firmware and the
//! direct boot put there. Both paths use the same addresses, so that they can be compared.

use crate::range::Range;

/// A page: what Linux reserves and maps at the least.
pub const PAGE: u64 = 4096;

/// The BIOS data area.
pub const BDA: Range = Range::between(0x400, 0x500);
/// Where a `struct hvm_start_info` and its lists go for a PVH entry.
pub const PVH_INFO: Range = Range::between(0x6000, 0x7000);
/// The zero page (`struct boot_params`) for a 32- or 64-bit entry.
pub const BOOT_PARAMS: Range = Range::between(0x7000, 0x8000);
/// The page tables that a direct 64-bit entry starts on: PML4, PDPT, one page directory.
/// The firmware's own are in its image.
pub const PAGE_TABLES: Range = Range::between(0x8000, 0xb000);
/// The GDT that a direct boot starts on. The firmware's own is in its image.
pub const GDT: Range = Range::between(0xb000, 0xc000);
/// The firmware's stack, growing down from the end, and its statics below it.
pub const FIRMWARE_DATA: Range = Range::between(0xc000, 0x1_0000);
/// The real-mode setup code, where QEMU's `SETUP_ADDR` puts it.
pub const SETUP: Range = Range::between(0x1_0000, 0x2_0000);
/// The kernel's command line, where QEMU's `CMDLINE_ADDR` puts it.
pub const COMMAND_LINE: Range = Range::between(0x2_0000, 0x3_0000);
/// The firmware's heap: fw_cfg's directory, the table-loader's script.
pub const FIRMWARE_HEAP: Range = Range::between(0x3_0000, 0x9_0000);
/// The extended BIOS data area: the last KiB below 640 KiB.
pub const EBDA: Range = Range::between(0x9_fc00, 0xa_0000);
/// The VGA window and option ROMs of a PC: never RAM to a kernel.
pub const VIDEO_HOLE: Range = Range::between(0xa_0000, 0xc_0000);
/// Where ACPI tables go when they fit: the E-segment, RAM behind a 64 KiB BIOS. A 32-bit kernel
/// scans for the RSDP from 0xe0000 (ACPI 6.5, 5.2.5.1).
pub const ACPI_TABLES: Range = Range::between(0xe_0000, 0xe_c000);
/// Where SMBIOS structures go when they fit, on machines that have them.
pub const SMBIOS_TABLES: Range = Range::between(0xe_c000, 0xe_f800);
/// What the firmware's real-mode services answer from.
pub const REAL_MODE_DATA: Range = Range::between(0xe_f800, 0xf_0000);
/// The alias of the BIOS image below 1 MiB.
pub const BIOS_LOW: Range = Range::between(0xf_0000, 0x10_0000);
/// Where the SMBIOS anchor goes, in a part of the image's alias that the image leaves free: kernels
/// scan the F-segment for it (SMBIOS 3.7, 5.2).
pub const SMBIOS_ANCHOR: Range = Range::between(0xf_fe80, 0xf_fec0);
/// What the firmware and a direct boot take out of RAM below 1 MiB.
pub const LEGACY_HOLE: Range = Range::between(0xa_0000, 0x10_0000);
/// The first 640 KiB, all of which is RAM on every PC.
pub const BASE_MEMORY: Range = Range::between(0, VIDEO_HOLE.start());
/// The 64 KiB before the BIOS: RAM on microVMs, and where a chipset makes it so.
pub const E_SEGMENT: Range = Range::between(0xe_0000, BIOS_LOW.start());
/// Everything below 1 MiB that is RAM, save the EBDA.
pub const LOW_RAM: Range = Range::between(0, EBDA.start());
/// 1 MiB: where kernels begin.
pub const HIGH_RAM_START: u64 = 0x10_0000;

/// Bytes of the BIOS image. QEMU takes multiples of 64 KiB.
pub const BIOS_SIZE: u64 = 0x1_0000;
/// The BIOS image under 4 GiB, where the CPU starts.
pub const BIOS_HIGH: Range = Range::between(FOUR_GIB - BIOS_SIZE, FOUR_GIB);
/// The first instruction, as the CPU's CS:IP after reset has it.
pub const RESET_VECTOR: u64 = FOUR_GIB - 16;

/// 4 GiB: the end of the 32-bit address space.
pub const FOUR_GIB: u64 = 1 << 32;
/// RAM below 4 GiB ends here at the latest; the rest continues at 4 GiB.
pub const LOW_RAM_MAX: u64 = 0xc000_0000;
/// What is identity-mapped when a 64-bit kernel is entered: its loader keeps below this.
pub const IDENTITY_MAPPED: u64 = 1 << 30;

/// The generic event device's selector register (hw/i386/microvm.c).
pub const GED: u64 = 0xfea0_0000;
/// Bytes of the GED's selector region.
pub const GED_SIZE: u64 = 4;
/// What the GED's selector says when the power button was pressed.
pub const GED_POWER_BUTTON: u32 = 2;
/// The GED's sleep control, sleep status and reset registers, a byte each.
pub const GED_REGISTERS: u64 = 0xfea0_0200;
/// Offset of the sleep control register from [`GED_REGISTERS`].
pub const GED_SLEEP_CONTROL: u64 = 0;
/// Offset of the sleep status register from [`GED_REGISTERS`].
pub const GED_SLEEP_STATUS: u64 = 1;
/// Offset of the reset register from [`GED_REGISTERS`].
pub const GED_RESET: u64 = 2;
/// Bytes of the region at [`GED_REGISTERS`].
pub const GED_REGISTERS_SIZE: u64 = 3;
/// What the reset register takes to reset (QEMU's ACPI_GED_RESET_VALUE).
pub const GED_RESET_VALUE: u8 = 0x42;
/// The interrupt line of the GED.
pub const GED_IRQ: u32 = 9;

/// The first virtio-mmio transport.
pub const VIRTIO_MMIO: u64 = 0xfeb0_0000;
/// Bytes from one virtio-mmio transport to the next.
pub const VIRTIO_MMIO_STRIDE: u64 = 0x200;
/// The interrupt of the first transport on a machine with ACPI and one I/O APIC.
pub const VIRTIO_GSI: u32 = 16;
/// The interrupt of the first transport on a machine without ACPI, where it must be one of ISA's.
pub const VIRTIO_IRQ: u32 = 5;

/// The I/O APIC.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Bytes of the I/O APIC's window.
pub const IOAPIC_SIZE: u64 = 0x1000;
/// Input pins of the I/O APIC: global system interrupts 0 to 23.
pub const IOAPIC_PINS: u32 = 24;
/// The local APIC.
pub const LOCAL_APIC: u64 = 0xfee0_0000;

/// Where BARs go below 4 GiB on pc, less what RAM takes of it.
pub const PCI_MEMORY: Range = Range::between(0x8000_0000, IOAPIC);
/// The same on q35, where MMCONFIG comes first.
pub const Q35_PCI_MEMORY: Range = Range::between(Q35_MMCONFIG.end(), IOAPIC);
/// PCI configuration space as memory, 256 buses, on q35.
pub const Q35_MMCONFIG: Range = Range::between(0xb000_0000, 0xc000_0000);
/// Where 64-bit BARs go when they do not fit below 4 GiB: the first place above all RAM. The end is
/// what any CPU with so large a machine can address.
pub const PCI_MEMORY_HIGH: Range = Range::between(FOUR_GIB, 1 << 39);
/// Where I/O BARs go, if they fit: above all that pc and q35 have in I/O space.
pub const PCI_IO: Range = Range::between(0xc000, 0x1_0000);
/// Where they go if not: below what they have for hotplug, above everything ISA.
pub const PCI_IO_LARGE: Range = Range::between(0x1000, 0xa000);
/// The ICH9's root complex registers.
pub const Q35_RCBA: u64 = 0xfed1_c000;
/// The ACPI power management registers in I/O space, where QEMU's tables say they are.
pub const PM_BASE: u16 = 0x600;

/// Three pages for KVM's real-mode TSS on Intel (KVM_SET_TSS_ADDR), where QEMU has them: below
/// every BIOS of up to 16 MiB.
pub const KVM_TSS: u64 = KVM_IDENTITY_MAP + PAGE;
/// KVM's identity-map page on Intel (KVM_SET_IDENTITY_MAP_ADDR), likewise.
pub const KVM_IDENTITY_MAP: u64 = 0xfeff_c000;

/// The areas below 1 MiB in ascending order; none may reach into the next.
const LOW_AREAS: [Range; 14] = [
    BDA,
    PVH_INFO,
    BOOT_PARAMS,
    PAGE_TABLES,
    GDT,
    FIRMWARE_DATA,
    SETUP,
    COMMAND_LINE,
    FIRMWARE_HEAP,
    EBDA,
    ACPI_TABLES,
    SMBIOS_TABLES,
    REAL_MODE_DATA,
    BIOS_LOW,
];

const _: () = {
    let mut i = 1;
    while i < LOW_AREAS.len() {
        assert!(LOW_AREAS[i - 1].end() <= LOW_AREAS[i].start(), "areas overlap");
        i += 1;
    }
    assert!(BOOT_PARAMS.len() == PAGE && BOOT_PARAMS.start().is_multiple_of(PAGE));
    assert!(BASE_MEMORY.contains(LOW_RAM) && BASE_MEMORY.contains(EBDA));
    assert!(E_SEGMENT.contains(ACPI_TABLES) && E_SEGMENT.contains(REAL_MODE_DATA));
    assert!(E_SEGMENT.contains(SMBIOS_TABLES));
    assert!(BIOS_LOW.len() == BIOS_SIZE && BIOS_HIGH.len() == BIOS_SIZE);
    assert!(BIOS_LOW.end() == HIGH_RAM_START && LEGACY_HOLE.end() == HIGH_RAM_START);
    assert!(BIOS_LOW.contains(SMBIOS_ANCHOR) && SMBIOS_ANCHOR.start().is_multiple_of(16));
    assert!(PCI_MEMORY.end() <= IOAPIC && Q35_MMCONFIG.end() <= Q35_PCI_MEMORY.start());
    assert!(PCI_MEMORY.contains(Q35_PCI_MEMORY));
    assert!(KVM_IDENTITY_MAP + PAGE <= KVM_TSS && KVM_TSS + 3 * PAGE <= BIOS_HIGH.start());
    assert!(GED_REGISTERS + GED_REGISTERS_SIZE <= VIRTIO_MMIO && VIRTIO_MMIO < IOAPIC);
    assert!(LOW_RAM_MAX <= GED && IOAPIC + IOAPIC_SIZE <= LOCAL_APIC);
};
