//! The socket device (section 5.10), served by the host's kernel.
//!
//! This program sets vhost-vsock up, and passes its interrupts on. Guest and host reach each other
//! by AF_VSOCK, the guest as its context identifier, the host as 2. [`user`] is the same device by
//! another process.

pub mod user;

use std::io;
use std::sync::Arc;

use rustix::event::epoll::EventFlags;
use rustix::fd::{AsFd, BorrowedFd};
use vhost::vhost_kern::vsock::Vsock as Vhost;
use vhost::vsock::VhostVsock;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use vm_memory::GuestMemoryMmap;

use super::{Broken, Device, Event, Interrupt, Ring, Server, Wake, Work};
use crate::memory::GuestRam;

/// Entries of each queue, as in QEMU.
const QUEUE_SIZE: u16 = 128;
/// What the guest receives and what it sends. The third queue, for events, is for guests that are
/// moved to another host.
const KERNEL_QUEUES: [usize; 2] = [0, 1];

/// Why there is no such device.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host's kernel has none.
    #[error("-device vhost-vsock-device: /dev/vhost-vsock (modprobe vhost_vsock makes it)")]
    Open(#[source] vhost::Error),
    /// The kernel refuses the identifier.
    #[error("-device vhost-vsock-device: guest-cid={cid} (another machine may have it)")]
    Cid {
        /// The identifier.
        cid: u64,
        /// The host's reason.
        source: vhost::Error,
    },
}

/// The device.
pub struct Vsock {
    cid: u64,
    vhost: Arc<Backend>,
}

/// The kernel's side, and the memory that it works in.
struct Backend {
    vhost: Vhost<Arc<GuestMemoryMmap>>,
    // Mapped as long as the kernel may use it.
    _ram: Arc<GuestRam>,
}

impl Vsock {
    /// A device of the guest whose context identifier is `cid` and whose memory is `ram`.
    pub fn new(cid: u64, ram: &Arc<GuestRam>) -> Result<Self, Error> {
        let vhost = Vhost::new(Arc::new(ram.regions().clone())).map_err(Error::Open)?;
        vhost.set_owner().map_err(Error::Open)?;
        vhost.set_guest_cid(cid).map_err(|source| Error::Cid { cid, source })?;
        Ok(Self { cid, vhost: Arc::new(Backend { vhost, _ram: ram.clone() }) })
    }
}

impl Device for Vsock {
    fn name(&self) -> &'static str {
        "vhost-vsock"
    }

    fn id(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 3]
    }

    fn config(&self) -> Vec<u8> {
        self.cid.to_le_bytes().into()
    }

    fn start(&self, features: u64, interrupt: &Arc<Interrupt>) -> io::Result<Vec<Work>> {
        let server = Bridge {
            backend: self.vhost.clone(),
            features,
            call: Event::new()?,
            interrupt: interrupt.clone(),
            runs: false,
        };
        Ok(vec![Work { queues: KERNEL_QUEUES.into(), server: Box::new(server) }])
    }
}

/// Who starts the kernel's work, and passes on that it used buffers: a driver asks for the reason
/// of an interrupt, which the kernel does not know how to answer.
struct Bridge {
    backend: Arc<Backend>,
    features: u64,
    call: Event,
    interrupt: Arc<Interrupt>,
    runs: bool,
}

impl Server for Bridge {
    fn source(&self) -> Option<(BorrowedFd<'_>, EventFlags)> {
        Some((self.call.as_fd(), EventFlags::IN | EventFlags::ET))
    }

    fn takes_notifications(&self) -> bool {
        false
    }

    fn serve(&mut self, rings: &mut [Ring], wake: &Wake<'_>) -> Result<(), Broken> {
        if !self.runs {
            self.run(rings, wake.ram).map_err(|error| Broken::Host(error.to_string()))?;
            self.runs = true;
        } else if wake.source {
            self.interrupt.used();
        }
        Ok(())
    }
}

impl Bridge {
    fn run(&self, rings: &[Ring], ram: &GuestRam) -> vhost::Result<()> {
        let vhost = &self.backend.vhost;
        // What the transport offers and the kernel does not know, it would not act upon.
        vhost.set_features(self.features & vhost.get_features()?)?;
        let regions =
            ram.ranges().zip(ram.slots()).map(|(guest, slot)| VhostUserMemoryRegionInfo {
                guest_phys_addr: guest.start(),
                memory_size: guest.len(),
                userspace_addr: slot.host,
                // For those in another process.
                mmap_offset: 0,
                mmap_handle: -1,
            });
        vhost.set_mem_table(&regions.collect::<Vec<_>>())?;
        for (index, ring) in rings.iter().enumerate() {
            let queue = ring.state();
            let addresses = VringConfigData {
                queue_max_size: queue.max_size,
                queue_size: queue.size,
                flags: 0,
                desc_table_addr: queue.desc_table,
                used_ring_addr: queue.used_ring,
                avail_ring_addr: queue.avail_ring,
                log_addr: None,
            };
            vhost.set_vring_num(index, queue.size)?;
            vhost.set_vring_addr(index, &addresses)?;
            vhost.set_vring_base(index, 0)?;
            let event = |event: &Event| event.to_event_fd().map_err(vhost::Error::IOError);
            vhost.set_vring_call(index, &event(&self.call)?)?;
            vhost.set_vring_kick(index, &event(ring.kick())?)?;
        }
        vhost.start()?;
        // What the driver said before is lost on a kernel that did not run yet.
        rings.iter().for_each(|ring| ring.kick().happen());
        Ok(())
    }
}

impl Drop for Bridge {
    /// The kernel lets go of the rings.
    fn drop(&mut self) {
        if self.runs {
            // Nothing is left to do about a refusal: the descriptor's end ends it too.
            let _ = self.backend.vhost.stop();
        }
    }
}
