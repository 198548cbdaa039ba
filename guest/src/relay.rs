//! Between the host and the command: bytes both ways, signals, the end.

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixStream;

use abi::workload::Kind;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::fcntl_getpipe_size;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, kill_process_group, wait};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::orders::Orders;
use crate::port::Port;
use crate::{command, context};

/// Bytes that are read of the command at a time.
const PIECE: usize = 16 << 10;

/// What a terminal holds at the most for who reads it, and more than that.
const TERMINAL_HOLDS: usize = 64 << 10;

/// Output of the command: where it comes from, and what it is to the host.
struct Source {
    fd: OwnedFd,
    kind: Kind,
    /// Bytes that are still to be taken of it.
    left: usize,
}

impl Source {
    fn new(fd: OwnedFd, kind: Kind) -> Self {
        Self { fd, kind, left: usize::MAX }
    }

    /// The command has ended: what is in there now is to be taken, and not what those that it left
    /// behind write for ever.
    fn bound(&mut self) {
        self.left = fcntl_getpipe_size(&self.fd).unwrap_or(TERMINAL_HOLDS);
    }
}

/// A running command.
pub struct Relay {
    command: Pid,
    /// Tells its status.
    end: UnixStream,
    status: Option<u8>,
    /// Its input: nobody's, when it has ended.
    sink: Option<OwnedFd>,
    /// What it has not taken yet.
    input: VecDeque<u8>,
    input_ended: bool,
    sources: Vec<Source>,
    /// The terminal, if there is one.
    terminal: Option<OwnedFd>,
}

impl Relay {
    /// Starts the command.
    pub fn start(orders: &Orders) -> io::Result<Self> {
        let starting = |error| context(error, "starting the command");
        let (sink, sources, terminal, command) = match orders.terminal {
            true => on_terminal(orders).map_err(starting)?,
            false => on_pipes(orders).map_err(starting)?,
        };
        let (end, teller) = UnixStream::pair()?;
        end.set_nonblocking(true)?;
        std::thread::Builder::new().spawn(move || bury(command, teller))?;
        let (status, input, sink) = (None, VecDeque::new(), Some(sink));
        Ok(Self { command, end, status, sink, input, input_ended: false, sources, terminal })
    }

    /// Carries bytes until the command has ended, and says how it did.
    pub fn run(mut self, port: &mut Port) -> io::Result<()> {
        port.send(Kind::Begun, &[]);
        port.pass_on()?;
        loop {
            self.wait(port)?;
            port.receive()?;
            while let Some((kind, payload)) = port.next()? {
                self.hear(kind, &payload);
            }
            self.feed(port);
            self.look_for_end();
            let quiet = self.collect(port);
            port.pass_on()?;
            if let (Some(status), true) = (self.status, quiet) {
                return port.conclude(Kind::Status, &[status]);
            }
        }
    }

    /// Waits until something can be done.
    fn wait(&self, port: &Port) -> io::Result<()> {
        let mut files = vec![PollFd::new(port, port.interest())];
        if self.status.is_none() {
            files.push(PollFd::new(&self.end, PollFlags::IN));
        }
        if let Some(sink) = self.sink.as_ref().filter(|_| !self.input.is_empty()) {
            files.push(PollFd::new(sink, PollFlags::OUT));
        }
        if !port.is_full() {
            files.extend(self.sources.iter().map(|source| PollFd::new(&source.fd, PollFlags::IN)));
        }
        match poll(&mut files, None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Does what the host says.
    fn hear(&mut self, kind: Kind, payload: &[u8]) {
        match (kind, payload) {
            // Nobody types on a terminal any more.
            (Kind::Input, []) if self.terminal.is_some() => self.hang_up(),
            (Kind::Input, []) => self.input_ended = true,
            (Kind::Input, bytes) => self.input.extend(bytes),
            (Kind::Size, [r0, r1, c0, c1]) => {
                if let Some(terminal) = &self.terminal {
                    set_size(terminal, [[*r0, *r1], [*c0, *c1]].map(u16::from_le_bytes));
                }
            }
            (Kind::Signal, [number]) => {
                let signal = Signal::from_named_raw((*number).into());
                if let Some(signal) = signal.filter(|_| self.status.is_none()) {
                    // It may be about to end by itself.
                    let _ = kill(self.command, signal);
                }
            }
            // Nobody sees the terminal any more.
            (Kind::Closed, [number])
                if self.terminal.is_some() && *number == Kind::Output as u8 =>
            {
                self.hang_up();
            }
            // The command gets SIGPIPE when it goes on.
            (Kind::Closed, [number]) => {
                self.sources.retain(|source| source.kind as u8 != *number);
            }
            _ => {}
        }
    }

    /// The terminal is gone, of which the kernel tells the command by SIGHUP.
    fn hang_up(&mut self) {
        self.terminal = None;
        self.sink = None;
        self.sources.retain(|source| source.kind != Kind::Output);
    }

    /// Gives the command its input.
    fn feed(&mut self, port: &mut Port) {
        let mut taken = 0;
        while let (Some(sink), false) = (&self.sink, self.input.is_empty()) {
            let (bytes, _) = self.input.as_slices();
            match rustix::io::write(sink, bytes) {
                Ok(count) => {
                    self.input.drain(..count);
                    taken += count;
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                // It wants no more.
                Err(_) => self.sink = None,
            }
        }
        if self.sink.is_none() {
            taken += self.input.len();
            self.input.clear();
        } else if self.input_ended && self.input.is_empty() && self.terminal.is_none() {
            self.sink = None;
        }
        if let Some(taken) = u32::try_from(taken).ok().filter(|taken| *taken > 0) {
            port.send(Kind::Taken, &taken.to_le_bytes());
        }
    }

    fn look_for_end(&mut self) {
        let mut status = [0];
        if self.status.is_none() && rustix::io::read(&self.end, &mut status) == Ok(1) {
            self.status = Some(status[0]);
            self.sources.iter_mut().for_each(Source::bound);
        }
    }

    /// Takes the command's output; whether there is none left.
    fn collect(&mut self, port: &mut Port) -> bool {
        let mut bytes = vec![0; PIECE];
        let mut quiet = true;
        self.sources.retain_mut(|source| {
            loop {
                if port.is_full() {
                    quiet = false;
                    break true;
                }
                let room = source.left.min(PIECE);
                match rustix::io::read(&source.fd, bytes.get_mut(..room).unwrap_or_default()) {
                    // A terminal that nobody has open says so by an error.
                    Ok(0) | Err(Errno::IO) => break false,
                    Ok(count) => {
                        port.send(source.kind, bytes.get(..count).unwrap_or_default());
                        source.left = source.left.saturating_sub(count);
                    }
                    Err(Errno::INTR) => {}
                    Err(_) => break true,
                }
            }
        });
        quiet
    }
}

type Started = (OwnedFd, Vec<Source>, Option<OwnedFd>, Pid);

fn on_terminal(orders: &Orders) -> io::Result<Started> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = openpt(flags)?;
    unlockpt(&ours)?;
    set_size(&ours, orders.size);
    let theirs = ioctl_tiocgptpeer(&ours, flags)?;
    do_not_wait(&ours)?;
    let mut sources = vec![Source::new(ours.try_clone()?, Kind::Output)];
    let stderr = match orders.error_apart {
        true => output_pipe(Kind::Error, &mut sources)?,
        false => theirs.try_clone()?,
    };
    let command = command::start(orders, [theirs.try_clone()?, theirs, stderr])?;
    Ok((ours.try_clone()?, sources, Some(ours), command))
}

fn set_size(terminal: &OwnedFd, [ws_row, ws_col]: [u16; 2]) {
    // A terminal without a size is one.
    let _ = tcsetwinsize(terminal, Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 });
}

/// What a terminal asks for goes to all of a job, and so to all that the command, which leads one,
/// has started in it. Anything else is for the command alone.
fn kill(command: Pid, signal: Signal) -> Result<(), Errno> {
    match signal {
        Signal::INT | Signal::QUIT | Signal::HUP => {
            // It may be about to make its job.
            kill_process_group(command, signal).or_else(|_| kill_process(command, signal))
        }
        _ => kill_process(command, signal),
    }
}

fn on_pipes(orders: &Orders) -> io::Result<Started> {
    let (stdin, sink) = io::pipe()?;
    let sink = OwnedFd::from(sink);
    do_not_wait(&sink)?;
    let mut sources = Vec::new();
    let stdout = output_pipe(Kind::Output, &mut sources)?;
    let stderr = output_pipe(Kind::Error, &mut sources)?;
    let command = command::start(orders, [OwnedFd::from(stdin), stdout, stderr])?;
    Ok((sink, sources, None, command))
}

/// A pipe for output of the command: its end of it. Ours is one of the sources.
fn output_pipe(kind: Kind, sources: &mut Vec<Source>) -> io::Result<OwnedFd> {
    let (ours, theirs) = io::pipe()?;
    do_not_wait(&ours)?;
    sources.push(Source::new(ours.into(), kind));
    Ok(theirs.into())
}

fn do_not_wait(fd: impl AsFd) -> io::Result<()> {
    let flags = fcntl_getfl(&fd)?;
    Ok(fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?)
}

/// Waits for all that die, as pid 1 must, and tells the command's status, as a shell has it.
fn bury(command: Pid, mut teller: UnixStream) {
    use std::io::Write;
    loop {
        let (pid, status) = match wait(WaitOptions::empty()) {
            Ok(Some(end)) => end,
            Ok(None) | Err(Errno::INTR) => continue,
            // Nobody is left.
            Err(_) => return,
        };
        if pid == command {
            let signal = || status.terminating_signal().map(|signal| 128 + signal);
            let status = status.exit_status().or_else(signal).unwrap_or(1);
            // Who listens has its end as long as it runs.
            let _ = teller.write_all(&[status.to_le_bytes()[0]]);
        }
    }
}
