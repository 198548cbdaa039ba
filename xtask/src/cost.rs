//! `cargo xtask firmware-cost`: what a BIOS does before the kernel's first word.
//!
//! QEMU's emulator runs our BIOS, qboot and SeaBIOS with the same stub kernel and logs every
//! instruction and every device access; they are counted up to the kernel's first instruction.
//! Nothing here depends on the clock, so the figures repeat exactly.

mod log;
mod stub;

use std::ffi::OsString;
use std::fs;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use self::log::Counts;
use self::stub::Entry;
use crate::{apt, build, fetch, workspace};

/// The committed ceilings of our own figures.
const BUDGET: &str = include_str!("cost/budget.txt");
/// The machine of every run.
const MEMORY_MIB: u64 = 128;

const USAGE: &str = "\
usage: cargo xtask firmware-cost

Counts what each BIOS does from reset to the kernel's first instruction, under QEMU's microvm with
128 MiB, a stub kernel of 8 MiB and an initrd of 1 MiB. Our own figures are held to a budget.
";

/// A BIOS image.
struct Bios {
    name: &'static str,
    image: PathBuf,
    ours: bool,
}

/// What one run showed.
struct Row {
    bios: &'static str,
    ours: bool,
    acpi: bool,
    entry: Entry,
    counts: Counts,
    /// 4 KiB pages of guest RAM that are not zero, less those of kernel and initrd.
    pages: u64,
}

/// Runs the job.
pub fn main(arguments: &[OsString]) -> Result<()> {
    if !arguments.is_empty() {
        print!("{USAGE}");
        return Ok(());
    }
    let ours = Bios { name: "ours", image: build::build_firmware()?, ours: true };
    let peers = [
        ("qboot", "qemu-system-data", "/usr/share/qemu/qboot.rom"),
        ("SeaBIOS", "seabios", "/usr/share/seabios/bios-microvm.bin"),
    ];
    let mut rows = measure(&ours)?;
    for (name, package, image) in peers {
        let image = apt::file(Path::new(image), package)?;
        rows.extend(measure(&Bios { name, image, ours: false })?);
    }
    print!("{}", table(&rows));
    println!();
    println!(
        "From reset to the kernel's first instruction; QEMU's microvm, {MEMORY_MIB} MiB, stub \
         kernel of 8 MiB,\ninitrd of 1 MiB. exits: device accesses that KVM passes to user space. \
         An iteration of a repeated\ninstruction counts as one. pages: 4 KiB pages of guest RAM \
         left non-zero, without kernel and initrd."
    );
    check_budget(&rows)
}

/// Measures our BIOS alone, and fails when it costs more than its budget.
pub fn check() -> Result<()> {
    let image = build::build_firmware()?;
    check_budget(&measure(&Bios { name: "ours", image, ours: true })?)
}

fn measure(bios: &Bios) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for acpi in [true, false] {
        for entry in Entry::ALL {
            // The peers have one way into each kind of kernel.
            if !bios.ours && matches!(entry, Entry::Bits16 | Entry::Bits32) {
                continue;
            }
            let machine = if acpi { "on" } else { "off" };
            eprintln!("firmware-cost: {}, acpi={machine}, {}", bios.name, entry.name());
            rows.push(run(bios, acpi, entry)?);
        }
    }
    Ok(rows)
}

/// Runs QEMU up to the stub's exit, reading its log while it is written.
fn run(bios: &Bios, acpi: bool, entry: Entry) -> Result<Row> {
    let folder = workspace::target("cost")?;
    let _lock = workspace::lock(&folder, "firmware-cost: waiting for another run to end")?;
    let [kernel, initrd, ram] = ["kernel", "initrd", "ram"].map(|name| folder.join(name));
    fs::write(&kernel, stub::kernel(entry)).context("writing the stub kernel")?;
    fs::write(&initrd, vec![stub::FILLER; stub::INITRD_SIZE]).context("writing the initrd")?;
    // Guest RAM is a file, to be looked at afterwards: always a new one, all zeroes.
    if ram.exists() {
        fs::remove_file(&ram).context("removing the last run's memory")?;
    }
    let acpi_value = if acpi { "on" } else { "off" };
    let mut qemu = Command::new(fetch::qemu()?);
    qemu.args(["-accel", "tcg", "-cpu", "qemu64", "-singlestep", "-D", "/dev/stdout", "-d"]);
    qemu.arg("nochain,exec,trace:memory_region_ops_read,trace:memory_region_ops_write");
    qemu.arg("-M").arg(format!("microvm,acpi={acpi_value},memory-backend=ram"));
    qemu.arg("-m").arg(format!("{MEMORY_MIB}M")).arg("-object").arg(format!(
        "memory-backend-file,id=ram,size={MEMORY_MIB}M,share=on,mem-path={}",
        ram.display()
    ));
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    qemu.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-append", "console=ttyS0"]);
    qemu.arg("-bios").arg(&bios.image).arg("-kernel").arg(&kernel).arg("-initrd").arg(&initrd);
    if let (true, Some(choice)) = (bios.ours, entry.choice()) {
        qemu.args(["-fw_cfg", &format!("name=opt/org.microvm/entry,string={choice}")]);
    }
    let mut child =
        qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("starting QEMU")?;
    let log = BufReader::with_capacity(1 << 20, child.stdout.take().context("QEMU's log")?);
    let counts = log::count(log)?;
    let status = child.wait().context("waiting for QEMU")?;
    let expected = i32::from(stub::EXIT) * 2 + 1;
    if status.code() != Some(expected) {
        bail!("{} with {}: the stub kernel did not run ({status})", bios.name, entry.name());
    }
    let pages = touched_pages(&ram)?;
    Ok(Row { bios: bios.name, ours: bios.ours, acpi, entry, counts, pages })
}

/// Pages that are neither zero nor the stub's filling.
fn touched_pages(ram: &Path) -> Result<u64> {
    let bytes = fs::read(ram).context("reading the guest's memory")?;
    let plain = |page: &[u8]| page.iter().all(|byte| [0, stub::FILLER].contains(byte));
    Ok(bytes.chunks(4096).filter(|page| !plain(page)).count() as u64)
}

fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:10}{:6}{:8}{:>8}{:>14}{:>10}{:>10}{:>10}{:>8}\n",
        "BIOS", "acpi", "entry", "exits", "instructions", "16-bit", "32-bit", "64-bit", "pages"
    );
    for Row { bios, acpi, entry, counts, pages, .. } in rows {
        let acpi = if *acpi { "on" } else { "off" };
        let [real, protected, long] = counts.instructions;
        text.push_str(&format!(
            "{bios:10}{acpi:6}{:8}{:>8}{:>14}{real:>10}{protected:>10}{long:>10}{pages:>8}\n",
            entry.name(),
            counts.exits,
            counts.total(),
        ));
    }
    text
}

/// `acpi entry exits instructions pages`, one line each; `#` begins a comment.
fn check_budget(rows: &[Row]) -> Result<()> {
    let mut over = Vec::new();
    for row in rows.iter().filter(|row| row.ours) {
        let acpi = if row.acpi { "on" } else { "off" };
        let name = format!("{acpi} {}", row.entry.name());
        let line = BUDGET.lines().find_map(|line| line.strip_prefix(&name));
        let line = line.with_context(|| format!("cost/budget.txt has no line for {name}"))?;
        let figures = [u64::from(row.counts.exits), row.counts.total(), row.pages];
        let limits: Vec<u64> = line.split_whitespace().map_while(|w| w.parse().ok()).collect();
        if limits.len() != figures.len() {
            bail!("cost/budget.txt: {name}: three numbers are wanted: exits, instructions, pages");
        }
        if figures.iter().zip(&limits).any(|(figure, limit)| figure > limit) {
            over.push(format!("acpi={name}: {figures:?}, budget {limits:?}"));
        }
    }
    if over.is_empty() {
        return Ok(());
    }
    bail!(
        "the firmware costs more than its budget (exits, instructions, pages):\n{}",
        over.join("\n")
    )
}
