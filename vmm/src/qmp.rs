//! The QEMU Machine Protocol: JSON commands in, answers and events out.
//!
//! Source: QEMU, docs/interop/qmp-spec.rst. One thread a monitor waits for its client's bytes and
//! for events, and is the only one that writes: whatever a client does or leaves undone, nothing
//! but its own monitor waits for it.

mod commands;
mod mailbox;
mod session;

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags};
use rustix::fd::AsFd;

use crate::chardev::listen;
use crate::config::{Config, Qmp};
use crate::console;
use crate::control::Control;
use crate::signals;
use commands::Machine;
pub use commands::Parts;
use mailbox::Mailbox;
use session::{Session, Stream};

/// Why there is no monitor.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket.
    #[error("-qmp unix:{path}: {doing}")]
    Socket {
        /// Its path.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// The host's reason.
        source: io::Error,
    },
    /// Something the host lacks.
    #[error("-qmp: starting its thread")]
    Thread(#[from] io::Error),
}

/// The monitors of a machine. They end, with all that they had to say, when this is dropped.
#[derive(Default)]
pub struct Server {
    monitors: Vec<Monitor>,
}

struct Monitor {
    mailbox: Arc<Mailbox>,
    thread: Option<JoinHandle<()>>,
    // A socket of ours, to be removed.
    socket: Option<PathBuf>,
}

/// What a monitor's clients come by.
enum Door {
    /// One client, who is there.
    Open(Stream),
    /// One after the other.
    Listener(UnixListener),
}

impl Server {
    /// Starts the monitors that `config` asks for; `parts` are what commands reach.
    pub fn start(
        config: &Config,
        control: &Arc<Control>,
        parts: &Parts<'_>,
    ) -> Result<Self, Error> {
        let mut server = Self::default();
        for qmp in &config.qmp {
            let machine = Machine::new(config, control.clone(), parts);
            let monitor = Monitor::start(qmp, machine)?;
            server.monitors.push(monitor);
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for monitor in &mut self.monitors {
            monitor.mailbox.close();
            if let Some(thread) = monitor.thread.take() {
                // A panic of it was told by the panic hook.
                let _ = thread.join();
            }
            if let Some(path) = &monitor.socket {
                // Somebody may have removed it already.
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

impl Monitor {
    fn start(qmp: &Qmp, machine: Machine) -> Result<Self, Error> {
        let (door, socket) = open(qmp)?;
        let control = machine.control.clone();
        let mailbox = Arc::new(Mailbox::new()?);
        let letters = mailbox.clone();
        control.listen(Box::new(move |event| letters.put(event)));
        let hold = matches!(qmp, Qmp::Unix { server: true, wait: true, .. });
        if hold {
            control.hold();
            if let Some(path) = &socket {
                console::say(&format!("waiting for a client at {}", path.display()));
            }
        }
        let mail = mailbox.clone();
        let thread = signals::spawn("QMP", move || serve(door, &machine, &mail, hold))?;
        Ok(Self { mailbox, thread: Some(thread), socket })
    }
}

fn open(qmp: &Qmp) -> Result<(Door, Option<PathBuf>), Error> {
    match qmp {
        Qmp::Stdio => Ok((Door::Open(Stream::Stdio), None)),
        Qmp::Unix { path, server: true, .. } => {
            let failed = |(doing, source)| Error::Socket { path: path.clone(), doing, source };
            Ok((Door::Listener(listen(path).map_err(failed)?), Some(path.clone())))
        }
        Qmp::Unix { path, .. } => {
            let failed = |source| Error::Socket { path: path.clone(), doing: "connecting", source };
            Ok((Door::Open(Stream::Unix(UnixStream::connect(path).map_err(failed)?)), None))
        }
    }
}

fn serve(door: Door, machine: &Machine, mailbox: &Mailbox, mut holds: bool) {
    let listener = match door {
        Door::Open(stream) => return Session::new(stream, machine, mailbox).run(),
        Door::Listener(listener) => listener,
    };
    while let Some(stream) = next_client(&listener, mailbox) {
        if std::mem::take(&mut holds) {
            machine.control.release();
        }
        Session::new(Stream::Unix(stream), machine, mailbox).run();
    }
}

/// The next client; `None` when the process is to end.
fn next_client(listener: &UnixListener, mailbox: &Mailbox) -> Option<UnixStream> {
    // The bell has rung, perhaps, for the client before.
    while !mailbox.is_closed() {
        let mut ready = [
            PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(mailbox.bell(), PollFlags::IN),
        ];
        let _ = rustix::event::poll(&mut ready, None);
        let called = !ready[0].revents().is_empty();
        // Nobody is there to hear of it.
        mailbox.take();
        if !called {
            continue;
        }
        match listener.accept() {
            Ok((stream, _)) => return Some(stream),
            // A client that has gone already.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                console::say(&format!("-qmp: {error}; no more clients are taken"));
                return None;
            }
        }
    }
    None
}
