//! One client of a monitor, from its greeting on.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::io::Errno;
use serde_json::{Map, Value, json};

use super::commands::{self, Failure, Machine};
use super::mailbox::Mailbox;
use crate::control::Event;

/// Bytes of a command at the most.
const COMMAND_MAX: usize = 1 << 20;
/// Seconds that a client may leave what is for it unread.
const PATIENCE_S: i64 = 5;
/// Bytes that a pipe which is ready takes at once (PIPE_BUF).
const PIECE: usize = 4096;

/// Where a client is.
pub enum Stream {
    /// At our standard input and output.
    Stdio,
    /// At the other end of a socket.
    Unix(UnixStream),
}

impl Stream {
    fn input(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stdio => rustix::stdio::stdin(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }

    fn output(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stdio => rustix::stdio::stdout(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }

    /// Writes a line, as fast as the client reads, while it does.
    fn write(&self, value: &Value) -> io::Result<()> {
        let text = format!("{value}\r\n");
        let mut bytes = text.as_bytes();
        let patience = Timespec { tv_sec: PATIENCE_S, tv_nsec: 0 };
        while !bytes.is_empty() {
            let mut ready = [PollFd::from_borrowed_fd(self.output(), PollFlags::OUT)];
            match rustix::event::poll(&mut ready, Some(&patience)) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let piece = bytes.get(..PIECE).unwrap_or(bytes);
            match rustix::io::write(self.output(), piece) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or(&[]),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// A client.
pub struct Session<'a> {
    stream: Stream,
    machine: &'a Machine,
    mailbox: &'a Mailbox,
    // What has come of a command that is not whole yet.
    input: Vec<u8>,
    // Whether the capabilities are negotiated: commands and events only then.
    ready: bool,
}

impl<'a> Session<'a> {
    /// A client that has just come.
    pub fn new(stream: Stream, machine: &'a Machine, mailbox: &'a Mailbox) -> Self {
        Self { stream, machine, mailbox, input: Vec::new(), ready: false }
    }

    /// Serves it until it goes, stops reading, or the process is to end.
    pub fn run(mut self) {
        // Whatever is wrong with a client, it is gone then, and the next may come.
        let _ = self.serve();
    }

    fn serve(&mut self) -> io::Result<()> {
        let version = commands::version();
        self.stream.write(&json!({ "QMP": { "version": version, "capabilities": [] } }))?;
        loop {
            let mut ready = [
                PollFd::from_borrowed_fd(self.stream.input(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.mailbox.bell(), PollFlags::IN),
            ];
            let patience = self.mailbox.patience().and_then(|time| Timespec::try_from(time).ok());
            match rustix::event::poll(&mut ready, patience.as_ref()) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let has_input = !ready[0].revents().is_empty();
            self.pass_events_on()?;
            // What came after that, but before the end.
            if self.mailbox.is_closed() {
                return self.pass_events_on();
            }
            if has_input && !self.read()? {
                return Ok(());
            }
        }
    }

    fn pass_events_on(&mut self) -> io::Result<()> {
        for (event, time) in self.mailbox.take() {
            if self.ready {
                self.stream.write(&event_json(event, time))?;
            }
        }
        Ok(())
    }

    /// Reads what there is, and does it; false at its end.
    fn read(&mut self) -> io::Result<bool> {
        let mut bytes = [0; PIECE];
        let count = match rustix::io::read(self.stream.input(), &mut bytes) {
            Ok(0) => return Ok(false),
            Ok(count) => count,
            Err(Errno::INTR | Errno::AGAIN) => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        self.input.extend(bytes.get(..count).unwrap_or(&[]));
        while let Some(command) = next_value(&mut self.input) {
            let answer = self.answer(command);
            // An event that a command brought about comes before its answer, as in QEMU.
            self.pass_events_on()?;
            self.stream.write(&answer)?;
        }
        Ok(true)
    }

    fn answer(&mut self, command: Result<Value, Failure>) -> Value {
        let mut id = None;
        let result = command.and_then(|command| {
            let command = Command::new(command, &mut id)?;
            self.execute(&command)
        });
        let mut answer = match result {
            Ok(value) => json!({ "return": value }),
            Err(Failure { class, description }) => {
                json!({ "error": { "class": class, "desc": description } })
            }
        };
        if let (Some(id), Some(answer)) = (id, answer.as_object_mut()) {
            answer.insert("id".into(), id);
        }
        answer
    }

    fn execute(&mut self, command: &Command) -> Result<Value, Failure> {
        let negotiates = command.name == "qmp_capabilities";
        match (self.ready, negotiates) {
            (false, false) => Err(Failure::not_found(
                "Expecting capabilities negotiation with 'qmp_capabilities'".into(),
            )),
            (true, true) => Err(Failure::not_found(
                "Capabilities negotiation is already complete, command ignored".into(),
            )),
            (false, true) => {
                let asked = command.arguments.get("enable").and_then(Value::as_array);
                if let Some(capability) = asked.and_then(|asked| asked.first()) {
                    let problem = format!("Capability {capability} not available");
                    return Err(Failure::generic(problem));
                }
                self.ready = true;
                Ok(json!({}))
            }
            (true, false) => commands::execute(self.machine, &command.name, &command.arguments),
        }
    }
}

/// A command as it was sent.
struct Command {
    name: String,
    arguments: Map<String, Value>,
}

impl Command {
    /// Reads a command; `id` is set as soon as it is known, so that an error has it too.
    fn new(command: Value, id: &mut Option<Value>) -> Result<Self, Failure> {
        let Value::Object(mut command) = command else {
            return Err(Failure::generic("QMP input must be a JSON object".into()));
        };
        *id = command.remove("id");
        let name = match command.remove("execute") {
            Some(Value::String(name)) => name,
            Some(_) => {
                return Err(Failure::generic("QMP input member 'execute' must be a string".into()));
            }
            None => return Err(Failure::generic("QMP input lacks member 'execute'".into())),
        };
        let arguments = match command.remove("arguments") {
            None => Map::new(),
            Some(Value::Object(arguments)) => arguments,
            Some(_) => {
                let problem = "QMP input member 'arguments' must be an object";
                return Err(Failure::generic(problem.into()));
            }
        };
        if let Some(key) = command.keys().next() {
            return Err(Failure::generic(format!("QMP input member '{key}' is unexpected")));
        }
        Ok(Self { name, arguments })
    }
}

/// Takes the next whole value out of `input`. After something that is no JSON, the next line is
/// the next chance.
fn next_value(input: &mut Vec<u8>) -> Option<Result<Value, Failure>> {
    let mut values = serde_json::Deserializer::from_slice(input).into_iter::<Value>();
    let value = values.next();
    let consumed = values.byte_offset();
    let problem = match value {
        None => {
            input.clear();
            return None;
        }
        Some(Ok(value)) => {
            input.drain(..consumed.min(input.len()));
            return Some(Ok(value));
        }
        Some(Err(error)) if error.is_eof() && input.len() <= COMMAND_MAX => return None,
        Some(Err(error)) if error.is_eof() => format!("more than {COMMAND_MAX} bytes"),
        Some(Err(error)) => error.to_string(),
    };
    let line = input.iter().skip(consumed).position(|byte| *byte == b'\n');
    input.drain(..line.map_or(input.len(), |end| consumed + end + 1));
    Some(Err(Failure::generic(format!("JSON parse error, {problem}"))))
}

/// An event as QMP has it (QEMU, qapi/run-state.json).
fn event_json(event: Event, time: SystemTime) -> Value {
    let reason = |reason: &str| json!({ "guest": reason.starts_with("guest"), "reason": reason });
    let (name, data) = match event {
        Event::Stop => ("STOP", None),
        Event::Resume => ("RESUME", None),
        Event::Reset(why) => ("RESET", Some(reason(why))),
        Event::Shutdown(why) => ("SHUTDOWN", Some(reason(why))),
        Event::Powerdown => ("POWERDOWN", None),
        Event::GuestPanicked(action) => ("GUEST_PANICKED", Some(json!({ "action": action }))),
        Event::BalloonChange(actual) => ("BALLOON_CHANGE", Some(json!({ "actual": actual }))),
        Event::GuestCrashLoaded => ("GUEST_CRASHLOADED", Some(json!({ "action": "run" }))),
    };
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = json!({ "seconds": since.as_secs(), "microseconds": since.subsec_micros() });
    let mut value = json!({ "event": name, "timestamp": time });
    if let Some(data) = data {
        value["data"] = data;
    }
    value
}

#[cfg(test)]
mod tests;
