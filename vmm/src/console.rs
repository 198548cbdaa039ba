//! The terminal that the process was started on, and what it is told.
//!
//! As a console's other end (see [`crate::chardev`]) it is changed: keys go to the guest as they
//! are pressed. Whatever way the process ends by itself, the terminal is put back: the mode is kept
//! in one place, and [`restore`] is called on the way out and by the panic hook.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::fd::BorrowedFd;
use rustix::fs::{FileType, Stat};
use rustix::termios::{
    self, ControlModes, InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex,
    Termios,
};

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
    let text = format!("microvm: {line}\n");
    // Nobody to tell when this fails.
    let _ = io::stderr().write_all(text.as_bytes());
    if let Some(mut log) = LOG.get() {
        let _ = log.write_all(text.as_bytes());
    }
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

/// Whether the terminal that is standard input is this process's to use: a shell gives it to one
/// job at a time.
pub fn is_in_foreground() -> bool {
    let owner = termios::tcgetpgrp(rustix::stdio::stdin());
    // One that is not this session's terminal has no such owner.
    owner.map_or(true, |owner| owner == rustix::process::getpgrp())
}

/// Has keys come as they are pressed, if standard input is a terminal; `with_signals` leaves the
/// keys that ask a process to end or to stop. Whether there may be something to read.
pub fn take_terminal(with_signals: bool) -> bool {
    let stdin = rustix::stdio::stdin();
    let Ok(mode) = termios::tcgetattr(stdin) else { return !at_end(stdin) };
    if !is_in_foreground() {
        // Its modes are the foreground job's, and so are its keys.
        return false;
    }
    let raw = raw_mode(mode.clone(), with_signals);
    let modes = Modes { found: mode, raw: raw.clone() };
    *TERMINAL.lock().unwrap_or_else(PoisonError::into_inner) = Some(modes);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore();
        hook(info);
    }));
    set_mode(&raw);
    true
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
