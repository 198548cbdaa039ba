//! QEMU's `vmgenid`: a number in guest memory, and its address at the host.
//!
//! Source: QEMU, docs/specs/vmgenid.rst. A table of ACPI names the page, a file of fw_cfg has the
//! number's address as the host knows it.

use abi::bytes::{array, get_u16, get_u32};

use crate::hardware::{in8, out16, physical};

/// Where the number lies in its page.
const OFFSET: u64 = 40;
/// fw_cfg's ports, directory, and the bytes of an entry in it (QEMU, docs/specs/fw_cfg.rst).
const SELECTOR: u16 = 0x510;
const DATA: u16 = 0x511;
const DIRECTORY: u16 = 0x19;
const ENTRY: usize = 64;
const ADDRESS_FILE: &[u8] = b"etc/vmgenid_addr\0";

/// The number's address, when this table names one.
pub fn find(table: &[u8]) -> Option<u64> {
    // AML: Name (VGIA, <dword>).
    let name = b"VGIA\x0c";
    let at = table.windows(name.len()).position(|window| window == name)?;
    Some(u64::from(get_u32(table, at + name.len())?) + OFFSET)
}

/// The number.
pub fn read(address: u64) -> Option<u128> {
    array(physical(address, 16)?, 0).map(u128::from_be_bytes)
}

/// The address that the host was told.
pub fn host_address() -> Option<u64> {
    out16(SELECTOR, DIRECTORY);
    let mut count = [0; 4];
    read_file(&mut count);
    let mut selector = None;
    for _ in 0..u32::from_be_bytes(count) {
        let mut entry = [0; ENTRY];
        read_file(&mut entry);
        if entry[8..].starts_with(ADDRESS_FILE) {
            selector = get_u16(&entry, 4).map(u16::swap_bytes);
        }
    }
    out16(SELECTOR, selector?);
    let mut address = [0; 8];
    read_file(&mut address);
    Some(u64::from_le_bytes(address))
}

fn read_file(bytes: &mut [u8]) {
    bytes.fill_with(|| in8(DATA));
}
