//! One start of a candidate: its process, what it prints, and when.

use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::time::{ClockId, Timespec, clock_gettime};

use super::candidates::Candidate;
use crate::{settle, workspace};

/// Init's line.
const INIT_LINE: &str = "~guest-init";
/// How long a guest may take to that line.
const PATIENCE: Duration = Duration::from_secs(30);
/// And from there to its end: the slowest take a twentieth of that, and a VMM that starts its guest
/// again never ends.
const PATIENCE_AT_END: Duration = Duration::from_secs(1);

/// A start: when it began, when init's line was read, when the process had ended, if it did; in
/// nanoseconds of CLOCK_MONOTONIC.
pub struct Run {
    pub start: u64,
    pub line: u64,
    pub end: Option<u64>,
}

/// Runs a candidate to its end.
pub fn run(candidate: &Candidate) -> Result<Run> {
    let mut process = Process::start(&candidate.command, candidate.wants_terminal)?;
    let seen = process.read_to_init();
    let line = now();
    let last = if seen.is_ok() { process.read(None)? } else { Stop::Silence };
    if last != Stop::End {
        process.kill()?;
    }
    let status = process.wait()?;
    let end = (last == Stop::End).then(now);
    seen.with_context(|| format!("it ended with {status}"))?;
    Ok(Run { start: process.start, line, end })
}

/// A candidate that runs.
pub struct Process {
    child: Child,
    /// When it was started.
    start: u64,
    /// What it printed.
    console: Vec<u8>,
    /// Where its complaints are.
    errors: PathBuf,
}

impl Process {
    /// Starts it on a host that has come to rest. What it needs is made before the clock is looked
    /// at.
    pub fn start(command: &[String], wants_terminal: bool) -> Result<Self> {
        let (program, arguments) = command.split_first().context("no program")?;
        let errors = workspace::target("compare")?.join("candidate-errors");
        let file = File::create(&errors).context("making a file for its complaints")?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
        if wants_terminal {
            command.stdin(terminal().context("making a terminal")?);
        }
        settle::settle(0)?;
        let start = now();
        let child = command.spawn().with_context(|| format!("starting {program}"))?;
        Ok(Self { child, start, console: Vec::new(), errors })
    }

    /// Reads what it prints until init's line is there; says what it said instead.
    pub fn read_to_init(&mut self) -> Result<()> {
        if self.read(Some(INIT_LINE))? == Stop::Found {
            return Ok(());
        }
        let said = fs::read_to_string(&self.errors).unwrap_or_default();
        let console = String::from_utf8_lossy(&self.console);
        bail!("init did not run; it said: {said}; the console: {console}")
    }

    /// Reads what it prints until `text` is there, or to the end.
    fn read(&mut self, text: Option<&str>) -> Result<Stop> {
        let output = self.child.stdout.as_mut().context("its console")?;
        let patience = if text.is_some() { PATIENCE } else { PATIENCE_AT_END };
        let deadline = Instant::now() + patience;
        let mut chunk = [0; 4096];
        loop {
            if text.is_some_and(|text| String::from_utf8_lossy(&self.console).contains(text)) {
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
            self.console.extend_from_slice(chunk.get(..size).unwrap_or_default());
        }
    }

    /// Its process's number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("ending it")
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.child.wait().context("waiting for its end")
    }
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

/// A terminal that nobody types on, as long as this process lives.
fn terminal() -> Result<File> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let name = ptsname(&ours, Vec::new())?;
    let theirs = File::options().read(true).write(true).open(name.to_str()?)?;
    std::mem::forget(ours);
    Ok(theirs)
}

fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(time.tv_sec) * 1_000_000_000 + part(time.tv_nsec)
}
