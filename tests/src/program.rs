//! Runs a program to its end, or to a mark in its output, with a deadline.

use std::fmt;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::products::is_nested;

/// What a program printed and how it ended.
pub struct Ended {
    /// Its exit status; `None` when a signal ended it or the deadline passed.
    pub status: Option<i32>,
    /// Standard output, with bytes that are no UTF-8 replaced.
    pub stdout: String,
    /// Standard error, likewise.
    pub stderr: String,
    /// Whether the deadline passed.
    pub timed_out: bool,
    command: String,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.timed_out { "did not end in time" } else { "ended" };
        writeln!(f, "{}\n{how}, status {:?}", self.command, self.status)?;
        writeln!(f, "--- stdout ---\n{}\n--- stderr ---\n{}", self.stdout, self.stderr)
    }
}

/// Runs `command` with `stdin` as its input until it ends, or `deadline` has passed.
pub fn run(command: &mut Command, stdin: &[u8], deadline: Duration) -> Ended {
    run_until(command, deadline, |_| false, stdin)
}

/// Runs `command` until its standard output contains `mark` `times` times, then kills it; or to
/// its end, whatever is first.
pub fn run_until_mark(
    command: &mut Command,
    mark: &str,
    times: usize,
    deadline: Duration,
) -> Ended {
    run_until(command, deadline, |seen| seen.matches(mark).count() >= times, b"")
}

/// Runs `command` and writes `answer` to its input once its output contains `prompt`.
pub fn run_dialogue(
    command: &mut Command,
    prompt: &str,
    answer: &[u8],
    deadline: Duration,
) -> Ended {
    let name = format!("{command:?}");
    let mut running = Running::start(command, &name);
    running.read(deadline, |seen| seen.contains(prompt));
    running.write(answer);
    running.read(deadline, |_| false);
    running.finish(name)
}

/// Runs `command` and sends it `signal`, by kill(1)'s name, once its output contains `prompt`.
pub fn run_signalled(
    command: &mut Command,
    prompt: &str,
    signal: &str,
    deadline: Duration,
) -> Ended {
    let name = format!("{command:?}");
    let mut running = Running::start(command, &name);
    running.read(deadline, |seen| seen.contains(prompt));
    if running.stopped == Stopped::Enough {
        let pid = running.child.id().to_string();
        let status = Command::new("kill").args(["-s", signal, &pid]).status();
        assert!(status.is_ok_and(|status| status.success()), "kill -s {signal} {pid}");
        running.read(deadline, |_| false);
    }
    running.finish(name)
}

/// Runs `command` to its end. Each time its output contains the next of `marks`, calls `act` with
/// that mark and writes a line to its input.
pub fn run_steps(
    command: &mut Command,
    marks: &[&str],
    mut act: impl FnMut(&str),
    deadline: Duration,
) -> Ended {
    let name = format!("{command:?}");
    let mut running = Running::start(command, &name);
    for mark in marks {
        running.read(deadline, |seen| seen.contains(mark));
        if running.stopped != Stopped::Enough {
            return running.finish(name);
        }
        act(mark);
        running.write(b"\n");
    }
    running.read(deadline, |_| false);
    running.finish(name)
}

/// Runs to the end, and in the nested lab once more if that end does not come in time: an emulated
/// host loses a guest now and then (an emulator's bug). It says so; a second loss is a failure.
pub fn retried(run: impl Fn() -> Ended) -> Ended {
    retried_if(is_nested(), run)
}

fn retried_if(is_nested: bool, run: impl Fn() -> Ended) -> Ended {
    let first = run();
    if !first.timed_out || !is_nested {
        return first;
    }
    // Also of a test that passes, whose own output is not shown.
    let why = "no end in time, which may be the emulator's doing: the guest is run again";
    let _ = writeln!(std::io::stderr(), "retried: {why}: {first}");
    run()
}

/// A program that runs while a test does things to it.
pub struct Guest {
    running: Running,
    name: String,
}

impl Guest {
    /// Starts `command`.
    pub fn start(command: &mut Command) -> Self {
        let name = format!("{command:?}");
        Self { running: Running::start(command, &name), name }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.running.child.id()
    }

    /// Waits until its standard output contains `mark`. Panics when that does not come in time.
    pub fn wait_for(&mut self, mark: &str, deadline: Duration) {
        self.running.read(deadline, |seen| seen.contains(mark));
        let seen = String::from_utf8_lossy(&self.running.seen);
        assert!(self.running.stopped == Stopped::Enough, "no {mark}: {}\n{seen}", self.name);
    }

    /// What it has printed so far.
    pub fn seen(&self) -> String {
        String::from_utf8_lossy(&self.running.seen).into_owned()
    }

    /// Writes to its standard input.
    pub fn write(&mut self, bytes: &[u8]) {
        self.running.write(bytes);
    }

    /// Waits for its end.
    pub fn end(mut self, deadline: Duration) -> Ended {
        self.running.read(deadline, |_| false);
        self.running.finish(self.name)
    }
}

fn run_until(
    command: &mut Command,
    deadline: Duration,
    enough: impl Fn(&str) -> bool,
    stdin: &[u8],
) -> Ended {
    let name = format!("{command:?}");
    let mut running = Running::start(command, &name);
    running.write(stdin);
    running.close_stdin();
    running.read(deadline, enough);
    running.finish(name)
}

struct Running {
    child: Child,
    output: Receiver<Vec<u8>>,
    stderr: thread::JoinHandle<Vec<u8>>,
    seen: Vec<u8>,
    stopped: Stopped,
}

/// Why reading stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stopped {
    Enough,
    Closed,
    TimedOut,
}

impl Running {
    fn start(command: &mut Command, name: &str) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let mut stdout = child.stdout.take().expect("piped");
        let mut stderr = child.stderr.take().expect("piped");
        let (sender, output) = channel();
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(length @ 1..) = stdout.read(&mut chunk) {
                if sender.send(chunk[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
        let stderr = thread::spawn(move || {
            let mut bytes = Vec::new();
            // What was read until an error is what there is.
            let _ = stderr.read_to_end(&mut bytes);
            bytes
        });
        Self { child, output, stderr, seen: Vec::new(), stopped: Stopped::Enough }
    }

    /// Reads until there is enough, the program closes its output, or the deadline passes.
    fn read(&mut self, deadline: Duration, enough: impl Fn(&str) -> bool) {
        let end = Instant::now() + deadline;
        while !enough(&String::from_utf8_lossy(&self.seen)) {
            match self.output.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.seen.extend(bytes),
                Err(RecvTimeoutError::Disconnected) => {
                    self.stopped = Stopped::Closed;
                    return;
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.stopped = Stopped::TimedOut;
                    return;
                }
            }
        }
        self.stopped = Stopped::Enough;
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(stdin) = &mut self.child.stdin {
            // A program that ended or closed its input says so by what it prints.
            let _ = stdin.write_all(bytes).and_then(|()| stdin.flush());
        }
    }

    fn close_stdin(&mut self) {
        self.child.stdin = None;
    }

    /// Waits for a program that closed its output, and kills one that did not.
    fn finish(mut self, command: String) -> Ended {
        self.close_stdin();
        if self.stopped != Stopped::Closed {
            // It may have ended by itself in this moment, which is as good.
            let _ = self.child.kill();
        }
        let status = self.child.wait().expect("our own child");
        let stderr = self.stderr.join().expect("the reader does not panic");
        Ended {
            status: status.code(),
            stdout: String::from_utf8_lossy(&self.seen).into_owned(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
            timed_out: self.stopped == Stopped::TimedOut,
            command,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn only_a_guest_that_an_emulator_may_have_lost_is_run_again() {
        for (is_nested, times_out, runs) in [(true, true, 2), (true, false, 1), (false, true, 1)] {
            let count = Cell::new(0);
            let ended = retried_if(is_nested, || {
                count.set(count.get() + 1);
                let (status, command) = (None, String::new());
                let (stdout, stderr) = (String::new(), String::new());
                Ended { status, stdout, stderr, timed_out: times_out, command }
            });
            assert_eq!((count.get(), ended.timed_out), (runs, times_out));
        }
    }
}
