//! Boots a cell of the matrix under QEMU and judges what it prints.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::disk::{self, initramfs, large_initramfs};
use crate::facts::{self, Facts};
use crate::machine::{choose_entry, qemu};
use crate::matrix::{Cell, Entry, Initrd, Kernel};
use crate::products::{STANDARD_KERNEL, fetched, kernel, product, vmlinux};
use crate::program::{Ended, run};

/// Thirty times what the slowest cell takes on an idle machine.
const DEADLINE: Duration = Duration::from_secs(300);
/// An initrd that QEMU lets pass with 128 MiB, and for which there is no room there: the lowest
/// MiB is not for initrds.
const NO_ROOM_SIZE: usize = (127 << 20) + (512 << 10);
const MIB: usize = 1 << 20;

/// What the cells are booted with.
pub struct Scenery {
    cloud: PathBuf,
    standard: PathBuf,
    odd: disk::Initrd,
    large: disk::Initrd,
    no_room: disk::Initrd,
}

impl Scenery {
    /// Makes the large initrds in `folder`.
    pub fn new(folder: &Path) -> Self {
        Self {
            cloud: kernel(),
            standard: fetched(STANDARD_KERNEL),
            odd: initramfs(),
            large: large_initramfs(folder, 200 * MIB),
            no_room: large_initramfs(folder, NO_ROOM_SIZE),
        }
    }

    fn initrd(&self, initrd: Initrd) -> Option<&disk::Initrd> {
        match initrd {
            Initrd::None => None,
            Initrd::Odd => Some(&self.odd),
            Initrd::Large => Some(&self.large),
        }
    }

    fn kernel(&self, cell: &Cell) -> PathBuf {
        let image = match cell.kernel {
            Kernel::Payload if cell.entry == Entry::Pvh => return product("payload.elf"),
            Kernel::Payload => return product("payload.bzImage"),
            Kernel::Cloud => &self.cloud,
            Kernel::Standard => &self.standard,
        };
        if cell.entry == Entry::Pvh { vmlinux(image) } else { image.clone() }
    }

    fn command(&self, cell: &Cell, initrd: Option<&disk::Initrd>) -> Command {
        let memory = format!("{}M", cell.memory_mib);
        let mut command = qemu(cell.machine(), &memory, &self.kernel(cell), append(cell));
        choose_entry(&mut command, cell.entry.name());
        if let Some(initrd) = initrd {
            command.arg("-initrd").arg(&initrd.path);
        }
        command
    }

    /// Boots the cell; the error says what was not as it should be, and what the guest printed.
    pub fn try_cell(&self, cell: &Cell) -> Result<()> {
        let initrd = self.initrd(cell.initrd);
        let ended = run(&mut self.command(cell, initrd), b"", DEADLINE);
        let verdict = match (cell.kernel, initrd) {
            _ if ended.timed_out => bail!("no end within {DEADLINE:?}: {ended}"),
            _ if cell.is_too_large() => refused(&ended).and_then(|()| self.try_no_room(cell)),
            (Kernel::Payload, _) => payload(cell, initrd, &ended),
            (_, Some(initrd)) => linux(cell, initrd, &ended),
            (_, None) => linux_without_root(cell, &ended),
        };
        verdict.with_context(|| ended.to_string())
    }

    /// The same cell with an initrd that comes through to the firmware.
    fn try_no_room(&self, cell: &Cell) -> Result<()> {
        let ended = run(&mut self.command(cell, Some(&self.no_room)), b"", DEADLINE);
        let line = "bios-microvm: error 45: no room for the initrd of 128 MiB below ";
        ensure!(ended.stdout.trim().starts_with(line), "not error 45: {ended}");
        ensure!(ended.status == Some(45 * 2 + 1), "status: {ended}");
        Ok(())
    }
}

fn append(cell: &Cell) -> &'static str {
    // A kernel without ACPI looks long for a way to restart.
    match (cell.kernel, cell.initrd) {
        (Kernel::Payload, _) => "hello world",
        // What it says of its memory is in its log.
        (_, Initrd::None) => "console=ttyS0 reboot=t panic=-1",
        _ => "console=ttyS0 reboot=t quiet",
    }
}

/// QEMU itself refuses an initrd that is larger than the memory.
fn refused(ended: &Ended) -> Result<()> {
    ensure!(ended.status == Some(1), "QEMU's status");
    ensure!(ended.stderr.contains("initrd is too large"), "QEMU's message");
    Ok(())
}

fn payload(cell: &Cell, initrd: Option<&disk::Initrd>, ended: &Ended) -> Result<()> {
    // It checks itself how it was entered, and all tables.
    ensure!(ended.status == Some(33), "the payload's status");
    let facts = facts::parse(&ended.stdout).context("no facts")?;
    expect(&facts, "entry", cell.entry.name())?;
    expect(&facts, "cmdline", append(cell))?;
    expect(&facts, "cpus", "1")?;
    expect(&facts, "acpi", if cell.acpi { "yes" } else { "no" })?;
    expect(&facts, if cell.acpi { "acpi_checksums" } else { "mp_table" }, "ok")?;
    expect(&facts, "memory_kib", &cell.memory_kib().to_string())?;
    expect(&facts, "initrd_hash", initrd.map_or("none", |initrd| &initrd.hash))?;
    let size = format!("+{:#x}", initrd.map_or(0, |initrd| initrd.size));
    let place = facts.get("initrd").map_or("", String::as_str);
    ensure!(place.ends_with(&size), "initrd={place}, not of {size} bytes");
    Ok(())
}

fn linux(cell: &Cell, initrd: &disk::Initrd, ended: &Ended) -> Result<()> {
    let facts = facts::parse(&ended.stdout).context("no facts")?;
    // Power-off with ACPI, a restart without: both end QEMU.
    ensure!(ended.status == Some(0), "QEMU's status");
    expect(&facts, "init", "1")?;
    expect(&facts, "cmdline", append(cell))?;
    expect(&facts, "cpus", "1")?;
    expect(&facts, "acpi", if cell.acpi { "yes" } else { "no" })?;
    expect(&facts, "initrd_hash", &initrd.tree_hash)?;
    let map = facts.get("e820").map_or("", String::as_str);
    let areas = map.split(',').filter_map(|area| area.strip_suffix(":System RAM"));
    expect_ram(cell, areas)
}

/// Without an initrd Linux ends where it looks for its root.
fn linux_without_root(cell: &Cell, ended: &Ended) -> Result<()> {
    let log = &ended.stdout;
    ensure!(log.contains("VFS: Unable to mount root fs"), "no search for a root");
    ensure!(ended.status == Some(0), "QEMU's status");
    ensure!(log.contains("ACPI: RSDP 0x") == cell.acpi, "ACPI");
    let command_line = log.lines().any(|line| {
        line.trim_end().rsplit_once("Command line: ").is_some_and(|(_, l)| l == append(cell))
    });
    ensure!(command_line, "the command line");
    let areas = log.lines().filter_map(|line| {
        let (_, area) = line.split_once("BIOS-e820: [mem ")?;
        area.trim_end().strip_suffix("] usable")
    });
    expect_ram(cell, areas)
}

fn expect(facts: &Facts, key: &str, value: &str) -> Result<()> {
    let found = facts.get(key).map(String::as_str);
    ensure!(found == Some(value), "{key} is {found:?}, not {value:?}");
    Ok(())
}

/// Compares the sum of the areas, `0xSTART-0xEND`, with what the cell has.
fn expect_ram<'a>(cell: &Cell, areas: impl Iterator<Item = &'a str>) -> Result<()> {
    let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
    let size = |area: &str| {
        let (start, end) = area.split_once('-')?;
        Some(number(end)? - number(start)? + 1)
    };
    let ram: u64 = areas.filter_map(size).sum();
    ensure!(
        ram == cell.memory_kib() * 1024,
        "RAM of {} KiB, not {}",
        ram / 1024,
        cell.memory_kib()
    );
    Ok(())
}
