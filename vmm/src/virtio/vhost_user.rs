//! Another process that serves queues, by the vhost-user protocol: virtiofsd, say.
//!
//! It is given the guest's memory, where the queues are, and an event descriptor for each
//! direction; what the driver asks for never comes by here.
//!
//! Source: QEMU, docs/interop/vhost-user.rst.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;

use crate::memory::{GuestRam, Shared};
use crate::signals;
use crate::virtio::mmio::FEATURES;
use crate::virtio::{Broken, Event, Ring};

/// How long a daemon may take to answer, all questions together.
const PATIENCE: Duration = Duration::from_secs(10);

/// A program that serves queues.
#[derive(Debug)]
pub struct Program {
    /// Its name.
    pub name: &'static str,
    /// Its option of the socket.
    pub option: &'static str,
    /// Part of the protocol that it is to know, beside several queues and acknowledgements.
    pub protocol: VhostUserProtocolFeatures,
}

/// Why there is no daemon.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody is there.
    #[error("no {name} at '{path}': start it first, with {option}={path}")]
    Connect {
        /// The program that is missing.
        name: &'static str,
        /// Its option.
        option: &'static str,
        /// The socket.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// It does not speak the protocol, or has ended meanwhile.
    #[error("{0} at '{1}': {2}")]
    Talk(&'static str, PathBuf, String),
    /// It is too old, or was another one when the driver asked.
    #[error("{0} at '{1}' lacks virtio features {2:#x}: use a newer one")]
    Features(&'static str, PathBuf, u64),
    /// A descriptor of ours.
    #[error("memory of the guest cannot be shared with another process")]
    Share(#[source] io::Error),
}

/// A daemon that answers.
pub struct Daemon {
    program: &'static Program,
    path: PathBuf,
    frontend: Frontend,
    // The same connection, to see whether it is there, and to end it.
    connection: UnixStream,
    features: u64,
}

impl Daemon {
    /// Connects to the `program` at `path`, and asks what it can do.
    pub fn connect(program: &'static Program, path: &Path) -> Result<Self, Error> {
        let Program { name, option, .. } = program;
        let refused = |source| Error::Connect { name, option, path: path.into(), source };
        let stream = UnixStream::connect(path).map_err(refused)?;
        let connection = stream.try_clone().map_err(refused)?;
        let frontend = Frontend::from_stream(stream, 2);
        let mut daemon = Self { program, path: path.into(), frontend, connection, features: 0 };
        daemon.within_patience(Self::negotiate)?;
        match daemon.lacks() & 1 << VIRTIO_F_VERSION_1 {
            0 => Ok(daemon),
            missing => Err(Error::Features(name, path.into(), missing)),
        }
    }

    fn negotiate(&mut self) -> Result<(), vhost::Error> {
        const PROTOCOL: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        self.frontend.set_owner()?;
        self.features = self.frontend.get_features()?;
        if self.features & PROTOCOL != 0 {
            let wanted = VhostUserProtocolFeatures::MQ
                | VhostUserProtocolFeatures::REPLY_ACK
                | self.program.protocol;
            let offered = self.frontend.get_protocol_features()?;
            self.frontend.set_protocol_features(offered & wanted)?;
        }
        Ok(())
    }

    /// What the transport has and it does not know.
    pub fn lacks(&self) -> u64 {
        FEATURES & !self.features
    }

    /// The first `SIZE` bytes of the device's configuration.
    pub fn config<const SIZE: usize>(&mut self) -> Result<[u8; SIZE], Error> {
        let size = u32::try_from(SIZE).unwrap_or(u32::MAX);
        self.within_patience(|daemon| {
            let flags = VhostUserConfigFlags::empty();
            let (_, config) = daemon.frontend.get_config(0, size, flags, &[0; SIZE])?;
            config.try_into().map_err(|_| vhost::Error::InvalidOperation)
        })
    }

    fn talk(&self, problem: impl ToString) -> Error {
        Error::Talk(self.program.name, self.path.clone(), problem.to_string())
    }

    /// Ends the connection when the daemon does not answer, so that nobody waits for ever.
    fn within_patience<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, vhost::Error>,
    ) -> Result<T, Error> {
        let watch = self.watch().map_err(|error| self.talk(error))?;
        let since = Instant::now();
        let result = work(self);
        drop(watch);
        result.map_err(|error| match since.elapsed() < PATIENCE {
            true => self.talk(error),
            false => self.talk(format!("no answer in {} s", PATIENCE.as_secs())),
        })
    }

    fn watch(&self) -> io::Result<Sender<()>> {
        let connection = self.connection.try_clone()?;
        let (done, wait) = mpsc::channel();
        signals::spawn("vhost-user patience", move || {
            if wait.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                // One that is closed already is as good.
                let _ = connection.shutdown(Shutdown::Both);
            }
        })?;
        Ok(done)
    }

    /// Whether it has ended, or was given up.
    pub fn is_gone(&self) -> bool {
        let mut connection = [PollFd::new(&self.connection, PollFlags::RDHUP)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        !matches!(poll(&mut connection, Some(&at_once)), Ok(0))
    }

    /// Has it serve these queues from now on, each from the chain on that is to be taken next.
    pub fn run(
        &mut self,
        features: u64,
        rings: &[Ring],
        call: &Event,
        ram: &GuestRam,
    ) -> Result<(), Error> {
        let missing = features & !self.features;
        if missing != 0 {
            return Err(Error::Features(self.program.name, self.path.clone(), missing));
        }
        let event = |event: &Event| event.to_event_fd().map_err(Error::Share);
        let call = event(call)?;
        let kicks = rings.iter().map(|ring| event(ring.kick())).collect::<Result<Vec<_>, _>>()?;
        self.within_patience(|daemon| {
            let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() & daemon.features;
            daemon.frontend.set_features(features | protocol)?;
            let regions = ram.shared().map(|region| VhostUserMemoryRegionInfo {
                guest_phys_addr: region.guest.start(),
                memory_size: region.guest.len(),
                userspace_addr: region.host,
                mmap_offset: region.offset,
                mmap_handle: region.file.as_raw_fd(),
            });
            daemon.frontend.set_mem_table(&regions.collect::<Vec<_>>())?;
            for (index, (ring, kick)) in rings.iter().zip(&kicks).enumerate() {
                daemon.frontend.set_vring_num(index, ring.size())?;
                daemon.frontend.set_vring_base(index, ring.state().next_avail)?;
                daemon.frontend.set_vring_addr(index, &addresses(ring, ram)?)?;
                daemon.frontend.set_vring_call(index, &call)?;
                daemon.frontend.set_vring_kick(index, kick)?;
                if protocol != 0 {
                    daemon.frontend.set_vring_enable(index, true)?;
                }
            }
            // Not every daemon acknowledges; this answer comes after all of that was done. A
            // notification before that would be lost.
            daemon.frontend.get_features().map(drop)
        })
    }

    /// It lets go of the queues. One that does not answer is done with.
    pub fn stop(&mut self, queues: usize) {
        let _ = self.within_patience(|daemon| {
            for index in 0..queues {
                if daemon.features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0 {
                    daemon.frontend.set_vring_enable(index, false)?;
                }
                daemon.frontend.get_vring_base(index)?;
            }
            Ok(())
        });
    }
}

/// What wakes a server whose queues another process serves, as it has one source: that process's
/// call, its connection, and what else there is to wait for.
pub struct Wires {
    call: Event,
    sources: OwnedFd,
}

/// What happened on the wires.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Happened {
    /// The daemon used buffers.
    pub called: bool,
    /// It is gone.
    pub hung_up: bool,
}

const CALL: u64 = 0;
const HANG_UP: u64 = 1;
const OTHER: u64 = 2;
const EDGE: EventFlags = EventFlags::IN.union(EventFlags::ET);

impl Wires {
    /// Wires to nobody yet.
    pub fn new() -> io::Result<Self> {
        let wires = Self { call: Event::new()?, sources: epoll::create(CreateFlags::CLOEXEC)? };
        epoll::add(&wires.sources, wires.call.as_fd(), EventData::new_u64(CALL), EDGE)?;
        Ok(wires)
    }

    /// The source.
    pub fn source(&self) -> (BorrowedFd<'_>, EventFlags) {
        (self.sources.as_fd(), EDGE)
    }

    /// How a daemon tells that it used buffers.
    pub fn call(&self) -> &Event {
        &self.call
    }

    /// From now on it is told when `daemon` hangs up.
    pub fn watch(&self, daemon: &Daemon) -> Result<(), Error> {
        let data = EventData::new_u64(HANG_UP);
        epoll::add(&self.sources, &daemon.connection, data, EventFlags::RDHUP)
            .map_err(|errno| daemon.talk(errno))
    }

    /// No longer.
    pub fn forget(&self, daemon: &Daemon) {
        // What is not there any more is forgotten.
        let _ = epoll::delete(&self.sources, &daemon.connection);
    }

    /// `fd` wakes the server, too, when it becomes readable.
    pub fn add(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        Ok(epoll::add(&self.sources, fd, EventData::new_u64(OTHER), EDGE)?)
    }

    /// No longer.
    pub fn remove(&self, fd: BorrowedFd<'_>) {
        // What is not there any more is forgotten.
        let _ = epoll::delete(&self.sources, fd);
    }

    /// What happened since the last call.
    pub fn happened(&self) -> Result<Happened, Broken> {
        let mut events = Vec::with_capacity(4);
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        epoll::wait(&self.sources, spare_capacity(&mut events), Some(&at_once))
            .map_err(|errno| Broken::Thread(errno.into()))?;
        let has = |what| events.iter().any(|event: &epoll::Event| event.data.u64() == what);
        Ok(Happened { called: has(CALL), hung_up: has(HANG_UP) })
    }
}

/// Where a queue is, in this process's addresses.
fn addresses(ring: &Ring, ram: &GuestRam) -> Result<VringConfigData, vhost::Error> {
    let queue = ring.state();
    let host = |guest: u64| {
        let inside =
            |region: &Shared<'_>| region.guest.start() <= guest && guest < region.guest.end();
        let region = ram.shared().find(inside).ok_or(vhost::Error::InvalidQueue)?;
        Ok::<_, vhost::Error>(region.host + (guest - region.guest.start()))
    };
    Ok(VringConfigData {
        queue_max_size: queue.max_size,
        queue_size: queue.size,
        flags: 0,
        desc_table_addr: host(queue.desc_table)?,
        used_ring_addr: host(queue.used_ring)?,
        avail_ring_addr: host(queue.avail_ring)?,
        log_addr: None,
    })
}
