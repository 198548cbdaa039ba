//! From a configuration to an exit status: the machine, through all its resets.

use std::sync::Arc;

use crate::accel;
use crate::config::Config;
use crate::console::{self, Output};
use crate::devices::serial::Com1;
use crate::image::{self, Images};
use crate::machine::{self, Machine};
use crate::signals::{self, Stop};
use crate::trace::Trace;
use crate::vcpu::End;

/// Why a machine ended badly.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// The console.
    #[error(transparent)]
    Console(#[from] console::Error),
    /// The machine.
    #[error(transparent)]
    Machine(#[from] machine::Error),
    /// The firmware.
    #[error("the firmware gave up: its line on COM1 says why (-serial stdio shows it)")]
    Firmware,
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

/// Runs the machine that `config` describes. A reset sets the machine up anew, from KVM_CREATE_VM
/// on: no state of the old one can be forgotten that way. What belongs to the process stays: the
/// files, COM1's two ends, the trace.
pub fn run(config: &Config, trace: &mut Option<Trace>) -> Result<Outcome, Error> {
    let images = Images::open(config)?;
    let com1 = Arc::new(Com1::new(Output::new(&config.serial)?));
    let mut machine = Machine::new(config, &images, &com1)?;
    warn_about_kvm(&images);
    // CPUs wake each other by a signal.
    if trace.is_some() || config.cpus > 1 {
        signals::catch();
    }
    let _restore = console::start(&config.serial, &com1)?;
    loop {
        match machine.run(trace)? {
            End::PowerOff => return Ok(outcome("power off", 0)),
            End::Exit(status) => return Ok(outcome("isa-debug-exit", status)),
            End::Reset(by) if config.no_reboot => return Ok(outcome(by, 0)),
            End::Reset(_) => {
                drop(machine);
                machine = Machine::new(config, &images, &com1)?;
            }
            End::Stopped(Stop::Quit) => return Ok(outcome("the user quit", 0)),
            End::Stopped(Stop::Signal(signal)) => {
                return Ok(Outcome { reason: "a signal", status: Status::Signal(signal) });
            }
            End::FirmwareFailed => return Err(Error::Firmware),
        }
    }
}

fn outcome(reason: &'static str, status: u8) -> Outcome {
    Outcome { reason, status: Status::Code(status) }
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
