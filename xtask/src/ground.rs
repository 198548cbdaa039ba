//! Where guests can run: this machine's KVM, or the nested lab.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{build, process};

/// A place where guests can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// The host's /dev/kvm, which runs guest code on the processor.
    Kvm,
    /// The nested lab.
    Lab,
}

/// What `--host` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The host's KVM when it runs all guest code natively, else the lab.
    Auto,
    /// This one.
    Fixed(Ground),
}

/// `cargo xtask ground`: says where guests can run here, and why.
pub fn main(arguments: Vec<OsString>) -> Result<()> {
    let mut choice = Choice::Auto;
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            lexopt::Arg::Long("host") => choice = Choice::parse(&parser.value()?)?,
            _ => return Err(argument.unexpected().into()),
        }
    }
    choice.ground(&build::build_vmm()?).map(drop)
}

impl Choice {
    /// Reads the value of `--host`.
    pub fn parse(value: &OsStr) -> Result<Self> {
        match value.to_str() {
            Some("auto") => Ok(Self::Auto),
            Some("kvm") => Ok(Self::Fixed(Ground::Kvm)),
            Some("lab") => Ok(Self::Fixed(Ground::Lab)),
            _ => bail!("--host {}: auto, kvm or lab is wanted", value.display()),
        }
    }

    /// Chooses, and says which ground it is and why, in one line.
    pub fn ground(self, microvm: &Path) -> Result<Ground> {
        let (ground, reason) = match self {
            Self::Fixed(ground) => (ground, "asked for by --host".to_owned()),
            Self::Auto => probe(microvm)?,
        };
        let name = match ground {
            Ground::Kvm => "this machine's /dev/kvm",
            Ground::Lab => "the nested lab",
        };
        eprintln!("ground: {name} ({reason})");
        Ok(ground)
    }
}

/// Whether there is a /dev/kvm that this user can run anything on, be it interpreted.
pub fn is_kvm_usable(microvm: &Path) -> Result<bool> {
    Ok(!probe(microvm)?.1.contains("unavailable"))
}

/// What kind of /dev/kvm there is, in one line.
pub fn describe_kvm(microvm: &Path) -> Result<String> {
    Ok(probe(microvm)?.1)
}

/// Fails, in one line, where guests' kernels do not run on the processor.
pub fn require_native(microvm: &Path) -> Result<()> {
    match probe(microvm)? {
        (Ground::Kvm, _) => Ok(()),
        (Ground::Lab, reason) => bail!("--host kvm wants a native KVM; this machine's: {reason}"),
    }
}

/// Asks the VMM, which tries what /dev/kvm does with a little ring-0 code.
fn probe(microvm: &Path) -> Result<(Ground, String)> {
    let answer = process::output(Command::new(microvm).args(["-accel", "help"]))?;
    parse_probe(&answer)
        .with_context(|| format!("{} -accel help says no `kvm:`", microvm.display()))
}

fn parse_probe(answer: &str) -> Option<(Ground, String)> {
    let line = answer.lines().find(|line| line.starts_with("kvm:"))?;
    let verdict = line.strip_prefix("kvm:")?.trim();
    let native = verdict.split_whitespace().next()? == "native";
    Some((if native { Ground::Kvm } else { Ground::Lab }, line.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_native_kvm_is_used_unasked() {
        let ground = |answer| parse_probe(answer).map(|(ground, _)| ground);
        assert_eq!(ground("tcg\nkvm: native\n"), Some(Ground::Kvm));
        assert_eq!(ground("kvm: native (AMD)"), Some(Ground::Kvm));
        assert_eq!(ground("kvm: interpreted (kvm_pvm)\n"), Some(Ground::Lab));
        assert_eq!(ground("kvm: unavailable (no /dev/kvm)\n"), Some(Ground::Lab));
        for silent in ["", "kvm\n", "kvm:"] {
            assert_eq!(ground(silent), None, "{silent:?}");
        }
    }

    #[test]
    fn the_choice_is_one_of_three_words() {
        for (word, choice) in [
            ("auto", Choice::Auto),
            ("kvm", Choice::Fixed(Ground::Kvm)),
            ("lab", Choice::Fixed(Ground::Lab)),
        ] {
            assert_eq!(Choice::parse(word.as_ref()).unwrap(), choice);
        }
        assert!(Choice::parse("Lab".as_ref()).is_err());
    }
}
