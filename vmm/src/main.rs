//! `microvm`: boots a kernel in a QEMU microvm machine on KVM.

use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use vmm::args::{self, Request};
use vmm::config::Config;
use vmm::run::{self, Outcome, Status};
use vmm::trace::{self, Trace};
use vmm::workload::{self, Session, Wish};
use vmm::{accel, console, signals};

fn main() -> ExitCode {
    let start_ns = trace::now();
    let mut arguments = std::env::args_os().skip(1).peekable();
    let is_workload = arguments.next_if(|first| first == "run").is_some();
    let (result, failure) = match is_workload {
        true => (run_workload(arguments, start_ns), workload::FAILURE.into()),
        false => (dispatch(arguments, start_ns), ExitCode::FAILURE),
    };
    match result {
        Ok(Status::Code(code)) => code.into(),
        Ok(Status::Signal(signal)) => {
            signals::die_of(signal);
            ExitCode::FAILURE
        }
        Err(error) => {
            console::say(&format!("{error:#}"));
            failure
        }
    }
}

fn dispatch(arguments: impl Iterator<Item = OsString>, start_ns: u64) -> anyhow::Result<Status> {
    match args::parse(arguments)? {
        Request::Run(config) => Ok(run(&config, None, start_ns)??.status),
        Request::Print(text) => print(&text),
        Request::DescribeKvm => print(&format!("{}\n", accel::describe())),
    }
}

fn run_workload(
    arguments: impl Iterator<Item = OsString>,
    start_ns: u64,
) -> anyhow::Result<Status> {
    match workload::prepare(arguments)? {
        Wish::Print(text) => print(text),
        Wish::Run(workload) => {
            let result = run(workload.config(), Some(workload.session()), start_ns)?;
            Ok(workload.finish(result)?)
        }
    }
}

/// Runs a machine; what is around it may fail, and so may the machine.
fn run(
    config: &Config,
    session: Option<Arc<Session>>,
    start_ns: u64,
) -> anyhow::Result<Result<Outcome, run::Error>> {
    if let Some(path) = &config.log {
        console::log_to(path).with_context(|| format!("-D '{}'", path.display()))?;
    }
    if let Some(name) = &config.process_name {
        // What the system shows of a process (proc(5), /proc/self/comm).
        fs::write("/proc/self/comm", name).context("-name process=")?;
    }
    let open = |path: &PathBuf| {
        Trace::open(path, start_ns).with_context(|| format!("-boot-trace '{}'", path.display()))
    };
    let mut trace = config.boot_trace.as_ref().map(open).transpose()?;
    trace::step(&mut trace, "command line");
    let result = run::run(config, &mut trace, session);
    if let Some(trace) = &trace {
        let (reason, status) = match &result {
            Ok(Outcome { reason, status: Status::Code(code) }) => {
                ((*reason).to_owned(), i32::from(*code))
            }
            Ok(Outcome { reason, status: Status::Signal(signal) }) => {
                ((*reason).to_owned(), 128 + signal)
            }
            Err(error) => (chain(error), 1),
        };
        if let Err(error) = trace.write(&reason, status) {
            // How the guest ended is of more interest.
            console::say(&format!("-boot-trace: {error}; the trace is not whole"));
        }
    }
    Ok(result)
}

/// An error with all that led to it.
fn chain(error: &dyn Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

fn print(text: &str) -> anyhow::Result<Status> {
    match io::stdout().write_all(text.as_bytes()) {
        // Whoever asked has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        result => result.context("printing")?,
    }
    Ok(Status::Code(0))
}
