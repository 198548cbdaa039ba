//! The options of `microvm run`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use lexopt::prelude::{Long, Short, Value};

use super::Error;
use crate::virtio::slots;

/// What `microvm run --help` prints.
pub const USAGE: &str = "\
Usage: microvm run [OPTIONS] ROOTFS [--] COMMAND [ARGUMENTS]

Boots the folder ROOTFS as the root of a microVM, runs COMMAND in it, and exits with its status
(125: microvm failed; 126: COMMAND cannot be run; 127: it is not there; 128+N: signal N ended it).
What COMMAND writes to its root is forgotten, unless --writable.

  --volume HOST:GUEST[:ro]  also shares the folder HOST, at GUEST; may be given several times
  --env NAME=VALUE          a variable; without =VALUE, this process's own
  --workdir DIR             where COMMAND starts (/)
  --writable                what COMMAND writes to ROOTFS stays there
  --memory SIZE             memory of the guest, as 512M or 2G (256M)
  --cpus N                  processors (1)
  --kernel FILE             a bzImage or a vmlinux; without it, the one in /boot, or fetched
  --modules DIR             its modules; without it, lib/modules/RELEASE beside it, or the host's
  --virtiofsd FILE          who shares folders; without it, the one that is installed
  --kernel-cache on|off     unpack a bzImage once, on the host, if possible (on)
  --kernel-log FILE         what the guest's kernel says, appended to FILE
  --boot-trace FILE         where the time of the start went, as JSON
";

/// A folder of the host for the command.
#[derive(Debug, PartialEq, Eq)]
pub struct Volume {
    pub host: PathBuf,
    /// Absolute.
    pub guest: PathBuf,
    pub read_only: bool,
}

/// The options.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    pub root: PathBuf,
    pub command: Vec<OsString>,
    pub volumes: Vec<Volume>,
    /// `NAME=VALUE`.
    pub variables: Vec<OsString>,
    pub directory: OsString,
    pub writable: bool,
    pub memory: OsString,
    pub cpus: OsString,
    pub kernel: Option<PathBuf>,
    pub modules: Option<PathBuf>,
    pub virtiofsd: Option<PathBuf>,
    pub kernel_cache: bool,
    pub kernel_log: Option<PathBuf>,
    pub boot_trace: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            root: PathBuf::new(),
            command: Vec::new(),
            volumes: Vec::new(),
            variables: Vec::new(),
            directory: "/".into(),
            writable: false,
            memory: "256M".into(),
            cpus: "1".into(),
            kernel: None,
            modules: None,
            virtiofsd: None,
            kernel_cache: true,
            kernel_log: None,
            boot_trace: None,
        }
    }
}

/// Slots that volumes cannot have: the root's and the port's.
const TAKEN: usize = 2;

impl Options {
    /// Reads them; `None` asks for [`USAGE`].
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Option<Self>, Error> {
        let mut options = Self::default();
        let mut parser = lexopt::Parser::from_args(arguments);
        let usage = |error: lexopt::Error| Error::Usage(error.to_string());
        loop {
            match parser.next().map_err(usage)? {
                None => return Err(Error::Usage("give a ROOTFS and a COMMAND".into())),
                Some(Long("help") | Short('h')) => return Ok(None),
                Some(Long("writable")) => options.writable = true,
                Some(Long(name)) => {
                    let name = name.to_owned();
                    options.take(&name, &mut parser)?;
                }
                Some(Short(letter)) => {
                    return Err(Error::Usage(format!("-{letter} is no option")));
                }
                Some(Value(root)) => {
                    options.root = root.into();
                    break;
                }
            }
        }
        // What follows is the command's, whatever it looks like.
        options.command = parser.raw_args().map_err(usage)?.collect();
        match options.command.first() {
            Some(word) if word == "--" => drop(options.command.remove(0)),
            Some(word) if word.as_bytes().starts_with(b"-") => {
                let word = word.display();
                return Err(Error::Usage(format!("{word}: options come before ROOTFS")));
            }
            _ => {}
        }
        options.check()?;
        Ok(Some(options))
    }

    fn take(&mut self, name: &str, parser: &mut lexopt::Parser) -> Result<(), Error> {
        const WITH_VALUE: [&str; 11] = [
            "volume",
            "env",
            "workdir",
            "memory",
            "cpus",
            "kernel",
            "modules",
            "virtiofsd",
            "kernel-cache",
            "kernel-log",
            "boot-trace",
        ];
        if !WITH_VALUE.contains(&name) {
            return Err(Error::Usage(format!("--{name} is no option")));
        }
        let value = parser.value().map_err(|error| Error::Usage(error.to_string()))?;
        let path = || Some(PathBuf::from(&value));
        match name {
            "volume" => self.volumes.push(volume(&value)?),
            "env" => self.variables.extend(variable(value)?),
            "workdir" => self.directory = value,
            "memory" => self.memory = value,
            "cpus" => self.cpus = value,
            "kernel" => self.kernel = path(),
            "modules" => self.modules = path(),
            "virtiofsd" => self.virtiofsd = path(),
            "kernel-log" => self.kernel_log = path(),
            "boot-trace" => self.boot_trace = path(),
            _ => {
                self.kernel_cache = match value.to_str() {
                    Some("on") => true,
                    Some("off") => false,
                    _ => return Err(Error::Usage("--kernel-cache is on or off".into())),
                }
            }
        }
        Ok(())
    }

    fn check(&mut self) -> Result<(), Error> {
        if self.command.first().is_none_or(|program| program.is_empty()) {
            return Err(Error::Usage("give a COMMAND after ROOTFS".into()));
        }
        let most = slots::COUNT as usize - TAKEN;
        if self.volumes.len() > most {
            return Err(Error::Usage(format!("--volume: the machine has room for {most}")));
        }
        // What is mounted within another is mounted after it.
        self.volumes.sort_by_key(|volume| volume.guest.components().count());
        for (number, volume) in self.volumes.iter().enumerate() {
            let mut others = self.volumes.iter().take(number);
            if others.any(|other| other.guest.components().eq(volume.guest.components())) {
                let guest = volume.guest.display();
                return Err(Error::Usage(format!("--volume: '{guest}' is given twice")));
            }
        }
        let records = self.command.iter().chain(&self.variables).chain([&self.directory]);
        for record in records {
            if record.as_bytes().contains(&0) {
                return Err(Error::Usage("a word has a NUL in it".into()));
            }
        }
        let folders =
            [&mut self.root].into_iter().chain(self.volumes.iter_mut().map(|v| &mut v.host));
        for folder in folders {
            let found = folder.canonicalize().map_err(super::file("sharing", folder))?;
            if !found.is_dir() {
                return Err(Error::Usage(format!("'{}' is no folder", folder.display())));
            }
            *folder = found;
        }
        Ok(())
    }
}

fn volume(value: &OsStr) -> Result<Volume, Error> {
    let bad = || {
        let value = value.display();
        Error::Usage(format!("--volume {value}: write HOST:GUEST or HOST:GUEST:ro, GUEST absolute"))
    };
    let mut parts: Vec<&[u8]> = value.as_bytes().split(|byte| *byte == b':').collect();
    let read_only = match parts.as_slice() {
        [_, _, b"ro"] => true,
        [_, _, b"rw"] | [_, _] => false,
        _ => return Err(bad()),
    };
    parts.truncate(2);
    let path = |part: &[u8]| PathBuf::from(OsStr::from_bytes(part));
    let (host, guest) = (path(parts[0]), path(parts[1]));
    let climbs = guest.components().any(|part| part == std::path::Component::ParentDir);
    if host.as_os_str().is_empty() || !guest.is_absolute() || climbs || guest.parent().is_none() {
        return Err(bad());
    }
    Ok(Volume { host, guest, read_only })
}

/// A variable with its value; none for one that this process has not.
fn variable(value: OsString) -> Result<Option<OsString>, Error> {
    match value.as_bytes().iter().position(|byte| *byte == b'=') {
        Some(0) => Err(Error::Usage(format!("--env {}: it has no name", value.display()))),
        Some(_) => Ok(Some(value)),
        None => Ok(std::env::var_os(&value).map(|own| {
            let mut pair = value;
            pair.push("=");
            pair.push(own);
            pair
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Option<Options>, Error> {
        Options::parse(words.iter().map(OsString::from))
    }

    #[test]
    fn what_follows_the_folder_is_the_command_s() {
        let options = parse(&[
            "--cpus=2",
            "--volume",
            "/tmp:/a:ro",
            "--env",
            "A=b=c",
            "/",
            "--",
            "ls",
            "--cpus",
            "3",
        ]);
        let options = options.unwrap().unwrap();
        assert_eq!(options.command, ["ls", "--cpus", "3"]);
        assert_eq!((options.cpus.to_str(), options.writable), (Some("2"), false));
        assert_eq!(options.variables, ["A=b=c"]);
        let volume = Volume { host: "/tmp".into(), guest: "/a".into(), read_only: true };
        assert_eq!(options.volumes, [volume]);
        let options = parse(&["--volume", "/tmp:/a/b", "--volume", "/tmp:/a", "/", "--", "-x"]);
        let options = options.unwrap().unwrap();
        assert_eq!(options.volumes[1].guest.to_str(), Some("/a/b"));
        assert_eq!(options.command, ["-x"]);
        let options = parse(&["--writable", "/", "ls", "--", "x"]).unwrap().unwrap();
        assert_eq!(options.command, ["ls", "--", "x"]);
        assert!(options.writable && parse(&["-h"]).unwrap().is_none());
    }

    #[test]
    fn mistakes_are_named() {
        for (words, named) in [
            (&["/"][..], "COMMAND"),
            (&[], "ROOTFS"),
            (&["--", "/"], "COMMAND"),
            (&["--wriable", "/", "ls"], "--wriable"),
            (&["-v", "/", "ls"], "-v"),
            (&["--volume", "/tmp", "/", "ls"], "--volume /tmp"),
            (&["--volume", "/tmp:a", "/", "ls"], "absolute"),
            (&["--volume", "/tmp:/", "/", "ls"], "absolute"),
            (&["--volume", "/tmp:/a/../..", "/", "ls"], "absolute"),
            (&["--volume", "/tmp:/a:rx", "/", "ls"], "HOST:GUEST:ro"),
            (&["--volume", "/tmp:/a", "--volume", "/tmp:/a/", "/", "ls"], "twice"),
            (&["--env", "=x", "/", "ls"], "--env"),
            (&["/", "--cpus", "2", "ls"], "--cpus: options"),
            (&["--kernel-cache", "x", "/", "ls"], "--kernel-cache"),
            (&["/dev/null", "ls"], "/dev/null"),
            (&["/no/such/folder", "ls"], "/no/such/folder"),
        ] {
            let error = parse(words).err().map(|error| error.to_string());
            assert!(error.as_ref().is_some_and(|e| e.contains(named)), "{words:?}: {error:?}");
        }
    }
}
