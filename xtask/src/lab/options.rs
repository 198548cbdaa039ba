//! The lab's command line.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lexopt::{Arg, Parser, ValueExt};

use super::{Carried, LabRun};

pub const USAGE: &str = "\
usage: cargo xtask lab [OPTIONS] -- COMMAND [ARGUMENTS]

Runs COMMAND in a Linux that has a real /dev/kvm, and passes its output and exit status through.
The program and its libraries are carried along; so are a few of the host's tools when it is a
shell. It runs in a directory of the same name as the current one.

  --file HOST[:GUEST]  carry a file or directory to GUEST, or to the same absolute path
  --env NAME=VALUE     set an environment variable
  --icount             count instructions: one virtual nanosecond each, the same on every run
  --memory SIZE        the machine's memory, as 512M or 4G (2G)
  --timeout SECONDS    give up after this wall time (600)
  --stdin              pass standard input on. A serial line has no end of file: the command must
                       know by itself when it has read all. From a terminal, Ctrl-D works, and
                       Ctrl-C ends the lab. Without this option the command reads /dev/null.
";

/// What to run; `None` when help was asked for.
pub fn parse(arguments: Vec<OsString>) -> Result<Option<LabRun>> {
    let mut lab_run = LabRun::new(std::iter::empty::<OsString>());
    let mut parser = Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("file") => lab_run.files.push(carried(&parser.value()?)?),
            Arg::Long("env") => lab_run.environment.push(variable(parser.value()?)?),
            Arg::Long("icount") => lab_run.icount = true,
            Arg::Long("stdin") => lab_run.stdin = true,
            Arg::Long("memory") => lab_run.memory_mib = memory_mib(&parser.value()?.string()?)?,
            Arg::Long("timeout") => {
                let seconds: u64 = parser.value()?.parse().context("--timeout")?;
                lab_run.timeout = Duration::from_secs(seconds);
            }
            Arg::Long("help") | Arg::Short('h') => return Ok(None),
            // The command's own options are not ours, with or without `--` before it.
            Arg::Value(program) => {
                lab_run.command.push(program);
                lab_run.command.extend(parser.raw_args()?);
            }
            Arg::Long(_) | Arg::Short(_) => return Err(argument.unexpected().into()),
        }
    }
    if lab_run.command.is_empty() {
        bail!("lab: which command?\n{USAGE}");
    }
    Ok(Some(lab_run))
}

fn carried(value: &OsStr) -> Result<Carried> {
    let mut halves = value.as_bytes().splitn(2, |&byte| byte == b':').map(OsStr::from_bytes);
    let host = PathBuf::from(halves.next().unwrap_or_default());
    let host = std::path::absolute(&host).with_context(|| format!("--file {}", value.display()))?;
    let guest = halves.next().map_or_else(|| host.clone(), PathBuf::from);
    if !guest.is_absolute() {
        bail!("--file {}: the lab's path must begin with a slash", value.display());
    }
    Ok(Carried { host, guest })
}

fn variable(value: OsString) -> Result<(OsString, OsString)> {
    let bytes = value.into_vec();
    let Some(at) = bytes.iter().position(|&byte| byte == b'=').filter(|at| *at > 0) else {
        bail!("--env {}: NAME=VALUE is wanted", String::from_utf8_lossy(&bytes));
    };
    let (name, value) = bytes.split_at(at);
    let value = value.get(1..).unwrap_or_default();
    Ok((OsString::from_vec(name.to_vec()), OsString::from_vec(value.to_vec())))
}

/// A size in MiB: QEMU's spelling, a plain number being MiB.
fn memory_mib(text: &str) -> Result<u32> {
    let (number, unit) = match text.strip_suffix(['G', 'g']) {
        Some(number) => (number, 1024),
        None => (text.strip_suffix(['M', 'm']).unwrap_or(text), 1),
    };
    let number = number.parse::<u32>().ok().and_then(|number| number.checked_mul(unit));
    // Less does not hold the lab's own kernel and KVM.
    number.filter(|mib| *mib >= 256).with_context(|| format!("--memory {text}: 256M or more"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(words: &[&str]) -> Result<LabRun, String> {
        match parse(words.iter().map(OsString::from).collect()) {
            Ok(Some(lab_run)) => Ok(lab_run),
            Ok(None) => Err("help".into()),
            Err(error) => Err(format!("{error:#}")),
        }
    }

    #[test]
    fn options_end_where_the_command_begins() {
        let lab_run = check(&["--icount", "--", "/bin/sh", "--icount", "-c", "--", "x"]).unwrap();
        assert_eq!(lab_run.command, ["/bin/sh", "--icount", "-c", "--", "x"]);
        assert!(lab_run.icount);
        let lab_run = check(&["sh", "--stdin"]).unwrap();
        assert_eq!(lab_run.command, ["sh", "--stdin"]);
        assert!(!lab_run.stdin);
    }

    #[test]
    fn files_go_to_the_same_path_or_to_a_given_one() {
        let lab_run = check(&["--file", "/etc/hosts", "--file=/x:/y:z", "sh"]).unwrap();
        let carried = |host: &str, guest: &str| Carried { host: host.into(), guest: guest.into() };
        assert_eq!(lab_run.files, [carried("/etc/hosts", "/etc/hosts"), carried("/x", "/y:z")]);
        assert!(check(&["--file", "/x:y", "sh"]).unwrap_err().contains("slash"));
        let lab_run = check(&["--file", "x", "sh"]).unwrap();
        assert!(lab_run.files[0].host.is_absolute() && lab_run.files[0].guest.ends_with("x"));
    }

    #[test]
    fn sizes_have_units() {
        for (text, mib) in [("2G", 2048), ("512M", 512), ("300", 300)] {
            assert_eq!(check(&["--memory", text, "sh"]).unwrap().memory_mib, mib, "{text}");
        }
        for text in ["", "G", "64M", "-1", "4194304G", "1T"] {
            assert!(check(&[&format!("--memory={text}"), "sh"]).is_err(), "{text}");
        }
    }

    #[test]
    fn variables_have_a_name() {
        let lab_run = check(&["--env", "A=b=c", "sh"]).unwrap();
        assert_eq!(lab_run.environment, [("A".into(), "b=c".into())]);
        for text in ["A", "=b"] {
            assert!(check(&["--env", text, "sh"]).is_err(), "{text}");
        }
    }

    #[test]
    fn says_what_is_wrong() {
        assert!(check(&[]).unwrap_err().contains("which command"));
        assert!(check(&["--fast", "sh"]).unwrap_err().contains("--fast"));
        assert!(check(&["--timeout", "soon", "sh"]).unwrap_err().contains("--timeout"));
        assert_eq!(check(&["--help"]).unwrap_err(), "help");
    }
}
