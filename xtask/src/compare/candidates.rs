//! Who is compared: names and command lines.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::peers::Peer;
use crate::kernel::GuestKernel;
use crate::{apt, build, fetch, workspace};

/// A way to start the kernel, or a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// For people.
    pub name: String,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Likewise, so that init stays and can be looked at.
    pub staying: Vec<String>,
    /// Whether it has a machine that can be watched by KVM's trace points.
    pub is_machine: bool,
    /// Whether it wants its console to be a terminal.
    pub wants_terminal: bool,
    /// What it needs beside libraries.
    pub files: Vec<PathBuf>,
}

impl Candidate {
    /// Adds words to the kernel's command line.
    pub fn append(&mut self, words: &str) {
        self.replace_words(" -- ", &format!(" {words} -- "));
    }

    fn replace_words(&mut self, words: &str, by: &str) {
        for last in [&mut self.command, &mut self.staying].into_iter().filter_map(|c| c.last_mut())
        {
            *last = last.replace(words, by);
        }
    }
}

/// Our own start without a BIOS, and that by our BIOS.
pub const DIRECTLY: &str = "microvm, directly";
pub const OUR_BIOS: &str = "microvm, our BIOS";
/// Init says that it runs by a line, and restarts the machine, which ends the VMM.
pub const APPEND: &str = "console=ttyS0 quiet reboot=t panic=-1 pci=off -- brief";
/// Added to that: init stays.
pub const STAY: &str = " stay";
/// The machine, in the words that microvm and QEMU share.
const MACHINE: &str = "-enable-kvm -cpu host -m 128M -smp 1 -nodefaults -no-user-config -nographic \
                       -serial stdio -no-reboot";
/// QEMU's microvm with KVM's interrupt chips, which ours has by default.
const IRQCHIP: &str = "microvm,kernel-irqchip=on";
/// QEMU's microvm without all that a Linux can do without.
const LEAN: &str = "microvm,acpi=off,x-option-roms=off,pit=off,pic=off,rtc=off";
/// That with KVM's interrupt chips.
const LEAN_IRQCHIP: &str =
    "microvm,acpi=off,x-option-roms=off,pit=off,pic=off,rtc=off,kernel-irqchip=on";
/// Ours, with bzImages unpacked once.
const CACHED: &str = "microvm,kernel-cache=on";
/// Ours, with guest memory in pages of 4 KiB.
const SMALL_PAGES: &str = "microvm,huge-pages=off";
/// QEMU's option ROMs, for those BIOSes that load kernels by them.
const ROMS: [&str; 3] = ["linuxboot_dma.bin", "pvh.bin", "kvmvapic.bin"];
/// What makes a container of a process: its own users, processes, mounts, network and names.
const CONTAINER: [&str; 9] = [
    "unshare",
    "--map-root-user",
    "--pid",
    "--fork",
    "--mount",
    "--net",
    "--uts",
    "--ipc",
    "--cgroup",
];

/// What all start.
#[derive(Clone, Copy)]
pub struct Guest<'a> {
    /// What the kernel's file is called: `vmlinux` or `bzImage`.
    pub form: &'a str,
    /// The kernel.
    pub kernel: &'a Path,
    /// The initramfs.
    pub initrd: &'a Path,
}

/// All of them, ours first.
pub fn all(kernel: &GuestKernel, peers: &[Peer]) -> Result<Vec<Candidate>> {
    let initrd = &build::build_initramfs()?;
    let elf = Guest { form: "vmlinux", kernel: &kernel.vmlinux, initrd };
    let packed = Guest { form: "bzImage", kernel: &kernel.bzimage, initrd };
    let mut candidates = Vec::new();
    for guest in [elf, packed] {
        candidates.extend(ours(guest)?);
        candidates.extend(qemu(guest)?);
        for peer in peers {
            candidates.extend(peer.candidate(guest)?);
        }
    }
    candidates.push(container()?);
    Ok(candidates)
}

/// Our own.
pub fn ours(guest: Guest<'_>) -> Result<Vec<Candidate>> {
    let microvm = workspace::product(build::MICROVM)?;
    let bios = workspace::product(build::BIOS)?;
    let mut ways = vec![(DIRECTLY, "microvm", None), (OUR_BIOS, "microvm", Some(&bios))];
    if guest.form == "vmlinux" {
        ways.push(("microvm, small pages, directly", SMALL_PAGES, None));
        ways.push(("microvm, small pages, our BIOS", SMALL_PAGES, Some(&bios)));
    }
    if guest.form == "bzImage" {
        // The start that warms up fills the cache.
        ways.push(("microvm, kernel cache, directly", CACHED, None));
        ways.push(("microvm, kernel cache, our BIOS", CACHED, Some(&bios)));
    }
    let candidate = |(name, machine, bios): (&str, &str, Option<&PathBuf>)| {
        like_qemu(name, &microvm, machine, bios.map(PathBuf::as_path), guest)
    };
    Ok(ways.into_iter().map(candidate).collect())
}

fn qemu(guest: Guest<'_>) -> Result<Vec<Candidate>> {
    let whole = fetch::qemu()?;
    let small = whole.with_file_name("qemu-system-x86_64-microvm");
    let share = Path::new("/usr/share/qemu");
    let seabios = |name: &str| apt::file(&Path::new("/usr/share/seabios").join(name), "seabios");
    let qboot = apt::file(&share.join("qboot.rom"), "qemu-system-data")?;
    let ours = workspace::product(build::BIOS)?;
    let big = seabios("bios-256k.bin")?;
    let mut ways = vec![
        ("QEMU microvm, our BIOS", &small, "microvm", ours.clone()),
        ("QEMU microvm, qboot", &small, "microvm", qboot.clone()),
        ("QEMU microvm, irqchip on, qboot", &small, IRQCHIP, qboot.clone()),
        ("QEMU lean microvm, qboot", &small, LEAN, qboot.clone()),
        ("QEMU lean microvm, irqchip on, qboot", &small, LEAN_IRQCHIP, qboot.clone()),
        ("QEMU lean microvm, our BIOS", &small, LEAN, ours),
        ("whole QEMU, q35, SeaBIOS", &whole, "q35", big.clone()),
    ];
    // SeaBIOS on a microvm with ACPI does not get an ELF kernel to run.
    if guest.form == "bzImage" {
        ways.push(("QEMU microvm, SeaBIOS", &small, "microvm", seabios("bios-microvm.bin")?));
        ways.push(("QEMU q35, SeaBIOS", &small, "q35", big));
        ways.push(("whole QEMU, microvm, qboot", &whole, "microvm", qboot));
    }
    let roms: Vec<_> =
        ROMS.map(|rom| share.join(rom)).into_iter().filter(|rom| rom.exists()).collect();
    let with_roms = |(name, program, machine, bios): (&str, &PathBuf, &str, PathBuf)| {
        let mut candidate = like_qemu(name, program, machine, Some(&bios), guest);
        candidate.files.extend(roms.iter().cloned());
        if machine == "q35" {
            // There is PCI, which its kernel is to find.
            candidate.replace_words(" pci=off", "");
        }
        candidate
    };
    Ok(ways.into_iter().map(with_roms).collect())
}

/// A candidate that reads QEMU's command line.
fn like_qemu(
    name: &str,
    program: &Path,
    machine: &str,
    bios: Option<&Path>,
    guest: Guest<'_>,
) -> Candidate {
    let mut command = vec![program.display().to_string(), "-M".into(), machine.into()];
    command.extend(MACHINE.split_whitespace().map(str::to_owned));
    for (option, file) in
        [("-kernel", Some(guest.kernel)), ("-initrd", Some(guest.initrd)), ("-bios", bios)]
    {
        command.extend(file.iter().flat_map(|file| [option.into(), file.display().to_string()]));
    }
    command.push("-append".into());
    let ending = |append: String| command.iter().cloned().chain([append]).collect();
    let files = [program, guest.kernel, guest.initrd].into_iter().chain(bios);
    Candidate {
        name: format!("{name}, {}", guest.form),
        command: ending(APPEND.into()),
        staying: ending(format!("{APPEND}{STAY}")),
        is_machine: true,
        wants_terminal: false,
        files: files.map(PathBuf::from).collect(),
    }
}

/// The floor: the same init in namespaces of its own, on the kernel that is there already.
fn container() -> Result<Candidate> {
    let init = workspace::product(build::GUEST_INIT)?;
    let path = init.to_str().context("the path of init")?;
    let command = |orders: &[&str]| {
        CONTAINER.iter().chain(&[path]).chain(orders).map(|word| (*word).to_owned()).collect()
    };
    Ok(Candidate {
        name: "a container (unshare)".into(),
        command: command(&["brief"]),
        staying: command(&["brief", "stay"]),
        is_machine: false,
        wants_terminal: false,
        files: vec![init, apt::tool("unshare", "util-linux")?],
    })
}

/// The plan that goes to the lab.
pub fn to_json(candidates: &[Candidate]) -> Value {
    let one = |candidate: &Candidate| {
        json!({
            "name": candidate.name,
            "command": candidate.command,
            "staying": candidate.staying,
            "is_machine": candidate.is_machine,
            "wants_terminal": candidate.wants_terminal,
        })
    };
    candidates.iter().map(one).collect()
}

/// The plan as the lab reads it.
pub fn from_json(plan: &Value) -> Option<Vec<Candidate>> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let words = |value: &Value| value.as_array()?.iter().map(text).collect::<Option<Vec<_>>>();
    let one = |value: &Value| {
        Some(Candidate {
            name: text(&value["name"])?,
            command: words(&value["command"])?,
            staying: words(&value["staying"])?,
            is_machine: value["is_machine"].as_bool()?,
            wants_terminal: value["wants_terminal"].as_bool()?,
            files: Vec::new(),
        })
    };
    plan.as_array()?.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_comes_back_as_it_was_sent() {
        let (kernel, initrd) = (Path::new("/k"), Path::new("/i"));
        let guest = Guest { form: "bzImage", kernel, initrd };
        let one = like_qemu("x", Path::new("/p"), "q35", Some(Path::new("/b")), guest);
        assert_eq!(one.name, "x, bzImage");
        assert!(one.command.windows(2).any(|pair| pair == ["-bios", "/b"]));
        assert!(one.files.contains(&kernel.to_path_buf()) && one.files.contains(&"/b".into()));
        assert!(one.staying.last().unwrap().ends_with("-- brief stay"));
        let sent = Candidate { files: Vec::new(), ..one };
        assert_eq!(from_json(&to_json(std::slice::from_ref(&sent))), Some(vec![sent]));
        assert_eq!(from_json(&json!([{ "name": "x" }])), None);
    }
}
