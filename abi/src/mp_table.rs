//! The MP table: CPUs and interrupts for a machine without ACPI.
//!
//! Source: Intel MultiProcessor Specification 1.4, chapter 4. The floating pointer goes to the
//! EBDA, where kernels look first ([`POINTER`]); the table itself, which grows with the CPUs, to
//! the segment that ACPI tables would take ([`TABLE`]).

use crate::bytes::{put, sum8};
use crate::layout;
use crate::range::Range;

/// CPUs at the most: APIC ids are a byte here, and 255 addresses all of them.
pub const CPUS_MAX: u32 = 254;
/// Where the floating pointer goes.
pub const POINTER: Range = Range::between(layout::EBDA.start(), layout::EBDA.start() + 16);
/// Where the table begins.
pub const TABLE: u64 = layout::ACPI_TABLES.start();
/// The largest table fits there.
const _: () = assert!(size(CPUS_MAX, false) <= layout::ACPI_TABLES.len());
const ISA_IRQS: u8 = 16;
/// Bytes of the table's header, and where its checksum is.
const HEADER: usize = 44;
const CHECKSUM_AT: usize = 7;
/// Bytes of a processor's entry; all others have 8.
const PROCESSOR_SIZE: usize = 20;
/// The version of an integrated local APIC and of its I/O APIC.
const APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x11;
/// The only bus: ISA, whose interrupts are edge-triggered and active high.
const ISA_BUS: u8 = 0;

/// Entry types.
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IO_APIC: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;
/// Interrupt types.
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;

/// `_MP_`: where the table is.
pub fn floating_pointer(table: u64) -> [u8; 16] {
    let [a, b, c, d, ..] = table.to_le_bytes();
    // In paragraphs of 16 bytes, revision 1.4, checksum, no default configuration.
    let mut bytes = [b'_', b'M', b'P', b'_', a, b, c, d, 1, 4, 0, 0, 0, 0, 0, 0];
    bytes[10] = checksum(&bytes);
    bytes
}

/// Bytes of the table: 20 a processor, 8 any other entry. With `irq0_override`, ISA's interrupt 0
/// is on the I/O APIC's pin 2.
pub const fn size(cpus: u32, irq0_override: bool) -> u64 {
    (HEADER as u64) + 20 * (cpus as u64) + 8 * (other_entries(irq0_override) as u64)
}

/// Bus, I/O APIC, ISA interrupts, two local interrupts.
const fn other_entries(irq0_override: bool) -> u16 {
    2 + ISA_IRQS as u16 - irq0_override as u16 + 2
}

/// Fills `table`, which has exactly [`size`] bytes: what is zipped with its entries does not run
/// out before them. `cpus` is at most [`CPUS_MAX`].
pub fn write_table(table: &mut [u8], cpus: u32, irq0_override: bool) {
    let entries = table.get_mut(HEADER..).unwrap_or_default();
    let processors = entries.len().min(PROCESSOR_SIZE * cpus as usize);
    let (processors, others) = entries.split_at_mut(processors);
    for (slot, apic_id) in processors.as_chunks_mut().0.iter_mut().zip(0..=u8::MAX) {
        *slot = processor(apic_id);
    }
    let io_apic = cpus.to_le_bytes()[0];
    let [a, b, c, d, ..] = layout::IOAPIC.to_le_bytes();
    if let [bus, chip, interrupts @ .., ext_int, nmi] = others.as_chunks_mut().0 {
        *bus = [BUS, ISA_BUS, b'I', b'S', b'A', b' ', b' ', b' '];
        *chip = [IO_APIC, io_apic, IO_APIC_VERSION, 1, a, b, c, d];
        for (slot, irq) in interrupts.iter_mut().zip(0..) {
            // The override puts IRQ 0 on pin 2, whose own interrupt does not exist on ISA.
            let (irq, pin) = match irq {
                0 if irq0_override => (0, 2),
                irq if irq0_override && irq > 1 => (irq + 1, irq + 1),
                irq => (irq, irq),
            };
            *slot = [IO_INTERRUPT, INT, 0, 0, ISA_BUS, irq, io_apic, pin];
        }
        *ext_int = [LOCAL_INTERRUPT, EXT_INT, 0, 0, ISA_BUS, 0, 0, 0];
        *nmi = [LOCAL_INTERRUPT, NMI, 0, 0, ISA_BUS, 0, 0xff, 1];
    }
    // At most 254 processors: both fit 16 bits.
    let count = u16::try_from(cpus).unwrap_or(u16::MAX) + other_entries(irq0_override);
    write_header(table, count);
}

fn processor(apic_id: u8) -> [u8; PROCESSOR_SIZE] {
    const ENABLED: u8 = 1;
    const BOOT_PROCESSOR: u8 = 2;
    let flags = ENABLED | if apic_id == 0 { BOOT_PROCESSOR } else { 0 };
    let mut entry = [0; 20];
    // Signature and features as a P6 has them: kernels take the real ones from CPUID.
    let features: u32 = 1 | 1 << 9;
    entry[..4].copy_from_slice(&[PROCESSOR, apic_id, APIC_VERSION, flags]);
    entry[4..8].copy_from_slice(&0x600u32.to_le_bytes());
    entry[8..12].copy_from_slice(&features.to_le_bytes());
    entry
}

fn write_header(table: &mut [u8], count: u16) {
    let length = u16::try_from(table.len()).unwrap_or(u16::MAX).to_le_bytes();
    let count = count.to_le_bytes();
    let [a, b, c, d, ..] = layout::LOCAL_APIC.to_le_bytes();
    let mut header = [0; HEADER];
    for (at, bytes) in [
        (0, &b"PCMP"[..]),
        (4, &length),
        // Revision 1.4; the checksum behind it comes last.
        (6, &[4]),
        (8, b"MICROVM BIOS        "),
        (34, &count),
        (36, &[a, b, c, d]),
    ] {
        let _ = put(&mut header, at, bytes);
    }
    let _ = put(table, 0, &header);
    let sum = checksum(table);
    let _ = put(table, CHECKSUM_AT, &[sum]);
}

fn checksum(bytes: &[u8]) -> u8 {
    0u8.wrapping_sub(sum8(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::{get_u16, get_u32};

    fn table(cpus: u32, irq0_override: bool) -> Vec<u8> {
        let mut table = vec![0xee; size(cpus, irq0_override).try_into().unwrap()];
        write_table(&mut table, cpus, irq0_override);
        table
    }

    #[test]
    fn the_checksums_are_right_and_the_counts_true() {
        for (cpus, irq0) in [(1, true), (40, false), (CPUS_MAX, true)] {
            let table = table(cpus, irq0);
            assert_eq!(table.iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0);
            assert_eq!(get_u16(&table, 4), u16::try_from(table.len()).ok());
            let interrupts = if irq0 { 15 } else { 16 };
            assert_eq!(u32::from(get_u16(&table, 34).unwrap()), cpus + 2 + interrupts + 2);
            let size = 44 + 20 * cpus + 8 * (2 + interrupts + 2);
            assert_eq!(table.len(), size as usize);
            assert!(u64::from(size) < layout::ACPI_TABLES.len());
        }
    }

    #[test]
    fn the_pointer_is_found_where_kernels_look() {
        let pointer = floating_pointer(layout::ACPI_TABLES.start());
        assert_eq!(pointer.iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0);
        assert_eq!(get_u32(&pointer, 4), Some(0xe_0000));
        assert_eq!(layout::EBDA.start() % 16, 0);
    }

    #[test]
    fn only_the_first_cpu_is_the_boot_processor() {
        let table = table(3, true);
        let flags: Vec<_> = table[44..104].chunks(20).map(|entry| (entry[1], entry[3])).collect();
        assert_eq!(flags, [(0, 3), (1, 1), (2, 1)]);
    }
}
