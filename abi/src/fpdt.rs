//! The FPDT: the ACPI table in which firmware says how long it took.
//!
//! Kernels find a pointer in it to a second table with the times themselves. Source: ACPI 6.5,
//! 5.2.24; 5.2.7 and 5.2.8 for the root tables, 5.2.5.3 for the RSDP.

use crate::bytes::{array, get_u8, get_u32, get_u64, put, set_checksum};

/// Signature of the table.
pub const SIGNATURE: [u8; 4] = *b"FPDT";
/// Bytes of the table: a header, and the record that points to the times.
pub const TABLE_SIZE: usize = HEADER + 16;
/// Bytes of the second table: its header, and one record of five times.
pub const TIMES_SIZE: usize = 8 + 48;
/// Offset of the first time in the second table: when the CPU left reset.
pub const TIMES: usize = 16;

/// Bytes of a table's header.
pub const HEADER: usize = 36;
/// Offsets in a header.
const LENGTH: usize = 4;
const REVISION: usize = 8;
const CHECKSUM: usize = 9;
const OEM: usize = 10;

/// Where an RSDP points: to a root table with entries of so many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    /// The root table's address.
    pub address: u64,
    /// 8 for an XSDT, 4 for an RSDT.
    pub entry_size: usize,
}

/// Offsets in an RSDP.
mod rsdp {
    pub const CHECKSUM: usize = 8;
    pub const REVISION: usize = 15;
    pub const RSDT: usize = 16;
    /// Bytes under the first checksum: those of revision 0.
    pub const OLD_SIZE: usize = 20;
    pub const XSDT: usize = 24;
    pub const NEW_CHECKSUM: usize = 32;
    pub const NEW_SIZE: usize = 36;
}

impl Root {
    /// The root table that kernels use: the XSDT, if there is one.
    pub fn of(rsdp: &[u8]) -> Option<Self> {
        let xsdt = Self { address: get_u64(rsdp, rsdp::XSDT).unwrap_or(0), entry_size: 8 };
        if get_u8(rsdp, rsdp::REVISION)? >= 2 && xsdt.address != 0 {
            return Some(xsdt);
        }
        Some(Self { address: get_u32(rsdp, rsdp::RSDT)?.into(), entry_size: 4 })
    }

    /// Makes `rsdp` point to another root table of the same kind.
    pub fn replace(self, rsdp: &mut [u8], address: u64) -> Option<()> {
        let offset = if self.entry_size == 8 { rsdp::XSDT } else { rsdp::RSDT };
        put(rsdp, offset, address.to_le_bytes().get(..self.entry_size)?)?;
        set_checksum(rsdp.get_mut(..rsdp::OLD_SIZE)?, rsdp::CHECKSUM)?;
        match rsdp.get_mut(..rsdp::NEW_SIZE) {
            Some(rsdp) if rsdp[rsdp::REVISION] >= 2 => set_checksum(rsdp, rsdp::NEW_CHECKSUM),
            _ => Some(()),
        }
    }
}

/// Bytes of the table that begins with `header`, by what it says itself.
pub fn table_size(header: &[u8]) -> Option<u64> {
    get_u32(header, LENGTH).map(u64::from)
}

/// The addresses in a root table.
pub fn entries(root: &[u8], entry_size: usize) -> impl Iterator<Item = u64> + '_ {
    root.get(HEADER..).unwrap_or_default().chunks_exact(entry_size).map(|entry| {
        let mut bytes = [0; 8];
        bytes.iter_mut().zip(entry).for_each(|(to, from)| *to = *from);
        u64::from_le_bytes(bytes)
    })
}

/// Bytes that [`extend`] wants behind a root table's own.
pub const fn extra_size(entry_size: usize) -> usize {
    entry_size + TABLE_SIZE + TIMES_SIZE
}

/// Makes of a root table, behind which there are [`extra_size`] bytes, one with an FPDT: behind the
/// root table comes the FPDT, behind that the second table, whose offset is returned. `address` is
/// where all of it lies.
pub fn extend(bytes: &mut [u8], entry_size: usize, address: u64) -> Option<usize> {
    let root_size = bytes.len().checked_sub(TABLE_SIZE + TIMES_SIZE)?;
    let times_offset = root_size + TABLE_SIZE;
    let (root, rest) = bytes.split_at_mut_checked(root_size)?;
    let (table, times) = rest.split_at_mut_checked(TABLE_SIZE)?;

    let entry = (address + root_size as u64).to_le_bytes();
    put(root, root_size.checked_sub(entry_size)?, entry.get(..entry_size)?)?;
    put(root, LENGTH, &u32::try_from(root_size).ok()?.to_le_bytes())?;
    set_checksum(root, CHECKSUM)?;

    // Type, length and revision of each record; the one that points has type 0, the times have 2.
    const POINTER_RECORD: [u8; 8] = [0, 0, 16, 1, 0, 0, 0, 0];
    const TIMES_RECORD: [u8; 8] = [2, 0, 48, 2, 0, 0, 0, 0];
    table.fill(0);
    put(table, 0, &SIGNATURE)?;
    put(table, LENGTH, &u32::try_from(TABLE_SIZE).ok()?.to_le_bytes())?;
    put(table, REVISION, &[1])?;
    // Who made it, as the host says of its tables.
    put(table, OEM, &array::<{ HEADER - OEM }>(root, OEM)?)?;
    put(table, HEADER, &POINTER_RECORD)?;
    put(table, HEADER + 8, &(address + times_offset as u64).to_le_bytes())?;
    set_checksum(table, CHECKSUM)?;

    times.fill(0);
    put(times, 0, b"FBPT")?;
    put(times, LENGTH, &u32::try_from(TIMES_SIZE).ok()?.to_le_bytes())?;
    put(times, 8, &TIMES_RECORD)?;
    Some(times_offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::sum8;

    fn root(entry_size: usize, entries: &[u64]) -> Vec<u8> {
        let mut root = vec![0; HEADER];
        root[..4].copy_from_slice(b"XSDT");
        root[10..16].copy_from_slice(b"TESTER");
        entries.iter().for_each(|e| root.extend(&e.to_le_bytes()[..entry_size]));
        root[4] = u8::try_from(root.len()).unwrap();
        set_checksum(&mut root, CHECKSUM).unwrap();
        root
    }

    #[test]
    fn a_root_table_gets_one_more_entry_and_right_checksums() {
        for entry_size in [4, 8] {
            let mut bytes = root(entry_size, &[0xe_1000, 0xe_2000]);
            let old = bytes.len();
            bytes.resize(old + extra_size(entry_size), 0xee);
            let times = extend(&mut bytes, entry_size, 0xe_8000).unwrap();
            let size = table_size(&bytes).unwrap();
            assert_eq!(size, (old + entry_size) as u64);
            let root = &bytes[..old + entry_size];
            let entries: Vec<_> = entries(root, entry_size).collect();
            assert_eq!(entries, [0xe_1000, 0xe_2000, 0xe_8000 + size]);
            assert_eq!(sum8(root), 0);
            let table = &bytes[root.len()..times];
            assert_eq!(
                (&table[..4], &table[10..16], sum8(table)),
                (&b"FPDT"[..], &b"TESTER"[..], 0)
            );
            assert_eq!(get_u64(table, HEADER + 8), Some(0xe_8000 + times as u64));
            assert_eq!((&bytes[times..times + 4], bytes.len() - times), (&b"FBPT"[..], TIMES_SIZE));
        }
        assert_eq!(extend(&mut [0; 20], 8, 0), None);
    }

    #[test]
    fn an_rsdp_keeps_its_checksums() {
        let mut old = *b"RSD PTR \x00TESTER\x00\x00\x00\x0e\x00";
        let root = Root::of(&old).unwrap();
        assert_eq!(root, Root { address: 0xe_0000, entry_size: 4 });
        root.replace(&mut old, 0xe_4440).unwrap();
        assert_eq!((sum8(&old), Root::of(&old).unwrap().address), (0, 0xe_4440));

        let mut new = [0; 36];
        put(&mut new, 0, b"RSD PTR ").unwrap();
        new[15] = 2;
        put(&mut new, 24, &0xe_0000u64.to_le_bytes()).unwrap();
        let root = Root::of(&new).unwrap();
        assert_eq!(root, Root { address: 0xe_0000, entry_size: 8 });
        root.replace(&mut new, 0xe_4440).unwrap();
        assert_eq!((sum8(&new), sum8(&new[..20])), (0, 0));
        assert_eq!(Root::of(&new).unwrap().address, 0xe_4440);
        assert_eq!(Root::of(&new[..15]), None);
    }
}
