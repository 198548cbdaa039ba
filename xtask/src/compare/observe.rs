//! One candidate, watched: when it came how far, and what it took. Runs in the lab.

use std::time::Duration;
use std::{fs, io, thread};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::candidates::Candidate;
use super::memory;
use super::start::{Process, Run, run};
use super::tracer::{self, Event, Tracer};

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
    /// What happened to init's first byte.
    pub to_init: Counts,
    /// What happened to the end; not known of a VMM that does not end with its guest.
    pub to_end: Counts,
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

/// What happened until then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// KVM's exits.
    pub exits: Option<u64>,
    /// Those to user space.
    pub to_user: Option<u64>,
    /// System calls of the process.
    pub calls: Option<u64>,
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

/// Starts it once for the moments.
pub fn moments(candidate: &Candidate, observed: &mut Observed) -> Result<()> {
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
    observed.init = first(tracer::INIT_EVENT);
    if [observed.first_run, observed.kernel, observed.init].contains(&None) {
        bail!("a moment is missing in the trace: {events:?}");
    }
    Ok(())
}

fn counts(candidate: &Candidate, observed: &mut Observed) -> Result<()> {
    let tracer = Tracer::counts()?;
    let Run { start, line, end } = run(candidate)?;
    let events = tracer.events()?;
    let is_init = |event: &&Event| event.name == tracer::INIT_EVENT && event.ns >= start;
    let init = match candidate.is_machine {
        true => events.iter().find(is_init).context("init's line is not in the trace")?.ns,
        false => line,
    };
    observed.to_init = Counts::of(events.iter().filter(|event| event.ns < init));
    if end.is_some() {
        observed.to_end = Counts::of(events.iter());
    }
    Ok(())
}

impl Counts {
    /// Counts the events of other threads than ours.
    fn of<'a>(events: impl Iterator<Item = &'a Event>) -> Self {
        let here = std::process::id();
        let [mut exits, mut to_user, mut calls] = [0; 3];
        for event in events.filter(|event| event.thread != here) {
            match event.name.as_str() {
                "kvm_exit" => exits += 1,
                "kvm_userspace_exit" => to_user += 1,
                "sys_enter" => calls += 1,
                _ => {}
            }
        }
        Self { exits: Some(exits), to_user: Some(to_user), calls: Some(calls) }
    }
}

fn memory(candidate: &Candidate, observed: &mut Observed) -> Result<()> {
    let mut process = Process::start(&candidate.staying, candidate.wants_terminal)?;
    let seen = process.read_to_init();
    // Whatever the console still has to say, and whatever it takes.
    thread::sleep(Duration::from_millis(50));
    let all = memory::family(process.id()).context("listing its processes")?;
    let read = |file: &str| {
        let read = |process: &u32| fs::read_to_string(format!("/proc/{process}/{file}"));
        all.iter().map(read).collect::<io::Result<String>>()
    };
    let (maps, status) = (read("smaps"), read("status"));
    process.kill()?;
    for process in all.iter().skip(1) {
        // A child may have ended with its parent.
        if let Some(process) = i32::try_from(*process).ok().and_then(Pid::from_raw) {
            let _ = kill_process(process, Signal::KILL);
        }
    }
    process.wait()?;
    seen?;
    let memory = memory::parse(&maps.context("reading its memory map")?);
    observed.peak_kib = Some(memory::parse_peaks(&status.context("reading its status")?));
    observed.pss_kib = Some(memory.pss_kib);
    observed.own_kib = Some(memory.own_kib);
    observed.libraries = u64::try_from(memory.libraries).ok();
    let program = candidate.command.first().context("no program")?;
    observed.program = fs::metadata(program).ok().map(|found| found.len());
    Ok(())
}

/// A row's fields, by their names in JSON.
pub const FIELDS: [(&str, Field); 15] = [
    ("first_run_ns", |row| &mut row.first_run),
    ("kernel_ns", |row| &mut row.kernel),
    ("init_ns", |row| &mut row.init),
    ("end_ns", |row| &mut row.end),
    ("exits_to_init", |row| &mut row.to_init.exits),
    ("exits_to_user_to_init", |row| &mut row.to_init.to_user),
    ("system_calls_to_init", |row| &mut row.to_init.calls),
    ("exits", |row| &mut row.to_end.exits),
    ("exits_to_user", |row| &mut row.to_end.to_user),
    ("system_calls", |row| &mut row.to_end.calls),
    ("peak_rss_kib", |row| &mut row.peak_kib),
    ("pss_kib", |row| &mut row.pss_kib),
    ("own_pss_kib", |row| &mut row.own_kib),
    ("program_bytes", |row| &mut row.program),
    ("shared_libraries", |row| &mut row.libraries),
];
pub type Field = fn(&mut Observed) -> &mut Option<u64>;

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
        row.to_init.exits = Some(1);
        row.to_end.exits = Some(2);
        row.failure = Some("it would not".into());
        assert_eq!(from_json(&to_json(&[row.clone()])), Some(vec![row]));
        assert_eq!(from_json(&json!([{}])), None);
    }

    #[test]
    fn what_others_did_is_counted() {
        let event = |thread, name: &str| Event { thread, ns: 0, name: name.into(), rip: None };
        let other = std::process::id() + 1;
        let mut events = vec![event(other, "kvm_exit"), event(other, "kvm_exit")];
        events.extend([event(other, "kvm_userspace_exit"), event(other, "kvm_pio")]);
        events.extend(["sys_enter"; 3].map(|name| event(other, name)));
        events.push(event(std::process::id(), "sys_enter"));
        let counts = Counts { exits: Some(2), to_user: Some(1), calls: Some(3) };
        assert_eq!(Counts::of(events.iter()), counts);
    }
}
