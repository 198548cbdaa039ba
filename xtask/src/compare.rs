//! `cargo xtask compare`: one kernel, one initramfs, every way to start them.
//!
//! All candidates run one after the other in one lab that counts instructions, or in turns on a KVM
//! that runs guests on the processor, and are watched from outside by the same means: KVM's trace
//! points, what init writes to the console, the system's own accounts of the process. None of them
//! has to cooperate.

mod budget;
mod candidates;
mod html;
mod memory;
mod native;
mod noise;
mod observe;
mod options;
mod peers;
mod report;
mod stages;
mod start;
mod statistics;
mod table;
mod tracer;

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use guest::lab as contract;
use serde_json::Value;

use self::candidates::{Candidate, Guest};
use self::observe::Observed;
use self::peers::Peer;
use self::report::Report;
use crate::kernel::GuestKernel;
use crate::lab::{self, Carried, LabRun};
use crate::{build, fetch, ground, kernel, workspace};

const USAGE: &str = "\
usage: cargo xtask compare [--only TEXT] [--peer NAME=PATH]... [--repeat N]
       cargo xtask compare --host kvm|lab [--runs N] [--only TEXT] [--peer NAME=PATH]...
       cargo xtask compare --options

Builds all and a small kernel, starts it by microvm and by QEMU, each through its firmware and,
where it can, directly, and a container beside them, and prints what each start took.
target/compare/report.json and report.html have the same figures (with --only, target/compare-only;
of this machine's KVM, target/compare-kvm).

  --only TEXT       only the rows that have TEXT in their name
  --peer NAME=PATH  this VMM too; NAME is firecracker, cloud-hypervisor, kvmtool or alioth
  --repeat N        N times, each in a lab of its own; prints the largest differences
  --host kvm        on this machine's KVM, as root: hardware times, of N runs in turns
  --host lab        with --runs, the same in a lab with this machine's clock, to try it out
  --runs N          how many of these (30); six are the least that tell how sure a median is
  --options         instead, the small kernel with one option changed at a time; builds them for
                    half an hour
";
/// How often every candidate is started on a native KVM when nobody says otherwise.
const RUNS: u32 = 30;
/// The most that make sense: the intervals are narrow long before.
const RUNS_MAX: u32 = 1000;
/// Wall time that a lab gets.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Where and by what clock starts are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clock {
    /// In a lab that counts instructions.
    Instructions,
    /// In a lab with this machine's clock, this often.
    Lab { runs: u32 },
    /// On this machine, this often.
    Host { runs: u32 },
}

/// Runs the job.
pub fn main(arguments: Vec<OsString>) -> Result<()> {
    let Some(Wanted { only, peers, options, repeat, clock }) = parse(arguments)? else {
        print!("{USAGE}");
        return Ok(());
    };
    build::build_all()?;
    if options {
        return options::run(in_lab);
    }
    if matches!(clock, Clock::Host { .. }) {
        ground::require_native(&workspace::product(build::MICROVM)?)?;
        native::check_host()?;
    }
    let kernel = kernel::build()?;
    let mut candidates = candidates::all(&kernel, &peers)?;
    let only = only.to_lowercase();
    let names: Vec<_> = candidates.iter().map(|candidate| candidate.name.clone()).collect();
    candidates.retain(|candidate| candidate.name.to_lowercase().contains(&only));
    if candidates.is_empty() {
        bail!("--only {only}: no row has that in its name; these are there: {}", names.join("; "));
    }
    let report = measure(clock, repeat, &kernel, &candidates)?;
    print!("{}", report.to_text());
    // A part does not take the place of the whole, nor a trial that of a measurement.
    let folder = match clock {
        Clock::Instructions if only.is_empty() => "compare",
        Clock::Host { .. } if only.is_empty() => "compare-kvm",
        _ => "compare-only",
    };
    save(&report, folder)?;
    let failed = |row: &Observed| Some(format!("\n  {}: {}", row.name, row.failure.as_ref()?));
    let failures: String = report.rows.iter().filter_map(failed).collect();
    if failures.is_empty() { Ok(()) } else { bail!("these did not start:{failures}") }
}

fn measure(
    clock: Clock,
    repeat: u32,
    kernel: &GuestKernel,
    candidates: &[Candidate],
) -> Result<Report> {
    let samples = match clock {
        Clock::Instructions => {
            let runs = (0..repeat).map(|_| in_lab(candidates)).collect::<Result<Vec<_>>>()?;
            let unsteady = noise::unsteady(&runs);
            if !unsteady.is_empty() {
                bail!("not all runs have all figures of these: {}", unsteady.join("; "));
            }
            let extra = noise::extra(&runs);
            let rows = runs.into_iter().next().context("--repeat 1 is the least")?;
            let mut report = Report::new(clock, kernel, candidates, rows)?;
            report.extras.extend(extra);
            return Ok(report);
        }
        Clock::Lab { runs } => native::from_json(&lab_says(candidates, Some(runs))?)?,
        Clock::Host { runs } => {
            let samples = native::observe(candidates, runs);
            tracer::restore()?;
            samples
        }
    };
    let rows = samples.iter().map(native::Sample::median).collect();
    let mut report = Report::new(clock, kernel, candidates, rows)?;
    report.extras.insert(0, native::extra(&samples));
    Ok(report)
}

/// Writes the report's files, and says where they are.
fn save(report: &Report, folder: &str) -> Result<()> {
    let folder = workspace::target(folder)?;
    let json = serde_json::to_string_pretty(&report.to_json())?;
    for (name, text) in [("report.json", json), ("report.html", html::render(report))] {
        let path = folder.join(name);
        workspace::replace(&path, |partial| fs::write(partial, &text))?;
        println!("{}", workspace::shown(&path));
    }
    Ok(())
}

/// Starts Debian's kernel by our two ways, and fails when that costs more than its budget.
pub fn check() -> Result<()> {
    build::build_all()?;
    let (kernel, initrd) = (fetch::kernel()?.vmlinuz, build::build_initramfs()?);
    let guest = Guest { form: "bzImage", kernel: &kernel, initrd: &initrd };
    let mut candidates = candidates::ours(guest)?;
    candidates.truncate(2);
    let rows = in_lab(&candidates)?;
    eprint!("{}", table::rows(&rows));
    let rows = rows.try_into().map_err(|_| anyhow!("the lab observed something else"))?;
    budget::check(&rows)
}

/// What is to be compared.
struct Wanted {
    /// A part of the rows' names.
    only: String,
    peers: Vec<Peer>,
    /// Kernels, not VMMs.
    options: bool,
    /// How many labs.
    repeat: u32,
    clock: Clock,
}

/// Nothing when help is wanted.
fn parse(arguments: Vec<OsString>) -> Result<Option<Wanted>> {
    use lexopt::prelude::{Long, Short, ValueExt as _};
    let mut parser = lexopt::Parser::from_args(arguments);
    let (mut only, mut peers, mut options) = (String::new(), Vec::new(), false);
    let (mut repeat, mut runs, mut host) = (None, None, None);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("peer") => peers.push(Peer::parse(&parser.value()?.string()?)?),
            Long("options") => options = true,
            Long("only") => only = parser.value()?.string()?,
            Long("repeat") => repeat = Some(count("--repeat", &parser.value()?)?),
            Long("runs") => runs = Some(count("--runs", &parser.value()?)?),
            Long("host") => host = Some(parser.value()?.string()?),
            Long("help") | Short('h') => return Ok(None),
            _ => return Err(argument.unexpected()).context("see cargo xtask compare --help"),
        }
    }
    let clock = match (host.as_deref(), runs) {
        (None, None) | (Some("lab"), None) => Clock::Instructions,
        (Some("lab"), Some(runs)) => Clock::Lab { runs },
        (Some("kvm"), runs) => Clock::Host { runs: runs.unwrap_or(RUNS) },
        (None, Some(_)) => bail!("--runs: where? give --host kvm, or --host lab to try it out"),
        (Some(other), _) => bail!("--host {other}: kvm or lab is wanted"),
    };
    if repeat.is_some() && clock != Clock::Instructions {
        bail!("--repeat is of whole labs that count instructions: leave --host out");
    }
    if options
        && !(only.is_empty() && peers.is_empty() && repeat.or(runs).is_none() && host.is_none())
    {
        bail!("--options compares kernels: leave the other options out");
    }
    Ok(Some(Wanted { only, peers, options, repeat: repeat.unwrap_or(1), clock }))
}

fn count(option: &str, value: &OsStr) -> Result<u32> {
    let number = value.to_str().and_then(|text| text.parse().ok());
    number
        .filter(|number| (1..=RUNS_MAX).contains(number))
        .with_context(|| format!("{option} {}: give a number up to {RUNS_MAX}", value.display()))
}

/// What is observed of the candidates in one run of the lab.
fn in_lab(candidates: &[Candidate]) -> Result<Vec<Observed>> {
    observe::from_json(&lab_says(candidates, None)?).context("the lab's report lacks something")
}

/// Runs [`observe`] in the lab: counting instructions, or so many runs by the host's clock.
fn lab_says(candidates: &[Candidate], runs: Option<u32>) -> Result<Value> {
    let plan = workspace::target("compare")?.join("plan.json");
    let text = serde_json::to_string_pretty(&candidates::to_json(candidates))?;
    workspace::replace(&plan, |partial| fs::write(partial, &text))?;
    let program = std::env::current_exe().context("finding this program")?;
    let mut lab_run =
        LabRun::new([program.into_os_string(), "observe".into(), plan.clone().into()]);
    lab_run.icount = runs.is_none();
    // All rows take four minutes of a processor that nobody else has.
    lab_run.timeout = PATIENCE;
    if let Some(runs) = runs {
        lab_run.command.push(runs.to_string().into());
    }
    let files = candidates.iter().flat_map(|candidate| candidate.files.clone()).chain([plan]);
    for host in files.collect::<BTreeSet<_>>() {
        lab_run.files.push(Carried { guest: host.clone(), host });
    }
    let outcome = lab::capture(&lab_run)?;
    if outcome.status != 0 {
        bail!("the comparison in the lab ended with status {}", outcome.status);
    }
    serde_json::from_slice(&outcome.stdout).context("reading what the lab observed")
}

/// `xtask observe PLAN [RUNS]`: what `compare` runs in the lab.
pub fn observe(arguments: &[OsString]) -> Result<()> {
    if !Path::new(contract::COMMAND).exists() {
        bail!("observe changes what the kernel traces, in the lab: run cargo xtask compare");
    }
    let Some((plan, runs)) = arguments.split_first() else {
        bail!("observe is a part of compare: run cargo xtask compare")
    };
    let text = fs::read_to_string(plan).context("reading the plan")?;
    let plan = serde_json::from_str(&text).context("parsing the plan")?;
    let candidates: Vec<Candidate> =
        candidates::from_json(&plan).context("the plan is not whole")?;
    let found = match runs.first() {
        Some(runs) => native::to_json(&native::observe(&candidates, count("RUNS", runs)?)),
        None => observe::to_json(&candidates.iter().map(observe::candidate).collect::<Vec<_>>()),
    };
    println!("{found}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(words: &[&str]) -> Result<(Clock, u32), String> {
        match parse(words.iter().map(OsString::from).collect()) {
            Ok(wanted) => wanted.map(|wanted| (wanted.clock, wanted.repeat)).ok_or("help".into()),
            Err(error) => Err(format!("{error:#}")),
        }
    }

    #[test]
    fn the_clock_is_the_lab_s_unless_somebody_says_otherwise() {
        assert_eq!(clock(&[]), Ok((Clock::Instructions, 1)));
        assert_eq!(clock(&["--host", "lab", "--repeat=2"]), Ok((Clock::Instructions, 2)));
        assert_eq!(clock(&["--host", "kvm"]), Ok((Clock::Host { runs: RUNS }, 1)));
        assert_eq!(clock(&["--host=lab", "--runs", "6"]), Ok((Clock::Lab { runs: 6 }, 1)));
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        for (words, complaint) in [
            (&["--runs", "6"][..], "where?"),
            (&["--host", "auto"], "kvm or lab"),
            (&["--host", "kvm", "--repeat", "2"], "leave --host out"),
            (&["--options", "--host", "lab"], "leave the other options out"),
            (&["--repeat", "0"], "a number up to"),
            (&["--host", "kvm", "--runs", "many"], "a number up to"),
        ] {
            let error = clock(words).unwrap_err();
            assert!(error.contains(complaint), "{words:?}: {error}");
        }
    }
}
