//! What processes and the system have, by the kernel's own accounts (Linux,
//! Documentation/filesystems/proc.rst).

use std::fs;

use anyhow::{Context, Result, bail};

/// Memory that others may take meanwhile: a hundred guests would leave more.
const GONE_MAX_KIB: u64 = 128 << 10;
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

/// What a system has, as far as starts could leave something behind.
#[derive(Debug, PartialEq, Eq)]
pub struct System {
    /// Memory that could be given to processes.
    pub available_kib: u64,
    /// Slabs that cannot be reclaimed, page tables, stacks.
    pub kernel_kib: u64,
    files: u64,
    processes: u64,
}

impl System {
    /// As it is.
    pub fn now() -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| path.to_owned());
        let memory = read("/proc/meminfo")?;
        let mut kernel_kib = 0;
        for name in ["SUnreclaim", "PageTables", "KernelStack"] {
            kernel_kib += field(&memory, name)?;
        }
        let files = read("/proc/sys/fs/file-nr")?;
        let files = files.split_whitespace().next().and_then(|count| count.parse().ok());
        let stat = read("/proc/loadavg")?;
        let processes = stat.split_whitespace().nth(3).and_then(|word| word.split_once('/'));
        Ok(Self {
            available_kib: field(&memory, "MemAvailable")?,
            kernel_kib,
            files: files.context("/proc/sys/fs/file-nr")?,
            processes: processes.and_then(|(_, all)| all.parse().ok()).context("/proc/loadavg")?,
        })
    }

    /// Prints both, and refuses what is left of starts: more than a few descriptors or processes,
    /// which others may have opened meanwhile, or more than `bytes` of the kernel's memory.
    pub fn compare(&self, before: &Self, bytes: u64) -> Result<()> {
        const OTHERS: u64 = 64;
        let mut leaks = Vec::new();
        for (name, before, after, limit) in [
            ("processes and threads", before.processes, self.processes, OTHERS),
            ("open files", before.files, self.files, OTHERS),
            ("kernel memory, KiB", before.kernel_kib, self.kernel_kib, bytes / 1024 + 8192),
        ] {
            println!("  {name:24}{before:>10}{after:>10}");
            if after > before + limit {
                leaks.push(format!("{name}: {} more, {limit} at the most", after - before));
            }
        }
        let (had, has) = (before.available_kib, self.available_kib);
        println!("  {:24}{had:>10}{has:>10}", "available memory, KiB");
        let gone = had.saturating_sub(has);
        if gone > GONE_MAX_KIB {
            leaks.push(format!("available memory: {gone} KiB less, {GONE_MAX_KIB} at the most"));
        }
        if leaks.is_empty() {
            return Ok(());
        }
        bail!("something is left of the starts: {}", leaks.join("; "))
    }
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
    fn a_leak_is_named() {
        let system =
            |files, kernel_kib| System { available_kib: 9, kernel_kib, files, processes: 3 };
        assert!(system(10, 500).compare(&system(8, 400), 0).is_ok());
        let error = system(10_008, 500).compare(&system(8, 400), 0).unwrap_err().to_string();
        assert!(error.contains("open files: 10000 more"), "{error}");
        let error = system(8, 99_000).compare(&system(8, 400), 1 << 20).unwrap_err().to_string();
        assert!(error.contains("kernel memory, KiB: 98600 more, 9216 at the most"), "{error}");
    }
}
