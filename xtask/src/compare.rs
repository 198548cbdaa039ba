//! `cargo xtask compare`: one kernel, one initramfs, every way to start them.
//!
//! All candidates run one after the other in one lab that counts instructions, and are watched
//! from outside by the same means: KVM's trace points, what init writes to the console, the
//! system's own accounts of the process. None of them has to cooperate.

mod budget;
mod candidates;
mod html;
mod memory;
mod observe;
mod options;
mod peers;
mod report;
mod start;
mod table;
mod tracer;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use guest::lab as contract;

use self::candidates::{Candidate, Guest};
use self::observe::Observed;
use self::peers::Peer;
use self::report::Report;
use crate::lab::{self, Carried, LabRun};
use crate::{build, fetch, kernel, workspace};

const USAGE: &str = "\
usage: cargo xtask compare [--only TEXT] [--peer NAME=PATH]...
       cargo xtask compare --options

Builds all and a small kernel, starts it by microvm and by QEMU, each through its firmware and,
where it can, directly, and a container beside them, and prints what each start took.
target/compare/report.json and report.html have the same figures (with --only, target/compare-only).

  --only TEXT       only the rows that have TEXT in their name
  --options         instead, the small kernel with one option changed at a time; builds them for
                    half an hour
  --peer NAME=PATH  this VMM too; NAME is firecracker, cloud-hypervisor, kvmtool or alioth
";

/// Runs the job.
pub fn main(arguments: Vec<OsString>) -> Result<()> {
    let Some(Wanted { only, peers, options }) = parse(arguments)? else {
        print!("{USAGE}");
        return Ok(());
    };
    build::build_all()?;
    if options {
        return options::run(in_lab);
    }
    let kernel = kernel::build()?;
    let qemu = fetch::qemu()?;
    let mut candidates = candidates::all(&kernel, &peers)?;
    let only = only.to_lowercase();
    let names: Vec<_> = candidates.iter().map(|candidate| candidate.name.clone()).collect();
    candidates.retain(|candidate| candidate.name.to_lowercase().contains(&only));
    if candidates.is_empty() {
        bail!("--only {only}: no row has that in its name; these are there: {}", names.join("; "));
    }
    let rows = in_lab(&candidates)?;
    let report = Report::new(&kernel, &qemu, &candidates, rows)?;
    print!("{}", table::render(&report.rows));
    // A part does not take the place of the whole.
    let folder = workspace::target(if only.is_empty() { "compare" } else { "compare-only" })?;
    let json = serde_json::to_string_pretty(&report.to_json())?;
    for (name, text) in [("report.json", json), ("report.html", html::render(&report))] {
        let path = folder.join(name);
        workspace::replace(&path, |partial| fs::write(partial, &text))?;
        println!("{}", workspace::shown(&path));
    }
    let failed = |row: &Observed| Some(format!("\n  {}: {}", row.name, row.failure.as_ref()?));
    let failures: String = report.rows.iter().filter_map(failed).collect();
    if failures.is_empty() { Ok(()) } else { bail!("these did not start:{failures}") }
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
#[derive(Default)]
struct Wanted {
    /// A part of the rows' names.
    only: String,
    peers: Vec<Peer>,
    /// Kernels, not VMMs.
    options: bool,
}

/// Nothing when help is wanted.
fn parse(arguments: Vec<OsString>) -> Result<Option<Wanted>> {
    use lexopt::prelude::{Long, Short, ValueExt as _};
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut wanted = Wanted::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("peer") => wanted.peers.push(Peer::parse(&parser.value()?.string()?)?),
            Long("options") => wanted.options = true,
            Long("only") => wanted.only = parser.value()?.string()?,
            Long("help") | Short('h') => return Ok(None),
            _ => return Err(argument.unexpected()).context("see cargo xtask compare --help"),
        }
    }
    if wanted.options && !(wanted.only.is_empty() && wanted.peers.is_empty()) {
        bail!("--options compares kernels: leave --only and --peer out");
    }
    Ok(Some(wanted))
}

/// What is observed of the candidates in one run of the lab.
fn in_lab(candidates: &[Candidate]) -> Result<Vec<Observed>> {
    let plan = workspace::target("compare")?.join("plan.json");
    let text = serde_json::to_string_pretty(&candidates::to_json(candidates))?;
    workspace::replace(&plan, |partial| fs::write(partial, &text))?;
    let program = std::env::current_exe().context("finding this program")?;
    let mut lab_run =
        LabRun::new([program.into_os_string(), "observe".into(), plan.clone().into()]);
    lab_run.icount = true;
    let files = candidates.iter().flat_map(|candidate| candidate.files.clone()).chain([plan]);
    for host in files.collect::<BTreeSet<_>>() {
        lab_run.files.push(Carried { guest: host.clone(), host });
    }
    let outcome = lab::capture(&lab_run)?;
    if outcome.status != 0 {
        bail!("the comparison in the lab ended with status {}", outcome.status);
    }
    let rows = serde_json::from_slice(&outcome.stdout).context("reading what the lab observed")?;
    observe::from_json(&rows).context("the lab's report lacks something")
}

/// `xtask observe PLAN`: what `compare` runs in the lab.
pub fn observe(arguments: &[OsString]) -> Result<()> {
    if !Path::new(contract::COMMAND).exists() {
        bail!("observe changes what the kernel traces, in the lab: run cargo xtask compare");
    }
    let [plan] = arguments else { bail!("observe is a part of compare: run cargo xtask compare") };
    let text = fs::read_to_string(plan).context("reading the plan")?;
    let plan = serde_json::from_str(&text).context("parsing the plan")?;
    let candidates: Vec<Candidate> =
        candidates::from_json(&plan).context("the plan is not whole")?;
    let rows: Vec<Observed> = candidates.iter().map(observe::candidate).collect();
    println!("{}", observe::to_json(&rows));
    Ok(())
}
