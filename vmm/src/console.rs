//! Standard input and output as COM1's other end.
//!
//! On a terminal, keys go to the guest as they are pressed. Whatever way the process ends by
//! itself, the terminal is put back: the mode is kept in one place, and [`restore`] is called on
//! the way out and by the panic hook.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::event::{PollFd, PollFlags};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::io::Errno;
use rustix::termios::{
    self, ControlModes, InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex,
    Termios,
};

use crate::config::Serial;
use crate::control::{Control, Request};
use crate::devices::serial::Com1;
use crate::signals;

/// What can go wrong with a console.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The output file.
    #[error("-serial file:{path}")]
    Create {
        /// The file.
        path: std::path::PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// No thread for the input.
    #[error("starting the thread that reads the input")]
    Thread(#[source] io::Error),
}

/// Where COM1's output goes.
pub struct Output {
    sink: Sink,
    tail: Tail,
}

/// The end of what was put out, for who wonders what the guest said last.
#[derive(Default)]
struct Tail {
    bytes: VecDeque<u8>,
    written: bool,
}

/// Bytes of output that are remembered.
const TAIL_MAX: usize = 256;

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        self.written = true;
        let kept = bytes.get(bytes.len().saturating_sub(TAIL_MAX)..).unwrap_or(bytes);
        let excess = (self.bytes.len() + kept.len()).saturating_sub(TAIL_MAX);
        self.bytes.drain(..excess);
        self.bytes.extend(kept);
    }

    /// The last line that is not empty, without what a terminal would not show.
    fn last_line(&self) -> String {
        let bytes: Vec<u8> = self.bytes.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let mut lines = text.lines().map(|line| line.replace(|c: char| c.is_control(), ""));
        lines.rfind(|line| !line.trim().is_empty()).unwrap_or_default()
    }
}

enum Sink {
    Null,
    Stdout,
    File(File),
}

impl Output {
    /// As `serial` has it.
    pub fn new(serial: &Serial) -> Result<Self, Error> {
        let sink = match serial {
            Serial::Null => Sink::Null,
            Serial::Stdio | Serial::MonStdio => Sink::Stdout,
            Serial::File(path) => Sink::File(
                File::create(path)
                    .map_err(|source| Error::Create { path: path.clone(), source })?,
            ),
        };
        Ok(Self { sink, tail: Tail::default() })
    }

    /// Nowhere.
    pub fn null() -> Self {
        Self { sink: Sink::Null, tail: Tail::default() }
    }

    /// To a file.
    pub fn file(file: File) -> Self {
        Self { sink: Sink::File(file), tail: Tail::default() }
    }

    /// Writes all of `bytes`. When that is no longer possible, says so once and forgets about
    /// output: a guest does not stop because nobody listens.
    pub fn put(&mut self, bytes: &[u8]) {
        self.tail.push(bytes);
        let result = match &self.sink {
            Sink::Null => return,
            Sink::Stdout => put_all(rustix::stdio::stdout(), bytes),
            Sink::File(file) => put_all(file.as_fd(), bytes),
        };
        if let Err(error) = result {
            say(&format!("serial output: {}; the guest goes on without", io::Error::from(error)));
            self.sink = Sink::Null;
        }
    }

    /// Whether anything was put out.
    pub fn is_written(&self) -> bool {
        self.tail.written
    }

    /// The last line of it.
    pub fn last_line(&self) -> String {
        self.tail.last_line()
    }
}

/// The process is to end.
static LET_GO: AtomicBool = AtomicBool::new(false);

/// From now on, output that nobody takes is dropped: the process is to end.
pub fn let_go() {
    LET_GO.store(true, Ordering::SeqCst);
}

fn put_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or(&[]),
            // A reader that is asked to wait would stop the process from ending.
            Err(Errno::INTR | Errno::AGAIN) if LET_GO.load(Ordering::SeqCst) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let mut ready = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
                match rustix::event::poll(&mut ready, None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Where messages go too.
static LOG: OnceLock<File> = OnceLock::new();

/// From now on, messages go to a file at `path` too.
pub fn log_to(path: &std::path::Path) -> io::Result<()> {
    let file = File::options().append(true).create(true).open(path)?;
    // A second file is not asked for: options are read once.
    let _ = LOG.set(file);
    Ok(())
}

/// A line on standard error, on a terminal that may be in raw mode.
pub fn say(line: &str) {
    let text = format!("microvm: {line}\n");
    // Nobody to tell when this fails.
    let _ = io::stderr().write_all(text.as_bytes());
    if let Some(mut log) = LOG.get() {
        let _ = log.write_all(text.as_bytes());
    }
}

/// The terminal's modes, if it was changed.
static TERMINAL: Mutex<Option<Modes>> = Mutex::new(None);

struct Modes {
    found: Termios,
    raw: Termios,
}

/// Puts the terminal back, if it was changed.
pub fn restore() {
    if let Some(modes) = TERMINAL.lock().unwrap_or_else(PoisonError::into_inner).take() {
        set_mode(&modes.found);
    }
}

/// Lends the terminal, as it was found, to who is there while `body` runs.
pub fn lend(body: impl FnOnce()) {
    let terminal = TERMINAL.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(modes) = &*terminal {
        set_mode(&modes.found);
    }
    body();
    if let Some(modes) = &*terminal {
        set_mode(&modes.raw);
    }
}

fn set_mode(mode: &Termios) {
    // A terminal that is gone needs no mode.
    let _ = termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, mode);
}

/// Puts the terminal back when it goes out of scope.
pub struct Restore(());

impl Drop for Restore {
    fn drop(&mut self) {
        restore();
    }
}

/// Prepares standard input for `serial`, and starts the thread that reads it if there may be
/// something to read.
pub fn start(serial: &Serial, com1: &Arc<Com1>, control: &Arc<Control>) -> Result<Restore, Error> {
    let escapes = match serial {
        Serial::Null | Serial::File(_) => return Ok(Restore(())),
        Serial::Stdio => false,
        Serial::MonStdio => true,
    };
    let stdin = rustix::stdio::stdin();
    if let Ok(mode) = termios::tcgetattr(stdin) {
        let raw = raw_mode(mode.clone(), !escapes);
        let modes = Modes { found: mode, raw: raw.clone() };
        *TERMINAL.lock().unwrap_or_else(PoisonError::into_inner) = Some(modes);
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            hook(info);
        }));
        set_mode(&raw);
    } else if at_end(stdin) {
        return Ok(Restore(()));
    }
    let (com1, control) = (com1.clone(), control.clone());
    signals::spawn("input", move || read_input(&com1, &control, escapes)).map_err(Error::Thread)?;
    Ok(Restore(()))
}

/// Whether nothing will ever come from `stdin`: it is /dev/null or closed.
fn at_end(stdin: BorrowedFd<'_>) -> bool {
    // /dev/null and an empty file are readable at once and yield nothing, but only a read tells
    // them from a file with contents. The null device has a number of its own.
    let null = (1, 3);
    match rustix::fs::fstat(stdin) {
        Ok(stat) => {
            let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
            let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
            kind == rustix::fs::FileType::CharacterDevice && device == null
        }
        Err(_) => true,
    }
}

/// Keys as they are pressed, output as it is; as QEMU's stdio has it.
fn raw_mode(mut mode: Termios, with_signals: bool) -> Termios {
    mode.input_modes -= InputModes::IGNBRK
        | InputModes::BRKINT
        | InputModes::PARMRK
        | InputModes::ISTRIP
        | InputModes::INLCR
        | InputModes::IGNCR
        | InputModes::ICRNL
        | InputModes::IXON;
    mode.output_modes |= OutputModes::OPOST;
    mode.local_modes -=
        LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::IEXTEN;
    if !with_signals {
        mode.local_modes -= LocalModes::ISIG;
    }
    mode.control_modes -= ControlModes::CSIZE | ControlModes::PARENB;
    mode.control_modes |= ControlModes::CS8;
    mode.special_codes[SpecialCodeIndex::VMIN] = 1;
    mode.special_codes[SpecialCodeIndex::VTIME] = 0;
    mode
}

fn read_input(com1: &Com1, control: &Control, escapes: bool) {
    let stdin = rustix::stdio::stdin();
    let mut escape = Escape::default();
    let mut buffer = [0; 256];
    loop {
        match rustix::io::read(stdin, &mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                let input = buffer.get(..count).unwrap_or(&[]);
                if !escapes {
                    com1.send(input);
                } else if !escape.pass(input, com1, control) {
                    return;
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let mut ready = [PollFd::from_borrowed_fd(stdin, PollFlags::IN)];
                let _ = rustix::event::poll(&mut ready, None);
            }
            // A terminal that was hung up.
            Err(_) => return,
        }
    }
}

/// Ctrl-A.
const ESCAPE: u8 = 1;

const HELP: &str = "\r\nC-a h    print this help\r\nC-a x    exit microvm\r\nC-a C-a  send C-a\r\n";

/// The multiplexer's escape: whether the last key was Ctrl-A.
#[derive(Default)]
struct Escape {
    pending: bool,
}

impl Escape {
    /// Passes `input` on without its escapes; false when one of them said to quit.
    fn pass(&mut self, input: &[u8], com1: &Com1, control: &Control) -> bool {
        let (plain, commands) = self.filter(input);
        if !plain.is_empty() {
            com1.send(&plain);
        }
        for command in commands {
            match command {
                Command::Quit => {
                    control.request(Request::QuitByUser);
                    return false;
                }
                Command::Help => {
                    let _ = io::stderr().write_all(HELP.as_bytes());
                }
            }
        }
        true
    }

    fn filter(&mut self, input: &[u8]) -> (Vec<u8>, Vec<Command>) {
        let mut plain = Vec::with_capacity(input.len());
        let mut commands = Vec::new();
        for byte in input {
            match (std::mem::take(&mut self.pending), *byte) {
                (false, ESCAPE) => self.pending = true,
                (true, ESCAPE) => plain.push(ESCAPE),
                (true, b'x' | b'X') => commands.push(Command::Quit),
                (true, b'h' | b'H' | b'?') => commands.push(Command::Help),
                // As in QEMU, another key after the escape is dropped with it.
                (true, _) => {}
                (false, byte) => plain.push(byte),
            }
        }
        (plain, commands)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Quit,
    Help,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_taken_out_also_across_reads() {
        let mut escape = Escape::default();
        assert_eq!(escape.filter(b"ab\x01"), (b"ab".to_vec(), vec![]));
        assert_eq!(escape.filter(b"hc"), (b"c".to_vec(), vec![Command::Help]));
        assert_eq!(escape.filter(b"\x01\x01d\x01q"), (b"\x01d".to_vec(), vec![]));
        assert_eq!(escape.filter(b"\x01x"), (vec![], vec![Command::Quit]));
    }

    #[test]
    fn output_that_is_gone_is_forgotten() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut output = Output::file(File::from(rustix::fd::OwnedFd::from(writer)));
        output.put(b"x");
        assert!(matches!(output.sink, Sink::Null));
        output.put(b"y");
    }
}
