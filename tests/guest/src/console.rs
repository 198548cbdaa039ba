//! Serial ports as terminals: modes, lines, and waiting until all is sent.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};

use rustix::termios::{OptionalActions, OutputModes, tcdrain, tcgetattr, tcsetattr};

/// How bytes pass through a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Every byte as it is, both ways.
    Raw,
    /// Lines and echo on input; output still as it is.
    Terminal,
}

/// Opens a port for reading and writing in this mode.
pub fn open_port(path: &str, mode: Mode) -> io::Result<File> {
    let port = open(path)?;
    let mut settings = tcgetattr(&port)?;
    match mode {
        Mode::Raw => settings.make_raw(),
        Mode::Terminal => settings.output_modes.remove(OutputModes::OPOST),
    }
    tcsetattr(&port, OptionalActions::Now, &settings)?;
    Ok(port)
}

/// The kernel's console, for printing `key=value` lines and reading a line.
pub struct Console(File);

impl Console {
    /// Opens /dev/console as the kernel set it up.
    pub fn open() -> io::Result<Self> {
        open("/dev/console").map(Self)
    }

    /// Prints a line in one write, so that kernel messages do not come in between.
    pub fn print(&mut self, line: &str) -> io::Result<()> {
        self.0.write_all(format!("{line}\n").as_bytes())
    }

    /// Prints `key=value`; line breaks in the value become spaces.
    pub fn print_fact(&mut self, key: &str, value: &str) -> io::Result<()> {
        let value: String =
            value.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        self.print(&format!("{key}={value}"))
    }

    /// Waits for a line of input, or its end.
    pub fn read_line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        let mut byte = [0];
        while self.0.read(&mut byte)? == 1 && byte != *b"\n" {
            line.extend_from_slice(&byte);
        }
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    /// Returns when the last byte has left the port: power goes off at once, bytes and all.
    pub fn drain(&self) -> io::Result<()> {
        Ok(tcdrain(&self.0)?)
    }
}

fn open(path: &str) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}
