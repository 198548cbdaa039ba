//! PCI configuration space: registers that the firmware sets, chips that it knows.
//!
//! Sources: PCI Local Bus 3.0, chapter 6; PCI-to-PCI Bridge Architecture 1.2, chapter 3; Intel's
//! datasheets of the 82441FX (290549), the 82371SB and 82371AB (290562), the 3 Series MCH (316966)
//! and the ICH9 (316972). Offsets are those of dwords, which is how the registers are accessed.

/// Vendor in bits 15 to 0, device in bits 31 to 16. All-ones: no function here.
pub const ID: u8 = 0x00;
/// Command in bits 15 to 0, status above it; writing zeroes leaves the status as it is.
pub const COMMAND: u8 = 0x04;
/// Class code in bits 31 to 16, programming interface below it.
pub const CLASS: u8 = 0x08;
/// Header type in bits 23 to 16.
pub const HEADER: u8 = 0x0c;
/// The first base address register.
pub const BAR: u8 = 0x10;
/// Interrupt line in bits 7 to 0, pin in bits 15 to 8.
pub const INTERRUPT: u8 = 0x3c;

/// Bits of [`COMMAND`].
pub mod command {
    /// The function decodes I/O ports.
    pub const IO: u32 = 1 << 0;
    /// The function decodes memory.
    pub const MEMORY: u32 = 1 << 1;
    /// The function may start transfers; a bridge passes those of the functions behind it.
    pub const MASTER: u32 = 1 << 2;
}

/// Classes.
pub mod class {
    /// Host bridge.
    pub const HOST_BRIDGE: u32 = 0x0600;
    /// VGA controller.
    pub const VGA: u32 = 0x0300;
    /// ISA bridge.
    pub const ISA_BRIDGE: u32 = 0x0601;
}

/// Values of [`HEADER`].
pub mod header {
    /// The bits that say how the header is laid out.
    pub const LAYOUT: u32 = 0x7f << 16;
    /// A function with six base address registers.
    pub const DEVICE: u32 = 0 << 16;
    /// A bridge to another bus, with two.
    pub const BRIDGE: u32 = 1 << 16;
    /// The device has more functions than this one.
    pub const MULTI_FUNCTION: u32 = 1 << 23;
}

/// Registers of a bridge's header.
pub mod bridge {
    /// Primary, secondary and subordinate bus, from bit 0 up.
    pub const BUSES: u8 = 0x18;
    /// I/O base and limit, bits 15 to 12 of each in bits 7 to 4 and 15 to 12.
    pub const IO: u8 = 0x1c;
    /// Memory base and limit, bits 31 to 20 of each in bits 15 to 4 and 31 to 20.
    pub const MEMORY: u8 = 0x20;
    /// The base's bits of [`IO`].
    pub const IO_BASE: u32 = 0xf0;
    /// The base's bits of [`MEMORY`] and [`PREFETCHABLE`].
    pub const MEMORY_BASE: u32 = 0xfff0;
    /// The bit of [`PREFETCHABLE`]: it has 64 bits.
    pub const IS_64_BIT: u32 = 1;
    /// The same of prefetchable memory; bits 0 and 16 are set when it has 64 bits.
    pub const PREFETCHABLE: u8 = 0x24;
    /// Bits 63 to 32 of the prefetchable base.
    pub const PREFETCHABLE_BASE_HIGH: u8 = 0x28;
    /// Bits 63 to 32 of the prefetchable limit.
    pub const PREFETCHABLE_LIMIT_HIGH: u8 = 0x2c;
    /// Bits 31 to 16 of I/O base and limit.
    pub const IO_HIGH: u8 = 0x30;
    /// I/O windows are multiples of this.
    pub const IO_GRANULE: u64 = 0x1000;
    /// Memory windows are multiples of this.
    pub const MEMORY_GRANULE: u64 = 0x10_0000;
}

/// Bits of a base address register.
pub mod bar {
    /// It is of I/O ports.
    pub const IO: u32 = 1 << 0;
    /// What kind of memory address it has.
    pub const WIDTH: u32 = 3 << 1;
    /// 32 bits.
    pub const WIDTH_32: u32 = 0 << 1;
    /// 64 bits: the next register holds the upper half.
    pub const WIDTH_64: u32 = 2 << 1;
    /// Reading the memory has no side effects.
    pub const PREFETCHABLE: u32 = 1 << 3;
    /// The address of I/O.
    pub const IO_ADDRESS: u32 = 0xfffc;
    /// The address of memory.
    pub const MEMORY_ADDRESS: u32 = !15;
}

/// The i440FX host bridge: QEMU's pc.
pub const I440FX: u32 = 0x1237_8086;
/// The first of its PAM registers, which say what is RAM below 1 MiB.
pub const I440FX_PAM: u8 = 0x59;
/// The 82G33 host bridge: QEMU's q35.
pub const Q35: u32 = 0x29c0_8086;
/// The first of its PAM registers.
pub const Q35_PAM: u8 = 0x90;
/// Its PCIEXBAR: where configuration space is memory.
pub const Q35_PCIEXBAR: u8 = 0x60;
/// The PCIEXBAR's upper half.
pub const Q35_PCIEXBAR_HIGH: u8 = 0x64;
/// PCIEXBAR: on, and of 256 buses.
pub const Q35_PCIEXBAR_ON: u32 = 1;

/// The PIIX3's ISA bridge.
pub const PIIX3_ISA: u32 = 0x7000_8086;
/// Where it routes PIRQ A to D: an ISA interrupt each, from bit 0 up.
pub const PIIX3_PIRQ: u8 = 0x60;
/// The PIIX3's IDE controller.
pub const PIIX3_IDE: u32 = 0x7010_8086;
/// IDE timing, a word for each channel.
pub const PIIX3_IDE_TIMING: u8 = 0x40;
/// Both channels decode their ports.
pub const PIIX3_IDE_ON: u32 = 1 << 15 | 1 << 31;
/// The PIIX4's power management function.
pub const PIIX4_PM: u32 = 0x7113_8086;
/// Its base address register.
pub const PIIX4_PM_BASE: u8 = 0x40;
/// PMREGMISC.
pub const PIIX4_PM_MISC: u8 = 0x80;
/// PMREGMISC: the power management registers are decoded.
pub const PIIX4_PM_ON: u32 = 1;
/// The ICH9's LPC bridge.
pub const ICH9_LPC: u32 = 0x2918_8086;
/// Its power management base.
pub const ICH9_PM_BASE: u8 = 0x40;
/// ACPI_CNTL.
pub const ICH9_ACPI_CONTROL: u8 = 0x44;
/// ACPI_CNTL: the power management registers are decoded.
pub const ICH9_ACPI_ON: u32 = 1 << 7;
/// Where it routes PIRQ A to D, as the PIIX3.
pub const ICH9_PIRQ_A: u8 = 0x60;
/// The same of PIRQ E to H.
pub const ICH9_PIRQ_E: u8 = 0x68;
/// The base of the root complex registers.
pub const ICH9_RCBA: u8 = 0xf0;
/// RCBA: on.
pub const ICH9_RCBA_ON: u32 = 1;
/// A PM base register's mark of I/O space.
pub const PM_BASE_IO: u32 = 1;
