//! The terminal that the process was started on, and what it is told.
//!
//! As a console's other end (see [`crate::chardev`]) it is changed: keys go to the guest as they
//! are pressed. Whatever way the process ends by itself, the terminal is put back: the mode is kept
//! in one place, and [`restore`] is called on the way out and by the panic hook.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::BorrowedFd;
use rustix::fs::{FileType, Stat};
use rustix::termios::{
    self, ControlModes, InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex,
    Termios,
};

use crate::signals;

/// How often the process was asked to end.
static REQUESTS: AtomicU32 = AtomicU32::new(0);

/// The process is asked to end: from now on nobody waits for who takes output.
pub fn let_go() {
    REQUESTS.fetch_add(1, Ordering::SeqCst);
}

/// Whether it was asked.
pub fn is_let_go() -> bool {
    requests() > 0
}

/// How often.
pub fn requests() -> u32 {
    REQUESTS.load(Ordering::SeqCst)
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
    let end = if is_output_raw() { "\r\n" } else { "\n" };
    let text = format!("microvm: {line}{end}");
    if is_heard() {
        // Nobody to tell when this fails.
        let _ = io::stderr().write_all(text.as_bytes());
    }
    if let Some(mut log) = LOG.get() {
        let _ = log.write_all(text.as_bytes());
    }
}

/// How long somebody who reads standard error may take until lines are left out.
const HEARING: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Whether standard error takes a line without a wait, or soon: a pipe that nobody empties, which
/// may be the console's as well, stops nobody who has something to say.
fn is_heard() -> bool {
    static WAS: AtomicBool = AtomicBool::new(true);
    let patience = if WAS.load(Ordering::SeqCst) { HEARING } else { Timespec::default() };
    let mut ready = [PollFd::from_borrowed_fd(rustix::stdio::stderr(), PollFlags::OUT)];
    let is_ready = rustix::event::poll(&mut ready, Some(&patience)) != Ok(0);
    WAS.store(is_ready, Ordering::SeqCst);
    is_ready
}

/// All lines of `log`, as what `who` said.
pub fn say_all(who: &str, log: &mut File) {
    let mut text = Vec::new();
    // A log that cannot be read is not what failed.
    let _ = log.rewind().and_then(|()| log.read_to_end(&mut text));
    for line in String::from_utf8_lossy(&text).lines().filter(|line| !line.trim().is_empty()) {
        say(&format!("{who}: {}", line.trim_end()));
    }
}

/// The terminal, if keys are taken from it.
static TERMINAL: Mutex<Terminal> = Mutex::new(Terminal::Free);

/// How a terminal is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// The keys that ask a process to end or to stop do so; what is put out begins new lines by
    /// itself.
    WithSignals,
    /// All keys are a guest's; what is put out begins new lines by itself, as in QEMU.
    All,
    /// All keys are a guest's, which has a terminal of its own that begins new lines.
    AllOfTerminal,
}

enum Terminal {
    /// Nobody has wanted it yet.
    Free,
    /// It is used.
    Taken(Use),
    /// It was put back for good: who still starts does not get it any more.
    Over,
}

struct Use {
    keys: Keys,
    /// Its mode before it was changed, while it is.
    found: Option<Termios>,
}

impl Terminal {
    fn used(&mut self) -> Option<&mut Use> {
        match self {
            Self::Taken(used) => Some(used),
            Self::Free | Self::Over => None,
        }
    }
}

impl Use {
    /// Has keys come as they are pressed. In the background its mode is the foreground job's. Who
    /// has stopped us without a word (SIGSTOP) has put another mode in place meanwhile.
    fn take(&mut self) {
        let Ok(mode) = termios::tcgetattr(rustix::stdio::stdin()) else { return };
        if is_in_foreground() {
            set_mode(&raw_mode(mode.clone(), self.keys));
            self.found.get_or_insert(mode);
        }
    }

    /// Puts it back, if it was changed.
    fn give_back(&mut self) {
        // Who has sent us to the background has put it back already.
        if let Some(mode) = self.found.take().filter(|_| is_in_foreground()) {
            set_mode(&mode);
        }
    }
}

fn terminal() -> MutexGuard<'static, Terminal> {
    TERMINAL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts the terminal back, if it was changed, for good.
pub fn restore() {
    if let Terminal::Taken(mut used) = std::mem::replace(&mut *terminal(), Terminal::Over) {
        used.give_back();
    }
}

/// Lends the terminal, as it was found, to who is there while `body` runs.
pub fn lend(body: impl FnOnce()) {
    terminal().used().into_iter().for_each(Use::give_back);
    body();
    resume();
}

/// The process goes on after it was stopped, in the foreground perhaps.
pub fn resume() {
    terminal().used().into_iter().for_each(Use::take);
}

fn set_mode(mode: &Termios) {
    // A terminal that is gone needs no mode. One that was taken from us just now would stop us.
    let set = || termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, mode);
    let _ = signals::masked(&[], set);
}

/// Whether standard input is a terminal that may have keys for us later: it is there, and what it
/// has is another job's.
pub fn is_lent() -> bool {
    let is_there = termios::tcgetattr(rustix::stdio::stdin()).is_ok();
    is_there && terminal().used().is_some()
}

/// Whether the terminal that is standard input is this process's to use: a shell gives it to one
/// job at a time.
pub fn is_in_foreground() -> bool {
    let owner = termios::tcgetpgrp(rustix::stdio::stdin());
    // One that is not this session's terminal has no such owner.
    owner.map_or(true, |owner| owner == rustix::process::getpgrp())
}

/// Has keys come as they are pressed, if standard input is a terminal, whenever this process is in
/// its foreground. Whether there may be something to read.
pub fn take_terminal(keys: Keys) -> bool {
    let stdin = rustix::stdio::stdin();
    if termios::tcgetattr(stdin).is_err() {
        return !at_end(stdin);
    }
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore();
        hook(info);
    }));
    let mut terminal = terminal();
    if let Terminal::Free = *terminal {
        *terminal = Terminal::Taken(Use { keys, found: None });
    }
    terminal.used().map(Use::take).is_some()
}

/// Whether a line on standard error must say by itself that it goes back to the margin.
fn is_output_raw() -> bool {
    let mut terminal = terminal();
    let is_raw = |used: &Use| used.keys == Keys::AllOfTerminal && used.found.is_some();
    terminal.used().is_some_and(|used| is_raw(used)) && rustix::termios::isatty(io::stderr())
}

/// Whether nothing will ever come from `stdin`: it is /dev/null or closed.
fn at_end(stdin: BorrowedFd<'_>) -> bool {
    // /dev/null and an empty file are readable at once and yield nothing, but only a read tells
    // them from a file with contents.
    rustix::fs::fstat(stdin).map_or(true, |stat| is_null_device(&stat))
}

/// Whether that is /dev/null, which has a number of its own.
pub fn is_null_device(stat: &Stat) -> bool {
    let kind = FileType::from_raw_mode(stat.st_mode);
    let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    kind == FileType::CharacterDevice && device == (1, 3)
}

/// Keys as they are pressed.
fn raw_mode(mut mode: Termios, keys: Keys) -> Termios {
    mode.input_modes -= InputModes::IGNBRK
        | InputModes::BRKINT
        | InputModes::PARMRK
        | InputModes::ISTRIP
        | InputModes::INLCR
        | InputModes::IGNCR
        | InputModes::ICRNL
        | InputModes::IXON;
    mode.output_modes.set(OutputModes::OPOST, keys != Keys::AllOfTerminal);
    mode.local_modes -=
        LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::IEXTEN;
    if keys != Keys::WithSignals {
        mode.local_modes -= LocalModes::ISIG;
    }
    mode.control_modes -= ControlModes::CSIZE | ControlModes::PARENB;
    mode.control_modes |= ControlModes::CS8;
    mode.special_codes[SpecialCodeIndex::VMIN] = 1;
    mode.special_codes[SpecialCodeIndex::VTIME] = 0;
    mode
}
