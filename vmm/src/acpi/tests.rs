//! The tables as a kernel reads them.

use super::*;
use abi::bytes::{get_u32, get_u64};

fn placed() -> Placed {
    Tables::new(&Config { cpus: 2, ..Config::default() }).place().unwrap()
}

fn at(address: u64) -> usize {
    usize::try_from(address - layout::ACPI_TABLES.start()).unwrap()
}

fn table(placed: &Placed, address: u64) -> &[u8] {
    let start = at(address);
    let length = get_u32(&placed.bytes, start + LENGTH).unwrap() as usize;
    &placed.bytes[start..start + length]
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
}

#[test]
fn the_rsdp_leads_to_every_table_and_all_sums_are_zero() {
    let placed = placed();
    let rsdp = &placed.bytes[at(placed.rsdp)..];
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!(placed.rsdp % 16, 0);
    assert_eq!((sum(&rsdp[..20]), sum(&rsdp[..36])), (0, 0));
    let xsdt = table(&placed, get_u64(rsdp, RSDP_XSDT).unwrap());
    assert_eq!((&xsdt[..4], sum(xsdt)), (&b"XSDT"[..], 0));
    let fadt = table(&placed, get_u64(xsdt, HEADER).unwrap());
    assert_eq!((&fadt[..4], sum(fadt)), (&b"FACP"[..], 0));
    let madt = table(&placed, get_u64(xsdt, HEADER + 8).unwrap());
    assert_eq!((&madt[..4], sum(madt)), (&b"APIC"[..], 0));
    let dsdt = table(&placed, get_u64(fadt, FADT_X_DSDT).unwrap());
    assert_eq!((&dsdt[..4], sum(dsdt)), (&b"DSDT"[..], 0));
    let short = u64::from(get_u32(fadt, FADT_DSDT).unwrap());
    assert_eq!(Some(short), get_u64(fadt, FADT_X_DSDT));
}

#[test]
fn the_fadt_is_hardware_reduced_with_a_reset_register() {
    let placed = placed();
    let tables = Tables::new(&Config { cpus: 2, ..Config::default() });
    let fadt = tables.tables.windows(4).position(|w| w == b"FACP").unwrap();
    let fadt = &placed.bytes[fadt..];
    assert_eq!(get_u32(fadt, 112), Some(1 << 20 | 1 << 10));
    assert_eq!(get_u64(fadt, 116 + 4), Some(layout::GED_REGISTERS + 2));
    assert_eq!(fadt[128], layout::GED_RESET_VALUE);
    assert_eq!(get_u64(fadt, 244 + 4), Some(layout::GED_REGISTERS));
    assert_eq!(get_u64(fadt, 256 + 4), Some(layout::GED_REGISTERS + 1));
}

#[test]
fn the_madt_has_each_cpu_once() {
    let tables = Tables::new(&Config { cpus: 64, ..Config::default() }).tables;
    let madt = tables.windows(4).position(|w| w == b"APIC").unwrap();
    let length = get_u32(&tables, madt + LENGTH).unwrap() as usize;
    assert_eq!(length, 44 + 64 * 8 + 12 + 6);
    let last = &tables[madt + 44 + 63 * 8..][..8];
    assert_eq!(last, [0, 8, 63, 63, 1, 0, 0, 0]);
}

#[test]
fn the_madt_tells_of_8259s_where_there_are_some() {
    for (irqchip, flags) in [(Irqchip::Split, 0), (Irqchip::Kernel, 1)] {
        let config = Config { irqchip: Some(irqchip), ..Config::default() };
        let tables = Tables::new(&config).tables;
        let madt = tables.windows(4).position(|w| w == b"APIC").unwrap();
        assert_eq!(get_u32(&tables, madt + 40), Some(flags), "{irqchip:?}");
    }
}

#[test]
fn the_script_survives_its_wire_format() {
    let tables = Tables::new(&Config { cpus: 1, ..Config::default() });
    let bytes = tables.script_bytes();
    let decoded: Vec<_> = bytes
        .chunks(abi::table_loader::COMMAND_SIZE)
        .map(|chunk| Command::decode(chunk).unwrap())
        .collect();
    assert_eq!(decoded, tables.script);
    assert!(matches!(decoded[0], Command::Allocate { zone: Zone::High, .. }));
    assert!(matches!(decoded[1], Command::Allocate { zone: Zone::FSegment, .. }));
}

#[test]
fn the_dsdt_has_its_devices() {
    let dsdt = dsdt(&Config::default());
    for name in [&b"COM1"[..], b"FWCF", b"PWRB", b"GED_", b"_S5_", b"QEMU0002", b"ACPI0013"] {
        assert!(dsdt.windows(name.len()).any(|w| w == name), "{name:?}");
    }
}
