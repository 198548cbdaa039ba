//! The network device (section 5.1) on a [`tap`].
//!
//! Each frame of the guest's and of the host's has a header that says what was left undone,
//! checksums and segments, for who gets it.

pub mod tap;

use std::io;
use std::sync::Arc;

use rustix::event::epoll::EventFlags;
use rustix::fd::{AsFd, BorrowedFd};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
};
use vm_memory::GuestMemoryMmap;

use super::{Broken, Chain, Device, Interrupt, Ring, Server, Wake, Work};
use crate::config::Net;
use tap::{HEADER, Offloads, Tap};

/// Bytes of the largest frame that a tap has: a segment that is still to be cut, and its header.
const FRAME_MAX: usize = HEADER + 14 + 4 + 65535;
/// Where in a frame's header stands how many buffers it takes.
const NUM_BUFFERS: usize = 10;
const LINK_UP: u16 = 1;
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// The device.
pub struct Card {
    net: Net,
    tap: Arc<Tap>,
}

impl Card {
    /// A device on the tap of `net`.
    pub fn new(net: &Net) -> Result<Self, tap::Error> {
        Ok(Self { net: net.clone(), tap: Arc::new(Tap::open(&net.tap)?) })
    }
}

/// What a driver takes over from the tap.
fn offloads(features: u64) -> Offloads {
    let pairs = [
        (VIRTIO_NET_F_GUEST_CSUM, Offloads::CHECKSUM),
        (VIRTIO_NET_F_GUEST_TSO4, Offloads::TSO4),
        (VIRTIO_NET_F_GUEST_TSO6, Offloads::TSO6),
        (VIRTIO_NET_F_GUEST_ECN, Offloads::ECN),
        (VIRTIO_NET_F_GUEST_UFO, Offloads::UFO),
    ];
    // All others need the first.
    if features >> VIRTIO_NET_F_GUEST_CSUM & 1 == 0 {
        return Offloads::default();
    }
    let taken = pairs.iter().filter(|(feature, _)| features >> feature & 1 == 1);
    let taken: u32 = taken.map(|(_, offload)| offload).sum();
    // The host refuses marks of segments where there are no segments.
    let has_segments = taken & (Offloads::TSO4 | Offloads::TSO6) != 0;
    Offloads(if has_segments { taken } else { taken & !Offloads::ECN })
}

impl Device for Card {
    fn name(&self) -> &'static str {
        "virtio-net"
    }

    fn id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        let mtu = self.net.mtu.map_or(0, |_| 1 << VIRTIO_NET_F_MTU);
        self.net.features | mtu | 1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_STATUS
    }

    fn queues(&self) -> Vec<u16> {
        vec![self.net.receive_size, self.net.transmit_size]
    }

    /// `struct virtio_net_config`.
    fn config(&self) -> Vec<u8> {
        let ([s0, s1], [m0, m1]) = (LINK_UP.to_le_bytes(), self.net.mtu.unwrap_or(0).to_le_bytes());
        [&self.net.mac[..], &[s0, s1, 1, 0, m0, m1]].concat()
    }

    fn start(&self, features: u64, _: &Arc<Interrupt>) -> io::Result<Vec<Work>> {
        self.tap.set_offloads(offloads(features))?;
        let merges = features >> VIRTIO_NET_F_MRG_RXBUF & 1 == 1;
        Ok(vec![work(self.tap.clone(), merges)])
    }
}

/// The work of moving frames between a driver's queues and `tap`; `merges` says that a frame may be
/// spread over several chains.
pub fn work(tap: Arc<Tap>, merges: bool) -> Work {
    let overflow = vec![0; FRAME_MAX].into();
    let server = Box::new(Cable { tap, merges, overflow, waiting: Vec::new(), starved: false });
    Work { queues: vec![RECEIVE, TRANSMIT], server }
}

/// Who moves the frames, both ways.
struct Cable {
    tap: Arc<Tap>,
    /// A frame may be spread over several chains.
    merges: bool,
    /// What of a frame did not fit into the first chain.
    overflow: Box<[u8]>,
    /// A frame that there were too few chains for.
    waiting: Vec<u8>,
    /// The tap may have frames that there were no chains for.
    starved: bool,
}

impl Server for Cable {
    fn source(&self) -> Option<(BorrowedFd<'_>, EventFlags)> {
        Some((self.tap.as_fd(), EventFlags::IN | EventFlags::ET))
    }

    fn serve(&mut self, rings: &mut [Ring], wake: &Wake<'_>) -> Result<(), Broken> {
        let [receive, transmit] = rings else { return Ok(()) };
        let mut arrived = wake.source || self.starved;
        loop {
            // In turns: neither way waits for the end of the other.
            let more = self.transmit(transmit, wake.memory())?;
            if arrived {
                arrived = self.receive(receive, wake.memory())?;
            }
            if !more && !arrived {
                return Ok(());
            }
        }
    }
}

impl Cable {
    /// Sends at most as many frames as the ring has entries; whether there may be more.
    fn transmit(&self, ring: &mut Ring, memory: &GuestMemoryMmap) -> Result<bool, Broken> {
        ring.ignore(memory)?;
        let mut left = ring.size();
        while left > 0 {
            let Some(chain) = ring.next(memory)? else { break };
            // A frame that the host does not take is lost, as on any network.
            let _ = self.tap.send(&chain.readable);
            ring.give_back(memory, chain.head, 0)?;
            left -= 1;
        }
        if left < ring.size() {
            ring.tell(memory)?;
        }
        Ok(left == 0 || ring.listen(memory)?)
    }

    /// Receives at most as many frames as the ring has entries; whether there may be more.
    fn receive(&mut self, ring: &mut Ring, memory: &GuestMemoryMmap) -> Result<bool, Broken> {
        ring.ignore(memory)?;
        let mut outcome = Received::Frame;
        for _ in 0..ring.size() {
            outcome = self.receive_one(ring, memory)?;
            if outcome != Received::Frame {
                break;
            }
        }
        ring.tell(memory)?;
        match outcome {
            Received::Frame => Ok(true),
            Received::NoFrame => {
                self.starved = false;
                Ok(false)
            }
            Received::NoRoom { too_few } => {
                // Whoever brings buffers is to say so: more than those that are too few.
                let more = ring.listen_beyond(memory, too_few)?;
                self.starved = !more;
                Ok(more)
            }
        }
    }

    fn receive_one(
        &mut self,
        ring: &mut Ring,
        memory: &GuestMemoryMmap,
    ) -> Result<Received, Broken> {
        if !self.waiting.is_empty() {
            return self.give_waiting(ring, memory);
        }
        let Some(first) = next_chain(ring, memory)? else {
            return Ok(Received::NoRoom { too_few: 0 });
        };
        // It is empty, or its interface went down.
        let Ok(count) = self.tap.receive(&first.writable, &mut self.overflow) else {
            ring.put_back();
            return Ok(Received::NoFrame);
        };
        let room = first.writable.len();
        if count <= room {
            set_buffers(&first, 1);
            ring.give_back(memory, first.head, count)?;
            return Ok(Received::Frame);
        }
        if !self.merges {
            // Longer than the driver has said that it takes: it is lost.
            ring.put_back();
            return Ok(Received::Frame);
        }
        let overflow = self.overflow.get(..count - room).unwrap_or_default();
        let mut chains = vec![first];
        if gather(&mut chains, ring, memory, count)? {
            give(&chains, room, overflow, ring, memory)?;
            return Ok(Received::Frame);
        }
        // All of it waits, what is in the guest's memory too: that is the guest's again.
        self.waiting.resize(room, 0);
        if let Some(first) = chains.first() {
            first.writable.copy_to(&mut self.waiting);
        }
        self.waiting.extend(overflow);
        Ok(put_back(&chains, ring))
    }

    /// Gives the frame that waits to as many chains as it takes, if there are so many.
    fn give_waiting(
        &mut self,
        ring: &mut Ring,
        memory: &GuestMemoryMmap,
    ) -> Result<Received, Broken> {
        let mut chains = Vec::new();
        if !gather(&mut chains, ring, memory, self.waiting.len())? {
            return Ok(put_back(&chains, ring));
        }
        give(&chains, 0, &self.waiting, ring, memory)?;
        self.waiting.clear();
        Ok(Received::Frame)
    }
}

/// Takes chains until all have room for so many bytes; whether there were enough.
fn gather<'m>(
    chains: &mut Vec<Chain<'m>>,
    ring: &mut Ring,
    memory: &'m GuestMemoryMmap,
    bytes: usize,
) -> Result<bool, Broken> {
    let mut room: usize = chains.iter().map(|chain| chain.writable.len()).sum();
    while room < bytes {
        let Some(chain) = next_chain(ring, memory)? else { return Ok(false) };
        room += chain.writable.len();
        chains.push(chain);
    }
    Ok(true)
}

/// These chains are too few.
fn put_back(chains: &[Chain<'_>], ring: &mut Ring) -> Received {
    chains.iter().for_each(|_| ring.put_back());
    // No more than the ring has entries.
    Received::NoRoom { too_few: u16::try_from(chains.len()).unwrap_or(u16::MAX) }
}

/// Gives a frame to these chains, the first `there` bytes of which are in the first one already.
fn give(
    chains: &[Chain<'_>],
    there: usize,
    mut bytes: &[u8],
    ring: &mut Ring,
    memory: &GuestMemoryMmap,
) -> Result<(), Broken> {
    let mut used = Vec::with_capacity(chains.len());
    let whole = usize::from(there > 0);
    used.extend(chains.iter().take(whole).map(|chain| (chain.head, there)));
    for chain in chains.iter().skip(whole) {
        let count = chain.writable.copy_from(bytes);
        bytes = bytes.get(count..).unwrap_or_default();
        used.push((chain.head, count));
    }
    if let Some(first) = chains.first() {
        set_buffers(first, chains.len());
    }
    ring.give_back_all(memory, &used)
}

/// What became of an attempt to receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Received {
    Frame,
    NoFrame,
    /// So many chains are there, and more are needed.
    NoRoom {
        too_few: u16,
    },
}

/// The next chain with room for a frame's header, at least.
fn next_chain<'m>(
    ring: &mut Ring,
    memory: &'m GuestMemoryMmap,
) -> Result<Option<Chain<'m>>, Broken> {
    match ring.next(memory)? {
        Some(chain) if chain.writable.len() < HEADER => {
            Err(ring.broken("no room for a frame's header"))
        }
        chain => Ok(chain),
    }
}

/// Writes down how many chains a frame takes, which the tap does not know.
fn set_buffers(first: &Chain<'_>, chains: usize) {
    if let Some((_, field)) = first.writable.split_at(NUM_BUFFERS) {
        field.copy_from(&u16::try_from(chains).unwrap_or(u16::MAX).to_le_bytes());
    }
}

#[cfg(test)]
mod tests;
