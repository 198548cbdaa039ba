//! The boot trace: when what happened, and how often the guest left KVM.
#![expect(unsafe_code, reason = "getrusage has no safe form")]

mod report;

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use abi::boot_trace::BootTrace;
use abi::post;
use abi::range::Range;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::time::{ClockId, clock_gettime};

use crate::memory::bytes_put;

/// Nanoseconds of CLOCK_MONOTONIC.
pub fn now() -> u64 {
    clock(ClockId::Monotonic)
}

fn clock(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
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
    /// A write to a model-specific register that the trace asked for.
    Msr,
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
            Self::Msr => "msr_write",
            Self::Signal => "signal",
            Self::Other => "other",
        }
    }
}

/// A trace of one process, over all starts of its machine.
#[derive(Debug)]
pub struct Trace {
    file: Option<File>,
    start_ns: u64,
    /// What the process had used of a CPU by then: the kernel's exec, and the loader.
    exec_ns: u64,
    setup: Vec<Step>,
    meanwhile: Vec<Meanwhile>,
    boots: Vec<Boot>,
    /// Starts of the machine that are not in there any more.
    boots_dropped: u64,
    exits: u64,
    // A dozen kinds at the most: a search is quicker than a map.
    counts: Vec<(Exit, &'static str, u64)>,
}

/// A part of a machine's set-up, from the end of the one before.
#[derive(Debug)]
struct Step {
    name: &'static str,
    end_ns: u64,
    /// Page faults of this process until then.
    page_faults: u64,
    /// Bytes that it had put into guest memory by then.
    bytes: u64,
}

/// A part of the set-up that another thread does beside the steps.
#[derive(Clone, Copy, Debug)]
struct Meanwhile {
    name: &'static str,
    start_ns: u64,
    end_ns: u64,
}

/// Takes the times of what another thread does, if there is a trace.
pub struct Timer(Option<Mutex<Vec<Meanwhile>>>);

impl Timer {
    /// For what goes on beside the next steps of `trace`.
    pub fn new(trace: &Option<Trace>) -> Self {
        Self(trace.as_ref().map(|_| Mutex::default()))
    }

    /// Does `work`.
    pub fn time<T>(&self, name: &'static str, work: impl FnOnce() -> T) -> T {
        let Some(times) = &self.0 else { return work() };
        let start_ns = now();
        let result = work();
        let meanwhile = Meanwhile { name, start_ns, end_ns: now() };
        times.lock().unwrap_or_else(PoisonError::into_inner).push(meanwhile);
        result
    }

    /// Has the trace know.
    pub fn report(self, trace: &mut Option<Trace>) {
        if let (Some(times), Some(trace)) = (self.0, trace) {
            trace.meanwhile = times.into_inner().unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[derive(Debug)]
struct Boot {
    direct: bool,
    setup: Vec<Step>,
    meanwhile: Vec<Meanwhile>,
    placed: Vec<(&'static str, Range)>,
    setup_end_ns: u64,
    first_run_ns: u64,
    begun: bool,
    marks: Vec<Mark>,
    /// Those that there was no room for.
    marks_dropped: u64,
    end: Option<End>,
    kvm_exits: Option<u64>,
    kvm_page_faults: Option<u64>,
    firmware: Option<(BootTrace, Option<u32>)>,
}

/// When a start of the machine was over, and the state of things then.
#[derive(Clone, Copy, Debug)]
struct End {
    ns: u64,
    exits: u64,
    page_faults: u64,
    bytes: u64,
}

/// A guest may write POST codes and restart as long as it likes; it does not get more of this
/// process's memory by that. Of the starts the first ones and the last one are kept.
const MARKS_MAX: usize = 1024;
const BOOTS_MAX: usize = 256;

/// The step that only a trace has: KVM is to tell of some registers.
pub const FILTER_STEP: &str = "the trace's own filter";

impl Boot {
    /// What that step took.
    fn filter_ns(&self) -> u64 {
        let pairs = self.setup.iter().zip(self.setup.iter().skip(1));
        let of_filter = pairs.filter(|(_, step)| step.name == FILTER_STEP);
        of_filter.map(|(before, step)| step.end_ns.saturating_sub(before.end_ns)).sum()
    }
}

/// Something that happened while the guest ran, and the state of things then.
#[derive(Clone, Copy, Debug)]
struct Mark {
    what: Event,
    ns: u64,
    exits: u64,
    page_faults: u64,
    bytes: u64,
}

/// What a guest shows of its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A POST code.
    Post(u8),
    /// The unpacked kernel's first instructions: it turns system calls on, in EFER. A bzImage has
    /// unpacked its payload by then.
    KernelStart,
    /// The kernel has read CPUID and asks KVM for its clock, early in `setup_arch`.
    KvmClock,
    /// The first byte on COM1.
    Console,
}

impl Event {
    /// For people.
    fn name(self) -> Option<&'static str> {
        match self {
            Self::Post(code) => post::name(code),
            Self::KernelStart => Some("kernel start"),
            Self::KvmClock => Some("kvm clock"),
            Self::Console => Some("first console byte"),
        }
    }
}

/// Says that a step of the set-up is done, if anybody wants to know.
pub fn step(trace: &mut Option<Trace>, name: &'static str) {
    if let Some(trace) = trace {
        trace.step(name);
    }
}

impl Trace {
    /// A trace for the file `path`, of a process that began at `start_ns`. The file is opened and
    /// emptied now: who cannot have a trace is told before the guest runs.
    pub fn open(path: &Path, start_ns: u64) -> io::Result<Self> {
        let mut options = File::options();
        // A pipe without a reader would block here; one with a reader may later.
        options.write(true).create(true).truncate(true).custom_flags(libc::O_NONBLOCK);
        let file = options.open(path)?;
        fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
        Ok(Self { file: Some(file), ..Self::new(start_ns) })
    }

    /// A trace that is written nowhere.
    fn new(start_ns: u64) -> Self {
        // What was used since then belongs to this program.
        let exec_ns = clock(ClockId::ProcessCPUTime).saturating_sub(now() - start_ns);
        let (setup, boots, counts) = (Vec::new(), Vec::new(), Vec::new());
        let (file, meanwhile) = (None, Vec::new());
        Self {
            file,
            start_ns,
            exec_ns,
            setup,
            meanwhile,
            boots,
            boots_dropped: 0,
            exits: 0,
            counts,
        }
    }

    fn step(&mut self, name: &'static str) {
        let (page_faults, bytes) = (page_faults(), bytes_put());
        self.setup.push(Step { name, end_ns: now(), page_faults, bytes });
    }

    /// The machine is set up; it runs next. In a direct boot that is the kernel's entry.
    pub fn enter_guest(&mut self, direct: bool, placed: &[(&'static str, Range)]) {
        let ns = now();
        let entry = direct.then(|| self.new_mark(Event::Post(post::KERNEL_ENTRY), ns));
        let setup = std::mem::take(&mut self.setup);
        if self.boots.len() == BOOTS_MAX {
            self.boots.pop();
            self.boots_dropped += 1;
        }
        self.boots.push(Boot {
            direct,
            setup,
            meanwhile: std::mem::take(&mut self.meanwhile),
            placed: placed.to_vec(),
            setup_end_ns: ns,
            first_run_ns: ns,
            begun: false,
            marks: entry.into_iter().collect(),
            marks_dropped: 0,
            end: None,
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
        // Without a trace, KVM itself does what a traced register asks for.
        self.exits += u64::from(exit != Exit::Msr);
        match self.counts.iter_mut().find(|(e, d, _)| *e == exit && *d == device) {
            Some((_, _, count)) => *count += 1,
            None => self.counts.push((exit, device, 1)),
        }
    }

    /// The guest showed how far it has come.
    pub fn mark(&mut self, what: Event) {
        let mark = self.new_mark(what, now());
        match self.boots.last_mut() {
            Some(boot) if boot.marks.len() < MARKS_MAX => boot.marks.push(mark),
            Some(boot) => boot.marks_dropped += 1,
            None => {}
        }
    }

    /// Likewise, the first time.
    pub fn mark_first(&mut self, what: Event) {
        let seen = |boot: &Boot| boot.marks.iter().any(|mark| mark.what == what);
        if !self.boots.last().is_some_and(seen) {
            self.mark(what);
        }
    }

    fn new_mark(&self, what: Event, ns: u64) -> Mark {
        Mark { what, ns, exits: self.exits, page_faults: page_faults(), bytes: bytes_put() }
    }

    /// This start of the machine is over. KVM's own counts for it: exits, and pages that it mapped
    /// into the guest when the guest touched them.
    pub fn kvm_counts(&mut self, exits: Option<u64>, page_faults: Option<u64>) {
        let (page_faults_now, bytes) = (self::page_faults(), bytes_put());
        let end = End { ns: now(), exits: self.exits, page_faults: page_faults_now, bytes };
        if let Some(boot) = self.boots.last_mut() {
            boot.end = Some(end);
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
        let end_ns = now();
        let Some(file) = &self.file else { return Ok(()) };
        let mut file = io::BufWriter::new(file);
        serde_json::to_writer_pretty(&mut file, &self.json(reason, status, end_ns))?;
        io::Write::flush(&mut file)
    }

    /// What the trace itself took, in nanoseconds: so many times what one count and one mark take
    /// now, and the set-up of what only it needs.
    fn cost_ns(&self) -> u64 {
        const ROUNDS: u64 = 64;
        let mut scratch = Self::new(self.start_ns);
        scratch.counts = self.counts.clone();
        let mut scratch = Mutex::new(scratch);
        let start = now();
        for _ in 0..ROUNDS {
            // CPUs share it.
            let mut scratch = scratch.lock().unwrap_or_else(PoisonError::into_inner);
            self.counts.last().inspect(|(exit, device, _)| scratch.count(*exit, device));
        }
        let counted = now();
        for _ in 0..ROUNDS {
            scratch.get_mut().unwrap_or_else(PoisonError::into_inner).step("none");
        }
        let stamped = now();
        let stamps: usize = self.boots.iter().map(|boot| boot.setup.len() + boot.marks.len()).sum();
        let filters: u64 = self.boots.iter().map(Boot::filter_ns).sum();
        filters
            + (counted - start) / ROUNDS * self.exits
            + (stamped - counted) / ROUNDS * u64::try_from(stamps).unwrap_or(0)
    }
}

/// Page faults of this process so far that needed no reading.
fn page_faults() -> u64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the call writes no more than a rusage to the address, which is one.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
    // SAFETY: integers, which were zero before the call.
    let usage = unsafe { usage.assume_init() };
    u64::try_from(usage.ru_minflt).unwrap_or(0)
}

#[cfg(test)]
mod tests;
