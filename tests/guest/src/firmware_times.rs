//! How long the firmware says it took, read as systemd does.
//!
//! ACPI's FPDT points to a second table in memory (ACPI 6.5, 5.2.24); systemd takes the start of
//! the loaded program for the loader's beginning, and the exit of boot services for its end.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

/// Offset of the pointer in the FPDT.
const POINTER: usize = 44;
/// Bytes of the second table, and the offsets of the two times in it.
const TIMES_SIZE: usize = 56;
const LOADER_START: usize = 32;
const LOADER_END: usize = 48;

/// The loader's beginning and end, in nanoseconds from reset, with a space between them; empty
/// when there is no table.
pub fn read() -> String {
    times().map(|(start, end)| format!("{start} {end}")).unwrap_or_default()
}

fn times() -> Option<(u64, u64)> {
    let table = fs::read("/sys/firmware/acpi/tables/FPDT").ok()?;
    let mut times = [0; TIMES_SIZE];
    let memory = File::open("/dev/mem").ok()?;
    memory.read_exact_at(&mut times, number(&table, POINTER)?).ok()?;
    if !times.starts_with(b"FBPT") {
        return None;
    }
    Some((number(&times, LOADER_START)?, number(&times, LOADER_END)?))
}

fn number(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes.get(offset..)?.first_chunk().map(|chunk| u64::from_le_bytes(*chunk))
}
