//! `cargo xtask firmware-cost`: what a BIOS does before the kernel's first word.
//!
//! QEMU's emulator runs our BIOS, qboot and SeaBIOS with the same stub kernel and logs every
//! instruction and every device access; they are counted up to the kernel's first instruction.
//! Our own VMM counts its exits itself. Nothing here depends on the clock, so the figures repeat
//! exactly.

mod log;
mod program;
mod stub;
mod vmm;

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

/// What guest memory holds before a run, so that zeroes that are written are seen too.
const PATTERN: u8 = 0xa5;
/// Equal bytes in a row that count as an image's padding.
const PADDING: usize = 256;

const USAGE: &str = "\
usage: cargo xtask firmware-cost

Counts what each BIOS does from reset to the kernel's first instruction, under QEMU's microvm with
128 MiB, a stub kernel of 8 MiB and an initrd of 1 MiB, and ours under microvm too. Our own figures
are held to a budget.
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
    written: Written,
    /// Bytes of the image that are no padding.
    image: usize,
}

/// What a BIOS changed in guest RAM, without kernel and initrd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Written {
    bytes: u64,
    /// Of 4 KiB, that any of these bytes is in.
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
         An iteration of a repeated\ninstruction counts as one. bytes, pages: of guest RAM that \
         are changed, without kernel and initrd.\nimage: bytes of the file without runs of \
         {PADDING} and more that are the same."
    );
    let exits = vmm::measure(&ours.image)?;
    println!("\n{}", vmm::table(&exits));
    check_budget(&rows)?;
    vmm::check_budget(&exits, BUDGET)
}

/// Measures our BIOS alone, and the VMM's program, and fails when one costs more than its budget.
pub fn check() -> Result<()> {
    program::check_budget(&build::build_vmm()?, BUDGET)?;
    let image = build::build_firmware()?;
    vmm::check_budget(&vmm::measure(&image)?, BUDGET)?;
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
    // Guest RAM is a file, to be looked at afterwards.
    let size = usize::try_from(MEMORY_MIB << 20).context("the guest's memory")?;
    fs::write(&ram, vec![PATTERN; size]).context("writing the guest's memory")?;
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
    let written = written(&fs::read(&ram).context("reading the guest's memory")?);
    let image = content(&fs::read(&bios.image).context("reading the image")?);
    Ok(Row { bios: bios.name, ours: bios.ours, acpi, entry, counts, written, image })
}

/// Counts what is neither as it was nor the stub's filling.
fn written(ram: &[u8]) -> Written {
    let changed = |page: &[u8]| {
        page.iter().filter(|byte| ![PATTERN, stub::FILLER].contains(*byte)).count() as u64
    };
    let pages = ram.chunks(4096).map(changed);
    pages.filter(|bytes| *bytes > 0).fold(Written { bytes: 0, pages: 0 }, |sum, bytes| Written {
        bytes: sum.bytes + bytes,
        pages: sum.pages + 1,
    })
}

/// Bytes that are in no run of [`PADDING`] equal ones.
fn content(image: &[u8]) -> usize {
    let runs = image.chunk_by(|a, b| a == b).map(<[u8]>::len);
    runs.filter(|run| *run < PADDING).sum()
}

fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:9}{:5}{:8}{:>6}{:>14}{:>8}{:>9}{:>8}{:>9}{:>7}{:>8}\n",
        "BIOS",
        "acpi",
        "entry",
        "exits",
        "instructions",
        "16-bit",
        "32-bit",
        "64-bit",
        "bytes",
        "pages",
        "image"
    );
    for Row { bios, acpi, entry, counts, written, image, .. } in rows {
        let acpi = if *acpi { "on" } else { "off" };
        let [real, protected, long] = counts.instructions;
        let Written { bytes, pages } = written;
        text.push_str(&format!(
            "{bios:9}{acpi:5}{:8}{:>6}{:>14}{real:>8}{protected:>9}{long:>8}{bytes:>9}{pages:>7}\
             {image:>8}\n",
            entry.name(),
            counts.exits,
            counts.total(),
        ));
    }
    text
}

/// `acpi entry exits instructions bytes`, one line each; `#` begins a comment.
fn check_budget(rows: &[Row]) -> Result<()> {
    let mut over = Vec::new();
    for row in rows.iter().filter(|row| row.ours) {
        let acpi = if row.acpi { "on" } else { "off" };
        let name = format!("{acpi} {}", row.entry.name());
        let line = BUDGET.lines().find_map(|line| line.strip_prefix(&name));
        let line = line.with_context(|| format!("cost/budget.txt has no line for {name}"))?;
        let figures = [u64::from(row.counts.exits), row.counts.total(), row.written.bytes];
        let limits: Vec<u64> = line.split_whitespace().map_while(|w| w.parse().ok()).collect();
        if limits.len() != figures.len() {
            bail!("cost/budget.txt: {name}: three numbers are wanted: exits, instructions, bytes");
        }
        if figures.iter().zip(&limits).any(|(figure, limit)| figure > limit) {
            over.push(format!("acpi={name}: {figures:?}, budget {limits:?}"));
        }
    }
    if over.is_empty() {
        return Ok(());
    }
    bail!(
        "the firmware costs more than its budget (exits, instructions, bytes):\n{}",
        over.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_counted_even_if_it_is_zero() {
        let mut ram = vec![PATTERN; 3 * 4096];
        ram[5] = 0;
        ram[6] = 1;
        ram[2 * 4096..].fill(stub::FILLER);
        assert_eq!(written(&ram), Written { bytes: 2, pages: 1 });
        ram[4096] = 7;
        assert_eq!(written(&ram), Written { bytes: 3, pages: 2 });
    }

    #[test]
    fn padding_is_no_content() {
        let image = [&[0xff; PADDING][..], &[1, 2, 3], &[0; PADDING - 1]].concat();
        assert_eq!(content(&image), 3 + PADDING - 1);
    }
}
