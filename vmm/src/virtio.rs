//! Virtio devices behind memory-mapped registers, as QEMU's microvm has them.
//!
//! Source: Virtual I/O Device (VIRTIO) Version 1.2. [`mmio`] is the transport, [`slots`] says where
//! each device goes. When a driver is ready, [`worker`] starts the device's threads; such a thread
//! sees its [`ring`]s and, through chains of descriptors, [`buffers`] in guest memory. Nothing runs
//! for a device that no driver uses.
//!
//! Why a thread for each device, and not one loop for all: a read of a disk blocks, and blocks
//! nobody else that way; a thread that waits costs nothing, one that is woken costs as much as a
//! loop that is woken.

pub mod balloon;
pub mod block;
mod buffers;
pub mod console;
#[cfg(test)]
mod driver;
pub mod fs;
pub mod mmio;
pub mod net;
pub mod registers;
mod ring;
pub mod rng;
pub mod slots;
pub mod vhost_user;
pub mod vsock;
mod worker;

use std::io;
use std::sync::Arc;

use rustix::event::epoll::EventFlags;
use rustix::fd::BorrowedFd;

pub use buffers::{Buffers, Direction};
pub use ring::{Chain, Ring};
pub use worker::{Event, Interrupt, Wake, Work};

use crate::chardev::{self, Chardev};
use crate::config::{self, Config};
use crate::control::Control;
use crate::memory::GuestRam;

/// What a driver did that no driver may: its device needs a reset.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// A ring.
    #[error("queue {queue}: {source}")]
    Ring {
        /// The queue's number.
        queue: usize,
        /// What is wrong with it.
        source: virtio_queue::Error,
    },
    /// A chain of descriptors.
    #[error("queue {queue}: {problem}")]
    Chain {
        /// The queue's number.
        queue: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A queue that is used before it is set up.
    #[error("queue {0} is notified before it is ready, or lies outside memory")]
    NotReady(usize),
    /// A queue that is taken away while the device works on it.
    #[error("queue {0} is taken away while the device works on it")]
    TakenAway(usize),
    /// The host's kernel, which serves the queues.
    #[error("the host's kernel: {0}")]
    Host(String),
    /// The device's threads, and what they are to work on.
    #[error("starting its work: {0}")]
    Thread(io::Error),
}

/// A device behind a transport. It outlives the machine's resets; its work does not.
pub trait Device: Send + Sync {
    /// For people.
    fn name(&self) -> &'static str;
    /// Its type (section 5).
    fn id(&self) -> u32;
    /// Its features beside those of the transport.
    fn features(&self) -> u64 {
        0
    }
    /// Features of the transport that who serves the device does not know.
    fn lacks(&self) -> u64 {
        0
    }
    /// The entries that each of its queues may have at the most.
    fn queues(&self) -> Vec<u16>;
    /// Its configuration; zeroes follow. It changes by [`Device::write_config`], or it is told
    /// ([`Interrupt::configuration_changed`]).
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }
    /// Writes its configuration.
    fn write_config(&self, _offset: u64, _data: &[u8]) {}
    /// The driver is ready, and has agreed to `features`: the work that is to be done, each part
    /// with its queues on a thread of its own.
    fn start(&self, features: u64, interrupt: &Arc<Interrupt>) -> io::Result<Vec<Work>>;
    /// The driver has reset it: its work has ended.
    fn stop(&self) {}
}

/// Does what a driver asks for, on a thread of its own.
pub trait Server: Send {
    /// What wakes it beside its queues, and when.
    fn source(&self) -> Option<(BorrowedFd<'_>, EventFlags)> {
        None
    }
    /// Whether a driver's notifications wake it; if not, somebody else waits for them.
    fn takes_notifications(&self) -> bool {
        true
    }
    /// Does all there is to do on its `rings`, and returns when it would have to wait.
    fn serve(&mut self, rings: &mut [Ring], wake: &Wake) -> Result<(), Broken>;
}

/// Has what drivers write reach an event descriptor without leaving the kernel.
pub trait Doorbells: Send + Sync {
    /// From now on a write of `value` to `address` makes `event` readable, and no exit to this
    /// program.
    fn attach(&self, address: u64, value: u32, event: &Event) -> io::Result<()>;
    /// No longer.
    fn detach(&self, address: u64, value: u32, event: &Event);
}

/// Why a device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What a device is made of.
    #[error("-device {device}: '{path}'")]
    File {
        /// QEMU's name of it.
        device: &'static str,
        /// The file.
        path: std::path::PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// A disk's image.
    #[error(transparent)]
    Image(#[from] block::image::Error),
    /// A network card's tap.
    #[error(transparent)]
    Tap(#[from] net::tap::Error),
    /// Where the console leads.
    #[error(transparent)]
    Chardev(#[from] chardev::Error),
    /// A port.
    #[error("{0}: {1}")]
    Port(&'static str, io::Error),
    /// Sockets.
    #[error(transparent)]
    Vsock(#[from] vsock::Error),
    /// Who is to serve a device.
    #[error("-device {0}")]
    VhostUser(&'static str, #[source] vhost_user::Error),
}

/// The devices of a machine.
pub struct Devices {
    /// All of them, in the order of the command line.
    pub all: Vec<Arc<dyn Device>>,
    /// The balloon, if there is one.
    pub balloon: Option<Arc<balloon::Balloon>>,
    /// The ports of the serial bus, and where each leads.
    pub ports: Vec<(Arc<console::Port>, Chardev)>,
}

impl Devices {
    /// Makes what `config` asks for, for a guest whose memory is `ram`.
    pub fn new(config: &Config, ram: &Arc<GuestRam>) -> Result<Self, Error> {
        let mut devices = Self { all: Vec::new(), balloon: None, ports: Vec::new() };
        for device in &config.virtio {
            devices.add(device, config.memory, ram)?;
        }
        Ok(devices)
    }

    fn add(
        &mut self,
        device: &config::Virtio,
        memory: u64,
        ram: &Arc<GuestRam>,
    ) -> Result<(), Error> {
        use config::Virtio;
        let device: Arc<dyn Device> = match device {
            Virtio::Rng(source) => Arc::new(rng::Rng::new(source).map_err(|error| {
                Error::File { device: device.name(), path: source.clone(), source: error }
            })?),
            Virtio::Block(disk) => Arc::new(block::Block::new(disk)?),
            Virtio::Net(net) => Arc::new(net::Card::new(net)?),
            Virtio::Serial(ports) => Arc::new(self.add_ports(ports)?),
            Virtio::Fs(source) => Arc::new(
                fs::Fs::new(source)
                    .map_err(|error| Error::VhostUser("vhost-user-fs-device", error))?,
            ),
            Virtio::UserVsock(socket) => Arc::new(
                vsock::user::UserVsock::new(socket)
                    .map_err(|error| Error::VhostUser("vhost-user-vsock-device", error))?,
            ),
            Virtio::Vsock(cid) => Arc::new(vsock::Vsock::new(*cid, ram)?),
            Virtio::Balloon(options) => {
                let balloon = Arc::new(balloon::Balloon::new(options, memory));
                self.balloon = Some(balloon.clone());
                balloon
            }
        };
        self.all.push(device);
        Ok(())
    }

    fn add_ports(&mut self, ports: &[config::Port]) -> Result<console::Console, Error> {
        for port in ports {
            let chardev = Chardev::open(&port.chardev, port.option())?;
            let output = chardev.output();
            let open = console::Port::new(port.number, &port.name, port.is_console, output);
            let open = open.map_err(|error| Error::Port(port.option(), error))?;
            self.ports.push((Arc::new(open), chardev));
        }
        let ports = self.ports.iter().map(|(port, _)| port.clone()).collect();
        console::Console::new(ports)
            .map_err(|error| Error::Port("-device virtio-serial-device", error))
    }

    /// From now on the ports have input. A machine that has to wait for a client is held.
    pub fn start_input(&mut self, control: &Arc<Control>) -> Result<(), chardev::Error> {
        for (port, chardev) in &mut self.ports {
            let port = port.clone();
            chardev.start(Arc::new(move |bytes| port.send(bytes)), control)?;
        }
        Ok(())
    }
}
