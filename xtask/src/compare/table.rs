//! The comparison for people.

use std::fmt::Write;

use super::observe::Observed;

/// How the figures came to be.
pub const CONDITIONS: &str = "
Virtual ms: a million instructions of VMM, host kernel and guest together, or as long asleep, in
the nested lab with one processor; no hardware time. Guest: the kernel of target/guest-kernel,
128 MiB, one CPU; the same initramfs and command line for all, but for pci=off, which q35 does
not get: it has PCI. Init writes a line and restarts the machine, which ends the VMM. Each row
is four starts: one to warm up, one for the times (three trace points), one for exits and system
calls (all trace points), one for memory.
Kernel: KVM's first entry to the kernel's addresses, or its first exit from them. End: the
process is waited for; microvm leaves it to the kernel to take the virtual machine apart
afterwards, which takes that 23 ms more, and nobody waits for it. Peak is the most memory until
init runs (RSS), PSS counts its share of shared pages, own is the VMM's without the guest's. A
QEMU microvm has its own interrupt chips, but where it says irqchip on; microvm has KVM's. Lean
is microvm,acpi=off,x-option-roms=off,pit=off,pic=off,rtc=off. The container is the same init in
namespaces of its own; it has no kernel to start, so it is the floor and no peer. A VMM that
stays when its guest restarts has no end.
";

/// A column: its heading, and its figure of a row.
pub type Column = (&'static str, fn(&Observed) -> String);

/// The columns of times and memory.
pub const COLUMNS: [Column; 10] = [
    ("virtual ms from exec to", |row| row.name.clone()),
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

/// The tables, and what they mean.
pub fn render(rows: &[Observed]) -> String {
    self::rows(rows) + CONDITIONS
}

/// The tables.
pub fn rows(rows: &[Observed]) -> String {
    figures(&COLUMNS, rows) + "\n" + &figures(&COUNTS, rows)
}

/// A table with these columns.
fn figures(columns: &[Column], rows: &[Observed]) -> String {
    let head = columns.iter().map(|(name, _)| (*name).to_owned()).collect();
    let line = |row| columns.iter().map(|(_, figure)| figure(row)).collect();
    align(&[head].into_iter().chain(rows.iter().map(line)).collect::<Vec<_>>())
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
        let text = render(&[row]);
        let words = |line| text.lines().nth(line).unwrap().split_whitespace().collect::<Vec<_>>();
        assert_eq!(words(1), ["x", "-", "-", "78.64", "-", "-", "-", "-", "-", "-"]);
        assert_eq!(words(4), ["x", "-", "-", "9", "-", "104", "-"]);
    }
}
