//! What a PVH loader tells, as a zero page: all entries are reported alike.
//!
//! Source: Xen, public/arch-x86/hvm/start_info.h. The offsets are the payload's own, as those of
//! the zero page are.

use abi::bytes::{get_u32, get_u64, put};

use crate::facts::zero_page;
use crate::hardware::physical;

const MAGIC: u32 = 0x336e_c578;
/// Bytes of `hvm_start_info`, version 1.
const START_INFO_SIZE: u64 = 56;
/// Bytes of `hvm_memmap_table_entry`.
const MEMORY_SIZE: u64 = 24;
/// Entries that a zero page holds.
const MEMORY_MAX: u64 = 128;

/// Fills `page` from the `hvm_start_info` at `address`; `None` when that is none.
pub fn fill_zero_page(address: u64, page: &mut [u8; 4096]) -> Option<()> {
    let info = physical(address, START_INFO_SIZE)?;
    if get_u32(info, 0)? != MAGIC || get_u32(info, 4)? != 1 || get_u32(info, 52)? != 0 {
        return None;
    }
    // An address of 0 is no command line; the page is zeroed.
    put(page, zero_page::COMMAND_LINE, info.get(24..28)?)?;
    put(page, zero_page::RSDP, info.get(32..40)?)?;
    if get_u32(info, 12)? > 0 {
        let module = physical(get_u64(info, 16)?, 32)?;
        put(page, zero_page::RAMDISK_IMAGE, module.get(0..4)?)?;
        put(page, zero_page::EXT_RAMDISK_IMAGE, module.get(4..8)?)?;
        put(page, zero_page::RAMDISK_SIZE, module.get(8..12)?)?;
        put(page, zero_page::EXT_RAMDISK_SIZE, module.get(12..16)?)?;
    }
    let count = u64::from(get_u32(info, 48)?);
    if count == 0 || count > MEMORY_MAX {
        return None;
    }
    page[zero_page::E820_ENTRIES] = u8::try_from(count).ok()?;
    let memory = physical(get_u64(info, 40)?, count * MEMORY_SIZE)?;
    for (i, entry) in memory.chunks_exact(24).enumerate() {
        put(page, zero_page::E820_TABLE + 20 * i, entry.get(..20)?)?;
    }
    Some(())
}
