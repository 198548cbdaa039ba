//! The lab's machine: one QEMU process, and what comes out of its serial ports.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, IsTerminal, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use guest::lab as contract;
use rustix::io::FdFlags;

use super::LabRun;
use super::clock::{Progress, Reason, Watch};
use crate::workspace;

/// Kernel messages keep to the third port. The rest takes away what differs between runs:
/// random addresses, and a clock that is measured against another.
const COMMAND_LINE: &str = "console=ttyS2 quiet reboot=t panic=-1 nokaslr norandmaps tsc=reliable";

/// What becomes of the command's standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stdout {
    /// It is ours.
    Pass,
    /// It is kept for the caller.
    Keep,
    /// Both.
    Tee,
}

/// What the machine is started from.
pub struct Machine {
    pub qemu: PathBuf,
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    /// Where the kernel's messages and the command's exit status are written.
    pub console: PathBuf,
}

/// How a machine ended.
pub struct Ended {
    /// The command's exit status, 128 + the signal when it was killed; or why, and where, the
    /// machine was given up before.
    pub status: Result<i32, GivenUp>,
    /// The command's standard output until then, when that is kept.
    pub stdout: Vec<u8>,
}

/// A machine was ended before its command was.
#[derive(Debug)]
pub struct GivenUp {
    pub reason: Reason,
    /// Where its processor was, if QEMU could still tell.
    place: Option<String>,
    /// What its kernel said.
    console: String,
}

impl std::error::Error for GivenUp {}

impl fmt::Display for GivenUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reason, place, console } = self;
        write!(f, "{reason}")?;
        if let Some(place) = place {
            write!(f, ", at {place}")?;
        }
        write!(f, "; what its kernel said is in {console}")
    }
}

impl Machine {
    /// Runs the machine until it powers off, or is given up.
    pub fn run(&self, lab_run: &LabRun, stdout: Stdout) -> Result<Ended> {
        let log_path = self.console.with_file_name("qemu.log");
        let log = File::create(&log_path).context("making QEMU's log")?;
        let console_log = File::create(&self.console).context("making the console's log")?;
        let (errors, errors_in) = inherited_pipe()?;
        let (console, console_in) = inherited_pipe()?;
        let (mut watch, watch_in) = Watch::new()?;
        let input = Input::of(lab_run);

        let mut qemu = self.command(lab_run, errors_in.as_raw_fd(), console_in.as_raw_fd());
        qemu.args(["-chardev", &format!("socket,id=qmp,fd={}", watch_in.as_raw_fd())]);
        qemu.args(["-mon", "chardev=qmp,mode=control"]);
        qemu.stdout(Stdio::piped()).stderr(log).stdin(input.stdio());
        let mut child = qemu.spawn().context("running QEMU")?;
        // Ours would keep the pipes open after QEMU's end.
        drop((errors_in, console_in, watch_in));

        let (ready, when_ready) = mpsc::sync_channel(1);
        let heard = Arc::new(AtomicU64::new(0));
        let counted = heard.clone();
        let errors = thread::spawn(move || {
            let mut errors = errors;
            copy(&mut errors, &mut io::stderr(), &counted)
        });
        let console = thread::spawn(move || keep_console(console, console_log, &ready));
        if let Some(wire) = child.stdin.take() {
            // Not joined: it may wait for input that nobody reads any more.
            thread::spawn(move || send_input(wire, &when_ready));
        }
        let output = collect(&mut child, stdout, &heard)?;
        let qemu = child.id();
        let is_still = || if lab_run.icount { watch.is_still(qemu) } else { watch.is_idle(qemu) };
        let end = wait(&output.ended, lab_run, is_still, &heard);
        let end = end.map_err(|reason| self.given_up(reason, watch.place()));
        if end.is_err() {
            child.kill().context("ending QEMU")?;
        }
        let qemu_status = child.wait().context("waiting for QEMU")?;
        let stdout = join(output.thread)?;
        join(errors)?;
        let said = join(console)?;

        if let Err(given_up) = end {
            return Ok(Ended { status: Err(given_up), stdout });
        }
        if !qemu_status.success() {
            let log = fs::read_to_string(&log_path).unwrap_or_default();
            let last = log.lines().last().unwrap_or("nothing");
            bail!("QEMU ended with {qemu_status}, saying: {last}");
        }
        match parse_status(&String::from_utf8_lossy(&said)) {
            Some(Ok(status)) => Ok(Ended { status: Ok(status), stdout }),
            Some(Err(reason)) => bail!("the lab could not run the command: {reason}"),
            None => Ok(Ended { status: Err(self.given_up(Reason::Stopped, None)), stdout }),
        }
    }

    fn given_up(&self, reason: Reason, place: Option<String>) -> GivenUp {
        GivenUp { reason, place, console: workspace::shown(&self.console).to_string() }
    }

    fn command(&self, lab_run: &LabRun, errors: RawFd, console: RawFd) -> Command {
        // util-linux' setpriv: who ends us ends the machine.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", "--"]).arg(&self.qemu);
        qemu.args(["-accel", "tcg,thread=single", "-cpu", "EPYC,+svm,+npt", "-M", "q35"]);
        qemu.args(["-m", &format!("{}M", lab_run.memory_mib), "-smp", "1"]);
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        if lab_run.icount {
            // Virtual time alone, and always the same dates and random numbers.
            qemu.args(["-icount", "shift=0,sleep=off", "-seed", "1"]);
            qemu.args(["-rtc", "base=2026-01-01T00:00:00,clock=vm"]);
        }
        qemu.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initrd);
        qemu.args(["-append", COMMAND_LINE]);
        // The file back-end writes until all is written; the stdio one may drop bytes when its
        // reader is slow, but is the only one that reads, and that knows about terminals.
        let output = if lab_run.stdin { "stdio,id=out,signal=on" } else { FILE_STDOUT };
        qemu.args(["-chardev", output, "-serial", "chardev:out"]);
        qemu.args(["-chardev", &format!("file,id=err,path=/proc/self/fd/{errors}")]);
        qemu.args(["-serial", "chardev:err"]);
        qemu.args(["-chardev", &format!("file,id=console,path=/proc/self/fd/{console}")]);
        qemu.args(["-serial", "chardev:console"]);
        qemu
    }
}

/// Waits for the machine's end; says why it does not come. `heard` counts what the command prints.
fn wait(
    ended: &mpsc::Receiver<()>,
    lab_run: &LabRun,
    mut is_still: impl FnMut() -> bool,
    heard: &AtomicU64,
) -> Result<(), Reason> {
    let start = Instant::now();
    let mut voice = Progress::new();
    while ended.recv_timeout(GLANCE) == Err(mpsc::RecvTimeoutError::Timeout) {
        if start.elapsed() > lab_run.timeout {
            return Err(Reason::Late(lab_run.timeout));
        }
        if is_still() {
            return Err(Reason::StoodStill);
        }
        let heard = Some(heard.load(Ordering::Relaxed));
        if let Some(silence) = lab_run.silence
            && voice.is_still(heard, 1, silence, Instant::now())
        {
            return Err(Reason::Silent(silence));
        }
    }
    Ok(())
}

/// How often the machine's clock is looked at.
const GLANCE: Duration = Duration::from_secs(1);

const FILE_STDOUT: &str = "file,id=out,path=/proc/self/fd/1";

/// Where the command's input comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// It reads nothing.
    Nothing,
    /// QEMU reads it and sets its modes; who types waits for the command to start.
    Terminal,
    /// We send it when the command starts.
    Stream,
}

impl Input {
    /// What the caller asked for, and what our own input is.
    pub fn of(lab_run: &LabRun) -> Self {
        match (lab_run.stdin, io::stdin().is_terminal()) {
            (false, _) => Self::Nothing,
            (true, true) => Self::Terminal,
            (true, false) => Self::Stream,
        }
    }

    /// The word by which the lab's init knows it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Nothing => contract::STDIN_NULL,
            Self::Terminal => contract::STDIN_TERMINAL,
            Self::Stream => contract::STDIN_RAW,
        }
    }

    fn stdio(self) -> Stdio {
        match self {
            Self::Nothing => Stdio::null(),
            Self::Terminal => Stdio::inherit(),
            Self::Stream => Stdio::piped(),
        }
    }
}

/// A pipe, the inner end of which a child can open by its number.
fn inherited_pipe() -> Result<(PipeReader, PipeWriter)> {
    let (outer, inner) = io::pipe().context("making a pipe")?;
    rustix::io::fcntl_setfd(&inner, FdFlags::empty()).context("letting a child have a pipe")?;
    Ok((outer, inner))
}

fn send_input(mut wire: impl Write, when_ready: &mpsc::Receiver<()>) {
    if when_ready.recv().is_ok() {
        // It ends with our input, or when nobody takes it any more: both are no news.
        let _ = copy(&mut io::stdin(), &mut wire, &AtomicU64::new(0));
    }
}

/// Writes what the kernel says into its log, and says when the command starts.
fn keep_console(
    mut console: PipeReader,
    mut log: File,
    ready: &mpsc::SyncSender<()>,
) -> io::Result<Vec<u8>> {
    let mut said = Vec::new();
    let mut chunk = [0; 4096];
    let mut announced = false;
    loop {
        let length = match console.read(&mut chunk) {
            Ok(0) => return Ok(said),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let piece = chunk.get(..length).unwrap_or_default();
        log.write_all(piece)?;
        said.extend_from_slice(piece);
        if !announced && has_line(&said, contract::READY) {
            announced = ready.try_send(()).is_ok();
        }
    }
}

fn has_line(text: &[u8], wanted: &str) -> bool {
    text.split(|&byte| byte == b'\n').any(|line| line.trim_ascii_end() == wanted.as_bytes())
}

/// The machine's output on its way.
struct Output {
    /// Hangs up when QEMU closes its output, at its end.
    ended: mpsc::Receiver<()>,
    thread: thread::JoinHandle<io::Result<Vec<u8>>>,
}

fn collect(child: &mut Child, stdout: Stdout, heard: &Arc<AtomicU64>) -> Result<Output> {
    let heard = heard.clone();
    let mut pipe = child.stdout.take().context("QEMU has no output")?;
    let (sender, ended) = mpsc::sync_channel(1);
    let thread = thread::spawn(move || {
        let mut kept = Vec::new();
        let outcome = match stdout {
            Stdout::Pass => copy(&mut pipe, &mut io::stdout(), &heard),
            Stdout::Keep => copy(&mut pipe, &mut kept, &heard),
            Stdout::Tee => copy(&mut pipe, &mut Tee(&mut kept, io::stdout()), &heard),
        };
        // The receiver waits until the time is over, then does not care.
        let _ = sender.send(());
        outcome.map(|()| kept)
    });
    Ok(Output { ended, thread })
}

/// Writes to both.
struct Tee<'a, W>(&'a mut Vec<u8>, W);

impl<W: Write> Write for Tee<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend(bytes);
        self.1.write_all(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.1.flush()
    }
}

/// Copies to the end, each piece at once, and adds its length to `count`. When the reader of our
/// output has left, what remains is thrown away: QEMU must not wait for it.
fn copy(from: &mut impl Read, to: &mut impl Write, count: &AtomicU64) -> io::Result<()> {
    let mut chunk = [0; 64 * 1024];
    let mut reader_left = false;
    loop {
        let length = match from.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let piece = chunk.get(..length).unwrap_or_default();
        count.fetch_add(length as u64, Ordering::Relaxed);
        if !reader_left {
            reader_left = to.write_all(piece).and_then(|()| to.flush()).is_err();
        }
    }
}

fn join<T>(thread: thread::JoinHandle<io::Result<T>>) -> Result<T> {
    match thread.join() {
        Ok(outcome) => outcome.context("passing the lab's output on"),
        Err(_) => bail!("passing the lab's output on: a thread panicked"),
    }
}

/// The command's exit status, or why it was not run; `None` when the lab does not say.
fn parse_status(console: &str) -> Option<Result<i32, String>> {
    console.lines().rev().map(str::trim_end).find_map(|line| {
        if let Some(reason) = line.strip_prefix(contract::ERROR) {
            return Some(Err(reason.to_owned()));
        }
        line.strip_prefix(contract::STATUS)?.parse().ok().map(Ok)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_status_line_counts() {
        let console = "[    1.2] noise\r\nlab-exit-status=3\r\n\r\nlab-exit-status=7\r\n[ 9] off";
        assert_eq!(parse_status(console), Some(Ok(7)));
        assert_eq!(
            parse_status("lab-error=loading kvm: no\n"),
            Some(Err("loading kvm: no".into()))
        );
        for silent in ["", "Kernel panic - not syncing", "lab-exit-status=", "xlab-exit-status=1"] {
            assert_eq!(parse_status(silent), None, "{silent:?}");
        }
    }

    #[test]
    fn output_is_copied_byte_for_byte() {
        let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
        let mut copied = Vec::new();
        let count = AtomicU64::new(0);
        copy(&mut bytes.as_slice(), &mut copied, &count).unwrap();
        assert_eq!(count.into_inner(), 100_000);
        assert_eq!(copied, bytes);
    }

    #[test]
    fn a_reader_that_left_does_not_stop_the_copy() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut source = &[0; 200_000][..];
        copy(&mut source, &mut Closed, &AtomicU64::new(0)).unwrap();
        assert!(source.is_empty());
    }

    #[test]
    fn the_command_starts_with_a_whole_line() {
        assert!(has_line(b"[ 1] x\r\nlab-ready\r\n", "lab-ready"));
        assert!(!has_line(b"[ 1] x\r\nlab-rea", "lab-ready"));
    }
}
