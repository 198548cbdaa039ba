//! The process that becomes the command: this program again, under another name.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use rustix::process::{Pid, ioctl_tiocsctty, setsid};

use crate::orders::Orders;

/// What this program is called when it is to become the command, with and without a terminal.
const NAMES: [&str; 2] = ["become-command", "become-command-on-terminal"];
/// A shell's statuses for a command that is not there, or cannot be run.
const NOT_FOUND: u8 = 127;
const NOT_RUN: u8 = 126;

/// Starts it, with its three files; its number.
pub fn start(orders: &Orders, files: [impl Into<std::process::Stdio>; 3]) -> io::Result<Pid> {
    let [stdin, stdout, stderr] = files;
    let mut command = Command::new("/proc/self/exe");
    command.arg0(NAMES[usize::from(orders.terminal)]).env_clear();
    command.arg(&orders.directory).args(&orders.arguments);
    command.envs(orders.variables.iter().map(|(name, value)| (name, value)));
    let child = command.stdin(stdin).stdout(stdout).stderr(stderr).spawn()?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| io::Error::other("a process without a number"))
}

/// Whether this process is the one.
pub fn is_wanted() -> bool {
    name().is_some_and(|name| NAMES.iter().any(|known| name == *known))
}

fn name() -> Option<OsString> {
    env::args_os().next()
}

/// Becomes the command; returns only when that is not possible.
pub fn become_it() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    let (Some(directory), Some(program)) = (arguments.next(), arguments.next()) else {
        return fail(OsStr::new("?"), &io::Error::other("no command"));
    };
    if let Err(error) = lead_session() {
        return fail(&program, &error);
    }
    if let Err(error) = env::set_current_dir(&directory) {
        return fail(&directory, &error);
    }
    let error = Command::new(&program).args(arguments).exec();
    fail(&program, &error)
}

/// A session of its own, and the terminal that goes with it, if its input is one.
fn lead_session() -> io::Result<()> {
    setsid()?;
    if name().is_some_and(|name| name == NAMES[1]) {
        ioctl_tiocsctty(rustix::stdio::stdin())?;
    }
    Ok(())
}

fn fail(what: &OsStr, error: &io::Error) -> ExitCode {
    eprintln!("microvm: {}: {error}", what.to_string_lossy());
    let missing = error.kind() == io::ErrorKind::NotFound;
    if missing { NOT_FOUND.into() } else { NOT_RUN.into() }
}
