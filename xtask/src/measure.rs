//! Boots one guest by both paths on the KVM that is here, and prints what was seen.

use std::ffi::OsString;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use std::{fs, thread};

use abi::post;
use anyhow::{Context, Result, bail};
use guest::facts;
use lexopt::{Arg, Parser, ValueExt};
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;

use crate::ground::Ground;
use crate::{build, settle, timeline, workspace};

/// What a boot may take: ten times what the slowest ground needs.
const LIMIT: Duration = Duration::from_secs(120);

/// What is booted.
pub struct Guest {
    /// A bzImage or an ELF kernel.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
    /// The kernel's command line.
    pub append: String,
    /// The memory, as `microvm -m` takes it.
    pub memory: String,
    /// More words for microvm's command line.
    pub more: Vec<OsString>,
    /// Show each stage.
    pub timeline: bool,
}

impl Guest {
    /// The arguments of `xtask measure` that [`main`] reads back.
    pub fn arguments(&self) -> Vec<OsString> {
        let Self { kernel, initrd, append, memory, more, timeline } = self;
        let shown = if *timeline { "timeline" } else { "summary" };
        let first = [shown.into(), kernel.into(), initrd.into(), append.into(), memory.into()];
        first.into_iter().chain(more.iter().cloned()).collect()
    }
}

/// `xtask measure timeline|summary KERNEL INITRD APPEND MEMORY [WORD]..`: what `boot` runs in the
/// lab.
pub fn main(arguments: Vec<OsString>) -> Result<()> {
    let mut words = Vec::new();
    let mut parser = Parser::from_args(std::iter::once(OsString::from("--")).chain(arguments));
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Value(word) => words.push(word),
            _ => return Err(argument.unexpected().into()),
        }
    }
    let more = words.split_off(words.len().min(5));
    let [shown, kernel, initrd, append, memory] =
        words.try_into().ok().context("measure is a part of boot: run `cargo xtask boot`")?;
    let guest = Guest {
        kernel: kernel.into(),
        initrd: initrd.into(),
        append: append.string()?,
        memory: memory.string()?,
        more,
        timeline: shown == "timeline",
    };
    measure(&guest, Ground::Lab)
}

/// Boots by both paths and prints the comparison.
pub fn measure(guest: &Guest, ground: Ground) -> Result<()> {
    // Others' virtual machines stay; those of the boots before are waited for.
    let others = settle::machines()?;
    // The first boot of each path pays for cold caches of the host: it is run, and left out.
    let mut runs = Vec::new();
    for round in ["warm-up", "measured"] {
        for path in [Path::Firmware, Path::Direct] {
            eprintln!("boot: {} ({round})", path.name());
            let run = boot_with_retry(guest, path, others)?;
            if round == "measured" {
                runs.push(run);
            }
        }
    }
    let [firmware, direct] = runs.try_into().ok().context("two paths")?;
    if guest.timeline {
        for (run, path) in [(&firmware, Path::Firmware), (&direct, Path::Direct)] {
            println!("{}:\n{}", path.name(), run.timeline);
        }
    }
    print!("{}", report(&firmware, &direct, ground));
    if [&firmware, &direct].iter().any(|run| run.init == Init::NotSeen) {
        bail!("init did not run");
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    Firmware,
    Direct,
}

impl Path {
    fn name(self) -> &'static str {
        match self {
            Self::Firmware => "through bios-microvm.bin",
            Self::Direct => "directly",
        }
    }
}

/// Whether init ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Init {
    /// It wrote its mark.
    Ran,
    /// Neither mark nor facts.
    NotSeen,
}

/// What one boot showed; times in nanoseconds from just before the VMM's process was started.
struct Run {
    init: Init,
    kernel: String,
    first_instruction: Option<u64>,
    kernel_entry: Option<u64>,
    init_mark: Option<u64>,
    end: Option<u64>,
    /// Exits to the VMM until the kernel's entry, until init, in all; KVM's own count.
    exits: [Option<u64>; 4],
    /// The waterfall.
    timeline: String,
    /// Pages that KVM mapped on demand, the VMM's page faults, its KiB of memory at most.
    memory: [Option<u64>; 3],
}

/// An emulated host loses about one guest in a hundred: one more try, and it is said.
fn boot_with_retry(guest: &Guest, path: Path, others: u64) -> Result<Run> {
    boot(guest, path, others).or_else(|error| {
        eprintln!("boot: tried again, after: {error:#}");
        boot(guest, path, others)
    })
}

fn boot(guest: &Guest, path: Path, others: u64) -> Result<Run> {
    let folder = std::env::temp_dir();
    let trace = folder.join(format!("microvm-boot-trace-{}.json", std::process::id()));
    let mut command = Command::new(workspace::product(build::MICROVM)?);
    command.args(["-M", "microvm", "-enable-kvm", "-cpu", "host", "-m", &guest.memory]);
    command.args(["-nodefaults", "-no-user-config", "-nographic", "-serial", "stdio"]);
    command.args(["-no-reboot", "-append", &guest.append]).args(&guest.more);
    command.arg("-kernel").arg(&guest.kernel).arg("-initrd").arg(&guest.initrd);
    command.arg("-boot-trace").arg(&trace);
    if path == Path::Firmware {
        command.arg("-bios").arg(workspace::product(build::BIOS)?);
    }
    settle::settle(others)?;
    let start = now();
    let console = run(&mut command)?;
    let text = fs::read_to_string(&trace).context("reading the VMM's boot trace")?;
    fs::remove_file(&trace).context("removing the VMM's boot trace")?;
    let json: Value = serde_json::from_str(&text).context("parsing the VMM's boot trace")?;
    read_run(&json, start, &console)
}

fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(time.tv_sec) * 1_000_000_000 + part(time.tv_nsec)
}

/// Runs the VMM to its end; what the guest wrote on its console.
fn run(command: &mut Command) -> Result<String> {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("starting microvm")?;
    let mut stdout = child.stdout.take().context("microvm's output")?;
    let (sender, chunks) = channel();
    thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(length @ 1..) = stdout.read(&mut chunk) {
            if sender.send(chunk[..length].to_vec()).is_err() {
                break;
            }
        }
    });
    let mut console = Vec::new();
    let end = Instant::now() + LIMIT;
    loop {
        match chunks.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(chunk) => console.extend(chunk),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => return give_up(child, &console),
        }
    }
    let status = child.wait().context("waiting for microvm")?;
    let console = String::from_utf8_lossy(&console).into_owned();
    if !status.success() {
        bail!("microvm ended with {status}; the guest's console:\n{console}");
    }
    Ok(console)
}

fn give_up(mut child: Child, console: &[u8]) -> Result<String> {
    // It may have ended in this very moment; that is too late all the same.
    let _ = child.kill();
    child.wait().context("waiting for microvm")?;
    let console = String::from_utf8_lossy(console);
    bail!("the guest did not end within {} s; its console:\n{console}", LIMIT.as_secs())
}

fn read_run(json: &Value, start: u64, console: &str) -> Result<Run> {
    let boot = json["boots"].get(0).context("the boot trace has no boot")?;
    let since_start = |ns: &Value| Some(ns.as_u64()?.saturating_sub(start));
    let mark = |code: u8| {
        let marks = boot["marks"].as_array()?;
        marks.iter().find(|mark| mark["code"] == code)
    };
    let [entry, init] = [mark(post::KERNEL_ENTRY), mark(post::GUEST_INIT)];
    let facts = facts::parse(console);
    Ok(Run {
        init: if init.is_some() || facts.is_some() { Init::Ran } else { Init::NotSeen },
        kernel: facts.and_then(|mut facts| facts.remove("kernel")).unwrap_or_else(|| "-".into()),
        first_instruction: since_start(&boot["first_run_ns"]),
        kernel_entry: entry.and_then(|mark| since_start(&mark["ns"])),
        init_mark: init.and_then(|mark| since_start(&mark["ns"])),
        end: since_start(&json["exit"]["ns"]),
        exits: [
            entry.and_then(|mark| mark["exits"].as_u64()),
            init.and_then(|mark| mark["exits"].as_u64()),
            json["exits"]["total"].as_u64(),
            boot["kvm_exits"].as_u64(),
        ],
        memory: [
            boot["kvm_page_faults"].as_u64(),
            json["process"]["page_faults"].as_u64(),
            json["process"]["peak_kib"].as_u64(),
        ],
        timeline: timeline::waterfall(json, start).unwrap_or_default(),
    })
}

fn report(firmware: &Run, direct: &Run, ground: Ground) -> String {
    let mut lines =
        vec![format!("{:38}{:>22}{:>22}{:>14}", "", "firmware", "direct", "difference")];
    let mut text = |name: &str, show: fn(&Run) -> String| {
        lines.push(format!("{name:38}{:>22}{:>22}", show(firmware), show(direct)));
    };
    text("init ran", |run| if run.init == Init::Ran { "yes".into() } else { "no".into() });
    text("kernel", |run| run.kernel.clone());
    let mut number = |name: &str, show: &dyn Fn(&Run) -> Option<u64>, milliseconds: bool| {
        let [a, b] = [show(firmware), show(direct)];
        let difference = a.zip(b).map(|(a, b)| a.cast_signed() - b.cast_signed());
        let value = |value: Option<i64>, plus: bool| match (value, milliseconds, plus) {
            (None, ..) => "-".to_owned(),
            (Some(n), true, false) => format!("{:.3}", ms(n)),
            (Some(n), true, true) => format!("{:+.3}", ms(n)),
            (Some(n), false, false) => n.to_string(),
            (Some(n), false, true) => format!("{n:+}"),
        };
        let [a, b] = [a, b].map(|n| value(n.map(u64::cast_signed), false));
        lines.push(format!("{name:38}{a:>22}{b:>22}{:>14}", value(difference, true)));
    };
    number("ms to the first guest instruction", &|run| run.first_instruction, true);
    number("ms to the kernel's entry", &|run| run.kernel_entry, true);
    number("ms to init", &|run| run.init_mark, true);
    number("ms to the VMM's end", &|run| run.end, true);
    number("exits to the VMM, to kernel's entry", &|run| run.exits[0], false);
    number("exits to the VMM, to init", &|run| run.exits[1], false);
    number("exits to the VMM, to its end", &|run| run.exits[2], false);
    number("all KVM exits", &|run| run.exits[3], false);
    number("pages that KVM mapped on demand", &|run| run.memory[0], false);
    number("page faults of the VMM", &|run| run.memory[1], false);
    number("KiB of the VMM at most, with guest RAM", &|run| run.memory[2], false);
    lines.push(String::new());
    lines.push(conditions(ground).to_owned());
    lines.join("\n") + "\n"
}

#[expect(clippy::cast_precision_loss, reason = "nanoseconds of seconds, not of centuries")]
fn ms(nanoseconds: i64) -> f64 {
    nanoseconds as f64 / 1e6
}

/// What kind of figures these are.
fn conditions(ground: Ground) -> &'static str {
    match ground {
        Ground::Kvm => {
            "Ground: this machine's KVM. Milliseconds of wall time from the start of the VMM's \
             process,\none measured boot per path after one warm-up: they vary with the machine \
             and its load."
        }
        Ground::Lab => {
            "Ground: the nested lab. Virtual milliseconds from the start of the VMM's process: one \
             is a\nmillion instructions of VMM, host kernel and guest together. They count work, \
             repeat on any\nmachine, and are no hardware times. One measured boot per path after \
             one warm-up."
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn trace() -> Value {
        json!({
            "boots": [{
                "first_run_ns": 1_500, "kvm_exits": 70, "kvm_page_faults": 4,
                "marks": [
                    { "code": post::KERNEL_ENTRY, "ns": 2_000, "exits": 10 },
                    { "code": post::GUEST_INIT, "ns": 9_000, "exits": 50 },
                ],
            }],
            "exit": { "ns": 10_000 },
            "exits": { "total": 60 },
            "process": { "page_faults": 3, "peak_kib": 2 },
        })
    }

    #[test]
    fn times_count_from_the_start_of_the_process() {
        let run = read_run(&trace(), 1_000, "").unwrap();
        assert_eq!(run.first_instruction, Some(500));
        assert_eq!(run.kernel_entry, Some(1_000));
        assert_eq!(run.init_mark, Some(8_000));
        assert_eq!(run.end, Some(9_000));
        assert_eq!(run.exits, [Some(10), Some(50), Some(60), Some(70)]);
        assert_eq!(run.memory, [Some(4), Some(3), Some(2)]);
        assert!(run.init == Init::Ran);
    }

    #[test]
    fn without_mark_and_facts_init_was_not_seen() {
        let mut json = trace();
        json["boots"][0]["marks"] = json!([]);
        let run = read_run(&json, 0, "Kernel panic").unwrap();
        assert!(run.init == Init::NotSeen);
        assert!(report(&run, &run, Ground::Lab).contains('-'));
        let facts = "guest-facts-begin\nkernel=6.1\nguest-facts-end";
        assert!(read_run(&json, 0, facts).unwrap().init == Init::Ran);
    }
}
