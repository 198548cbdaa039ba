//! `microvm`: boots a kernel in a QEMU microvm machine on KVM.

use std::fs;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use vmm::args::{self, Request};
use vmm::config::Config;
use vmm::run::{Outcome, Status};
use vmm::trace::{self, Trace};
use vmm::{accel, console, signals};

fn main() -> ExitCode {
    let start_ns = trace::now();
    match dispatch(start_ns) {
        Ok(Status::Code(code)) => code.into(),
        Ok(Status::Signal(signal)) => {
            signals::die_of(signal);
            ExitCode::FAILURE
        }
        Err(error) => {
            console::say(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(start_ns: u64) -> anyhow::Result<Status> {
    match args::parse(std::env::args_os().skip(1))? {
        Request::Run(config) => run(&config, start_ns),
        Request::Print(text) => print(&text),
        Request::DescribeKvm => print(&format!("{}\n", accel::describe())),
    }
}

fn run(config: &Config, start_ns: u64) -> anyhow::Result<Status> {
    if let Some(path) = &config.log {
        console::log_to(path).with_context(|| format!("-D '{}'", path.display()))?;
    }
    if let Some(name) = &config.process_name {
        // What the system shows of a process (proc(5), /proc/self/comm).
        fs::write("/proc/self/comm", name).context("-name process=")?;
    }
    let mut trace = config.boot_trace.as_deref().map(|path| Trace::new(path, start_ns));
    trace::step(&mut trace, "command line");
    let result = vmm::run::run(config, &mut trace);
    if let Some(trace) = &trace {
        let (reason, status) = match &result {
            Ok(Outcome { reason, status: Status::Code(code) }) => (*reason, i32::from(*code)),
            Ok(Outcome { reason, status: Status::Signal(signal) }) => (*reason, 128 + signal),
            Err(error) => (&*error.to_string(), 1),
        };
        let path = config.boot_trace.as_deref().unwrap_or("".as_ref());
        trace.write(reason, status).with_context(|| format!("-boot-trace '{}'", path.display()))?;
    }
    Ok(result?.status)
}

fn print(text: &str) -> anyhow::Result<Status> {
    match io::stdout().write_all(text.as_bytes()) {
        // Whoever asked has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        result => result.context("printing")?,
    }
    Ok(Status::Code(0))
}
