//! What the host wants, from a file of the initramfs (`abi::workload`).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use abi::workload::{ORDERS, key};

use crate::context;

/// A folder of the host for the command.
pub struct Volume {
    /// Where it is to be.
    pub path: PathBuf,
    /// Nothing can be written there.
    pub read_only: bool,
}

/// The orders.
#[derive(Default)]
pub struct Orders {
    /// The command, the program first.
    pub arguments: Vec<OsString>,
    /// Its environment.
    pub variables: Vec<(OsString, OsString)>,
    /// Where it starts.
    pub directory: PathBuf,
    /// Its files are a terminal.
    pub terminal: bool,
    /// Rows and columns of it.
    pub size: [u16; 2],
    /// Its standard error is none of the terminal's.
    pub error_apart: bool,
    /// What is written to the root stays.
    pub writable: bool,
    /// Folders, in the order of their tags.
    pub volumes: Vec<Volume>,
}

impl Orders {
    /// Reads them.
    pub fn read() -> io::Result<Self> {
        let text = fs::read(ORDERS).map_err(|error| context(error, "reading the orders"))?;
        let mut orders = Self::default();
        for record in text.split(|byte| *byte == 0).filter(|record| !record.is_empty()) {
            let (key, value) = split(record, b'=').ok_or_else(|| unknown(record))?;
            orders.take(key, value).ok_or_else(|| unknown(record))?;
        }
        Ok(orders)
    }

    fn take(&mut self, name: &[u8], value: &[u8]) -> Option<()> {
        let text = |value: &[u8]| OsString::from_vec(value.to_vec());
        match std::str::from_utf8(name).ok()? {
            key::ARGUMENT => self.arguments.push(text(value)),
            key::VARIABLE => {
                let (name, value) = split(value, b'=')?;
                self.variables.push((text(name), text(value)));
            }
            key::DIRECTORY => self.directory = text(value).into(),
            key::TERMINAL => self.terminal = value == b"1",
            key::SIZE => {
                let (rows, columns) = split(value, b'x')?;
                let number = |text| std::str::from_utf8(text).ok()?.parse().ok();
                self.size = [number(rows)?, number(columns)?];
            }
            key::ERROR_APART => self.error_apart = value == b"1",
            key::WRITABLE => self.writable = value == b"1",
            key::VOLUME => {
                let (mode, path) = split(value, b':')?;
                self.volumes.push(Volume { path: text(path).into(), read_only: mode == b"ro" });
            }
            _ => return None,
        }
        Some(())
    }
}

fn split(bytes: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let position = bytes.iter().position(|byte| *byte == at)?;
    Some((bytes.get(..position)?, bytes.get(position + 1..)?))
}

fn unknown(record: &[u8]) -> io::Error {
    let record = String::from_utf8_lossy(record);
    io::Error::other(format!("this init does not know '{record}': it is not this microvm's"))
}
