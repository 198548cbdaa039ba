//! virtiofsd: a process for each folder that is shared.
//!
//! There are two programs of this name: QEMU's, in C, which Debian 12 has, and its successor, in
//! Rust, and what they say of themselves tells which is which: both were in the same places, at
//! different times. Either gets its listening socket as standard input, so that nobody waits for a
//! socket to appear. It ends with this process, however that does.
#![expect(unsafe_code, reason = "what a new process does before it becomes another program")]

use std::ffi::{CStr, CString, OsString};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::mount::{MountFlags, MountPropagationFlags, mount_bind, mount_change, mount_remount};
use rustix::process::{Pid, Signal, kill_process_group, set_parent_process_death_signal};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::console;

/// Where packages put it: the one in Rust, then QEMU's.
const PLACES: [&str; 3] =
    ["/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd"];
/// What only QEMU's says along with its version.
const QEMU_S: [&str; 2] = ["QEMU Project", "FUSE kernel interface"];
/// The first version of the one in Rust that has `--readonly`.
const WITH_READONLY: (u32, u32) = (1, 13);
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
    /// QEMU's changes its root to the folder, which must be another one for that; and what is
    /// mounted below it cannot be hidden from the other one.
    #[error(
        "QEMU's virtiofsd cannot share '/', nor can one in Rust before 1.13 so that nobody can \
         write to it: use a newer one (--virtiofsd FILE)"
    )]
    Root,
    /// It shares a folder only for writing, so that its mount must forbid that.
    #[error(
        "sharing '{folder}' so that nobody can write to it takes root, or the virtiofsd that is \
         written in Rust, 1.13 or newer (--virtiofsd FILE)"
    )]
    ReadOnly {
        /// The folder.
        folder: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// It was there, but not for long.
    #[error("virtiofsd of '{folder}' ended before its machine came: {status}")]
    Ended {
        /// The folder.
        folder: PathBuf,
        /// How it ended.
        status: ExitStatus,
    },
}

/// A program that shares folders.
pub struct Program {
    path: PathBuf,
    kind: Kind,
}

/// Which options it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// QEMU's.
    Qemu,
    /// The one in Rust, and whether it refuses to write when it is told to.
    Rust { has_readonly: bool },
}

/// The program that is given, or the one that is installed.
pub fn find(given: Option<&Path>) -> Result<Program, Error> {
    let installed = || PLACES.iter().map(Path::new).find(|path| path.exists());
    let path = given.or_else(installed).ok_or(Error::None)?.to_owned();
    let kind = Kind::of(&path)?;
    Ok(Program { path, kind })
}

impl Kind {
    fn of(path: &Path) -> Result<Self, Error> {
        if path.parent().is_some_and(|folder| folder.ends_with("qemu")) {
            return Ok(Self::Qemu);
        }
        let failed = |source| Error::Start { program: path.into(), source };
        let said = ask_version(path).map_err(failed)?;
        Ok(Self::that_says(&String::from_utf8_lossy(&said)))
    }

    fn that_says(text: &str) -> Self {
        if QEMU_S.iter().any(|words| text.contains(words)) {
            return Self::Qemu;
        }
        // One that does not say which it is refuses an option that it does not know.
        let has_readonly = version(text).is_none_or(|version| version >= WITH_READONLY);
        Self::Rust { has_readonly }
    }
}

/// What a program says of its version. One that does not end is ended.
fn ask_version(path: &Path) -> io::Result<Vec<u8>> {
    let mut log = tempfile::tempfile()?;
    let mut command = Command::new(path);
    command.arg("--version").stdin(Stdio::null());
    command.stdout(log.try_clone()?).stderr(log.try_clone()?);
    let begin = || Ok(set_parent_process_death_signal(Some(Signal::KILL))?);
    // SAFETY: the new process makes a system call, allocates nothing and takes no lock.
    unsafe { command.pre_exec(begin) };
    let mut child = command.spawn()?;
    let since = Instant::now();
    while child.try_wait()?.is_none() {
        if since.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::other(format!(
                "--version took more than {} s",
                PATIENCE.as_secs()
            )));
        }
        std::thread::sleep(GLANCE);
    }
    let mut said = Vec::new();
    log.rewind()?;
    log.read_to_end(&mut said)?;
    Ok(said)
}

/// The first two numbers of the version in a text such as `virtiofsd 1.13.2`.
fn version(text: &str) -> Option<(u32, u32)> {
    text.split_whitespace().find_map(|word| {
        let mut numbers = word.trim_start_matches('v').split('.').map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    })
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
        // Who cannot be told so sees a folder that cannot be written to.
        let hides = read_only && self.kind != Kind::Rust { has_readonly: true };
        if folder == Path::new("/") && (hides || self.kind == Kind::Qemu) {
            return Err(Error::Root);
        }
        let failed = |source| Error::Socket { path: path.into(), source };
        let listener = UnixListener::bind(path).map_err(failed)?;
        let mut command = self.command(folder, read_only);
        // A key that asks the command to end is not for its folders.
        command.process_group(0);
        let failed = |source: io::Error| match source.raw_os_error() {
            Some(libc::EPERM) if hides => Error::ReadOnly { folder: folder.into(), source },
            _ => Error::Start { program: self.path.clone(), source },
        };
        let log = tempfile::tempfile().map_err(failed)?;
        command.stderr(log.try_clone().map_err(failed)?);
        command.stdin(OwnedFd::from(listener)).stdout(Stdio::null());
        let hidden = hides.then(|| CString::new(folder.as_os_str().as_bytes()));
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
        match self.kind {
            Kind::Qemu => {
                command.arg("--fd=0").arg("-o").arg(source_option(folder));
                command.args(["-o", "log_level=warn", "-o", "cache=auto"]);
            }
            Kind::Rust { has_readonly } => {
                command.arg("--fd=0").arg("--shared-dir").arg(folder);
                command.args(["--log-level", "warn", "--cache", "auto"]);
                if read_only && has_readonly {
                    command.arg("--readonly");
                }
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
    let flags = MountFlags::BIND | MountFlags::RDONLY | restrictions(statvfs(folder)?.f_flag);
    Ok(mount_remount(folder, flags, c"")?)
}

/// What else a mount forbids: a remount allows what it does not name.
fn restrictions(found: StatVfsMountFlags) -> MountFlags {
    // ST_NOSYMFOLLOW (Linux, include/linux/statfs.h).
    const NOSYMFOLLOW: StatVfsMountFlags = StatVfsMountFlags::from_bits_retain(0x2000);
    let known = [
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (NOSYMFOLLOW, MountFlags::NOSYMFOLLOW),
    ];
    known.into_iter().filter(|(flag, _)| found.contains(*flag)).map(|(_, flag)| flag).collect()
}

impl Virtiofsd {
    /// Waits for its end if it `served` a machine, and shows what it said if that was not a good
    /// one. If there was none to serve, and it is not there any more, that is the error.
    pub fn finish(mut self, served: bool) -> Option<Error> {
        let since = Instant::now();
        // One whose machine never came is about to say why, if that was its fault.
        let patience = if served { PATIENCE } else { GLANCES };
        while since.elapsed() < patience && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(GLANCE);
        }
        let how = match self.child.try_wait() {
            Ok(Some(status)) if served && status.success() => return None,
            // Nobody came.
            Ok(None) if !served => return None,
            Ok(Some(status)) if !served => {
                console::say_all("virtiofsd", &mut self.log);
                return Some(Error::Ended { folder: self.folder.clone(), status });
            }
            Ok(Some(status)) => status.to_string(),
            Ok(None) => "it does not end with its machine, and is ended".into(),
            Err(error) => error.to_string(),
        };
        console::say(&format!("virtiofsd of '{}': {how}", self.folder.display()));
        console::say_all("virtiofsd", &mut self.log);
        None
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

    #[test]
    fn a_program_is_what_it_says_to_be() {
        const DEBIAN_12: &str = "virtiofsd version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b2)\n\
                                 Copyright (c) 2003-2022 Fabrice Bellard and the QEMU Project \
                                 developers\nusing FUSE kernel interface version 7.36\n";
        let rust = |has_readonly| Kind::Rust { has_readonly };
        for (text, kind) in [
            (DEBIAN_12, Kind::Qemu),
            ("using FUSE kernel interface version 7.31\n", Kind::Qemu),
            ("virtiofsd 1.13.2\n", rust(true)),
            ("virtiofsd 1.13.0\n", rust(true)),
            ("virtiofsd 2.0.0\n", rust(true)),
            ("virtiofsd 1.12.0\n", rust(false)),
            ("virtiofsd backend 0.7.2\n", rust(false)),
            ("", rust(true)),
        ] {
            assert_eq!(Kind::that_says(text), kind, "{text}");
        }
    }

    #[test]
    fn a_program_is_asked_wherever_it_is_unless_it_is_in_a_folder_of_qemu_s() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        for (place, version, kind) in [
            ("libexec", "and the QEMU Project developers", Kind::Qemu),
            ("qemu", "virtiofsd 1.13.2", Kind::Qemu),
            ("lib", "virtiofsd 1.13.2", Kind::Rust { has_readonly: true }),
        ] {
            let place = folder.path().join(place);
            std::fs::create_dir(&place).unwrap();
            let program = place.join("virtiofsd");
            std::fs::write(&program, format!("#!/bin/sh\necho {version}\n")).unwrap();
            std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
            assert_eq!(find(Some(&program)).unwrap().kind, kind, "{}", program.display());
        }
    }

    #[test]
    fn an_older_one_is_not_told_what_it_does_not_know() {
        for (has_readonly, told) in [(true, true), (false, false)] {
            let program = Program { path: "/x".into(), kind: Kind::Rust { has_readonly } };
            let command = program.command(Path::new("/a"), true);
            assert_eq!(command.get_args().any(|word| word == "--readonly"), told);
        }
        let program = Program { path: "/x".into(), kind: Kind::Rust { has_readonly: false } };
        let refused = program.serve(Path::new("/"), true, Path::new("/none/socket")).err();
        assert!(refused.is_some_and(|error| error.to_string().contains("1.13")));
    }

    #[test]
    fn a_remount_forbids_what_the_mount_forbids() {
        let found = StatVfsMountFlags::from_bits_retain(0x2000)
            | StatVfsMountFlags::NOSUID
            | StatVfsMountFlags::RELATIME;
        assert_eq!(restrictions(found), MountFlags::NOSUID | MountFlags::NOSYMFOLLOW);
        let found = StatVfsMountFlags::NODEV | StatVfsMountFlags::NOEXEC;
        assert_eq!(restrictions(found), MountFlags::NODEV | MountFlags::NOEXEC);
    }
}
