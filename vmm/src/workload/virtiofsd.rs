//! virtiofsd: a process for each folder that is shared.
//!
//! There are two programs of this name: QEMU's, in C, which Debian 12 has, and its successor, in
//! Rust. Either gets its listening socket as standard input, so that nobody waits for a socket to
//! appear. It ends with this process, however that does.
#![expect(unsafe_code, reason = "what a new process does before it becomes another program")]

use std::ffi::{CStr, CString, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, MountPropagationFlags, mount_bind, mount_change, mount_remount};
use rustix::process::{Pid, Signal, kill_process_group, set_parent_process_death_signal};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::console;

/// Where packages put it: the one in Rust, then QEMU's.
const PLACES: [&str; 3] =
    ["/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd"];
/// How long it may take to end when its machine is gone.
const PATIENCE: Duration = Duration::from_secs(2);
const GLANCE: Duration = Duration::from_millis(1);
const GLANCES: Duration = Duration::from_millis(20);

/// Why a folder is not shared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none.
    #[error(
        "no virtiofsd in /usr/libexec, /usr/lib or /usr/lib/qemu: apt-get install virtiofsd \
         (Debian 12: qemu-system-common), or give --virtiofsd FILE"
    )]
    None,
    /// It cannot be started.
    #[error("virtiofsd '{program}'")]
    Start {
        /// Its file.
        program: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// Its socket.
    #[error("virtiofsd's socket '{path}'")]
    Socket {
        /// Where.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// QEMU's changes its root to the folder, which must be another one for that.
    #[error(
        "QEMU's virtiofsd cannot share '/': use the one that is written in Rust (--virtiofsd FILE)"
    )]
    Root,
    /// QEMU's shares a folder only for writing, so that its mount must forbid that.
    #[error(
        "sharing '{folder}' so that nobody can write to it takes root, or the virtiofsd that is \
         written in Rust (--virtiofsd FILE)"
    )]
    ReadOnly {
        /// The folder.
        folder: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
}

/// A program that shares folders.
pub struct Program {
    path: PathBuf,
    is_qemu_s: bool,
}

/// The program that is given, or the one that is installed.
pub fn find(given: Option<&Path>) -> Result<Program, Error> {
    let installed = || PLACES.iter().map(Path::new).find(|path| path.exists());
    let path = given.or_else(installed).ok_or(Error::None)?.to_owned();
    let is_qemu_s = if PLACES.iter().any(|known| path == Path::new(known)) {
        path.parent().is_some_and(|folder| folder.ends_with("qemu"))
    } else {
        is_qemu_s(&path)?
    };
    Ok(Program { path, is_qemu_s })
}

/// Only QEMU's names its authors along with its version.
fn is_qemu_s(path: &Path) -> Result<bool, Error> {
    let output = Command::new(path).arg("--version").stdin(Stdio::null()).output();
    let output = output.map_err(|source| Error::Start { program: path.into(), source })?;
    let said = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&said).contains("FUSE library"))
}

/// A running daemon. It ends when its machine does, and when this is dropped.
pub struct Virtiofsd {
    folder: PathBuf,
    child: Child,
    /// What it says, which is of interest when it fails: QEMU's complains of every end.
    log: File,
}

impl Program {
    /// Shares `folder` at the socket `path`, which is made.
    pub fn serve(&self, folder: &Path, read_only: bool, path: &Path) -> Result<Virtiofsd, Error> {
        if self.is_qemu_s && folder == Path::new("/") {
            return Err(Error::Root);
        }
        let failed = |source| Error::Socket { path: path.into(), source };
        let listener = UnixListener::bind(path).map_err(failed)?;
        let mut command = self.command(folder, read_only);
        // A key that asks the command to end is not for its folders.
        command.process_group(0);
        let failed = |source: io::Error| match source.raw_os_error() {
            Some(libc::EPERM) if read_only && self.is_qemu_s => {
                Error::ReadOnly { folder: folder.into(), source }
            }
            _ => Error::Start { program: self.path.clone(), source },
        };
        let log = tempfile::tempfile().map_err(failed)?;
        command.stderr(log.try_clone().map_err(failed)?);
        command.stdin(OwnedFd::from(listener)).stdout(Stdio::null());
        let hidden =
            (read_only && self.is_qemu_s).then(|| CString::new(folder.as_os_str().as_bytes()));
        let hidden = hidden.transpose().map_err(|error| failed(error.into()))?;
        let begin = move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            hidden.as_deref().map_or(Ok(()), read_only_mount)
        };
        // SAFETY: the new process makes a few system calls, allocates nothing and takes no lock.
        unsafe { command.pre_exec(begin) };
        let child = command.spawn().map_err(failed)?;
        Ok(Virtiofsd { folder: folder.into(), child, log })
    }

    fn command(&self, folder: &Path, read_only: bool) -> Command {
        let mut command = Command::new(&self.path);
        if self.is_qemu_s {
            command.arg("--fd=0").arg("-o").arg(source_option(folder));
            command.args(["-o", "log_level=warn", "-o", "cache=auto"]);
        } else {
            command.arg("--fd=0").arg("--shared-dir").arg(folder).args(["--log-level", "warn"]);
            command.args(["--cache", "auto"]);
            if read_only {
                command.arg("--readonly");
            }
        }
        command
    }
}

/// QEMU's option of the folder: a comma ends an option, and a backslash takes a character as it is.
fn source_option(folder: &Path) -> OsString {
    let mut option = b"source=".to_vec();
    for byte in folder.as_os_str().as_bytes() {
        if matches!(byte, b',' | b'\\') {
            option.push(b'\\');
        }
        option.push(*byte);
    }
    OsString::from_vec(option)
}

/// From here on, this process sees `folder` as one that nobody can write to; what is mounted below
/// it is not there.
fn read_only_mount(folder: &CStr) -> io::Result<()> {
    // SAFETY: the flags leave the table of open files alone, which safe code counts on.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    let alone = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change(c"/", alone)?;
    mount_bind(folder, folder)?;
    Ok(mount_remount(folder, MountFlags::BIND | MountFlags::RDONLY, c"")?)
}

impl Virtiofsd {
    /// Waits for its end if it `served` a machine, and shows what it said if that was not a good
    /// one.
    pub fn finish(mut self, served: bool) {
        let since = Instant::now();
        // One whose machine never came is about to say why, if that was its fault.
        let patience = if served { PATIENCE } else { GLANCES };
        while since.elapsed() < patience && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(GLANCE);
        }
        let how = match self.child.try_wait() {
            Ok(Some(status)) if served && status.success() => return,
            // Nobody came.
            Ok(None) if !served => return,
            Ok(Some(status)) if !served => format!("it ended before its machine came: {status}"),
            Ok(Some(status)) => status.to_string(),
            Ok(None) => "it does not end with its machine, and is ended".into(),
            Err(error) => error.to_string(),
        };
        console::say(&format!("virtiofsd of '{}': {how}", self.folder.display()));
        console::say_all("virtiofsd", &mut self.log);
    }

    fn end(&mut self) -> io::Result<ExitStatus> {
        // With the process that it has in a namespace of its own. It may have ended already.
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        self.child.wait()
    }
}

impl Drop for Virtiofsd {
    fn drop(&mut self) {
        // Nobody is interested in how it ended.
        let _ = self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_s_name_is_taken_as_it_is() {
        use std::ffi::OsStr;
        let option = source_option(Path::new(OsStr::from_bytes(b"/a\\b,c\xff")));
        assert_eq!(option.as_bytes(), b"source=/a\\\\b\\,c\xff");
    }
}
