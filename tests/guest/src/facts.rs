//! What a Linux guest can see of its machine, as `key=value` facts.
//!
//! The parsers take text and are tested on the host; [`gather`] reads the files. A file that is
//! not there gives an empty value: which facts exist must not depend on the machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::{firmware_times, tree_hash};

/// The line before the first fact.
pub const BEGIN: &str = "guest-facts-begin";
/// The line after the last fact.
pub const END: &str = "guest-facts-end";

/// All facts in the order in which they are printed.
pub fn gather() -> Vec<(&'static str, String)> {
    let tables = acpi_tables(Path::new("/sys/firmware/acpi/tables"));
    vec![
        ("init", "1".into()),
        ("kernel", read("/proc/sys/kernel/osrelease")),
        ("kernel_version", read("/proc/version")),
        ("memory_kib", memory_kib(&read("/proc/meminfo"))),
        ("cpus", count_listed(&read("/sys/devices/system/cpu/online")).to_string()),
        ("cpu_flags", cpu_flags(&read("/proc/cpuinfo"))),
        ("cmdline", read("/proc/cmdline")),
        ("acpi", if tables.is_empty() { "no".into() } else { "yes".into() }),
        ("acpi_tables", tables.join(",")),
        ("firmware_times", firmware_times::read()),
        ("e820", e820(Path::new("/sys/firmware/memmap"))),
        ("root", file_system(&read("/proc/mounts"), "/")),
        ("pci", pci(Path::new("/sys/bus/pci/devices"))),
        ("smbios", read("/sys/class/dmi/id/bios_vendor")),
        ("initrd_hash", tree_hash::hash_tree(Path::new("/")).unwrap_or_else(|e| e.to_string())),
        ("clocksource", read("/sys/devices/system/clocksource/clocksource0/current_clocksource")),
    ]
}

/// The facts in a guest's console output, as other programs read them; `None` when the block is
/// not complete.
pub fn parse(console: &str) -> Option<BTreeMap<String, String>> {
    let (_, rest) = console.split_once(BEGIN)?;
    let (block, _) = rest.split_once(END)?;
    let line = |line: &str| {
        let (key, value) = line.trim_end_matches('\r').split_once('=')?;
        Some((key.to_owned(), value.to_owned()))
    };
    Some(block.lines().filter_map(line).collect())
}

/// How often COM1 has interrupted: 0 when its driver only polls. Last of all facts, because
/// printing the others is what makes the port interrupt.
pub fn serial_irqs() -> String {
    count_interrupts(&read("/proc/interrupts"), "ttyS0").to_string()
}

/// The device behind /dev/hwrng, and its next bytes in hexadecimal.
pub fn entropy() -> std::io::Result<(String, String)> {
    use std::io::Read as _;
    let mut bytes = [0; 32];
    fs::File::open("/dev/hwrng")?.read_exact(&mut bytes)?;
    let hexadecimal = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((read("/sys/class/misc/hw_random/rng_current"), hexadecimal))
}

/// The text of a file without the white space around it; empty when it cannot be read.
pub fn read(path: impl AsRef<Path>) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

/// The words of the kernel's command line that begin with `guest.`: orders to init.
pub fn orders(cmdline: &str) -> impl Iterator<Item = &str> {
    cmdline.split_ascii_whitespace().filter(|word| word.starts_with("guest."))
}

fn memory_kib(meminfo: &str) -> String {
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"))
        .unwrap_or_default()
        .to_owned()
}

/// The features of the first CPU, by Linux's names.
fn cpu_flags(cpuinfo: &str) -> String {
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags"));
    let list = flags.and_then(|line| line.split_once(':')).map(|(_, list)| list.trim());
    list.unwrap_or_default().to_owned()
}

/// The type of the file system that is mounted there last.
fn file_system(mounts: &str, target: &str) -> String {
    let mut all = mounts.lines().map(|line| line.split_ascii_whitespace());
    let here = |mount: &mut std::str::SplitAsciiWhitespace<'_>| mount.nth(1) == Some(target);
    let kind = all.by_ref().filter_map(|mut mount| here(&mut mount).then(|| mount.next())).last();
    kind.flatten().unwrap_or_default().to_owned()
}

/// The functions on all PCI buses, sorted: address, vendor and device, and the start of each
/// address range that it has.
fn pci(directory: &Path) -> String {
    let Ok(entries) = fs::read_dir(directory) else { return String::new() };
    let mut functions: Vec<_> = entries
        .filter_map(Result::ok)
        .map(|entry| {
            let path = entry.path();
            let ranges = pci_ranges(&read(path.join("resource")));
            let id = |name: &str| read(path.join(name)).trim_start_matches("0x").to_owned();
            let name = entry.file_name().to_string_lossy().into_owned();
            format!("{name} {}:{}{ranges}", id("vendor"), id("device"))
        })
        .collect();
    functions.sort_unstable();
    functions.join(",")
}

/// The starts of the base address registers' ranges, from a function's `resource` file.
fn pci_ranges(resource: &str) -> String {
    let starts = resource.lines().take(6).filter_map(|line| line.split_ascii_whitespace().next());
    let starts = starts.map(|start| start.trim_start_matches("0x").trim_start_matches('0'));
    starts.filter(|start| !start.is_empty()).map(|start| format!(" {start}")).collect()
}

/// How many numbers a kernel list like `0-3,7` holds.
fn count_listed(list: &str) -> u64 {
    let count_part = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    list.trim().split(',').filter_map(count_part).fold(0, u64::saturating_add)
}

/// The sum over all CPUs of the /proc/interrupts line whose last words include `device`.
fn count_interrupts(interrupts: &str, device: &str) -> u64 {
    let is_device = |word: &str| word.trim_end_matches(',') == device;
    interrupts
        .lines()
        .filter(|line| line.split_ascii_whitespace().any(is_device))
        .flat_map(|line| line.split_ascii_whitespace().skip(1))
        .map_while(|count| count.parse::<u64>().ok())
        .fold(0, u64::saturating_add)
}

fn acpi_tables(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<_> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        // Not the host's: see `firmware_times`.
        .filter(|name| name != "FPDT")
        .collect();
    names.sort_unstable();
    names
}

/// The firmware's memory map, `start-end:type` sorted by address, as the kernel was given it.
fn e820(directory: &Path) -> String {
    let Ok(entries) = fs::read_dir(directory) else { return String::new() };
    let address = |path: &Path, name: &str| {
        u64::from_str_radix(read(path.join(name)).trim_start_matches("0x"), 16).ok()
    };
    let areas: BTreeMap<(u64, u64), String> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let path = entry.path();
            let area = (address(&path, "start")?, address(&path, "end")?);
            Some((area, read(path.join("type"))))
        })
        .collect();
    let lines: Vec<_> =
        areas.iter().map(|((start, end), kind)| format!("{start:#x}-{end:#x}:{kind}")).collect();
    lines.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_block_and_nothing_else() {
        let facts =
            parse("x=1\r\nguest-facts-begin\r\na=b=c\r\n[ 0.1] noise\nd=\r\nguest-facts-end")
                .unwrap();
        assert_eq!(facts.len(), 2);
        assert_eq!(facts["a"], "b=c");
        assert_eq!(facts["d"], "");
        assert_eq!(parse("guest-facts-begin\na=b\n"), None, "cut off");
    }

    #[test]
    fn finds_the_total_memory() {
        assert_eq!(memory_kib("MemTotal:        1014528 kB\nMemFree: 5 kB\n"), "1014528");
        assert_eq!(memory_kib("MemFree: 5 kB\n"), "");
    }

    #[test]
    fn finds_the_features_of_a_cpu() {
        let cpu = "model name\t: x\nflags\t\t: fpu sse4_1\nbugs\t\t: fxsave_leak\n";
        assert_eq!(cpu_flags(&cpu.repeat(2)), "fpu sse4_1");
        assert_eq!(cpu_flags("processor : 0\nflags\n"), "");
    }

    #[test]
    fn finds_what_is_mounted_last() {
        let mounts = "none / rootfs rw 0 0\nproc /proc proc rw 0 0\n/dev/vda / ext4 rw 0 0\n";
        assert_eq!(file_system(mounts, "/"), "ext4");
        assert_eq!(file_system(mounts, "/sys"), "");
    }

    #[test]
    fn lists_where_a_function_decodes() {
        let none = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n";
        let text = format!("0x000000000000c000 0x000000000000c07f 0x0000000000040101\n{none}");
        assert_eq!(pci_ranges(&text), " c000");
        assert_eq!(pci_ranges(""), "");
    }

    #[test]
    fn counts_listed_cpus() {
        for (list, count) in [("0", 1), ("0-3", 4), ("0-3,7,9-10\n", 7), ("", 0), ("3-1,x", 0)] {
            assert_eq!(count_listed(list), count, "{list:?}");
        }
        assert_eq!(count_listed("0-18446744073709551615,1"), 1);
    }

    #[test]
    fn adds_up_one_devices_interrupts() {
        let text = "           CPU0       CPU1\n  4:   12   30   IO-APIC   4-edge   ttyS0, ttyS2\n\
                    \n  9:   7   0   IO-APIC   9-fasteoi   acpi\n";
        assert_eq!(count_interrupts(text, "ttyS0"), 42);
        assert_eq!(count_interrupts(text, "acpi"), 7);
        assert_eq!(count_interrupts(text, "ttyS1"), 0);
    }

    #[test]
    fn orders_are_the_words_for_the_guest() {
        let words: Vec<_> = orders("console=ttyS0 guest.exit=reboot quiet guest.echo").collect();
        assert_eq!(words, ["guest.exit=reboot", "guest.echo"]);
    }
}
