//! KVM's trace points, by tracefs (Linux, Documentation/trace/events.rst).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Where a kernel runs that was just entered: above what BIOSes use, below where SeaBIOS moves
/// itself in 128 MiB.
pub const KERNEL: std::ops::Range<u64> = 0x10_0000..0x400_0000;
/// The first byte of init's line, on COM1.
const INIT: &str = "rw == 1 && port == 0x3f8 && val == 0x7e";
/// KiB of the buffer: hundred thousand events.
const BUFFER_KIB: &str = "16384";
/// What a kernel has when nobody says otherwise.
const USUAL_BUFFER_KIB: &str = "1408";
/// Where tracefs is mounted.
const ROOT: &str = "/sys/kernel/tracing";

/// What switches what off, and when, so that a start's later thousands of events cost nothing: the
/// first exit stops the record of entries; a return into the kernel that of exits from it.
const SWITCHES: [(&str, &str, bool); 2] = [
    ("kvm/kvm_exit", "disable_event:kvm:kvm_entry:1", false),
    ("kvm/kvm_entry", "disable_event:kvm:kvm_exit:1", true),
];
/// Events that are counted.
const COUNTED: [&str; 3] = ["kvm/kvm_exit", "kvm/kvm_userspace_exit", "raw_syscalls/sys_enter"];

/// A trigger as tracefs reads it.
fn trigger((_, action, in_kernel): (&str, &str, bool)) -> String {
    let condition = if in_kernel { format!(" if {}", within("rip")) } else { String::new() };
    format!("{action}{condition}")
}

fn within(field: &str) -> String {
    format!("{field} >= {:#x} && {field} < {:#x}", KERNEL.start, KERNEL.end)
}

/// What is recorded of init: the first byte of its line leaves the guest.
pub const INIT_EVENT: &str = "kvm_pio";

/// One recorded event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The thread that it happened in.
    pub thread: u32,
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub ns: u64,
    /// Its name.
    pub name: String,
    /// The guest's instruction pointer, of entries.
    pub rip: Option<u64>,
}

/// The kernel's trace, while this lives.
pub struct Tracer {
    root: PathBuf,
}

impl Tracer {
    /// Records the moments of a start, at next to no cost.
    pub fn moments() -> Result<Self> {
        let tracer = Self::new()?;
        tracer.set("events/kvm/kvm_exit/filter", &within("guest_rip"))?;
        for switch in SWITCHES {
            tracer.set(&format!("events/{}/trigger", switch.0), &trigger(switch))?;
            tracer.set(&format!("events/{}/enable", switch.0), "1")?;
        }
        tracer.watch_init()?;
        Ok(tracer)
    }

    /// Records each exit and each system call of this process's children, and init's line.
    pub fn counts() -> Result<Self> {
        let tracer = Self::new()?;
        tracer.set("options/event-fork", "1")?;
        tracer.set("set_event_pid", &std::process::id().to_string())?;
        for event in COUNTED {
            tracer.set(&format!("events/{event}/enable"), "1")?;
        }
        tracer.watch_init()?;
        Ok(tracer)
    }

    fn new() -> Result<Self> {
        let tracer = Self { root: ROOT.into() };
        tracer.set("trace_clock", "mono")?;
        tracer.set("buffer_size_kb", BUFFER_KIB)?;
        tracer.set("trace", "")?;
        tracer.set("tracing_on", "1")?;
        Ok(tracer)
    }

    fn watch_init(&self) -> Result<()> {
        self.set("events/kvm/kvm_pio/filter", INIT)?;
        self.set("events/kvm/kvm_pio/enable", "1")
    }

    /// What was recorded, in order; nothing more is. (Reading would be recorded, too, without end.)
    pub fn events(&self) -> Result<Vec<Event>> {
        self.set("tracing_on", "0")?;
        let text = fs::read_to_string(self.root.join("trace")).context("reading the trace")?;
        if text.lines().any(is_overrun) {
            bail!("more happened than the trace holds: its counts would be wrong");
        }
        Ok(text.lines().filter_map(parse).collect())
    }

    fn set(&self, file: &str, value: &str) -> Result<()> {
        let path = self.root.join(file);
        fs::write(&path, value).with_context(|| format!("writing '{value}' to {}", path.display()))
    }
}

/// Says what the kernel lacks to be traced, or that somebody else traces it.
pub fn check() -> Result<()> {
    let root = Path::new(ROOT);
    if !root.join("events/kvm").is_dir() {
        bail!("no KVM in {ROOT}: mount -t tracefs tracefs {ROOT}, and load kvm_intel or kvm_amd");
    }
    let traced = fs::read_to_string(root.join("set_event")).context("reading what is traced")?;
    match traced.lines().next() {
        Some(event) => bail!("somebody traces this kernel already ({event}): end that first"),
        None => Ok(()),
    }
}

/// Gives back the buffer, and the clock that others expect.
pub fn restore() -> Result<()> {
    let tracer = Tracer { root: ROOT.into() };
    tracer.set("trace", "")?;
    tracer.set("trace_clock", "local")?;
    tracer.set("buffer_size_kb", USUAL_BUFFER_KIB)
}

impl Drop for Tracer {
    /// Nothing is traced any more. What fails here fails the next tracer, aloud.
    fn drop(&mut self) {
        for switch in SWITCHES {
            let _ =
                self.set(&format!("events/{}/trigger", switch.0), &format!("!{}", trigger(switch)));
        }
        let _ = self.set("events/enable", "0");
        for event in ["kvm/kvm_exit", "kvm/kvm_pio"] {
            let _ = self.set(&format!("events/{event}/filter"), "0");
        }
        let _ = self.set("set_event_pid", "");
    }
}

/// `# entries-in-buffer/entries-written: KEPT/WRITTEN   #P:1`: fewer are kept than were written.
fn is_overrun(line: &str) -> bool {
    let counts = line.strip_prefix("# entries-in-buffer/entries-written: ");
    let counts = counts.and_then(|counts| counts.split_whitespace().next()?.split_once('/'));
    counts.is_some_and(|(kept, written)| kept != written)
}

/// `  name-THREAD  [cpu] flags  SECONDS.MICROSECONDS: event: ...`
fn parse(line: &str) -> Option<Event> {
    let (task, rest) = line.split_once(" [")?;
    let thread = task.trim().rsplit_once('-')?.1.parse().ok()?;
    let mut words = rest.split_whitespace().skip(2);
    let (seconds, fraction) = words.next()?.strip_suffix(':')?.split_once('.')?;
    let name = words.next()?.trim_end_matches(':').to_owned();
    let digits = u32::try_from(fraction.len()).ok().filter(|digits| *digits <= 9)?;
    let ns = fraction.parse::<u64>().ok()? * 10_u64.pow(9 - digits);
    let value = words.skip_while(|word| *word != "rip").nth(1);
    let rip = value.and_then(|rip| u64::from_str_radix(rip.trim_start_matches("0x"), 16).ok());
    Some(Event { thread, rip, ns: seconds.parse::<u64>().ok()? * 1_000_000_000 + ns, name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_trace_is_an_event() {
        let line = "    CPU 0/KVM-1234    [000] d..1.    12.345678: kvm_entry: vcpu 0, rip 0xfff0";
        let name = "kvm_entry".into();
        let event = Event { thread: 1234, ns: 12_345_678_000, name, rip: Some(0xfff0) };
        assert_eq!(parse(line), Some(event));
        let line = "  a-b [c]-77 [001] .....  1.000001: sys_enter: NR 16 (3)";
        assert_eq!(parse(line).map(|event| event.thread), None);
        for other in ["# tracer: nop", "", "# entries-in-buffer/entries-written: 5/5   #P:1"] {
            assert_eq!(parse(other), None, "{other}");
            assert!(!is_overrun(other), "{other}");
        }
        assert!(is_overrun("# entries-in-buffer/entries-written: 5/7   #P:1"));
    }
}
