//! What processes and the system have, by the kernel's own accounts (Linux,
//! Documentation/filesystems/proc.rst).

use std::{fs, io};

use anyhow::{Context, Result, bail};

/// Milliseconds of a clock tick: USER_HZ is 100 on every architecture with KVM.
const TICK_MS: u64 = 10;

/// What a process takes.
pub struct Usage {
    /// Its share of memory.
    pub pss_kib: u64,
    /// Memory that others have mapped, too.
    pub shared_kib: u64,
    /// Its threads.
    pub threads: u64,
    /// Its open descriptors.
    pub files: u64,
    /// Time on a CPU.
    pub cpu_ms: u64,
}

impl Usage {
    /// Of a process that runs.
    pub fn of(process: u32) -> Result<Self> {
        let read = |file: &str| {
            let path = format!("/proc/{process}/{file}");
            fs::read_to_string(&path).with_context(|| format!("reading {path}"))
        };
        let rollup = read("smaps_rollup")?;
        let files = format!("/proc/{process}/fd");
        Ok(Self {
            pss_kib: field(&rollup, "Pss")?,
            shared_kib: field(&rollup, "Shared_Clean")? + field(&rollup, "Shared_Dirty")?,
            threads: field(&read("status")?, "Threads")?,
            files: fs::read_dir(&files).with_context(|| format!("reading {files}"))?.count() as u64,
            cpu_ms: ticks(&read("stat")?, &[14, 15])? * TICK_MS,
        })
    }
}

/// CPU time of all children that have ended and were waited for.
pub fn children_ms() -> Result<u64> {
    let stat = fs::read_to_string("/proc/self/stat").context("reading /proc/self/stat")?;
    Ok(ticks(&stat, &[16, 17])? * TICK_MS)
}

/// CPU time of the whole system, whoever used it: interrupts, kernel threads, other programs too.
pub fn system_ms() -> Result<u64> {
    let stat = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    busy(&stat).map(|ticks| ticks * TICK_MS).context("/proc/stat")
}

/// The sum over all processors, without the time that they were idle or not there (the fields 4, 5
/// and 8) and without guests' (9 and 10), which is in the first two.
fn busy(stat: &str) -> Option<u64> {
    let fields = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
    let fields: Vec<u64> = fields.map(str::parse).collect::<Result<_, _>>().ok()?;
    [0, 1, 2, 5, 6].into_iter().map(|field| fields.get(field).copied()).sum()
}

/// Virtual machines that KVM has not taken apart. It has a folder for each in its debugfs, which
/// only root can see; or, before Linux 6.13, a kernel thread.
pub fn machines() -> Result<u64> {
    if let Ok(entries) = fs::read_dir("/sys/kernel/debug/kvm") {
        let named = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        return Ok(named.filter(|name| name.contains('-')).count() as u64);
    }
    let processes = fs::read_dir("/proc").context("reading /proc")?;
    let name = |entry: io::Result<fs::DirEntry>| {
        // One that has ended meanwhile has no name.
        fs::read_to_string(entry.ok()?.path().join("comm")).ok()
    };
    Ok(processes.filter_map(name).filter(|name| name.starts_with("kvm-nx-lpage")).count() as u64)
}

/// The kernel's own memory, by /proc/meminfo: slabs that cannot be reclaimed, page tables of
/// processes and of KVM, memory of each CPU, and what is mapped page by page, which stacks are too
/// (`KernelStack` would count them twice). Linux 6.1 and newer know of KVM's.
const KERNEL: [&str; 5] = ["SUnreclaim", "PageTables", "SecPageTables", "Percpu", "VmallocUsed"];
/// Those are the first figures of a system, and counts the last.
const NAMES: [&str; KERNEL.len() + 4] = [
    "slabs, KiB",
    "page tables, KiB",
    "KVM's page tables, KiB",
    "memory of each CPU, KiB",
    "mapped by pages, KiB",
    "taken of all memory, KiB",
    "open files",
    "processes and threads",
    "virtual machines of KVM's",
];
/// What may be left of a thousand starts: half a kilobyte of each in the kernel's memory, two in
/// all, a process or a descriptor of each fiftieth, a virtual machine of each five hundredth.
const LEFT_MAX: [u64; NAMES.len()] = [512, 512, 512, 512, 512, 2048, 20, 20, 2];
/// Of fewer starts in a round, as much may be left as of these: figures waver.
const STARTS_MIN: u64 = 250;

/// What a system has, as far as starts could leave something behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct System {
    /// Memory that could be given to processes.
    pub available_kib: u64,
    figures: [u64; NAMES.len()],
}

impl System {
    /// As it is.
    pub fn now() -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| path.to_owned());
        let memory = read("/proc/meminfo")?;
        let files = read("/proc/sys/fs/file-nr")?;
        let files = files.split_whitespace().next().and_then(|count| count.parse().ok());
        let stat = read("/proc/loadavg")?;
        let processes = stat.split_whitespace().nth(3).and_then(|word| word.split_once('/'));
        let processes = processes.and_then(|(_, all)| all.parse().ok()).context("/proc/loadavg")?;
        let available_kib = field(&memory, "MemAvailable")?;
        let taken = field(&memory, "MemTotal")?.saturating_sub(available_kib);
        let mut figures = KERNEL.map(|name| field(&memory, name).unwrap_or(0)).to_vec();
        let files = files.context("/proc/sys/fs/file-nr")?;
        figures.extend([taken, files, processes, machines()?]);
        let figures = figures.try_into().ok().context("the figures")?;
        Ok(Self { available_kib, figures })
    }

    /// Memory that the kernel has for itself.
    pub fn kernel_kib(&self) -> u64 {
        self.figures.iter().take(KERNEL.len()).sum()
    }
}

/// The systems between rounds of `starts` each, for people.
pub fn table(systems: &[System]) -> String {
    let mut text = String::new();
    for (index, name) in NAMES.iter().enumerate() {
        text.push_str(&format!("  {name:26}"));
        for figure in systems.iter().filter_map(|system| system.figures.get(index)) {
            text.push_str(&format!("{figure:>10}"));
        }
        text.push('\n');
    }
    text
}

/// Refuses what grew in every round of `starts`. What starts leave behind, each round does; others
/// who work on this machine do not take more in all of them.
pub fn check(systems: &[System], starts: u64) -> Result<()> {
    let mut leaks = Vec::new();
    for (index, (name, of_thousand)) in NAMES.iter().zip(LEFT_MAX).enumerate() {
        let figures: Vec<_> = systems.iter().filter_map(|s| s.figures.get(index)).collect();
        let growth = |pair: &[&u64]| match pair {
            [before, after] => after.saturating_sub(**before),
            _ => 0,
        };
        let least = figures.windows(2).map(growth).min().unwrap_or(0);
        let limit = of_thousand * starts.max(STARTS_MIN) / 1000;
        if least > limit {
            leaks.push(format!("{name}: {least} at the least, {limit} may be"));
        }
    }
    if leaks.is_empty() {
        return Ok(());
    }
    bail!("something is left of each {starts} starts: {}", leaks.join("; "))
}

/// The number behind `name:`.
fn field(text: &str, name: &str) -> Result<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = value.and_then(|value| value.split_whitespace().next()?.parse().ok());
    number.with_context(|| format!("the kernel says nothing of {name}"))
}

/// The sum of fields of /proc/PID/stat, counted from 1 as proc(5) does. The second is a name in
/// parentheses, with anything in it.
fn ticks(stat: &str, fields: &[usize]) -> Result<u64> {
    let rest = stat.rsplit_once(')').context("/proc/PID/stat")?.1;
    let mut sum = 0;
    for field in fields {
        let word = field.checked_sub(3).and_then(|index| rest.split_whitespace().nth(index));
        sum += word.and_then(|word| word.parse::<u64>().ok()).context("/proc/PID/stat")?;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_read_by_name_and_place() {
        let text = "Pss:         12 kB\nPss_Dirty:  3 kB\n";
        assert_eq!(field(text, "Pss").unwrap(), 12);
        assert!(field(text, "Ps").is_err());
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 1 2 3 4 50 60 70 80 20 0 1";
        assert_eq!(ticks(stat, &[14, 15]).unwrap(), 110);
        assert_eq!(ticks(stat, &[16, 17]).unwrap(), 150);
        assert!(ticks("7 (a)", &[14]).is_err());
    }

    #[test]
    fn a_processor_is_busy_with_all_but_waiting() {
        let stat = "cpu  1 20 300 4000 50000 600000 7000000 80000000 1 2\ncpu0 9 9\n";
        assert_eq!(busy(stat), Some(7_600_321));
        assert_eq!(busy("cpu  1 2"), None);
    }

    #[test]
    fn what_each_round_leaves_is_named_and_what_some_leave_is_not() {
        let system = |figures| System { available_kib: 0, figures };
        let steady = [700, 80, 0, 60, 50, 9000, 30, 20, 1];
        let check = |index: usize, values: [u64; 5]| {
            let systems = values.map(|value| {
                let mut figures = steady;
                figures[index] = value;
                system(figures)
            });
            super::check(&systems, 2500).err().map(|error| error.to_string())
        };
        // Others came and went.
        assert_eq!(check(0, [1000, 90_000, 90_000, 90_900, 95_000]), None);
        assert_eq!(check(5, [0, 10_000, 20_000, 25_000, 35_000]), None);
        // A kilobyte of each second start, a page of each, a descriptor of each tenth.
        let slabs = check(0, [1000, 3000, 5000, 6500, 8000]).unwrap();
        assert!(slabs.contains("slabs, KiB: 1500 at the least, 1280 may be"), "{slabs}");
        assert!(check(5, [0, 10_000, 20_000, 30_000, 40_000]).is_some());
        assert!(check(5, [0, 5000, 9000, 14_000, 19_000]).is_none());
        assert!(check(6, [0, 250, 500, 750, 1000]).is_some());
        let systems = [system(steady), system([1; NAMES.len()])];
        assert_eq!(
            table(&systems).lines().next(),
            Some("  slabs, KiB                       700         1")
        );
    }
}
