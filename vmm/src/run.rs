//! From a configuration to an exit status: the machine, through all its resets.

use std::sync::Arc;

use crate::accel;
use crate::chardev::{self, Chardev};
use crate::config::{self, Config, OnMissing, PanicAction, RebootAction, ShutdownAction};
use crate::console;
use crate::control::{Control, Event, Request, RunState};
use crate::devices::serial::Com1;
use crate::farewell;
use crate::image::{self, Images};
use crate::machine::{self, Machine};
use crate::memory::{self, GuestRam};
use crate::outside;
use crate::pidfile::{self, PidFile};
use crate::qmp::{self, Server};
use crate::trace::{Trace, step};
use crate::vcpu::{End, TRIPLE_FAULT};
use crate::virtio::{self, Devices};
use crate::workload::Session;

/// Why a machine ended badly.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// A character device.
    #[error(transparent)]
    Chardev(#[from] chardev::Error),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// What a virtio device is made of.
    #[error(transparent)]
    Virtio(#[from] virtio::Error),
    /// The machine.
    #[error(transparent)]
    Machine(#[from] machine::Error),
    /// QMP.
    #[error(transparent)]
    Qmp(#[from] qmp::Error),
    /// The file with the process's number.
    #[error(transparent)]
    PidFile(#[from] pidfile::Error),
    /// No thread for the signals.
    #[error("starting the thread that takes signals: {0}")]
    Signals(std::io::Error),
    /// The firmware, with its last line on COM1, wherever that leads.
    #[error("the firmware gave up: {0}")]
    Firmware(String),
    /// It dies as soon as it lives.
    #[error(
        "the guest died {DEATHS_MAX} times in a row by a triple fault, without a word on COM1: it \
         will not live"
    )]
    StillBorn,
    /// The guest's kernel gave up, and that is to be a failure.
    #[error("the guest panicked (pvpanic); -action panic=pause keeps it to look at")]
    Panicked,
}

/// How a machine ended well: why, and the process's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// For people.
    pub reason: &'static str,
    /// How the process ends.
    pub status: Status,
}

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// With this status.
    Code(u8),
    /// By this signal.
    Signal(i32),
}

/// Triple faults in a row, without output between them, before a guest is given up.
const DEATHS_MAX: u32 = 3;

/// Runs the machine that `config` describes. A reset sets the machine up anew, from KVM_CREATE_VM
/// on: no state of the old one can be forgotten that way. What belongs to the process stays: the
/// files, COM1's two ends, QMP, the trace. So does guest RAM with its contents, as in QEMU: a file
/// that it is in loses nothing, and who else maps that file goes on seeing the guest's memory.
///
/// Signals go to a `session` first, if there is one.
pub fn run(
    config: &Config,
    trace: &mut Option<Trace>,
    session: Option<Arc<Session>>,
) -> Result<Outcome, Error> {
    let images = Images::open(config)?;
    let serial = Chardev::open(&config.serial, "-serial")?;
    let com1 = Com1::new(serial.output());
    step(trace, "files");
    let bios_size = images.bios.as_ref().map(|bios| bios.size());
    let ram = Arc::new(GuestRam::on(&config.backend, config.memory, bios_size)?);
    let mut devices = Devices::new(config, &ram)?;
    step(trace, "memory and devices");
    let mut machine = Machine::new(config, &images, &ram, (&com1, &devices.all), trace)?;
    warn_about_kvm(&images);
    warn_about_features(config, &machine);
    let first = if config.start_stopped { RunState::Prelaunch } else { RunState::Running };
    let control = Arc::new(Control::new(first, config.acpi));
    outside::watch(config, &control, &com1, session).map_err(Error::Signals)?;
    let _pidfile = config.pidfile.as_deref().map(PidFile::write).transpose()?;
    if let Some(balloon) = &devices.balloon {
        let control = control.clone();
        balloon.listen(Box::new(move |actual| control.tell(Event::BalloonChange(actual))));
    }
    let parts = qmp::Parts { pty: serial.pty(), balloon: devices.balloon.as_ref() };
    let _qmp = Server::start(config, &control, &parts)?;
    tell_of_ptys(config, &serial, &devices);
    // It ends before who is named above: what it still has to pass on, it does as a process that
    // can be seen.
    let mut serial = serial;
    let input = com1.clone();
    serial.start(Arc::new(move |bytes| input.send(bytes)), &control)?;
    devices.start_input(&control)?;
    step(trace, "monitors");
    let (mut deaths, mut left) = (0, None);
    loop {
        let end = machine.run(&control, trace)?;
        deaths = match end {
            End::Reset(TRIPLE_FAULT) if !com1.is_written() => deaths + 1,
            _ => 0,
        };
        match follow(config, &control, &com1, end)? {
            Next::End(outcome) => {
                // Open until the process ends: COM1's line has the machine still.
                let vm = machine.end();
                std::mem::forget(config.async_teardown.then(|| farewell::keep(&vm)));
                return Ok(outcome);
            }
            Next::GoOn => {}
            Next::Reset if deaths == DEATHS_MAX => return Err(Error::StillBorn),
            Next::Reset => {
                let old = machine.end();
                machine = Machine::new(config, &images, &ram, (&com1, &devices.all), trace)?;
                // Not before, as the new one must have another number (see `farewell::leave`), and
                // COM1's line leads to it now.
                left = config.async_teardown.then(|| farewell::leave(old)).flatten().or(left);
                control.revive();
            }
        }
    }
}

/// Where the serial port's pty is.
fn tell_of_ptys(config: &Config, serial: &Chardev, devices: &Devices) {
    let ports = config.ports().zip(&devices.ports).map(|(port, (_, open))| (&port.chardev, open));
    for (asked, open) in [(&config.serial, serial)].into_iter().chain(ports) {
        if let (config::Chardev::Pty { label }, Some(name)) = (asked, open.pty()) {
            chardev::tell_of_pty(name, label, config.uses_stdout());
        }
    }
}

/// What the firmware said last, which is why it gave up.
fn firmware_line(com1: &Com1) -> String {
    let line = com1.last_line();
    if line.is_empty() { "it said nothing on COM1".into() } else { line }
}

/// What comes after a run of the machine.
enum Next {
    /// The machine is set up anew.
    Reset,
    /// It goes on where it was, when somebody says so.
    GoOn,
    /// The process ends.
    End(Outcome),
}

fn follow(config: &Config, control: &Control, com1: &Com1, end: End) -> Result<Next, Error> {
    let actions = config.actions;
    Ok(match end {
        End::PowerOff => match actions.shutdown {
            ShutdownAction::Poweroff => finish(control, "guest-shutdown", "power off", 0),
            ShutdownAction::Pause => {
                control.tell(Event::Shutdown("guest-shutdown"));
                control.rest(RunState::Shutdown);
                Next::GoOn
            }
        },
        End::Exit(status) => finish(control, "guest-shutdown", "isa-debug-exit", status),
        End::Reset(by) if actions.reboot == RebootAction::Shutdown => {
            finish(control, "guest-reset", by, 0)
        }
        End::Requested(Request::Reset) if actions.reboot == RebootAction::Shutdown => {
            finish(control, "host-qmp-system-reset", "system_reset", 0)
        }
        End::Reset(_) => {
            control.tell(Event::Reset("guest-reset"));
            Next::Reset
        }
        End::Requested(Request::Reset) => {
            control.tell(Event::Reset("host-qmp-system-reset"));
            Next::Reset
        }
        End::Requested(Request::QuitByUser) => finish(control, "host-ui", "the user quit", 0),
        End::Requested(Request::QuitByQmp) => finish(control, "host-qmp-quit", "QMP quit", 0),
        End::Requested(Request::Signal(signal)) => {
            control.tell(Event::Shutdown("host-signal"));
            Next::End(Outcome { reason: "a signal", status: Status::Signal(signal) })
        }
        End::Panicked => match actions.panic {
            PanicAction::Pause => {
                control.rest(RunState::GuestPanicked);
                Next::GoOn
            }
            PanicAction::ExitFailure => {
                control.tell(Event::Shutdown("guest-panic"));
                return Err(Error::Panicked);
            }
            PanicAction::Shutdown | PanicAction::None => finish(control, "guest-panic", "panic", 0),
        },
        End::FirmwareFailed => return Err(Error::Firmware(firmware_line(com1))),
    })
}

/// The process ends with `status`; `cause` is QMP's name of the reason.
fn finish(control: &Control, cause: &'static str, reason: &'static str, status: u8) -> Next {
    control.tell(Event::Shutdown(cause));
    Next::End(Outcome { reason, status: Status::Code(status) })
}

/// One line if the kernel is Linux and this /dev/kvm will not run it.
fn warn_about_kvm(images: &Images) {
    let is_linux = images.kernel.as_ref().is_some_and(|kernel| kernel.is_linux());
    if is_linux && !accel::has_virtualization() {
        console::say(
            "warning: this /dev/kvm interprets kernel code (the CPU shows neither VMX nor SVM): \
             Linux will not run here; see -accel help",
        );
    }
}

/// A line for each feature that was asked for and that the guest does not have.
fn warn_about_features(config: &Config, machine: &Machine) {
    if config.cpu.missing == OnMissing::Warn {
        machine.missing_features().iter().for_each(|missing| {
            console::say(&format!("warning: {missing}"));
        });
    }
}
