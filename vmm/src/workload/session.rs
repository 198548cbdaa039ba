//! Between our files and the command's: one wire, with frames (`abi::workload`).

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use abi::workload::{HEADER, Kind, PAYLOAD_MAX, WINDOW, header, parse};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use rustix::termios::tcgetwinsize;
use tempfile::TempDir;

use crate::chardev::read_terminal;
use crate::console::{self, Keys};
use crate::control::{Control, Request};
use crate::signals;

/// How often, and how long, who has little time waits for who writes.
const GLANCES: u32 = 20;
const GLANCE: Duration = Duration::from_millis(5);

/// What the guest said at its end.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ending {
    /// The command's status.
    pub status: Option<u8>,
    /// Why there was no command.
    pub failure: Option<String>,
}

/// What to do about a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heed {
    /// Nothing more.
    Done,
    /// As without a session.
    Usual,
    /// The machine ends.
    End,
}

/// The connection of a command to this process.
pub struct Session {
    terminal: bool,
    state: Mutex<State>,
    /// Where frames are written; a guest that takes nothing makes who writes wait.
    out: Mutex<Option<UnixStream>>,
    /// The guest has taken input, or is gone.
    progress: Condvar,
    /// Where the machine's end is asked for.
    control: OnceLock<Arc<Control>>,
}

#[derive(Default)]
struct State {
    wire: Option<UnixStream>,
    /// Bytes of input that the guest has not taken.
    under_way: u32,
    /// The command has been started.
    begun: bool,
    /// The signals by which it was asked to end, by their numbers.
    asked: u64,
    /// It has ended, and said so.
    ended: bool,
    closed: bool,
    /// A folder that the machine does not need when it is connected.
    place: Option<TempDir>,
}

impl Session {
    /// One that is not connected yet; `terminal` has the terminal be the command's. `place` is
    /// removed when the machine is connected, or gone.
    pub fn new(terminal: bool, place: TempDir) -> Self {
        let state = State { place: Some(place), ..State::default() };
        let (state, out) = (Mutex::new(state), Mutex::new(None));
        let control = OnceLock::new();
        Self { terminal, state, out, progress: Condvar::new(), control }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the machine at `listener`, and carries bytes until the guest says how it ended, or
    /// is gone.
    pub fn serve(self: &Arc<Self>, listener: &UnixListener) -> Ending {
        let wire = match listener.accept().and_then(|(wire, _)| self.connect(wire)) {
            Ok(wire) => wire,
            Err(error) => {
                console::say(&format!("the command's wire: {error}"));
                return Ending::default();
            }
        };
        self.hear(wire)
    }

    /// The command runs: from now on the keys are its own.
    fn begin(self: &Arc<Self>) {
        if std::mem::replace(&mut self.lock().begun, true) {
            return;
        }
        let session = self.clone();
        if let Err(error) = signals::spawn("input", move || session.send_input()) {
            console::say(&format!("starting the thread that reads the input: {error}"));
        }
        // It may have changed since the orders were written.
        self.send_size();
    }

    /// The machine runs, and can be asked for its end there.
    pub fn attach(&self, control: Arc<Control>) {
        // There is one machine.
        let _ = self.control.set(control);
    }

    /// Has the machine end whose guest says what nobody understands.
    pub fn end_machine(&self) {
        if let Some(control) = self.control.get() {
            control.request(Request::Signal(libc::SIGTERM));
        }
    }

    /// Whether the guest has said its last, after which it ends by itself.
    pub fn has_ended(&self) -> bool {
        self.lock().ended
    }

    /// Whether the command was ever started.
    pub fn has_begun(&self) -> bool {
        self.lock().begun
    }

    fn connect(&self, wire: UnixStream) -> io::Result<UnixStream> {
        let mut state = self.lock();
        state.wire = Some(wire.try_clone()?);
        *self.out.lock().unwrap_or_else(PoisonError::into_inner) = Some(wire.try_clone()?);
        if let Some(Err(error)) = state.place.take().map(TempDir::close) {
            console::say(&format!("removing the folder of sockets: {error}"));
        }
        Ok(wire)
    }

    /// The machine is gone: what it said is still heard, and no more. Whether it was ever there.
    pub fn close(&self) -> bool {
        let mut state = self.lock();
        state.closed = true;
        state.place = None;
        self.progress.notify_all();
        if let Some(wire) = &state.wire {
            // One that is closed already is as good.
            let _ = wire.shutdown(std::net::Shutdown::Both);
        }
        state.wire.is_some()
    }

    /// What is to become of a signal of the outside: one that asks for an end is the command's, and
    /// the same one once more ends the machine, as does any when there is no command to hear it.
    pub fn heed(&self, signal: i32) -> Heed {
        if signal == libc::SIGWINCH {
            self.send_size();
            return Heed::Done;
        }
        if signal == libc::SIGCONT {
            self.send_size();
            return Heed::Usual;
        }
        if self.lock().closed {
            // The machine is gone, and what is left is to be read by somebody who does not.
            console::restore();
            signals::die_of(signal);
        }
        let number = u8::try_from(signal).unwrap_or(0);
        let asks = [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGHUP].contains(&signal);
        if !asks {
            return Heed::Usual;
        }
        let mut state = self.lock();
        let bit = 1_u64.checked_shl(number.into()).unwrap_or(0);
        let first = state.asked & bit == 0 && state.begun && !state.ended;
        state.asked |= bit;
        drop(state);
        if first && self.send_soon(Kind::Signal, &[number]) { Heed::Done } else { Heed::End }
    }

    /// Sends a frame; whether there is somebody to send it to.
    fn send(&self, kind: Kind, payload: &[u8]) -> bool {
        write(&mut self.out.lock().unwrap_or_else(PoisonError::into_inner), kind, payload)
    }

    /// The same, but gives up when a frame before it waits for the guest.
    fn send_soon(&self, kind: Kind, payload: &[u8]) -> bool {
        for _ in 0..GLANCES {
            match self.out.try_lock() {
                Ok(mut out) => return write(&mut out, kind, payload),
                Err(_) => std::thread::sleep(GLANCE),
            }
        }
        false
    }

    fn send_size(&self) {
        if let (true, Ok(size)) = (self.terminal, tcgetwinsize(rustix::stdio::stdout())) {
            let [rows, columns] = [size.ws_row, size.ws_col].map(u16::to_le_bytes);
            self.send_soon(Kind::Size, &[rows, columns].concat());
        }
    }

    /// The thread that reads our input.
    fn send_input(&self) {
        if self.terminal {
            console::take_terminal(Keys::AllOfTerminal);
        }
        read_terminal(|bytes| self.wait_for_window(bytes.len()) && self.send(Kind::Input, bytes));
        // Who is gone needs no end of the input.
        self.send(Kind::Input, &[]);
    }

    /// Waits until so many bytes more may be under way; whether there is a guest to send them to.
    fn wait_for_window(&self, count: usize) -> bool {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let mut state = self.lock();
        while !state.closed && state.under_way.saturating_add(count) > WINDOW {
            state = self.progress.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.under_way = state.under_way.saturating_add(count);
        !state.closed
    }

    /// The guest said its last, and may end: what it said before has been passed on.
    fn answer_last(&self) {
        self.lock().ended = true;
        // A guest that is gone does not wait for it.
        self.send(Kind::Heard, &[]);
    }

    /// Takes frames until the guest is gone.
    fn hear(self: &Arc<Self>, mut wire: UnixStream) -> Ending {
        let mut ending = Ending::default();
        let mut lost = [false; 2];
        loop {
            let (kind, payload) = match next(&mut wire) {
                Ok(frame) => frame,
                // The machine is gone, and says why itself.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
                    ) =>
                {
                    return ending;
                }
                Err(error) => {
                    // One that is cut already is as good.
                    let _ = wire.shutdown(std::net::Shutdown::Both);
                    ending.failure.get_or_insert(format!("the command's wire: {error}"));
                    return ending;
                }
            };
            match (kind, payload.as_slice()) {
                (Kind::Begun, []) => self.begin(),
                (Kind::Output | Kind::Error, bytes) => {
                    let lost = &mut lost[usize::from(kind == Kind::Error)];
                    if !*lost && !put(kind, bytes) {
                        *lost = true;
                        self.send(Kind::Closed, &[kind as u8]);
                    }
                }
                (Kind::Taken, [a, b, c, d]) => {
                    let taken = u32::from_le_bytes([*a, *b, *c, *d]);
                    let mut state = self.lock();
                    state.under_way = state.under_way.saturating_sub(taken);
                    self.progress.notify_all();
                }
                (Kind::Status, [status]) => {
                    ending.status = Some(*status);
                    self.answer_last();
                }
                (Kind::Failed, text) => {
                    ending.failure = Some(String::from_utf8_lossy(text).into_owned());
                    self.answer_last();
                }
                _ => console::say("the guest sends what it should not; it is ignored"),
            }
        }
    }
}

/// Writes a frame, if there is somebody to write it to; whether that went well.
fn write(out: &mut Option<UnixStream>, kind: Kind, payload: &[u8]) -> bool {
    let length = u16::try_from(payload.len()).unwrap_or(PAYLOAD_MAX);
    let frame = [&header(kind, length), payload].concat();
    out.as_mut().is_some_and(|wire| wire.write_all(&frame).is_ok())
}

/// The next frame.
fn next(wire: &mut UnixStream) -> io::Result<(Kind, Vec<u8>)> {
    let mut first = [0; HEADER];
    wire.read_exact(&mut first)?;
    let unknown = || io::Error::other("the guest sends what is no frame");
    let (kind, length) = parse(first).ok_or_else(unknown)?;
    let mut payload = vec![0; length.into()];
    wire.read_exact(&mut payload)?;
    Ok((kind, payload))
}

/// Writes the command's output where it belongs; whether somebody takes it.
fn put(kind: Kind, mut bytes: &[u8]) -> bool {
    let (fd, name): (BorrowedFd<'_>, _) = match kind {
        Kind::Error => (rustix::stdio::stderr(), "standard error"),
        _ => (rustix::stdio::stdout(), "standard output"),
    };
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                // It is looked at again whatever this says.
                let _ = poll(&mut [PollFd::new(&fd, PollFlags::OUT)], None);
            }
            // Who reads has read enough.
            Err(Errno::PIPE) => return false,
            Err(error) => {
                console::say(&format!("{name}: {}", io::Error::from(error)));
                return false;
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> (Arc<Session>, UnixStream) {
        let (ours, guest) = UnixStream::pair().unwrap();
        let session = Arc::new(Session::new(false, tempfile::tempdir().unwrap()));
        session.connect(ours).unwrap();
        session.lock().begun = true;
        (session, guest)
    }

    #[test]
    fn a_signal_is_the_command_s_and_the_same_once_more_ends_the_machine() {
        let (session, mut guest) = session();
        assert_eq!(session.heed(libc::SIGTSTP), Heed::Usual);
        assert_eq!(session.heed(libc::SIGWINCH), Heed::Done);
        assert_eq!(session.heed(libc::SIGINT), Heed::Done);
        assert_eq!(next(&mut guest).unwrap(), (Kind::Signal, vec![2]));
        assert_eq!(session.heed(libc::SIGTERM), Heed::Done);
        assert_eq!(next(&mut guest).unwrap(), (Kind::Signal, vec![15]));
        assert_eq!(session.heed(libc::SIGINT), Heed::End);
        // Before there is a command, and with nobody to tell.
        session.lock().begun = false;
        assert_eq!(session.heed(libc::SIGHUP), Heed::End);
        let alone = Session::new(false, tempfile::tempdir().unwrap());
        assert_eq!((alone.heed(libc::SIGINT), alone.close()), (Heed::End, false));
    }

    #[test]
    fn what_is_no_frame_cuts_the_wire() {
        let (session, mut guest) = session();
        let wire = session.lock().wire.as_ref().unwrap().try_clone().unwrap();
        guest.write_all(&[0xff; HEADER]).unwrap();
        let ending = session.hear(wire);
        assert_eq!(ending.status, None);
        assert!(ending.failure.is_some_and(|text| text.contains("no frame")));
        assert!(next(&mut guest).is_err());
    }

    #[test]
    fn input_waits_for_a_guest_that_takes_it() {
        let (session, mut guest) = session();
        let window = usize::try_from(WINDOW).unwrap();
        assert!(session.wait_for_window(window));
        let waiter = session.clone();
        let thread = std::thread::spawn(move || waiter.wait_for_window(10));
        let hearer = session.clone();
        let wire = session.lock().wire.as_ref().unwrap().try_clone().unwrap();
        let ears = std::thread::spawn(move || hearer.hear(wire));
        guest.write_all(&header(Kind::Taken, 4)).unwrap();
        guest.write_all(&10_u32.to_le_bytes()).unwrap();
        assert!(thread.join().unwrap());
        guest.write_all(&[&header(Kind::Status, 1)[..], &[7]].concat()).unwrap();
        assert_eq!(next(&mut guest).unwrap(), (Kind::Heard, vec![]));
        // What is left to be done is not the command's.
        assert_eq!(session.heed(libc::SIGTERM), Heed::End);
        drop(guest);
        assert_eq!(ears.join().unwrap(), Ending { status: Some(7), failure: None });
        session.close();
        assert!(!session.wait_for_window(10));
    }
}
