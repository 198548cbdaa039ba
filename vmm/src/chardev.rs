//! Character devices: where a console's bytes go to and come from.
//!
//! A [`Chardev`] has an [`Output`], which whoever emulates a console writes to without waiting,
//! and an input, which a thread of its own hands to a [`Taker`]. What is at the other end (a
//! terminal, a file, a pty, a socket) is said once, when it is opened.

mod input;
mod mux;
mod output;
mod pty;
mod socket;
mod tail;
mod target;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::config;
use crate::console::{self, Keys};
use crate::control::Control;
use crate::signals;
pub(crate) use input::read_terminal;
use mux::Escape;
pub use output::Output;
pub use socket::listen;
use target::Target;

/// Takes input, and waits while it has no room for it.
pub type Taker = Arc<dyn Fn(&[u8]) + Send + Sync>;

/// Why there is no such device.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or a socket.
    #[error("{user}: {doing} '{path}'")]
    Open {
        /// The option that asked for it.
        user: &'static str,
        /// What was being done.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// The host has no pty.
    #[error("{user}: making a pty")]
    Pty {
        /// The option that asked for it.
        user: &'static str,
        /// The host's reason.
        source: io::Error,
    },
    /// No thread for the input.
    #[error("starting the thread that reads the input")]
    Thread(#[source] io::Error),
}

/// A character device. When it is dropped, what the guest wrote last has been passed on, if
/// somebody takes it, and nothing is left behind: the terminal is as it was, a socket of ours gone.
pub struct Chardev {
    user: &'static str,
    output: Output,
    source: Option<Source>,
    // A socket of ours, to be removed.
    socket: Option<PathBuf>,
    pty: Option<String>,
}

/// Where input comes from, once somebody takes it.
enum Source {
    Stdio { signals: bool, escapes: bool },
    Pty(Arc<Target>),
    Pipe(File),
    Server { listener: UnixListener, wait: bool },
    Client(socket::Client),
}

impl Chardev {
    /// Opens what `config` says; `user` is the option that error lines name.
    pub fn open(config: &config::Chardev, user: &'static str) -> Result<Self, Error> {
        let (mut socket, mut pty) = (None, None);
        let (target, source) = match config {
            config::Chardev::Null => (None, None),
            config::Chardev::Stdio { signals, escapes } => {
                let source = Source::Stdio { signals: *signals, escapes: *escapes };
                (Some(Target::stdout()), Some(source))
            }
            config::Chardev::File { path, append } => {
                (Some(Target::owned(open_file(path, *append, user)?)), None)
            }
            config::Chardev::Pty { .. } => {
                let (target, name) = pty::open().map_err(|source| Error::Pty { user, source })?;
                pty = Some(name);
                (Some(target.clone()), Some(Source::Pty(target)))
            }
            config::Chardev::Pipe(path) => {
                let (input, output) = open_pipes(path, user)?;
                (Some(Target::owned(output)), Some(Source::Pipe(input)))
            }
            config::Chardev::Server { path, wait } => {
                let failed = failed(user, path);
                let listener = listen(path).map_err(|(doing, source)| failed(doing, source))?;
                socket = Some(path.clone());
                (None, Some(Source::Server { listener, wait: *wait }))
            }
            config::Chardev::Client { path, reconnect_s } => {
                let reconnect = reconnect_s.map(Duration::from_secs);
                let client = socket::Client::new(path, reconnect)
                    .map_err(|source| failed(user, path)("connecting to", source))?;
                (client.target(), Some(Source::Client(client)))
            }
        };
        let is_socket = matches!(source, Some(Source::Server { .. } | Source::Client(_)));
        let output = if is_socket { Output::socket } else { Output::new };
        Ok(Self { user, output: output(user, target), source, socket, pty })
    }

    /// Its output side.
    pub fn output(&self) -> Output {
        self.output.clone()
    }

    /// What the pty is called, if it is one.
    pub fn pty(&self) -> Option<&str> {
        self.pty.as_deref()
    }

    /// From now on `taker` gets the input. A machine that has to wait for a client is held.
    pub fn start(&mut self, taker: Taker, control: &Arc<Control>) -> Result<(), Error> {
        let Some(source) = self.source.take() else { return Ok(()) };
        let output = self.output();
        match source {
            Source::Stdio { signals, escapes } => {
                let keys = if signals { Keys::WithSignals } else { Keys::All };
                if !console::take_terminal(keys) {
                    return Ok(());
                }
                let mut escape = escapes.then(|| Escape::new(control.clone()));
                spawn(move || {
                    input::read_terminal(|bytes| match &mut escape {
                        Some(escape) => escape.pass(bytes, &taker),
                        None => input::pass_all(bytes, &taker),
                    });
                })
            }
            Source::Pty(target) => spawn(move || pty::serve(&target, &taker)),
            Source::Pipe(file) => {
                spawn(move || input::read_all(&file, |bytes| input::pass_all(bytes, &taker)))
            }
            Source::Server { listener, wait } => {
                if let (true, Some(path)) = (wait, &self.socket) {
                    control.hold();
                    console::say(&format!("waiting for a client at {}", path.display()));
                }
                let (control, user) = (control.clone(), self.user);
                let held = wait.then_some(move || control.release());
                spawn(move || socket::serve(&listener, &output, &taker, held, user))
            }
            Source::Client(client) => spawn(move || client.serve(&output, &taker)),
        }
    }
}

impl Drop for Chardev {
    fn drop(&mut self) {
        self.output.finish();
        console::restore();
        if let Some(path) = &self.socket {
            // Somebody may have removed it already.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn spawn(body: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    signals::spawn("input", body).map(drop).map_err(Error::Thread)
}

fn failed(user: &'static str, path: &Path) -> impl Fn(&'static str, io::Error) -> Error {
    let path = path.to_owned();
    move |doing, source| Error::Open { user, doing, path: path.clone(), source }
}

fn open_file(path: &Path, append: bool, user: &'static str) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    options.create(true).append(append).write(true).truncate(!append);
    options.open(path).map_err(|source| failed(user, path)("opening", source))
}

/// A pair of FIFOs, `.in` and `.out`, or one file for both, as QEMU has it. Each is opened for
/// both directions, so that neither waits for the other end.
fn open_pipes(path: &Path, user: &'static str) -> Result<(File, File), Error> {
    let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
    let beside = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    if let (Ok(input), Ok(output)) = (open(&beside(".in")), open(&beside(".out"))) {
        return Ok((input, output));
    }
    let both = |source| failed(user, path)("opening the pipe", source);
    let file = open(path).map_err(both)?;
    Ok((file.try_clone().map_err(both)?, file))
}

/// The line that says where a pty is, as QEMU prints it.
pub fn tell_of_pty(name: &str, label: &str, stdout_is_taken: bool) {
    use io::Write;
    let line = format!("char device redirected to {name} (label {label})\n");
    // Nobody to tell when this fails.
    let _ = match stdout_is_taken {
        true => io::stderr().write_all(line.as_bytes()),
        false => io::stdout().write_all(line.as_bytes()),
    };
}

#[cfg(test)]
mod tests;
