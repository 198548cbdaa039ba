//! VMMs of others, if their binaries are named.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::candidates::{APPEND, Candidate, Guest, STAY};
use crate::workspace;

/// The names that `--peer` knows.
const KINDS: &str = "firecracker, cloud-hypervisor, kvmtool or alioth";

/// A VMM of somebody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    kind: Kind,
    program: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Firecracker,
    CloudHypervisor,
    Kvmtool,
    Alioth,
}

impl Peer {
    /// Reads `NAME=PATH`.
    pub fn parse(text: &str) -> Result<Self> {
        let (name, path) = text.split_once('=').context("--peer wants NAME=PATH")?;
        let kind = match name {
            "firecracker" => Kind::Firecracker,
            "cloud-hypervisor" => Kind::CloudHypervisor,
            "kvmtool" => Kind::Kvmtool,
            "alioth" => Kind::Alioth,
            _ => bail!("--peer {name}: not known; NAME is {KINDS}"),
        };
        let program =
            fs::canonicalize(path).with_context(|| format!("--peer {name}: finding '{path}'"))?;
        let file = fs::metadata(&program).with_context(|| format!("--peer {name}={path}"))?;
        if !file.is_file() || file.permissions().mode() & 0o111 == 0 {
            bail!("--peer {name}={path}: not a program: give an executable file");
        }
        Ok(Self { kind, program })
    }

    /// Its way to start the guest, if it has one for this form of kernel.
    pub fn candidate(&self, guest: Guest<'_>) -> Result<Option<Candidate>> {
        // Of those, only kvmtool does not load an ELF kernel.
        if self.kind == Kind::Kvmtool && guest.form == "vmlinux" {
            return Ok(None);
        }
        let mut files = vec![self.program.clone(), guest.kernel.into(), guest.initrd.into()];
        let command = self.command(guest, APPEND, "brief", &mut files)?;
        let staying = self.command(guest, &format!("{APPEND}{STAY}"), "stay", &mut files)?;
        let name = format!("{}, {}", self.name(), guest.form);
        // It wants its console to be a terminal.
        let wants_terminal = self.kind == Kind::Alioth;
        Ok(Some(Candidate { name, command, staying, is_machine: true, wants_terminal, files }))
    }

    const fn name(&self) -> &'static str {
        match self.kind {
            Kind::Firecracker => "Firecracker",
            Kind::CloudHypervisor => "Cloud Hypervisor",
            Kind::Kvmtool => "kvmtool",
            Kind::Alioth => "alioth",
        }
    }

    fn command(
        &self,
        guest: Guest<'_>,
        append: &str,
        order: &str,
        files: &mut Vec<PathBuf>,
    ) -> Result<Vec<String>> {
        let [program, kernel, initrd] = [&self.program, guest.kernel, guest.initrd]
            .map(|path: &Path| path.display().to_string());
        let words: Vec<String> = match self.kind {
            Kind::Firecracker => {
                let config = firecracker_config(guest, append, order)?;
                files.push(config.clone());
                let config = config.display().to_string();
                vec!["--no-api".into(), "--config-file".into(), config]
            }
            Kind::CloudHypervisor => words(
                &["--kernel", &kernel, "--initramfs", &initrd],
                "--memory size=128M --cpus boot=1 --serial tty --console off --cmdline",
                append,
            ),
            Kind::Kvmtool => words(
                &["run", "--name", order, "--kernel", &kernel, "--initrd", &initrd],
                "--mem 128 --cpus 1 --console serial --params",
                append,
            ),
            Kind::Alioth => {
                let option = if guest.form == "vmlinux" { "--pvh" } else { "--kernel" };
                words(
                    &["boot", option, &kernel, "--initramfs", &initrd],
                    "--memory size=128M,thp=true --cpu count=1 --cmdline",
                    append,
                )
            }
        };
        Ok([program].into_iter().chain(words).collect())
    }
}

fn words(first: &[&str], rest: &str, last: &str) -> Vec<String> {
    let words = first.iter().copied().chain(rest.split_whitespace()).chain([last]);
    words.map(str::to_owned).collect()
}

fn firecracker_config(guest: Guest<'_>, append: &str, order: &str) -> Result<PathBuf> {
    let config = json!({
        "boot-source": {
            "kernel_image_path": guest.kernel, "initrd_path": guest.initrd, "boot_args": append,
        },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": 128 },
        "drives": [],
    });
    let path =
        workspace::target("compare")?.join(format!("firecracker-{}-{order}.json", guest.form));
    workspace::replace(&path, |partial| fs::write(partial, config.to_string()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_a_known_name_and_a_file_that_is_there() {
        let parse = |text: &str| Peer::parse(text).map_err(|error| error.to_string());
        assert_eq!(parse("kvmtool=/proc/self/exe").unwrap().kind, Kind::Kvmtool);
        assert!(parse("qemu=/dev/null").unwrap_err().contains(KINDS));
        assert!(parse("kvmtool=/nowhere").unwrap_err().contains("finding '/nowhere'"));
        assert!(parse("kvmtool=/dev/null").unwrap_err().contains("executable file"));
        assert!(parse("kvmtool").unwrap_err().contains("NAME=PATH"));
    }

    #[test]
    fn a_peer_s_command_has_the_same_guest() {
        let guest = Guest { form: "bzImage", kernel: Path::new("/k"), initrd: Path::new("/i") };
        for kind in ["kvmtool", "cloud-hypervisor"] {
            let peer = Peer::parse(&format!("{kind}=/proc/self/exe")).unwrap();
            let candidate = peer.candidate(guest).unwrap().unwrap();
            assert_eq!(candidate.command.last().unwrap(), APPEND);
            assert!(candidate.staying.last().unwrap().ends_with("brief stay"));
            assert!(["/k", "/i"].iter().all(|file| candidate.command.contains(&(*file).into())));
        }
        let elf = Guest { form: "vmlinux", ..guest };
        let kvmtool = Peer::parse("kvmtool=/proc/self/exe").unwrap();
        assert_eq!(kvmtool.candidate(elf).unwrap(), None);
        let alioth = Peer::parse("alioth=/proc/self/exe").unwrap().candidate(elf).unwrap().unwrap();
        assert!(alioth.command.windows(2).any(|pair| pair == ["--pvh", "/k"]));
    }
}
