//! One candidate, watched: when it came how far, and what it took. Runs in the lab.

use std::io::{self, Read};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::time::{ClockId, Timespec, clock_gettime};
use serde_json::{Value, json};

use super::candidates::Candidate;
use super::tracer::{self, Event, Tracer};

/// Init's line.
const INIT_LINE: &str = "~guest-init";
/// Where a candidate's complaints go, in the lab.
const ERRORS: &str = "/tmp/candidate-errors";
/// How long a guest may take to that line.
const PATIENCE: Duration = Duration::from_secs(30);
/// And from there to its end: the slowest take a twentieth of that, and a VMM that starts its guest
/// again never ends.
const PATIENCE_AT_END: Duration = Duration::from_secs(1);

/// What is known of a candidate; times in nanoseconds from just before its process was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Its name.
    pub name: String,
    /// KVM's first entry into the guest.
    pub first_run: Option<u64>,
    /// Its first entry to the kernel's addresses, when that is where the guest begins, or its first
    /// exit from them: the kernel's first instruction touches new memory.
    pub kernel: Option<u64>,
    /// Init's first byte on the console.
    pub init: Option<u64>,
    /// The process has ended.
    pub end: Option<u64>,
    /// KVM's exits, to the end; none are known of a VMM that does not end with its guest.
    pub exits: Option<u64>,
    /// Those to user space.
    pub to_user: Option<u64>,
    /// System calls of the process.
    pub calls: Option<u64>,
    /// KiB of its memory when init runs, its share of what others use too (PSS).
    pub pss_kib: Option<u64>,
    /// KiB of memory that it ever had until then, whoever else has it too (peak RSS).
    pub peak_kib: Option<u64>,
    /// Its share at init without the guest's memory.
    pub own_kib: Option<u64>,
    /// Bytes of the program.
    pub program: Option<u64>,
    /// Shared libraries that are mapped.
    pub libraries: Option<u64>,
    /// Why there are no figures.
    pub failure: Option<String>,
}

/// Observes a candidate in four starts: to warm up, for the moments, for the counts, for memory.
/// What fails is a row too: the others' figures are not lost.
pub fn candidate(candidate: &Candidate) -> Observed {
    let name = &candidate.name;
    eprintln!("compare: {name}");
    let observe = || -> Result<Observed> {
        let mut observed = Observed { name: name.clone(), ..Observed::default() };
        run(candidate)?;
        moments(candidate, &mut observed)?;
        counts(candidate, &mut observed)?;
        memory(candidate, &mut observed)?;
        Ok(observed)
    };
    observe().unwrap_or_else(|error| Observed {
        name: name.clone(),
        failure: Some(format!("{error:#}")),
        ..Observed::default()
    })
}

fn moments(candidate: &Candidate, observed: &mut Observed) -> Result<()> {
    let tracer = Tracer::moments()?;
    let Run { start, line, end } = run(candidate)?;
    let events = tracer.events()?;
    observed.end = end.map(|end| end - start);
    if !candidate.is_machine {
        observed.init = Some(line - start);
        return Ok(());
    }
    let first = |name: &str| {
        let event = events.iter().find(|event| event.name == name && event.ns >= start)?;
        Some(event.ns - start)
    };
    observed.first_run = first("kvm_entry");
    let is_kernel = |event: &&Event| event.rip.is_some_and(|rip| tracer::KERNEL.contains(&rip));
    // Entered directly, the kernel has begun with the first entry.
    let entered = events.iter().find(|event| event.ns >= start).filter(is_kernel);
    observed.kernel = entered.map(|event| event.ns - start).or_else(|| first("kvm_exit"));
    observed.init = first("kvm_pio");
    if [observed.first_run, observed.kernel, observed.init].contains(&None) {
        bail!("a moment is missing in the trace: {events:?}");
    }
    Ok(())
}

fn counts(candidate: &Candidate, observed: &mut Observed) -> Result<()> {
    let tracer = Tracer::counts()?;
    if run(candidate)?.end.is_none() {
        return Ok(());
    }
    let events = tracer.events()?;
    let here = std::process::id();
    let count = |name: &str| {
        let is_its = |event: &&Event| event.thread != here && event.name == name;
        u64::try_from(events.iter().filter(is_its).count()).ok()
    };
    observed.exits = count("kvm_exit");
    observed.to_user = count("kvm_userspace_exit");
    observed.calls = count("sys_enter");
    Ok(())
}

fn memory(candidate: &Candidate, observed: &mut Observed) -> Result<()> {
    let mut child = spawn(&candidate.staying, candidate.wants_terminal)?;
    let mut console = Vec::new();
    let seen = read_console(&mut child, &mut console, Some(INIT_LINE));
    // Whatever the console still has to say, and whatever it takes.
    thread::sleep(Duration::from_millis(50));
    let all = family(child.id()).context("listing its processes")?;
    let read = |file: &str| {
        let read = |process: &u32| fs::read_to_string(format!("/proc/{process}/{file}"));
        all.iter().map(read).collect::<io::Result<String>>()
    };
    let (maps, status) = (read("smaps"), read("status"));
    child.kill().context("ending it")?;
    for process in all.iter().skip(1) {
        // A child may have ended with its parent.
        if let Some(process) = i32::try_from(*process).ok().and_then(Pid::from_raw) {
            let _ = kill_process(process, Signal::KILL);
        }
    }
    child.wait().context("waiting for its end")?;
    if seen? != Stop::Found {
        bail!("init did not run; the console: {}", String::from_utf8_lossy(&console));
    }
    let maps = parse_maps(&maps.context("reading its memory map")?);
    observed.peak_kib = Some(parse_peaks(&status.context("reading its status")?));
    observed.pss_kib = Some(maps.iter().map(|map| map.pss_kib).sum());
    observed.own_kib = Some(maps.iter().filter(|map| !map.is_ram()).map(|map| map.pss_kib).sum());
    let mut libraries: Vec<_> = maps.iter().filter_map(|map| map.library.as_deref()).collect();
    libraries.sort_unstable();
    libraries.dedup();
    observed.libraries = u64::try_from(libraries.len()).ok();
    let program = candidate.command.first().context("no program")?;
    observed.program = fs::metadata(program).ok().map(|found| found.len());
    Ok(())
}

/// A process and those that it began, and they.
fn family(process: u32) -> io::Result<Vec<u32>> {
    let mut family = vec![process];
    let mut next = 0;
    while let Some(process) = family.get(next) {
        for thread in fs::read_dir(format!("/proc/{process}/task"))? {
            let children = fs::read_to_string(thread?.path().join("children"))?;
            family.extend(children.split_whitespace().filter_map(|id| id.parse::<u32>().ok()));
        }
        next += 1;
    }
    Ok(family)
}

/// A mapping of the process.
#[derive(Debug, PartialEq, Eq)]
struct Map {
    kib: u64,
    pss_kib: u64,
    library: Option<String>,
}

impl Map {
    /// Guest RAM is larger than all else.
    fn is_ram(&self) -> bool {
        self.kib >= 64 << 10 && self.pss_kib > 0
    }
}

/// Reads /proc/PID/smaps.
fn parse_maps(text: &str) -> Vec<Map> {
    let mut maps: Vec<Map> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        let number = |mut words: std::str::SplitWhitespace<'_>| words.next()?.parse().ok();
        match (first, maps.last_mut()) {
            ("Size:", Some(map)) => map.kib = number(words).unwrap_or(0),
            ("Pss:", Some(map)) => map.pss_kib = number(words).unwrap_or(0),
            _ if first.ends_with(':') => {}
            _ => {
                let path = words.next_back().filter(|path| path.contains(".so"));
                maps.push(Map { kib: 0, pss_kib: 0, library: path.map(str::to_owned) });
            }
        }
    }
    maps
}

/// The sum of VmHWM in /proc/PID/status, in KiB.
fn parse_peaks(text: &str) -> u64 {
    let peaks =
        text.lines().filter_map(|line| line.strip_prefix("VmHWM:")?.split(' ').rev().nth(1));
    peaks.filter_map(|peak| peak.trim().parse::<u64>().ok()).sum()
}

fn spawn(command: &[String], wants_terminal: bool) -> Result<Child> {
    let (program, arguments) = command.split_first().context("no program")?;
    let mut command = Command::new(program);
    let errors = fs::File::create(ERRORS).with_context(|| format!("making {ERRORS}"))?;
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
    if wants_terminal {
        command.stdin(terminal().context("making a terminal")?);
    }
    command.spawn().with_context(|| format!("starting {program}"))
}

/// A terminal that nobody types on, as long as this process lives.
fn terminal() -> Result<fs::File> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let name = ptsname(&ours, Vec::new())?;
    let theirs = fs::File::options().read(true).write(true).open(name.to_str()?)?;
    std::mem::forget(ours);
    Ok(theirs)
}

/// A start: when it began, when init's line was read, when the process had ended, if it did.
struct Run {
    start: u64,
    line: u64,
    end: Option<u64>,
}

/// Runs a candidate to its end.
fn run(candidate: &Candidate) -> Result<Run> {
    let start = now();
    let mut child = spawn(&candidate.command, candidate.wants_terminal)?;
    let mut console = Vec::new();
    let first = read_console(&mut child, &mut console, Some(INIT_LINE))?;
    let line = now();
    let last =
        if first == Stop::Found { read_console(&mut child, &mut console, None)? } else { first };
    if last != Stop::End {
        child.kill().context("ending it")?;
    }
    let status = child.wait().context("waiting for its end")?;
    let end = (last == Stop::End).then(now);
    if first != Stop::Found {
        let console = String::from_utf8_lossy(&console);
        let said = fs::read_to_string(ERRORS).unwrap_or_default();
        bail!("init did not run ({status}); it said: {said}; the console: {console}");
    }
    Ok(Run { start, line, end })
}

/// Why the console was not read further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// The text is there.
    Found,
    /// Nobody will write any more.
    End,
    /// Patience is over.
    Silence,
}

/// Reads what a candidate prints until `text` is there, or to the end.
fn read_console(child: &mut Child, console: &mut Vec<u8>, text: Option<&str>) -> Result<Stop> {
    let output = child.stdout.as_mut().context("its console")?;
    let patience = if text.is_some() { PATIENCE } else { PATIENCE_AT_END };
    let deadline = Instant::now() + patience;
    let mut chunk = [0; 4096];
    loop {
        if text.is_some_and(|text| String::from_utf8_lossy(console).contains(text)) {
            return Ok(Stop::Found);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).context("a time to wait")?;
        let mut wanted = [PollFd::new(output, PollFlags::IN)];
        if poll(&mut wanted, Some(&left)).context("waiting for its console")? == 0 {
            return Ok(Stop::Silence);
        }
        let size = output.read(&mut chunk).context("reading its console")?;
        if size == 0 {
            return Ok(Stop::End);
        }
        console.extend_from_slice(chunk.get(..size).unwrap_or_default());
    }
}

fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(time.tv_sec) * 1_000_000_000 + part(time.tv_nsec)
}

/// A row's fields, by their names in JSON.
const FIELDS: [(&str, Field); 12] = [
    ("first_run_ns", |row| &mut row.first_run),
    ("kernel_ns", |row| &mut row.kernel),
    ("init_ns", |row| &mut row.init),
    ("end_ns", |row| &mut row.end),
    ("exits", |row| &mut row.exits),
    ("exits_to_user", |row| &mut row.to_user),
    ("system_calls", |row| &mut row.calls),
    ("peak_rss_kib", |row| &mut row.peak_kib),
    ("pss_kib", |row| &mut row.pss_kib),
    ("own_pss_kib", |row| &mut row.own_kib),
    ("program_bytes", |row| &mut row.program),
    ("shared_libraries", |row| &mut row.libraries),
];
type Field = fn(&mut Observed) -> &mut Option<u64>;

/// The report.
pub fn to_json(rows: &[Observed]) -> Value {
    let one = |row: &Observed| {
        let mut row = row.clone();
        let mut object = json!({ "name": row.name });
        for (name, field) in FIELDS {
            object[name] = (*field(&mut row)).into();
        }
        if let Some(failure) = row.failure {
            object["failure"] = failure.into();
        }
        object
    };
    rows.iter().map(one).collect()
}

/// The report's rows.
pub fn from_json(report: &Value) -> Option<Vec<Observed>> {
    let one = |value: &Value| {
        let name = value["name"].as_str()?.to_owned();
        let failure = value["failure"].as_str().map(str::to_owned);
        let mut row = Observed { name, failure, ..Observed::default() };
        for (name, field) in FIELDS {
            *field(&mut row) = value[name].as_u64();
        }
        Some(row)
    };
    report.as_array()?.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_comes_back_as_it_was_written() {
        let mut row = Observed { name: "x".into(), init: Some(7), ..Observed::default() };
        row.libraries = Some(0);
        row.failure = Some("it would not".into());
        assert_eq!(from_json(&to_json(&[row.clone()])), Some(vec![row]));
        assert_eq!(from_json(&json!([{}])), None);
    }

    #[test]
    fn guest_memory_is_told_from_the_program_s_own() {
        let text = "7f00-7f10 rw-p 0 00:00 0 \nSize:  131072 kB\nRss: 9 kB\nPss:  20000 kB\n\
                    5500-5510 r-xp 0 08:01 5   /lib/x86/libc.so.6\nSize: 8 kB\nPss: 4 kB\n\
                    5510-5520 r--p 0 08:01 5   /lib/x86/libc.so.6\nSize: 8 kB\nPss: 1 kB\n";
        let maps = parse_maps(text);
        assert_eq!(maps.len(), 3);
        assert!(maps[0].is_ram() && !maps[1].is_ram());
        assert_eq!((maps[0].pss_kib, maps[1].pss_kib), (20_000, 4));
        assert_eq!(maps[1].library, maps[2].library);
        assert_eq!(parse_peaks("Name: x\nVmHWM:\t   46562 kB\nVmHWM:\t       8 kB\n"), 46_570);
    }
}
