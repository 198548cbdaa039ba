//! Walks the ACPI tables and checks what an operating system checks.

use core::fmt::{self, Write as _};

use abi::bytes::{array, get_u32, get_u64};

use crate::fw_cfg::Hex;
use crate::generation_id;
use crate::hardware::{Console, physical};

/// Bytes of a table's header (ACPI 6.5, 5.2.6).
const HEADER: u64 = 36;
/// Bytes of the RSDP since ACPI 2.0.
const RSDP_SIZE: u64 = 36;

/// The RSDP where a kernel looks that was not told (ACPI 6.5, 5.2.5.1).
pub fn find_rsdp() -> Option<u64> {
    (0xe_0000..0x10_0000)
        .step_by(16)
        .find(|at| physical(*at, 20).is_some_and(|r| r.starts_with(b"RSD PTR ") && sum(r) == 0))
}

/// The tables that an RSDP leads to.
pub struct Tables {
    rsdp: u64,
}

impl Tables {
    /// The tables behind the RSDP at `rsdp`.
    pub fn new(rsdp: u64) -> Self {
        Self { rsdp }
    }

    /// `ok`, or what is broken.
    pub fn verdict(&self) -> Verdict<'_> {
        Verdict(self)
    }

    /// `SIGNATURE+LENGTH`, comma-separated.
    pub fn list(&self) -> List<'_> {
        List(self)
    }

    /// `ok`, or the tables of which not all bytes are where `is_reserved` says so.
    pub fn places<F: Fn(u64, u64) -> bool>(&self, is_reserved: F) -> Places<'_, F> {
        Places { tables: self, is_reserved }
    }

    /// Where a table names the number that tells virtual machines apart.
    pub fn generation_id(&self) -> Option<u64> {
        let ssdts = self.tables().filter(|table| table.starts_with(b"SSDT"));
        ssdts.filter_map(generation_id::find).next()
    }

    /// Enabled local APICs in the MADT.
    pub fn cpus(&self) -> usize {
        let madt = self.tables().find(|table| table.starts_with(b"APIC"));
        let mut entries = madt.and_then(|table| table.get(44..)).unwrap_or_default();
        let mut cpus = 0;
        while let [kind, length, ..] = *entries {
            const LOCAL_APIC: u8 = 0;
            const LOCAL_X2APIC: u8 = 9;
            let flags = match kind {
                LOCAL_APIC => get_u32(entries, 4),
                LOCAL_X2APIC => get_u32(entries, 8),
                _ => None,
            };
            cpus += usize::from(flags.is_some_and(|flags| flags & 1 == 1));
            let Some(rest) = entries.get(usize::from(length).max(2)..) else { break };
            entries = rest;
        }
        cpus
    }

    /// Prints the bytes of the RSDP, of the table it leads to, and of each table from there.
    pub fn dump(&self) {
        let Some((root, _)) = self.root() else { return };
        let rsdp = physical(self.rsdp, RSDP_SIZE).unwrap_or_default();
        // An RSDP of ACPI 1.0 ends before its length.
        let rsdp = if rsdp.get(15) == Some(&0) { &rsdp[..20] } else { rsdp };
        let _ = writeln!(Console, "acpi_rsdp={}", Hex(rsdp));
        let _ = writeln!(Console, "acpi_root={}", Hex(root));
        for (index, table) in self.tables().enumerate() {
            let _ = writeln!(Console, "acpi_table_{index}={}", Hex(table));
        }
    }

    /// What the FPDT says of the firmware: reset's end, two times of its loader, two of its end.
    pub fn firmware_times(&self) -> Option<[u64; 5]> {
        const POINTER: usize = 44;
        const TIMES: usize = 16;
        let table = self.tables().find(|table| table.starts_with(b"FPDT"))?;
        let times = physical(get_u64(table, POINTER)?, 56).filter(|t| t.starts_with(b"FBPT"))?;
        let mut all = [0; 5];
        for (index, time) in all.iter_mut().enumerate() {
            *time = get_u64(times, TIMES + 8 * index)?;
        }
        Some(all)
    }

    /// The XSDT, or the RSDT of an RSDP of ACPI 1.0, and the bytes of an entry in it.
    fn root(&self) -> Option<(&'static [u8], usize)> {
        let old = physical(self.rsdp, 20)?;
        if !old.starts_with(b"RSD PTR ") || sum(old) != 0 {
            return None;
        }
        const REVISION: usize = 15;
        if old[REVISION] < 2 {
            return Some((table(get_u32(old, 16)?.into())?, 4));
        }
        let rsdp = physical(self.rsdp, HEADER)?;
        if sum(rsdp) == 0 { Some((table(get_u64(rsdp, 24)?)?, 8)) } else { None }
    }

    /// The tables that are listed, and the DSDT that the FADT names.
    fn tables(&self) -> impl Iterator<Item = &'static [u8]> {
        let (root, size) = self.root().unwrap_or((&[], 8));
        let pointers = root.get(36..).unwrap_or_default();
        let address = move |pointer: &'static [u8]| {
            if size == 4 { get_u32(pointer, 0).map(u64::from) } else { get_u64(pointer, 0) }
        };
        let listed = pointers.chunks_exact(size).filter_map(move |p| table(address(p)?));
        let dsdt = listed.clone().find(|t| t.starts_with(b"FACP")).and_then(|fadt| {
            // X_DSDT, or DSDT when that is 0 or the table too old for it (ACPI 6.5, table 5.9).
            match get_u64(fadt, 140) {
                Some(0) | None => table(get_u32(fadt, 40)?.into()),
                Some(address) => table(address),
            }
        });
        listed.chain(dsdt)
    }
}

fn table(address: u64) -> Option<&'static [u8]> {
    let length = get_u32(physical(address, HEADER)?, 4)?;
    physical(address, u64::from(length).max(HEADER))
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// Prints what [`Tables::verdict`] says.
pub struct Verdict<'a>(&'a Tables);

impl fmt::Display for Verdict<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((root, _)) = self.0.root() else { return f.write_str("[RSDP]") };
        let mut sound = sum(root) == 0;
        if !sound {
            write!(f, "[{}]", signature(root))?;
        }
        let mut dsdt = false;
        for table in self.0.tables() {
            dsdt |= table.starts_with(b"DSDT");
            if sum(table) != 0 {
                sound = false;
                write!(f, "[{}]", signature(table))?;
            }
        }
        if !dsdt {
            return f.write_str("[no DSDT]");
        }
        if sound { f.write_str("ok") } else { Ok(()) }
    }
}

/// Prints what [`Tables::places`] says.
pub struct Places<'a, F> {
    tables: &'a Tables,
    is_reserved: F,
}

impl<F: Fn(u64, u64) -> bool> fmt::Display for Places<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sound = true;
        let root = self.tables.root().map(|(root, _)| root);
        for table in root.into_iter().chain(self.tables.tables()) {
            let start = table.as_ptr().addr() as u64;
            if !(self.is_reserved)(start, table.len() as u64) {
                sound = false;
                write!(f, "[{} at {start:#x}]", signature(table))?;
            }
        }
        if sound { f.write_str("ok") } else { Ok(()) }
    }
}

/// Prints what [`Tables::list`] says.
pub struct List<'a>(&'a Tables);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The FPDT is the firmware's, not the host's: see `Tables::firmware_times`.
        let mut tables = self.0.tables().filter(|table| !table.starts_with(b"FPDT"));
        tables.try_for_each(|t| write!(f, "{}+{},", signature(t), t.len()))
    }
}

fn signature(table: &[u8]) -> Signature {
    Signature(array(table, 0).unwrap_or_default())
}

struct Signature([u8; 4]);

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{}", byte.escape_ascii()))
    }
}
