//! The PVH entry: `struct hvm_start_info` and its lists.
//!
//! Source: Xen, public/arch-x86/hvm/start_info.h.

use crate::bytes::put;
use crate::e820::Map;
use crate::range::Range;

/// `XEN_HVM_START_MAGIC_VALUE`.
pub const MAGIC: u32 = 0x336e_c578;
/// Version 1 has the memory map; Linux stops at version 0.
const VERSION: u32 = 1;
/// Bytes of `hvm_start_info`.
const START_INFO_SIZE: u64 = 56;
/// Bytes of `hvm_modlist_entry`.
const MODULE_SIZE: u64 = 32;
/// Bytes of `hvm_memmap_table_entry`.
const MEMMAP_SIZE: u64 = 24;

/// What a PVH kernel is told.
#[derive(Clone, Copy, Debug)]
pub struct StartInfo<'a> {
    /// Where the command line is.
    pub command_line: u64,
    /// Where the initrd is; empty for none.
    pub initrd: Range,
    /// Where the RSDP is; 0 for none.
    pub rsdp: u64,
    /// The memory map.
    pub map: &'a Map,
}

impl StartInfo<'_> {
    /// Writes the structure and its lists into `area`, whose first byte is guest-physical
    /// address `base`; `None` when `area` is too small.
    pub fn encode(&self, base: u64, area: &mut [u8]) -> Option<()> {
        let modlist = base.checked_add(START_INFO_SIZE)?;
        let memmap = modlist.checked_add(MODULE_SIZE)?;
        let entries = self.map.entries();
        let modules = u32::from(!self.initrd.is_empty());
        let mut at = 0;
        let mut append = |bytes: &[u8]| {
            put(area, at, bytes)?;
            at += bytes.len();
            Some(())
        };
        append(&MAGIC.to_le_bytes())?;
        append(&VERSION.to_le_bytes())?;
        append(&0u32.to_le_bytes())?;
        append(&modules.to_le_bytes())?;
        append(&(if modules == 0 { 0 } else { modlist }).to_le_bytes())?;
        append(&self.command_line.to_le_bytes())?;
        append(&self.rsdp.to_le_bytes())?;
        append(&memmap.to_le_bytes())?;
        append(&u32::try_from(entries.len()).ok()?.to_le_bytes())?;
        append(&0u32.to_le_bytes())?;
        for value in [self.initrd.start(), self.initrd.len(), 0, 0] {
            append(&value.to_le_bytes())?;
        }
        for entry in entries {
            append(&entry.range.start().to_le_bytes())?;
            append(&entry.range.len().to_le_bytes())?;
            append(&entry.kind.to_le_bytes())?;
            append(&0u32.to_le_bytes())?;
        }
        Some(())
    }
}

const _: () = {
    let most = START_INFO_SIZE + MODULE_SIZE + MEMMAP_SIZE * Map::CAPACITY as u64;
    assert!(most <= crate::layout::PVH_INFO.len(), "the largest start info fits its area");
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::{get_u32, get_u64};
    use crate::e820::kind;

    fn info(initrd: Range) -> Vec<u8> {
        let mut map = Map::new();
        map.set(Range::between(0, 0x1000), kind::RAM).unwrap();
        let mut area = vec![0; 4096];
        StartInfo { command_line: 0x2_0000, initrd, rsdp: 0xe_0000, map: &map }
            .encode(0x6000, &mut area)
            .unwrap();
        area
    }

    #[test]
    fn lays_the_lists_behind_the_structure() {
        let area = info(Range::between(0x50_0000, 0x50_0777));
        assert_eq!(get_u32(&area, 0), Some(MAGIC));
        assert_eq!(get_u32(&area, 12), Some(1));
        assert_eq!(get_u64(&area, 16), Some(0x6000 + 56));
        assert_eq!(get_u64(&area, 56), Some(0x50_0000));
        assert_eq!(get_u64(&area, 64), Some(0x777));
        assert_eq!(get_u64(&area, 40), Some(0x6000 + 88));
        assert_eq!(get_u32(&area, 48), Some(1));
        assert_eq!(get_u64(&area, 88 + 8), Some(0x1000));
    }

    #[test]
    fn no_initrd_is_no_module() {
        let area = info(Range::between(0, 0));
        assert_eq!((get_u32(&area, 12), get_u64(&area, 16)), (Some(0), Some(0)));
    }

    #[test]
    fn too_small_an_area_is_refused() {
        let info =
            StartInfo { command_line: 0, initrd: Range::between(0, 0), rsdp: 0, map: &Map::new() };
        assert_eq!(info.encode(0, &mut [0; 60]), None);
    }
}
