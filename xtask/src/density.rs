//! `cargo xtask density`: microVMs by the hundred on one machine.
//!
//! How many it starts in a second, what each takes of it, and whether anything is left of them.

mod account;

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::num::NonZero;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::{self, available_parallelism};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use self::account::{System, Usage};
use crate::{build, ground, workspace};

const USAGE: &str = "\
usage: cargo xtask density [--starts N]

Starts microVMs of 128 MiB with a small payload on this machine's /dev/kvm: one after the other, and
1, 10, 100 and 500 at once, and prints what each takes. Then N times more (10000), in four rounds,
to see that nothing is left of them: what grows in every round is an error.
";

/// How many run at once.
const CROWDS: [usize; 4] = [1, 10, 100, 500];
/// How many are started one after the other, for a rate.
const ROW: u32 = 100;
/// The payload's last line before it halts.
const READY: &str = "left=halt";
/// The payload's way to say that all is well: 16, as isa-debug-exit makes a status of it.
const WELL: i32 = 16 * 2 + 1;
/// Rounds of those starts that are compared.
const ROUNDS: u32 = 4;
/// The kernel takes virtual machines apart after their processes have ended, and counts of its
/// memory are a second or two late.
const SETTLE: Duration = Duration::from_secs(3);
/// The same between crowds, which are not compared.
const SETTLE_CROWD: Duration = Duration::from_millis(200);
/// The longest that virtual machines may be there after their processes, and how often to look.
const APART: Duration = Duration::from_secs(60);
const GLANCE: Duration = Duration::from_millis(20);

/// Runs the job.
pub fn main(arguments: Vec<OsString>) -> Result<()> {
    let Some(starts) = parse(arguments)? else {
        print!("{USAGE}");
        return Ok(());
    };
    build::build_all()?;
    let machine = Machine { microvm: workspace::product(build::MICROVM)? };
    if !ground::is_kvm_usable(&machine.microvm)? {
        bail!("density needs a /dev/kvm that this user can open; the nested lab has one CPU only");
    }
    println!("{}\n", ground::describe_kvm(&machine.microvm)?);
    println!("one after the other          starts/s   ms of CPU each   of the system");
    for (name, firmware) in [("directly", false), ("by our BIOS", true)] {
        machine.one_after_the_other(name, firmware)?;
    }
    println!("\n{HEAD}");
    for crowd in CROWDS {
        machine.at_once(crowd)?;
    }
    println!("{NOTES}");
    machine.leave_nothing(starts / ROUNDS)
}

const HEAD: &str = "\
at once    starts/s   CPU   PSS KiB   shared KiB   kernel KiB   threads   files   room for";

const NOTES: &str = "
ms of CPU each: what the processes used that were started; of the system: what all processors were
busy with, for each start: also the kernel's threads, which take virtual machines apart, and what
else ran. CPU: how much of all processors the starts used; near 100 % they are the limit. PSS,
shared, threads and files (descriptors) are those of a process, on the average; kernel is what the
system's slabs, page tables, stacks and other memory of its own grew by. Room: how many more fit
into what memory was available, by that.
";

fn parse(arguments: Vec<OsString>) -> Result<Option<u32>> {
    use lexopt::prelude::{Long, Short};
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut starts = 10_000;
    while let Some(argument) = parser.next()? {
        match argument {
            Long("starts") => {
                let value = parser.value()?;
                let number = value.to_str().and_then(|text| text.parse().ok());
                starts = number.filter(|number| *number >= ROUNDS).with_context(|| {
                    format!("--starts {}: give a number from {ROUNDS} up", value.display())
                })?;
            }
            Long("help") | Short('h') => return Ok(None),
            _ => return Err(argument.unexpected()).context("see cargo xtask density --help"),
        }
    }
    Ok(Some(starts))
}

struct Machine {
    microvm: PathBuf,
}

impl Machine {
    fn command(&self, firmware: bool, append: &str) -> Result<Command> {
        let words = "-M microvm -m 128M -nodefaults -no-user-config -nographic -serial stdio \
                     -no-reboot -device isa-debug-exit,iobase=0xf4,iosize=4";
        let mut command = Command::new(&self.microvm);
        command.args(words.split_whitespace());
        command.arg("-kernel").arg(workspace::product(build::PAYLOAD)?).args(["-append", append]);
        if firmware {
            command.arg("-bios").arg(workspace::product(build::BIOS)?);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(command)
    }

    fn run(&self, firmware: bool) -> Result<()> {
        let output = self.command(firmware, "")?.output().context("starting microvm")?;
        if output.status.code() != Some(WELL) {
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text);
            bail!("microvm ended with {}; it printed:\n{text}", output.status);
        }
        Ok(())
    }

    fn one_after_the_other(&self, name: &str, firmware: bool) -> Result<()> {
        self.run(firmware)?;
        let (before, system, start) =
            (account::children_ms()?, account::system_ms()?, Instant::now());
        for _ in 0..ROW {
            self.run(firmware)?;
        }
        let seconds = start.elapsed().as_secs_f64();
        let each = |ms: u64| ms as f64 / f64::from(ROW);
        let (cpu, system) =
            (each(account::children_ms()? - before), each(account::system_ms()? - system));
        println!("{name:27}{:>10.1}{cpu:>17.1}{system:>16.1}", f64::from(ROW) / seconds);
        Ok(())
    }

    /// Starts a crowd, and looks at it when all of them run.
    fn at_once(&self, crowd: usize) -> Result<()> {
        let before = System::now()?;
        let start = Instant::now();
        let mut children = Vec::new();
        for _ in 0..crowd {
            let child = self.command(false, "leave=halt")?.spawn().context("starting microvm")?;
            children.push(Running(child));
        }
        children.iter_mut().try_for_each(Running::wait_until_ready)?;
        let seconds = start.elapsed().as_secs_f64();
        let usages =
            children.iter().map(|child| Usage::of(child.0.id())).collect::<Result<Vec<_>>>()?;
        let after = System::now()?;
        drop(children);
        thread::sleep(SETTLE_CROWD);

        let count = crowd as u64;
        let mean = |what: fn(&Usage) -> u64| usages.iter().map(what).sum::<u64>() / count;
        let processors = available_parallelism().map_or(1, NonZero::get);
        let cpu_ms = usages.iter().map(|usage| usage.cpu_ms).sum::<u64>();
        let cpu = cpu_ms as f64 / 10.0 / (seconds * processors as f64);
        let kernel = after.kernel_kib().saturating_sub(before.kernel_kib()) / count;
        let each = (mean(|usage| usage.pss_kib) + kernel).max(1);
        println!(
            "{crowd:>7}{:>12.1}{cpu:>5.0}%{:>10}{:>13}{kernel:>13}{:>10}{:>8}{:>11}",
            crowd as f64 / seconds,
            mean(|usage| usage.pss_kib),
            mean(|usage| usage.shared_kib),
            mean(|usage| usage.threads),
            mean(|usage| usage.files),
            after.available_kib / each,
        );
        Ok(())
    }

    /// Starts many in rounds, and compares the system before, between and after.
    fn leave_nothing(&self, starts: u32) -> Result<()> {
        let counts_machines = self.counts_machines()?;
        let machines = account::machines()?;
        // What the first starts make, others use again.
        self.start(ROW)?;
        thread::sleep(SETTLE);
        let mut systems = vec![System::now()?];
        let mut busy = Duration::ZERO;
        for round in 1..=ROUNDS {
            let begun = Instant::now();
            self.start(starts)?;
            busy += begun.elapsed();
            wait_for_machines(machines)?;
            thread::sleep(SETTLE);
            systems.push(System::now()?);
            eprintln!("density: {round} of {ROUNDS} rounds of {starts} starts");
        }
        let (all, seconds) = (starts * ROUNDS, busy.as_secs_f64());
        let rate = f64::from(all) / seconds;
        println!("{all} starts in {seconds:.0} s, {rate:.1} a second; before, after each quarter:");
        print!("{}", account::table(&systems));
        if !counts_machines {
            println!("  (this kernel shows virtual machines in its debugfs only, and to root)");
        }
        account::check(&systems, starts.into())
    }

    /// Starts as many, one after the other on each processor.
    fn start(&self, starts: u32) -> Result<()> {
        let processors = u32::try_from(available_parallelism().map_or(1, NonZero::get))?;
        let lane = |lane: u32| {
            (lane..starts)
                .step_by(processors as usize)
                .try_for_each(|index| self.run(index / processors % 2 == 1))
        };
        thread::scope(|scope| {
            let lanes: Vec<_> =
                (0..processors).map(|number| scope.spawn(move || lane(number))).collect();
            lanes.into_iter().try_for_each(|lane| match lane.join() {
                Ok(result) => result,
                Err(_) => bail!("a lane ended early"),
            })
        })
    }

    /// Whether a virtual machine that runs is seen to.
    fn counts_machines(&self) -> Result<bool> {
        let before = account::machines()?;
        let mut machine = Running(self.command(false, "leave=halt")?.spawn()?);
        machine.wait_until_ready()?;
        let seen = account::machines()? > before;
        drop(machine);
        wait_for_machines(before)?;
        Ok(seen)
    }
}

/// Waits until KVM has as many virtual machines again; not for ever, as others start some too.
fn wait_for_machines(count: u64) -> Result<()> {
    let begun = Instant::now();
    while account::machines()? > count && begun.elapsed() < APART {
        thread::sleep(GLANCE);
    }
    Ok(())
}

/// A process that ends with this.
struct Running(Child);

impl Running {
    fn wait_until_ready(&mut self) -> Result<()> {
        let mut output = BufReader::new(self.0.stdout.as_mut().context("its console")?);
        let mut line = String::new();
        while !line.starts_with(READY) {
            line.clear();
            if output.read_line(&mut line).context("reading its console")? == 0 {
                let mut said = String::new();
                if let Some(errors) = &mut self.0.stderr {
                    errors.read_to_string(&mut said).context("reading its messages")?;
                }
                bail!("a microvm ended before its payload was ready; it said: {said}");
            }
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
