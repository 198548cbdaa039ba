//! The comparison for people.

use std::fmt::Write;

use super::Clock;
use super::observe::Observed;

/// What the times of each clock are, and of which starts.
const INSTRUCTIONS: &str = "
Virtual ms: a million instructions of VMM, host kernel and guest together, or as long asleep, in
the nested lab with one processor; no hardware time. Each row is four starts: one to warm up, one
for the times (three trace points), one for exits and system calls (all trace points), one for
memory. Each begins when the virtual machine before it is gone and the host at rest.
";
const RUNS: &str = "
Times are medians of all runs, which took turns: every row once, then every row again. In the table
of intervals, the median of all possible runs is between the bounds at 95 % confidence (two of the
runs, counted off by the binomial distribution); drift is by how much the median of the second half
of the runs is above that of the first. Exits, system calls and memory are of one start each.
";
/// How the figures came to be.
const CONDITIONS: &str = "
Guest: the kernel of target/guest-kernel, 128 MiB, one CPU; the same initramfs for all. Init writes
a line and restarts the machine, which ends the VMM. A VMM that stays when its guest restarts has
no end: its exits and system calls are those to init.
Kernel: KVM's first entry to the kernel's addresses, or its first exit from them. End: the process
is waited for; microvm leaves it to the kernel to take the virtual machine apart afterwards, which
takes that 23 virtual ms more, and nobody waits for it. Peak is the most memory until init runs
(RSS), PSS counts its share of shared pages, own is the VMM's without the guest's.
QEMU is Debian's small program for microvms, whole QEMU the one with all machines and devices. Its
microvm has interrupt chips of its own, but where it says irqchip on; microvm has KVM's. Lean is
microvm,acpi=off,x-option-roms=off,pit=off,pic=off,rtc=off.
What is not comparable: The command line is the same for all, but for pci=off, which q35 does not
get, as it has PCI; and kvmtool puts words of its own before it (noapic, noacpi, earlyprintk=serial
and more), which cost or save the kernel time. Firecracker runs with its seccomp filters, as it
does when nobody says otherwise, and Cloud Hypervisor too; microvm has none, and QEMU none that it
was not told of. A container is the same init in namespaces of its own; it has no kernel to start,
so it is the floor and no peer.
";

/// A column: its heading, and its figure of a row.
pub type Column = (&'static str, fn(&Observed) -> String);

/// The columns of times and memory.
pub const COLUMNS: [Column; 10] = [
    ("ms from exec to", |row| row.name.clone()),
    ("first run", |row| milliseconds(row.first_run)),
    ("kernel", |row| milliseconds(row.kernel)),
    ("init", |row| milliseconds(row.init)),
    ("end", |row| milliseconds(row.end)),
    ("peak KiB", |row| count(row.peak_kib)),
    ("PSS KiB", |row| count(row.pss_kib)),
    ("own KiB", |row| count(row.own_kib)),
    ("libraries", |row| count(row.libraries)),
    ("program KB", |row| count(row.program.map(|bytes| bytes.div_ceil(1000)))),
];
/// The columns of what happened until then.
pub const COUNTS: [Column; 7] = [
    ("to init, and to the end", |row| row.name.clone()),
    ("exits", |row| count(row.to_init.exits)),
    ("to VMM", |row| count(row.to_init.to_user)),
    ("calls", |row| count(row.to_init.calls)),
    ("exits", |row| count(row.to_end.exits)),
    ("to VMM", |row| count(row.to_end.to_user)),
    ("calls", |row| count(row.to_end.calls)),
];

/// Hundredths of milliseconds, or a dash.
pub fn milliseconds(ns: Option<u64>) -> String {
    ns.map_or("-".to_owned(), |ns| format!("{}.{:02}", ns / 1_000_000, ns / 10_000 % 100))
}

fn count(count: Option<u64>) -> String {
    count.map_or("-".to_owned(), |count| count.to_string())
}

/// What the tables mean.
pub fn notes(clock: Clock) -> String {
    let times = if matches!(clock, Clock::Instructions) { INSTRUCTIONS } else { RUNS };
    format!("{times}{}", CONDITIONS.trim_start())
}

/// The tables.
pub fn rows(rows: &[Observed]) -> String {
    align(&cells(&COLUMNS, rows)) + "\n" + &align(&cells(&COUNTS, rows))
}

/// The lines of a table with these columns, the heading first.
pub fn cells(columns: &[Column], rows: &[Observed]) -> Vec<Vec<String>> {
    let head = columns.iter().map(|(name, _)| (*name).to_owned()).collect();
    let line = |row| columns.iter().map(|(_, figure)| figure(row)).collect();
    [head].into_iter().chain(rows.iter().map(line)).collect()
}

/// Lines with their cells one below the other: the first to the left, the others to the right.
pub fn align(lines: &[Vec<String>]) -> String {
    let mut text = String::new();
    for line in lines {
        for (index, cell) in line.iter().enumerate() {
            let cells = lines.iter().filter_map(|line| line.get(index));
            let width = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
            let _ = match index {
                0 => write!(text, "{cell:width$}"),
                _ => write!(text, "  {cell:>width$}"),
            };
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_a_figure_for_each_column() {
        let mut row = Observed { name: "x".into(), init: Some(78_641_000), ..Observed::default() };
        row.to_end.to_user = Some(104);
        row.to_init.calls = Some(9);
        let text = rows(&[row]);
        let words = |line| text.lines().nth(line).unwrap().split_whitespace().collect::<Vec<_>>();
        assert_eq!(words(1), ["x", "-", "-", "78.64", "-", "-", "-", "-", "-", "-"]);
        assert_eq!(words(4), ["x", "-", "-", "9", "-", "104", "-"]);
    }
}
