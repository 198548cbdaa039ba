//! The boot trace: when what happened, and how often the guest left KVM.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use abi::boot_trace::BootTrace;
use abi::post;
use abi::range::Range;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Map, Value, json};

/// Nanoseconds of CLOCK_MONOTONIC.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

/// Why a guest left KVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A read from a port.
    IoIn,
    /// A write to a port.
    IoOut,
    /// A read from a device's memory.
    MmioRead,
    /// A write to a device's memory.
    MmioWrite,
    /// The end of a level-triggered interrupt.
    Eoi,
    /// A signal to this process.
    Signal,
    /// Anything else.
    Other,
}

impl Exit {
    const fn name(self) -> &'static str {
        match self {
            Self::IoIn => "io_in",
            Self::IoOut => "io_out",
            Self::MmioRead => "mmio_read",
            Self::MmioWrite => "mmio_write",
            Self::Eoi => "ioapic_eoi",
            Self::Signal => "signal",
            Self::Other => "other",
        }
    }
}

/// A trace of one process, over all starts of its machine.
#[derive(Debug)]
pub struct Trace {
    path: PathBuf,
    start_ns: u64,
    boots: Vec<Boot>,
    exits: u64,
    // A dozen kinds at the most: a search is quicker than a map.
    counts: Vec<(Exit, &'static str, u64)>,
}

#[derive(Debug)]
struct Boot {
    direct: bool,
    placed: Vec<(&'static str, Range)>,
    setup_end_ns: u64,
    first_run_ns: u64,
    begun: bool,
    marks: Vec<Mark>,
    kvm_exits: Option<u64>,
    kvm_page_faults: Option<u64>,
    firmware: Option<(BootTrace, Option<u32>)>,
}

#[derive(Debug)]
struct Mark {
    code: u8,
    ns: u64,
    exits: u64,
}

impl Trace {
    /// A trace for `path`, of a process that began at `start_ns`.
    pub fn new(path: &Path, start_ns: u64) -> Self {
        Self { path: path.into(), start_ns, boots: Vec::new(), exits: 0, counts: Vec::new() }
    }

    /// The machine is set up; it runs next. In a direct boot that is the kernel's entry.
    pub fn enter_guest(&mut self, direct: bool, placed: &[(&'static str, Range)]) {
        let ns = now();
        let exits = self.exits;
        let entry = direct.then_some(Mark { code: post::KERNEL_ENTRY, ns, exits });
        self.boots.push(Boot {
            direct,
            placed: placed.to_vec(),
            setup_end_ns: ns,
            first_run_ns: ns,
            begun: false,
            marks: entry.into_iter().collect(),
            kvm_exits: None,
            kvm_page_faults: None,
            firmware: None,
        });
    }

    /// The next thing is KVM_RUN; the first time counts.
    pub fn first_run(&mut self) {
        if let Some(boot) = self.boots.last_mut().filter(|boot| !boot.begun) {
            boot.begun = true;
            boot.first_run_ns = now();
            for mark in &mut boot.marks {
                mark.ns = boot.first_run_ns;
            }
        }
    }

    /// Counts an exit to this program; `device` is what it was about.
    pub fn count(&mut self, exit: Exit, device: &'static str) {
        self.exits += 1;
        match self.counts.iter_mut().find(|(e, d, _)| *e == exit && *d == device) {
            Some((_, _, count)) => *count += 1,
            None => self.counts.push((exit, device, 1)),
        }
    }

    /// The guest wrote a POST code.
    pub fn mark(&mut self, code: u8) {
        let exits = self.exits;
        if let Some(boot) = self.boots.last_mut() {
            boot.marks.push(Mark { code, ns: now(), exits });
        }
    }

    /// KVM's own counts for this start of the machine: exits, and pages that it mapped into the
    /// guest when the guest touched them.
    pub fn kvm_counts(&mut self, exits: Option<u64>, page_faults: Option<u64>) {
        if let Some(boot) = self.boots.last_mut() {
            boot.kvm_exits = exits;
            boot.kvm_page_faults = page_faults;
        }
    }

    /// The firmware's own stamps, if it left any, and the rate of their clock in kHz.
    pub fn firmware(&mut self, stamps: Option<(BootTrace, Option<u32>)>) {
        if let Some(boot) = self.boots.last_mut() {
            boot.firmware = stamps;
        }
    }

    /// Writes the trace: the process ends with `status` because of `reason`.
    pub fn write(&self, reason: &str, status: i32) -> io::Result<()> {
        let mut file = io::BufWriter::new(File::create(&self.path)?);
        serde_json::to_writer_pretty(&mut file, &self.json(reason, status, now()))?;
        io::Write::flush(&mut file)
    }

    fn json(&self, reason: &str, status: i32, end_ns: u64) -> Value {
        let mut exits = Map::new();
        exits.insert("total".into(), self.exits.into());
        for (exit, device, count) in &self.counts {
            let kind = exits.entry(exit.name()).or_insert_with(|| json!({}));
            kind[device] = (*count).into();
        }
        let boots: Vec<_> = self.boots.iter().map(Boot::json).collect();
        json!({
            "format": "microvm boot trace 1",
            "clock": "CLOCK_MONOTONIC",
            "start_ns": self.start_ns,
            "boots": boots,
            "exit": { "ns": end_ns, "reason": reason, "status": status },
            "exits": exits,
            "process": { "peak_kib": peak_kib(), "page_faults": page_faults() },
        })
    }
}

impl Boot {
    fn json(&self) -> Value {
        let marks: Vec<_> = self
            .marks
            .iter()
            .map(|mark| {
                let name = post::name(mark.code);
                json!({ "code": mark.code, "name": name, "ns": mark.ns, "exits": mark.exits })
            })
            .collect();
        let placed: Map<_, _> = self
            .placed
            .iter()
            .map(|(name, range)| ((*name).into(), json!([range.start(), range.end()])))
            .collect();
        json!({
            "path": if self.direct { "direct" } else { "firmware" },
            "setup_end_ns": self.setup_end_ns,
            "first_run_ns": self.first_run_ns,
            "marks": marks,
            "placed": placed,
            "kvm_exits": self.kvm_exits,
            "kvm_page_faults": self.kvm_page_faults,
            "firmware": self.firmware.map(|(stamps, tsc_khz)| json!({
                "clock": "TSC",
                "khz": tsc_khz,
                "start": stamps.start,
                "load_kernel": stamps.load_kernel,
                "kernel_entry": stamps.kernel_entry,
            })),
        })
    }
}

/// KiB of memory that this process had at most, guest RAM that was touched included (Linux,
/// Documentation/filesystems/proc.rst, VmHWM).
fn peak_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// Page faults of this process that needed no reading (as above, stat, min_flt: the eighth field
/// behind the name, which ends with a parenthesis).
fn page_faults() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(7)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_marks_are_in_the_trace() {
        let mut trace = Trace::new(Path::new("x"), 5);
        trace.enter_guest(true, &[("kernel", Range::between(1, 2))]);
        trace.first_run();
        trace.count(Exit::IoOut, "COM1");
        trace.count(Exit::IoOut, "COM1");
        trace.count(Exit::MmioRead, "unclaimed");
        trace.mark(post::GUEST_INIT);
        trace.kvm_counts(Some(9), Some(8));
        let stamps = BootTrace { start: 10, load_kernel: 20, kernel_entry: 30 };
        trace.firmware(Some((stamps, Some(1000))));
        let json = trace.json("power off", 0, 77);
        assert_eq!(json["start_ns"], 5);
        assert_eq!(json["exits"]["io_out"]["COM1"], 2);
        assert_eq!(json["exits"]["total"], 3);
        let boot = &json["boots"][0];
        assert_eq!(boot["path"], "direct");
        assert_eq!(boot["marks"][0]["name"], "kernel entry");
        assert_eq!(boot["marks"][0]["ns"], boot["first_run_ns"]);
        assert_eq!(boot["marks"][1]["code"], 0xe0);
        assert_eq!(boot["marks"][1]["exits"], 3);
        assert_eq!((&boot["kvm_exits"], &boot["kvm_page_faults"]), (&9.into(), &8.into()));
        assert!(json["process"]["peak_kib"].as_u64().unwrap() > 0);
        assert!(json["process"]["page_faults"].as_u64().unwrap() > 0);
        assert_eq!(boot["firmware"]["load_kernel"], 20);
        assert_eq!(boot["firmware"]["khz"], 1000);
        assert_eq!(json["exit"]["reason"], "power off");
    }
}
