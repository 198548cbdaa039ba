//! Pid 1 of the guest under test: says what it sees, then leaves.
//!
//! Orders on the kernel's command line:
//! - `guest.root=DEVICE`: loads the modules that `disk` describes, and goes on as the init of that
//!   disk;
//! - `guest.echo`: reads a line from the console and prints it back, before leaving;
//! - `guest.entropy`: loads the modules, and says what feeds /dev/hwrng, and its first bytes;
//! - `guest.exit=power-button`: loads the modules, waits until the button is pressed, powers off;
//! - `guest.exit=poweroff|reboot|panic`: how to leave. Without it the guest powers off, or
//!   restarts where there is no ACPI: there it could only halt, which nobody outside can see.
//!
//! After `--` there, so that they are this program's arguments: `brief` says that it runs and
//! restarts the machine, nothing else; `brief stay` stays.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;
use std::{env, thread};

use guest::console::Console;
use guest::mounts::mount_kernel;
use guest::{disk, facts, mark, modules, power_button};
use rustix::system::{RebootCommand, reboot};
use rustix::termios::tcdrain;

/// The line that says that input is awaited.
const ECHO_READY: &str = "guest-echo-ready";
/// The line that says that the power button is awaited.
const BUTTON_READY: &str = "guest-power-button-ready";

fn main() -> ExitCode {
    let orders: Vec<_> = env::args().skip(1).collect();
    if orders.first().is_some_and(|order| order == "brief") {
        // Where it fails nobody listens, and the kernel's panic about init's end must do.
        let _ = be_brief(orders.iter().any(|order| order == "stay"));
        return ExitCode::FAILURE;
    }
    let marked = mark::mark_init();
    let mounted = mount_kernel("devtmpfs", "/dev");
    // Without a console there is nobody to tell; the kernel's panic about init's end must do.
    let Ok(mut console) = Console::open() else { return ExitCode::FAILURE };
    let outcome = mounted.and_then(|()| report(&mut console, &marked)).and_then(|exit| {
        console.drain()?;
        leave(exit)
    });
    if let Err(error) = outcome {
        // If even this fails, there is nobody to tell.
        let _ = console.print_fact("guest-error", &error.to_string());
        let _ = console.drain();
        let _ = reboot(RebootCommand::Restart);
    }
    // Pid 1 never ends, save by this order: `guest.exit=panic`.
    ExitCode::FAILURE
}

#[derive(Clone, Copy)]
enum Exit {
    PowerOff,
    Restart,
    Panic,
}

fn report(console: &mut Console, marked: &io::Result<()>) -> io::Result<Exit> {
    mount_kernel("proc", "/proc")?;
    mount_kernel("sysfs", "/sys")?;
    let cmdline = facts::read("/proc/cmdline");
    let root = facts::orders(&cmdline).find_map(|order| order.strip_prefix("guest.root="));
    if let Some(device) = root.filter(|_| disk::is_initramfs()) {
        return Err(disk::enter(device));
    }
    let facts = facts::gather();
    console.print(facts::BEGIN)?;
    for (key, value) in &facts {
        console.print_fact(key, value)?;
    }
    if let Err(error) = marked {
        console.print_fact("mark_error", &error.to_string())?;
    }
    console.drain()?;
    console.print_fact("serial_irqs", &facts::serial_irqs())?;
    console.print(facts::END)?;

    let acpi = facts.contains(&("acpi", "yes".to_owned()));
    let mut exit = if acpi { Exit::PowerOff } else { Exit::Restart };
    for order in facts::orders(&cmdline) {
        match order {
            "guest.echo" => {
                console.print(ECHO_READY)?;
                let line = console.read_line()?;
                console.print_fact("echo", &line)?;
            }
            _ if order.starts_with("guest.root=") => {}
            "guest.exit=poweroff" => exit = Exit::PowerOff,
            "guest.exit=reboot" => exit = Exit::Restart,
            "guest.entropy" => {
                modules::load()?;
                let (device, bytes) = facts::entropy()?;
                console.print_fact("entropy", &format!("{device} {bytes}"))?;
            }
            "guest.exit=panic" => exit = Exit::Panic,
            "guest.exit=power-button" => {
                modules::load()?;
                let mut button = power_button::open()?;
                console.print(BUTTON_READY)?;
                power_button::wait(&mut button)?;
            }
            unknown => console.print_fact("guest-unknown-order", unknown)?,
        }
    }
    Ok(exit)
}

/// What is compared among VMMs, and with a container: as little as an init can do. The tilde is
/// something that no firmware prints.
fn be_brief(stay: bool) -> io::Result<()> {
    let mut output = io::stdout();
    output.write_all(b"~guest-init\n")?;
    if output.is_terminal() {
        tcdrain(&output)?;
    }
    if stay {
        loop {
            thread::sleep(Duration::from_secs(1));
        }
    }
    leave(Exit::Restart)
}

fn leave(exit: Exit) -> io::Result<()> {
    rustix::fs::sync();
    match exit {
        Exit::PowerOff => reboot(RebootCommand::PowerOff)?,
        Exit::Restart => reboot(RebootCommand::Restart)?,
        Exit::Panic => {}
    }
    Ok(())
}
