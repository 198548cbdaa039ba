//! What a guest writes reaches its reader; one that stands still stops no more.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use regression::products::product;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

/// Far above what anything here takes.
const DEADLINE: Duration = Duration::from_secs(60);
/// Bytes with which a pipe is no longer ready: its last page is begun.
const PIPE: u64 = 60 << 10;
/// Lines of 64 bytes that a pipe and a console do not hold together.
const MANY_LINES: usize = 0xa00;

fn payload(append: &str, serial: &str) -> Command {
    let mut command = Command::new(product("microvm"));
    command.args(["-nodefaults", "-m", "64M", "-append", append, "-serial", serial]);
    command.arg("-kernel").arg(product("payload.bzImage"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < DEADLINE, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Connects to a socket that somebody is about to make.
fn connect(path: &Path) -> UnixStream {
    let mut stream = None;
    wait_until("the socket is there", || {
        stream = UnixStream::connect(path).ok();
        stream.is_some()
    });
    let stream = stream.unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// A client of QMP.
struct Qmp {
    answers: BufReader<UnixStream>,
}

impl Qmp {
    fn connect(path: &Path) -> Self {
        let stream = connect(path);
        let mut qmp = Self { answers: BufReader::new(stream) };
        qmp.execute("qmp_capabilities");
        qmp
    }

    fn execute(&mut self, command: &str) -> serde_json::Value {
        writeln!(self.answers.get_ref(), "{{\"execute\":\"{command}\"}}").unwrap();
        loop {
            let mut line = String::new();
            self.answers.read_line(&mut line).unwrap();
            let mut answer: serde_json::Value = serde_json::from_str(&line).unwrap();
            if let Some(value) = answer.get_mut("return") {
                return value.take();
            }
            assert!(answer.get("error").is_none(), "{command}: {answer}");
        }
    }

    fn check_status(&mut self, expected: &str) {
        assert_eq!(self.execute("query-status")["status"], expected);
    }
}

/// A machine whose standard output nobody reads.
struct Stuck {
    child: Child,
    qmp: Qmp,
    _folder: tempfile::TempDir,
}

impl Stuck {
    /// Of a payload with these words, once the pipe is full.
    fn start(append: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp");
        let mut command = payload(append, "stdio");
        command.arg("-qmp").arg(format!("unix:{},server,nowait", path.display()));
        let child = command.spawn().unwrap();
        let qmp = Qmp::connect(&path);
        let io = format!("/proc/{}/io", child.id());
        let (mut before, mut quiet) = (0, 0);
        wait_until("the pipe is full", || {
            let io = std::fs::read_to_string(&io).unwrap();
            let written = io.lines().find_map(|line| line.strip_prefix("wchar: "));
            let written: u64 = written.unwrap().parse().unwrap();
            quiet = if written == before { quiet + 1 } else { 0 };
            before = written;
            written > PIPE && quiet == 300
        });
        Self { child, qmp, _folder: folder }
    }

    /// Stops the machine, and has it go on.
    fn stop_and_go_on(&mut self) {
        self.qmp.check_status("running");
        self.qmp.execute("stop");
        self.qmp.check_status("paused");
        self.qmp.execute("cont");
        self.qmp.check_status("running");
    }

    fn terminate(&self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    }

    /// What there is to read now, to its end.
    fn read(&mut self) -> String {
        let mut text = String::new();
        self.child.stdout.as_mut().unwrap().read_to_string(&mut text).unwrap();
        text
    }

    /// How it ended, and its messages.
    fn ended(&mut self) -> (std::process::ExitStatus, String) {
        let status = self.child.wait().unwrap();
        let mut said = String::new();
        self.child.stderr.as_mut().unwrap().read_to_string(&mut said).unwrap();
        (status, said)
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines that a payload printed begin with the first, and none of them is left out; how many
/// are whole.
fn count_lines(text: &str) -> usize {
    let lines: Vec<_> = text.split_inclusive('\n').filter(|l| l.starts_with("line=")).collect();
    let whole = lines.iter().filter(|line| line.ends_with('\n'));
    for (line, number) in whole.clone().zip(0..) {
        assert_eq!(line.trim_end(), format!("line={number:058}"));
    }
    whole.count()
}

#[test]
fn a_reader_that_stands_still_stops_only_the_console() {
    let mut machine = Stuck::start(&format!("print={MANY_LINES:#x} leave=power-off"));
    // Meanwhile the console fills, and from then on its guest waits.
    for _ in 0..40 {
        machine.stop_and_go_on();
        std::thread::sleep(Duration::from_millis(100));
    }
    let text = machine.read();
    assert_eq!(count_lines(&text), MANY_LINES);
    assert!(text.contains("guest-facts-end"), "{text}");
    let (status, said) = machine.ended();
    assert_eq!((status.code(), said.as_str()), (Some(0), ""));
}

#[test]
fn what_a_guest_had_written_is_passed_on_when_it_is_ended() {
    let mut machine = Stuck::start(&format!("print={MANY_LINES:#x}"));
    machine.qmp.execute("quit");
    let text = machine.read();
    assert!(text.len() as u64 > PIPE, "{}", text.len());
    assert!(count_lines(&text) > 100);
    let (status, said) = machine.ended();
    assert_eq!((status.code(), said.as_str()), (Some(0), ""));
}

#[test]
fn a_machine_ends_though_nobody_ever_reads() {
    let mut machine = Stuck::start(&format!("print={MANY_LINES:#x}"));
    machine.qmp.execute("quit");
    let (status, said) = machine.ended();
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(said.contains("bytes of output that nobody took are dropped"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn a_machine_whose_console_stands_still_heeds_sigterm() {
    let mut machine = Stuck::start(&format!("print={MANY_LINES:#x}"));
    machine.terminate();
    // The second must not come before the first was taken, or both are one.
    assert_ne!(machine.child.stderr.as_mut().unwrap().read(&mut [0; 80]).unwrap(), 0);
    machine.terminate();
    assert_eq!(machine.ended().0.signal(), Some(15));
}

#[test]
fn a_machine_whose_console_stands_still_is_reset() {
    let mut machine = Stuck::start(&format!("print={MANY_LINES:#x} leave=halt"));
    machine.qmp.execute("system_reset");
    let mut output = BufReader::new(machine.child.stdout.take().unwrap());
    let mut starts = 0;
    let mut line = String::new();
    while starts < 2 {
        line.clear();
        assert_ne!(output.read_line(&mut line).unwrap(), 0);
        starts += usize::from(line.contains("guest-facts-begin"));
    }
}

/// Talks with a payload that echoes, over `stream`.
fn talk(stream: impl Read + Write, word: &str) {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while !line.contains("guest-echo-ready") {
        line.clear();
        assert_ne!(stream.read_line(&mut line).unwrap(), 0, "the console has gone");
    }
    stream.get_mut().write_all(format!("{word}\n").as_bytes()).unwrap();
    line.clear();
    stream.read_line(&mut line).unwrap();
    assert_eq!(line.trim_end(), format!("echo={word}"));
}

fn check_end(mut child: Child) {
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.lines().all(|line| line.contains("waiting for a client at")), "{said}");
}

#[test]
fn a_pty_leads_both_ways() {
    let by_name = ["-chardev", "pty,id=p"];
    for (serial, more, label) in [("pty", &[][..], "serial0"), ("chardev:p", &by_name, "p")] {
        let mut child = payload("echo leave=power-off", serial).args(more).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let name =
            line.strip_prefix("char device redirected to ").unwrap_or_else(|| panic!("{line}"));
        let name = name.strip_suffix(&format!(" (label {label})\n")).unwrap();
        talk(std::fs::File::options().read(true).write(true).open(name).unwrap(), "over a pty");
        check_end(child);
    }
}

#[test]
fn a_socket_leads_both_ways_and_the_machine_waits_for_its_client() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console");
    let unix = format!("unix:{},server", path.display());
    let chardev = format!("socket,id=c,path={},server=on", path.display());
    for line in [&[unix.as_str()][..], &["chardev:c", "-chardev", &chardev]] {
        let child = payload("echo leave=power-off", line[0]).args(&line[1..]).spawn().unwrap();
        let stream = connect(&path);
        talk(&stream, "over a socket");
        check_end(child);
        assert!(!path.exists());
    }
}

#[test]
fn a_machine_comes_as_a_client() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console");
    let listener = UnixListener::bind(&path).unwrap();
    let unix = format!("unix:{}", path.display());
    let child = payload("echo leave=power-off", &unix).spawn().unwrap();
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    talk(&stream, "as a client");
    check_end(child);
}

/// A terminal with a shell on it that controls jobs.
struct Screen {
    child: Child,
    terminal: File,
    /// What was seen, and not yet waited for.
    seen: String,
}

impl Screen {
    /// Runs `script`, whose arguments are a machine's command line.
    fn start(script: &str, machine: &Command) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let ours = openpt(flags).unwrap();
        unlockpt(&ours).unwrap();
        let theirs = ioctl_tiocgptpeer(&ours, flags).unwrap();
        let end = || Stdio::from(theirs.try_clone().unwrap());
        let mut shell = Command::new("setsid");
        shell.args(["--ctty", "--wait", "sh", "-c", script, "sh"]);
        shell.arg(machine.get_program()).args(machine.get_args());
        let child = shell.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        Self { child, terminal: File::from(ours), seen: String::new() }
    }

    /// Waits for `word`; what was seen until then.
    fn wait_for(&mut self, word: &str) -> String {
        let mut bytes = [0; 4096];
        loop {
            if let Some((before, after)) = self.seen.split_once(word) {
                let (before, after) = (before.to_owned(), after.to_owned());
                self.seen = after;
                return before;
            }
            match self.terminal.read(&mut bytes) {
                Ok(count @ 1..) => self.seen += &String::from_utf8_lossy(&bytes[..count]),
                _ => panic!("no {word} in {}", self.seen),
            }
        }
    }

    fn type_in(&mut self, keys: &[u8]) {
        self.terminal.write_all(keys).unwrap();
    }

    /// Waits until keys come as they are pressed, or by the line.
    fn wait_for_mode(&self, by_line: bool) {
        wait_until("the terminal's mode", || {
            let mode = tcgetattr(&self.terminal).unwrap().local_modes;
            mode.contains(LocalModes::ICANON) == by_line
        });
    }

    /// Waits for `word`, before which `stty -a` shows a terminal as shells want it.
    fn check_mode(&mut self, word: &str) {
        let seen = self.wait_for(word);
        let modes: Vec<&str> = seen.split_ascii_whitespace().collect();
        assert!(["icanon", "isig", "echo"].iter().all(|mode| modes.contains(mode)), "{seen}");
    }

    /// Talks with a payload that echoes; the terminal does not.
    fn talk(&mut self) {
        self.wait_for_mode(false);
        self.type_in(b"hello\n");
        self.wait_for("hello");
        let seen = self.wait_for("guest-facts-end");
        assert!(!seen.contains("hello"), "{seen}");
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_machine_in_the_background_leaves_the_terminal_to_the_shell() {
    let script = "set -m; \"$@\" & sleep 1; stty -a; kill -9 $!; echo over";
    Screen::start(script, &payload("halt", "stdio")).check_mode("over");
}

#[test]
fn a_machine_that_is_stopped_gives_the_terminal_back_and_takes_it_again() {
    let script = "set -m; \"$@\"; stty -a; echo stopped; read line; fg >/dev/null; \
                  echo status=$?; stty -a; echo over";
    let mut screen = Screen::start(script, &payload("echo leave=power-off", "stdio"));
    screen.wait_for("echo=");
    screen.type_in(b"\x1a");
    screen.check_mode("stopped");
    screen.type_in(b"\n");
    screen.talk();
    screen.wait_for("status=0");
    screen.check_mode("over");
}

#[test]
fn a_machine_that_goes_on_in_the_background_can_be_ended_and_brought_back() {
    let machine = payload("echo leave=power-off", "stdio");
    let script = "set -m; \"$@\"; bg >/dev/null; sleep 1; kill -INT %1; wait %1; \
                  echo status=$?; stty -a; echo over";
    let mut screen = Screen::start(script, &machine);
    screen.wait_for("echo=");
    screen.type_in(b"\x1a");
    screen.wait_for("status=130");
    screen.check_mode("over");
    let script = "set -m; \"$@\" & sleep 1; fg >/dev/null; echo status=$?; stty -a; echo over";
    let mut screen = Screen::start(script, &machine);
    screen.wait_for("echo=");
    screen.talk();
    screen.wait_for("status=0");
    screen.check_mode("over");
}

#[test]
fn a_machine_that_nobody_would_continue_is_not_stopped() {
    // Its parent has no terminal: there are no jobs to control.
    let mut screen = Screen::start("exec \"$@\"", &payload("echo leave=power-off", "stdio"));
    screen.wait_for("echo=");
    screen.wait_for_mode(false);
    screen.type_in(b"\x1a");
    std::thread::sleep(Duration::from_millis(200));
    screen.talk();
}

/// How a process ended; nothing when it had to be killed.
fn ended_within(mut child: Child, limit: Duration) -> Option<std::process::ExitStatus> {
    let start = Instant::now();
    while start.elapsed() < limit {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    None
}

#[test]
fn a_machine_whose_messages_nobody_reads_heeds_signals() {
    // Its console and its messages go to one pipe, which is full.
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = payload(&format!("print={MANY_LINES:#x}"), "stdio");
    command.stdout(writer.try_clone().unwrap()).stderr(writer.try_clone().unwrap());
    let child = command.spawn().unwrap();
    drop(command);
    let written = || rustix::io::ioctl_fionread(&reader).unwrap();
    wait_until("the pipe is full", || written() > PIPE);
    // To the last byte, by a description of its own: the machine's waits.
    let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let mut rest = File::options().write(true).custom_flags(nonblocking).open(path).unwrap();
    while rest.write(b".").is_ok() {}
    let kill = || {
        let id = child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    };
    kill();
    std::thread::sleep(Duration::from_secs(2));
    kill();
    let status = ended_within(child, Duration::from_secs(20));
    assert_eq!(status.and_then(|status| status.signal()), Some(15));
}
