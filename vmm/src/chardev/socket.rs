//! UNIX sockets: one client at a time, or one server.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use super::output::Output;
use super::target::Target;
use super::{Taker, input};
use crate::console;

/// Makes the socket; one that an earlier process left behind makes room. An error comes with what
/// was being done.
pub fn listen(path: &Path) -> Result<UnixListener, (&'static str, io::Error)> {
    let failed = |doing| move |source| (doing, source);
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let is_socket = path.symlink_metadata().is_ok_and(|file| file.file_type().is_socket());
            if !is_socket {
                return Err(("something that is no socket is there", error));
            }
            if is_listened_to(path) {
                return Err(("another process listens there", error));
            }
            std::fs::remove_file(path).map_err(failed("removing what is left there"))?;
            UnixListener::bind(path).map_err(failed("listening"))
        }
        result => result.map_err(failed("listening")),
    }
}

/// Whether a process has the socket at `path`. It does not hear that it was asked: this is no
/// client, but a socket of another type, which is refused for that.
fn is_listened_to(path: &Path) -> bool {
    let asked = UnixDatagram::unbound().and_then(|socket| socket.connect(path));
    !asked.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Serves one client after the other; `on_first` is called when the first one is there.
pub(super) fn serve(
    listener: &UnixListener,
    output: &Output,
    taker: &Taker,
    mut on_first: Option<impl FnOnce()>,
    user: &str,
) {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            // A client that has gone already.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                ) =>
            {
                continue;
            }
            Err(error) => {
                console::say(&format!("{user}: {error}; no more clients are taken"));
                return;
            }
        };
        let target = Target::guest(stream);
        output.connect(target.clone());
        if let Some(on_first) = on_first.take() {
            on_first();
        }
        talk(&target, output, taker);
    }
}

/// Hands on what a peer sends, until it has gone.
fn talk(target: &Arc<Target>, output: &Output, taker: &Taker) {
    input::read_all(target, |bytes| input::pass_all(bytes, taker));
    // One that has said all it had to say may still listen.
    let mut gone = [PollFd::new(target, PollFlags::empty())];
    while let Ok(0) | Err(Errno::INTR) = rustix::event::poll(&mut gone, None) {}
    output.disconnect(target);
}

/// The client of a server that listens at a path.
pub(super) struct Client {
    path: PathBuf,
    reconnect: Option<Duration>,
    target: Option<Arc<Target>>,
}

impl Client {
    /// Connects. A server that is not there is an error unless it is to be tried again.
    pub(super) fn new(path: &Path, reconnect: Option<Duration>) -> io::Result<Self> {
        let mut client = Self { path: path.into(), reconnect, target: None };
        match client.connect() {
            Err(error) if reconnect.is_none() => Err(error),
            _ => Ok(client),
        }
    }

    fn connect(&mut self) -> io::Result<()> {
        let stream = UnixStream::connect(&self.path)?;
        // Only a server that is not tried again is missed.
        let target = if self.reconnect.is_some() { Target::guest } else { Target::owned };
        self.target = Some(target(stream));
        Ok(())
    }

    /// The server, if it is there.
    pub(super) fn target(&self) -> Option<Arc<Target>> {
        self.target.clone()
    }

    /// Hands on what the server sends, and comes back to it when it has gone, if so asked.
    pub(super) fn serve(mut self, output: &Output, taker: &Taker) {
        loop {
            if let Some(target) = self.target.take() {
                output.connect(target.clone());
                talk(&target, output, taker);
            }
            let Some(pause) = self.reconnect else { return };
            std::thread::sleep(pause);
            // Until it succeeds there is nobody to tell of it.
            let _ = self.connect();
        }
    }
}
