//! What ACPI tables say, as `name -> value` in words, without where they lie.
//!
//! Source: ACPI 6.5, 5.2.

use std::collections::BTreeMap;

use abi::bytes::{array, get_u8, get_u16, get_u32, get_u64};
use anyhow::{Context, Result, ensure};

use crate::aml;

/// What the tables say, by name.
pub type Meaning = BTreeMap<String, String>;

/// Bytes of a table's header.
const HEADER: usize = 36;
/// Bytes of the FADT that every version since ACPI 5.0 has: to the hypervisor's name.
const FADT_SIZE: usize = 268;
/// The FADT's numbers: names, offsets and bytes.
const FADT_NUMBERS: [(&str, usize, usize); 7] = [
    ("revision", 8, 1),
    ("minor revision", 131, 1),
    ("PM profile", 45, 1),
    ("SCI", 46, 2),
    ("boot flags", 109, 2),
    ("flags", 112, 4),
    ("reset value", 128, 1),
];
/// The FADT's registers that are compared, likewise.
const FADT_REGISTERS: [(&str, usize); 3] =
    [("reset register", 116), ("sleep control register", 244), ("sleep status register", 256)];
/// Where the FADT names other tables: offsets and bytes.
const FADT_POINTERS: [(usize, usize); 2] = [(40, 4), (140, 8)];
/// Bytes of a generic address structure, and its access size for bytes.
const GAS_SIZE: usize = 12;
const BYTE_ACCESS: u8 = 1;

/// What the RSDP, the table that it names, and all tables from there say.
pub fn decode(rsdp: &[u8], root: &[u8], tables: &[Vec<u8>]) -> Result<Meaning> {
    let mut meaning = Meaning::new();
    let mut say = |name: &str, value: String| meaning.insert(name.to_owned(), value);
    say("RSDP revision", format!("{}", rsdp.get(15).context("the RSDP's revision")?));
    say("root table", signature(root));
    say("makers", makers(root)?);
    for table in tables {
        let name = signature(table);
        let said = match name.as_str() {
            "FACP" => fadt(table)?,
            "APIC" => madt(table)?,
            "DSDT" => aml::decode(table.get(HEADER..).context("the DSDT")?)?,
            _ => Meaning::new(),
        };
        meaning.insert(name.clone(), "there".into());
        meaning.extend(said.into_iter().map(|(key, value)| (format!("{name} {key}"), value)));
    }
    Ok(meaning)
}

fn signature(table: &[u8]) -> String {
    String::from_utf8_lossy(table.get(..4).unwrap_or_default()).into_owned()
}

/// Who made the table: OEM, and compiler.
fn makers(table: &[u8]) -> Result<String> {
    let text = |at: usize, length: usize| {
        let bytes = table.get(at..at + length).context("a table's header")?;
        Ok::<_, anyhow::Error>(String::from_utf8_lossy(bytes).into_owned())
    };
    Ok(format!("{}, {}, {}", text(10, 6)?, text(16, 8)?, text(28, 4)?))
}

fn fadt(table: &[u8]) -> Result<Meaning> {
    ensure!(table.len() >= FADT_SIZE, "a FADT of {} bytes", table.len());
    let mut said = Meaning::new();
    // What has been said is set to zero, and what is left must be said too.
    let mut rest = table[..FADT_SIZE].to_vec();
    rest[..HEADER].fill(0);
    for (name, at, size) in FADT_NUMBERS {
        let value = table[at..at + size].iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
        said.insert(name.into(), format!("{value:#x}"));
        rest[at..at + size].fill(0);
    }
    for (name, at) in FADT_REGISTERS {
        let [space, width, offset, access] = array(table, at).context(name)?;
        let address = get_u64(table, at + 4).context(name)?;
        // Where the size of an access is undefined, systems take the width.
        let access = if access == 0 && width == 8 { BYTE_ACCESS } else { access };
        let access = format!("{width} bits from {offset}, access size {access}");
        said.insert(name.into(), format!("space {space}, {address:#x}, {access}"));
        rest[at..at + GAS_SIZE].fill(0);
    }
    FADT_POINTERS.iter().for_each(|(at, size)| rest[*at..at + size].fill(0));
    for (at, byte) in rest.iter().enumerate().filter(|(_, byte)| **byte != 0) {
        said.insert(format!("byte {at}"), format!("{byte:#x}"));
    }
    Ok(said)
}

fn madt(table: &[u8]) -> Result<Meaning> {
    let mut said = Meaning::new();
    let number = |at| get_u32(table, at).context("the MADT");
    said.insert("local APIC".into(), format!("{:#x}", number(36)?));
    said.insert("PCAT_COMPAT".into(), format!("{}", number(40)?));
    let mut rest = &table[44..];
    while !rest.is_empty() {
        let length = get_u8(rest, 1).map(usize::from).filter(|length| *length >= 2);
        let (entry, after) = length.and_then(|l| rest.split_at_checked(l)).context("the MADT")?;
        let (name, value) = interrupt_structure(entry).context("the MADT")?;
        ensure!(said.insert(name.clone(), value).is_none(), "{name} is in the MADT twice");
        rest = after;
    }
    Ok(said)
}

/// The name and contents of a structure of the MADT.
fn interrupt_structure(entry: &[u8]) -> Option<(String, String)> {
    Some(match get_u8(entry, 0)? {
        0 => (
            format!("CPU {}", get_u8(entry, 2)?),
            format!("APIC id {}, flags {:#x}", get_u8(entry, 3)?, get_u32(entry, 4)?),
        ),
        1 => (
            format!("I/O APIC {}", get_u8(entry, 2)?),
            format!("at {:#x}, interrupts from {}", get_u32(entry, 4)?, get_u32(entry, 8)?),
        ),
        2 => (
            format!("override of IRQ {}", get_u8(entry, 3)?),
            format!("interrupt {}, flags {:#x}", get_u32(entry, 4)?, get_u16(entry, 8)?),
        ),
        4 => (
            format!("NMI of CPU {}", get_u8(entry, 2)?),
            format!("LINT{}, flags {:#x}", get_u8(entry, 5)?, get_u16(entry, 3)?),
        ),
        kind => (format!("structure of type {kind}"), format!("{entry:02x?}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(signature: &[u8; 4], size: usize) -> Vec<u8> {
        let mut table = vec![0; size];
        table[..4].copy_from_slice(signature);
        table
    }

    #[test]
    fn nothing_in_a_fadt_is_passed_over() {
        let plain = fadt(&table(b"FACP", 276)).unwrap();
        for at in HEADER..FADT_SIZE {
            let mut other = table(b"FACP", 276);
            other[at] = 1;
            let is_pointer = FADT_POINTERS.iter().any(|(p, size)| (*p..p + size).contains(&at));
            assert_eq!(fadt(&other).unwrap() == plain, is_pointer, "byte {at}");
        }
    }

    #[test]
    fn each_structure_of_a_madt_has_its_name() {
        let mut bytes = table(b"APIC", 44);
        bytes.extend([0, 8, 3, 3, 1, 0, 0, 0]);
        bytes.extend([1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
        bytes.extend([2, 10, 0, 5, 5, 0, 0, 0, 0x0d, 0]);
        bytes.extend([4, 6, 255, 0, 0, 1]);
        let said = madt(&bytes).unwrap();
        assert_eq!(said["CPU 3"], "APIC id 3, flags 0x1");
        assert_eq!(said["I/O APIC 0"], "at 0xfec00000, interrupts from 0");
        assert_eq!(said["override of IRQ 5"], "interrupt 5, flags 0xd");
        assert_eq!(said["NMI of CPU 255"], "LINT1, flags 0x0");
        bytes.extend([0, 0]);
        assert!(madt(&bytes).is_err(), "a structure without length");
    }
}
