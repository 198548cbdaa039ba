//! The boot log, which `opt/org.microvm/verbose` turns on.
//!
//! Each function is called when its stage is done, and returns at once when nobody asked.

use core::fmt;

use abi::boot_trace::BootTrace;
use abi::e820::{Map, kind};
use abi::range::Range;

use crate::fw_cfg::FwCfg;
use crate::kernel::Launch;
use crate::machine::Machine;
use crate::tables::Tables;

/// A text in a format. That of `str` can also pad, for which the image would need 1.4 KiB.
pub struct Text<'a>(pub &'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

macro_rules! log {
    ($fw_cfg:expr, $($line:tt)*) => {
        $fw_cfg.machine().print(format_args!($($line)*))
    };
}

/// The host's items, and its memory map.
#[inline]
pub fn host<M: Machine>(fw_cfg: &mut FwCfg<'_, M>, map: &Map) {
    if fw_cfg.is_verbose() {
        log_host(fw_cfg, map);
    }
}

#[cold]
#[inline(never)]
fn log_host<M: Machine>(fw_cfg: &mut FwCfg<'_, M>, map: &Map) {
    let (access, files) = (Text(fw_cfg.access()), fw_cfg.files().count());
    log!(fw_cfg, "fw_cfg by {access}, {files} files");
    for entry in map.entries() {
        let (start, end) = (entry.range.start(), entry.range.end());
        let name = Text(match entry.kind {
            kind::RAM => "RAM",
            kind::RESERVED => "reserved",
            kind::ACPI => "ACPI tables",
            kind::NVS => "ACPI storage",
            _ => "unknown",
        });
        log!(fw_cfg, "memory {start:#x} to {end:#x}: {name}");
    }
}

/// The tables that describe the machine.
#[inline]
pub fn tables<M: Machine>(fw_cfg: &mut FwCfg<'_, M>, tables: &Tables) {
    if fw_cfg.is_verbose() {
        log_tables(fw_cfg, tables);
    }
}

#[cold]
#[inline(never)]
fn log_tables<M: Machine>(fw_cfg: &mut FwCfg<'_, M>, tables: &Tables) {
    let Tables { rsdp, performance } = *tables;
    if rsdp == 0 {
        let instead = Text(match fw_cfg.known().table_loader {
            Some(_) => "no RSDP among the host's ACPI tables",
            None => "the host has no ACPI tables; MP table written",
        });
        log!(fw_cfg, "{instead}");
        return;
    }
    let with = Text(if performance.is_some() { "added" } else { "not added" });
    log!(fw_cfg, "ACPI: RSDP at {rsdp:#x}, FPDT {with}");
}

/// What was loaded.
#[inline]
pub fn loaded<M: Machine>(fw_cfg: &mut FwCfg<'_, M>, what: &str, range: Range) {
    if fw_cfg.is_verbose() {
        log_loaded(fw_cfg, what, range);
    }
}

#[cold]
#[inline(never)]
fn log_loaded<M: Machine>(fw_cfg: &mut FwCfg<'_, M>, what: &str, range: Range) {
    let (what, start, size) = (Text(what), range.start(), range.len());
    log!(fw_cfg, "{what} at {start:#x}, {size} bytes");
}

/// How the kernel is entered, and what the stages took.
#[cold]
#[inline(never)]
pub fn launch<M: Machine>(machine: &mut M, launch: &Launch, trace: &BootTrace) {
    let (how, entry) = launch.describe();
    let how = Text(how);
    machine.print(format_args!("{how} entry at {entry:#x}"));
    let tables = trace.load_kernel.wrapping_sub(trace.start);
    let kernel = trace.kernel_entry.wrapping_sub(trace.load_kernel);
    machine.print(format_args!("TSC cycles: {tables} to the kernel's load, {kernel} to its entry"));
}
