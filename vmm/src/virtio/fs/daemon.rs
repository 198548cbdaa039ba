//! The connection to a virtiofsd, by the vhost-user protocol.
//!
//! Source: QEMU, docs/interop/vhost-user.rst.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::memory::{GuestRam, Shared};
use crate::signals;
use crate::virtio::{Event, Ring};

/// What the transport has agreed to with the driver, so that the daemon must know it.
const NEEDED: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;
/// How long a daemon may take to answer, all questions together.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no daemon.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody is there.
    #[error("no virtiofsd at '{path}': start it first, with --socket-path={path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// It does not speak the protocol, or has ended meanwhile.
    #[error("virtiofsd at '{0}': {1}")]
    Talk(PathBuf, String),
    /// It is too old.
    #[error("virtiofsd at '{0}' lacks virtio features {1:#x}: use a newer one")]
    Features(PathBuf, u64),
    /// A descriptor of ours.
    #[error("memory of the guest cannot be shared with virtiofsd")]
    Share(#[source] io::Error),
}

/// A daemon that answers.
pub struct Daemon {
    path: PathBuf,
    frontend: Frontend,
    // The same connection, to see whether it is there, and to end it.
    connection: UnixStream,
    features: u64,
}

impl Daemon {
    /// Connects, and asks what it can do.
    pub fn connect(path: &Path) -> Result<Self, Error> {
        let refused = |source| Error::Connect { path: path.into(), source };
        let stream = UnixStream::connect(path).map_err(refused)?;
        let connection = stream.try_clone().map_err(refused)?;
        let frontend = Frontend::from_stream(stream, 2);
        let mut daemon = Self { path: path.into(), frontend, connection, features: 0 };
        daemon.within_patience(Self::negotiate)?;
        Ok(daemon)
    }

    fn negotiate(&mut self) -> Result<(), vhost::Error> {
        const PROTOCOL: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        self.frontend.set_owner()?;
        self.features = self.frontend.get_features()?;
        if self.features & PROTOCOL != 0 {
            let wanted = VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK;
            let offered = self.frontend.get_protocol_features()?;
            self.frontend.set_protocol_features(offered & wanted)?;
        }
        Ok(())
    }

    /// Ends the connection when the daemon does not answer, so that nobody waits for ever.
    fn within_patience<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, vhost::Error>,
    ) -> Result<T, Error> {
        let watch =
            self.watch().map_err(|error| Error::Talk(self.path.clone(), error.to_string()))?;
        let result = work(self);
        drop(watch);
        result.map_err(|error| Error::Talk(self.path.clone(), error.to_string()))
    }

    fn watch(&self) -> io::Result<Sender<()>> {
        let connection = self.connection.try_clone()?;
        let (done, wait) = mpsc::channel();
        signals::spawn("fs patience", move || {
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

    /// What hangs up when it ends.
    pub fn connection(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }

    /// Has it serve these queues from now on.
    pub fn run(
        &mut self,
        features: u64,
        rings: &[Ring],
        call: &Event,
        ram: &GuestRam,
    ) -> Result<(), Error> {
        let missing = NEEDED & !self.features;
        if missing != 0 {
            return Err(Error::Features(self.path.clone(), missing));
        }
        let event = |event: &Event| event.to_event_fd().map_err(Error::Share);
        let call = event(call)?;
        let kicks = rings.iter().map(|ring| event(ring.kick())).collect::<Result<Vec<_>, _>>()?;
        self.within_patience(|daemon| {
            let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() & daemon.features;
            daemon.frontend.set_features(features & daemon.features | protocol)?;
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
                daemon.frontend.set_vring_base(index, 0)?;
                daemon.frontend.set_vring_addr(index, &addresses(ring, ram)?)?;
                daemon.frontend.set_vring_call(index, &call)?;
                daemon.frontend.set_vring_kick(index, kick)?;
                if protocol != 0 {
                    daemon.frontend.set_vring_enable(index, true)?;
                }
            }
            Ok(())
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
