//! SMBIOS: puts the host's tables where kernels look for them.
//!
//! The host gives all structures but the BIOS's own. Kernels find the anchor in the F-segment; the
//! structures may be anywhere below 4 GiB. Tables that make no sense are left out: no kernel needs
//! them to run.
//!
//! Source: DMTF DSP0134 (SMBIOS 3.7), 5.2 for the anchors, 6.1 and 7.1 for structures.

use alloc::vec::Vec;

use abi::bytes::{get_u8, get_u16, put, set_checksum};
use abi::e820::{Map, kind};
use abi::fw_cfg::file;
use abi::layout;
use abi::placement::plan_tables;
use abi::range::Range;

use crate::error::Error;
use crate::fw_cfg::FwCfg;
use crate::machine::Machine;

/// Bytes in front of a structure: type, length, handle.
const HEADER: usize = 4;
/// The BIOS's own structure.
const TYPE_BIOS: u8 = 0;
/// Its formatted part, as of SMBIOS 2.4: vendor and version are strings 1 and 2, the segment is
/// 0xf000, the release date string 3, 64 KiB of ROM; characteristics are not given, save that this
/// is a virtual machine; the release of an embedded controller is unknown.
const BIOS: [u8; 24] = [
    TYPE_BIOS,
    24,
    0,
    0,
    1,
    2,
    0x00,
    0xf0,
    3,
    0,
    1 << 3,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    1 << 4,
    0,
    1,
    0xff,
    0xff,
];
/// Its strings. Linux takes the year for the platform's age, and lets PCIe ports of machines from
/// 2015 on sleep, which emulated ones need not be good at.
const BIOS_STRINGS: &[u8] =
    concat!("microvm\0", env!("CARGO_PKG_VERSION"), "\x0001/01/2014\0\0").as_bytes();

/// Places anchor and structures if the host has them.
pub fn load_smbios<M: Machine>(fw_cfg: &mut FwCfg<'_, M>, map: &mut Map) -> Result<(), Error> {
    let (mut anchor, mut structures) = (Vec::new(), Vec::new());
    for (name, bytes) in
        [(file::SMBIOS_ANCHOR, &mut anchor), (file::SMBIOS_TABLES, &mut structures)]
    {
        let Some(file) = fw_cfg.find(name) else { return Ok(()) };
        *bytes = fw_cfg.read_file(file)?;
    }
    let mut added = 0;
    if !has_bios(&structures) {
        structures = with_bios(&structures)?;
        added = 1;
    }
    let size = structures.len() as u64;
    let fixed = Range::new(layout::SMBIOS_TABLES.start(), size)
        .filter(|range| layout::SMBIOS_TABLES.contains(*range));
    let Some(range) = fixed.or_else(|| plan_tables(map, size, 16)) else { return Ok(()) };
    let range = Range::new(range.start(), size).unwrap_or(range);
    if complete(&mut anchor, range, added).is_none() {
        return Ok(());
    }
    if fixed.is_none() {
        let end = abi::range::align_up(range.end(), layout::PAGE).unwrap_or(range.end());
        let pages = Range::new(range.start(), end - range.start()).unwrap_or(range);
        map.set(pages, kind::RESERVED)?;
    }
    let machine = fw_cfg.machine();
    machine.memory(range).copy_from_slice(&structures);
    put(machine.memory(layout::SMBIOS_ANCHOR), 0, &anchor);
    Ok(())
}

/// The structures with the BIOS's in front of them.
fn with_bios(structures: &[u8]) -> Result<Vec<u8>, Error> {
    let size = BIOS.len() + BIOS_STRINGS.len() + structures.len();
    let mut all = Vec::new();
    all.try_reserve_exact(size).map_err(|_| Error::HeapFull(size))?;
    all.extend_from_slice(&BIOS);
    all.extend_from_slice(BIOS_STRINGS);
    all.extend_from_slice(structures);
    Ok(all)
}

/// Whether the user gave a BIOS structure of their own (`-smbios type=0,...`).
fn has_bios(mut structures: &[u8]) -> bool {
    // Every round takes at least a header off: this ends.
    while let [kind, length, ..] = *structures {
        if kind == TYPE_BIOS {
            return true;
        }
        let strings = structures.get(usize::from(length).max(HEADER)..).unwrap_or_default();
        let end = strings.windows(2).position(|pair| pair == [0, 0]);
        structures = end.and_then(|end| strings.get(end + 2..)).unwrap_or_default();
    }
    false
}

/// Fills in what the host could not know: where the structures lie, and how many were added.
fn complete(anchor: &mut [u8], structures: Range, added: u16) -> Option<()> {
    let address = u32::try_from(structures.start()).ok()?;
    if anchor.starts_with(b"_SM3_") {
        let size = u32::try_from(structures.len()).ok()?;
        put(anchor, 0x0c, &size.to_le_bytes())?;
        put(anchor, 0x10, &structures.start().to_le_bytes())?;
        let length = get_u8(anchor, 6)?.into();
        return set_checksum(anchor.get_mut(..length)?, 5);
    }
    if !anchor.starts_with(b"_SM_") {
        return None;
    }
    let size = u16::try_from(structures.len()).ok()?;
    let count = get_u16(anchor, 0x1c)?.checked_add(added)?;
    let own = u16::try_from(BIOS.len() + BIOS_STRINGS.len()).ok()?;
    let largest = get_u16(anchor, 0x08)?.max(own);
    put(anchor, 0x08, &largest.to_le_bytes())?;
    put(anchor, 0x16, &size.to_le_bytes())?;
    put(anchor, 0x18, &address.to_le_bytes())?;
    put(anchor, 0x1c, &count.to_le_bytes())?;
    // The intermediate anchor, which is 15 bytes, first: the whole sums it too.
    set_checksum(anchor.get_mut(0x10..0x1f)?, 5)?;
    let length = get_u8(anchor, 5)?.into();
    set_checksum(anchor.get_mut(..length)?, 4)
}
