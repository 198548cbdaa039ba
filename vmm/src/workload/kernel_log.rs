//! What the guest's kernel says, kept for when its machine fails.
//!
//! Root in the guest can have its kernel say as much as it likes. In a file of the user's that is
//! what was asked for; without one, a thread reads it from a pipe and keeps the end.

use std::fs::File;
use std::io::{self, ErrorKind, PipeWriter, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use super::{Error, file};
use crate::{console, signals};

/// Bytes that are told at the most.
const MOST: usize = 64 << 10;
/// How long the thread may take for what is left when the machine is gone.
const PATIENCE: Duration = Duration::from_secs(2);

/// The log of a kernel.
pub enum KernelLog {
    /// A file, and its length before this machine.
    File { path: PathBuf, file: File, before: u64 },
    /// The end of it, which comes when nobody can write any more; and one who could.
    Kept { end: Receiver<Vec<u8>>, writer: Option<PipeWriter> },
}

impl KernelLog {
    /// A log in the file that is `given`, or in memory.
    pub fn new(given: Option<&Path>) -> Result<Self, Error> {
        match given {
            Some(path) => Self::in_file(path).map_err(file("opening the kernel's log", path)),
            None => {
                let kept = Self::kept();
                kept.map_err(|source| Error::Process("keeping what the kernel says", source))
            }
        }
    }

    fn in_file(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).append(true).create(true).open(path)?;
        let found = file.metadata()?;
        // What is read from anything else is not what was written there.
        let before = if found.is_file() { found.len() } else { u64::MAX };
        Ok(Self::File { path: path.into(), file, before })
    }

    fn kept() -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let (tell, end) = mpsc::sync_channel(1);
        signals::spawn("kernel log", move || {
            // Nobody asks when the machine did not fail.
            let _ = tell.send(keep_end(reader));
        })?;
        Ok(Self::Kept { end, writer: Some(writer) })
    }

    /// Where the machine is to write it.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::File { path, .. } => path.clone(),
            Self::Kept { writer, .. } => {
                let number = writer.as_ref().map_or(-1, AsRawFd::as_raw_fd);
                format!("/proc/self/fd/{number}").into()
            }
        }
    }

    /// Shows the end of what was said. The machine is gone by now.
    pub fn tell(&mut self) {
        let text = match self {
            // A log that cannot be read is not what failed.
            Self::File { file, before, .. } => read_end(file, *before).unwrap_or_default(),
            Self::Kept { end, writer } => {
                *writer = None;
                end.recv_timeout(PATIENCE).unwrap_or_default()
            }
        };
        let text = String::from_utf8_lossy(whole_lines(&text));
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            console::say(&format!("guest: {}", line.trim_end()));
        }
    }
}

/// Reads to the end; the last bytes, one more than [`MOST`] at the most.
fn keep_end(mut reader: impl Read) -> Vec<u8> {
    let (mut kept, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        match reader.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => kept.extend_from_slice(piece.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
        if kept.len() > 2 * MOST {
            forget_beginning(&mut kept);
        }
    }
    forget_beginning(&mut kept);
    kept
}

fn forget_beginning(kept: &mut Vec<u8>) {
    kept.drain(..kept.len().saturating_sub(MOST + 1));
}

/// The same of a file, of what follows its first `before` bytes.
fn read_end(file: &mut File, before: u64) -> io::Result<Vec<u8>> {
    let most = MOST as u64 + 1;
    let start = before.max(file.metadata()?.len().saturating_sub(most));
    let mut text = Vec::new();
    file.seek(SeekFrom::Start(start))?;
    file.take(most).read_to_end(&mut text)?;
    Ok(text)
}

/// Without the line in whose middle a text begins that is longer than [`MOST`].
fn whole_lines(text: &[u8]) -> &[u8] {
    if text.len() <= MOST {
        return text;
    }
    let end = text.iter().position(|byte| *byte == b'\n').unwrap_or(0);
    text.get(end..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A long text, and the end of it that is told.
    fn long() -> (String, String) {
        let lines = (0..20_000).map(|number| format!("line {number}\n"));
        let text: String = lines.collect();
        let end = text.get(text.len() - MOST - 1..).unwrap();
        (text.clone(), end.to_owned())
    }

    #[test]
    fn the_end_is_kept_and_nothing_before_it() {
        let (text, end) = long();
        assert_eq!(keep_end(text.as_bytes()), end.as_bytes());
        assert_eq!(keep_end(&b"short"[..]), b"short");
        let told = String::from_utf8_lossy(whole_lines(end.as_bytes())).into_owned();
        assert!(told.starts_with("\nline ") && told.ends_with("\nline 19999\n"), "{told}");
        assert_eq!(whole_lines(b"short"), b"short");
    }

    #[test]
    fn a_file_s_end_is_that_of_this_machine() {
        let (text, end) = long();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "an earlier run\n").unwrap();
        let mut log = KernelLog::new(Some(&path)).unwrap();
        assert_eq!(log.path(), path);
        let KernelLog::File { file, before, .. } = &mut log else { panic!("no file") };
        assert_eq!(read_end(file, *before).unwrap(), b"");
        let mut machine = File::options().append(true).open(&path).unwrap();
        machine.write_all(b"this run\n").unwrap();
        assert_eq!(read_end(file, *before).unwrap(), b"this run\n");
        machine.write_all(text.as_bytes()).unwrap();
        assert_eq!(read_end(file, *before).unwrap(), end.as_bytes());
        // What cannot be read again is not waited for.
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .unwrap();
        let mut log = KernelLog::new(Some(&pipe)).unwrap();
        log.tell();
    }

    #[test]
    fn what_is_kept_ends_with_the_last_who_writes() {
        let (text, end) = long();
        let mut log = KernelLog::new(None).unwrap();
        let mut machine = File::options().append(true).open(log.path()).unwrap();
        machine.write_all(text.as_bytes()).unwrap();
        drop(machine);
        let KernelLog::Kept { end: kept, writer } = &mut log else { panic!("a file") };
        *writer = None;
        assert_eq!(kept.recv().unwrap(), end.as_bytes());
    }
}
