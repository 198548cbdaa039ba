//! The network device (section 5.1) on a [`tap`]: the guest's frames and the host's, each with a
//! header that says what was left undone, checksums and segments, for who gets it.

pub mod tap;

use std::collections::VecDeque;
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

    /// `struct virtio_net_config`.
    fn config(&self) -> [u8; 12] {
        let [a, b, c, d, e, f] = self.net.mac;
        let ([s0, s1], [m0, m1]) = (LINK_UP.to_le_bytes(), self.net.mtu.unwrap_or(0).to_le_bytes());
        [a, b, c, d, e, f, s0, s1, 1, 0, m0, m1]
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
    Offloads(taken.map(|(_, offload)| offload).sum())
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

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let config = self.config();
        let found = config.get(from..).unwrap_or_default();
        data.iter_mut().zip(found).for_each(|(to, from)| *to = *from);
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
    let server = Box::new(Cable { tap, merges, starved: false });
    Work { queues: vec![RECEIVE, TRANSMIT], server }
}

/// Who moves the frames, both ways.
struct Cable {
    tap: Arc<Tap>,
    /// A frame may be spread over several chains.
    merges: bool,
    /// The tap may have frames that there were no buffers for.
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
        let mut room = Room::default();
        let mut left = ring.size();
        let mut more = true;
        ring.ignore(memory)?;
        while left > 0 {
            if !room.grow(ring, memory, if self.merges { FRAME_MAX } else { 1 })? {
                // Whoever brings buffers is to say so.
                more = ring.listen(memory)?;
                self.starved = !more;
                break;
            }
            match self.tap.receive(&room.iovecs(self.merges)) {
                Ok(count) => room.fill(ring, memory, count)?,
                // It is empty, or its interface went down.
                Err(_) => {
                    (more, self.starved) = (false, false);
                    break;
                }
            }
            left -= 1;
        }
        room.put_back(ring);
        if left < ring.size() {
            ring.tell(memory)?;
        }
        Ok(more)
    }
}

/// Chains that wait for a frame.
#[derive(Default)]
struct Room<'m> {
    chains: VecDeque<Chain<'m>>,
    bytes: usize,
}

impl<'m> Room<'m> {
    /// Takes chains until there is room for `bytes`; whether there is room for anything.
    fn grow(
        &mut self,
        ring: &mut Ring,
        memory: &'m GuestMemoryMmap,
        bytes: usize,
    ) -> Result<bool, Broken> {
        while self.bytes < bytes {
            let Some(chain) = ring.next(memory)? else { break };
            if chain.writable.len() < HEADER {
                return Err(ring.broken("no room for a frame's header"));
            }
            self.bytes += chain.writable.len();
            self.chains.push_back(chain);
        }
        Ok(!self.chains.is_empty())
    }

    fn iovecs(&self, all: bool) -> Vec<libc::iovec> {
        let count = if all { self.chains.len() } else { 1 };
        self.chains
            .iter()
            .take(count)
            .flat_map(|chain| chain.writable.iovecs())
            .take(1024)
            .collect()
    }

    /// Gives the chains back that a frame of `count` bytes has filled.
    fn fill(
        &mut self,
        ring: &mut Ring,
        memory: &GuestMemoryMmap,
        count: usize,
    ) -> Result<(), Broken> {
        let mut rest = count;
        let taken = self.chains.iter().take_while(|chain| {
            let before = rest;
            rest = rest.saturating_sub(chain.writable.len());
            before > 0
        });
        let taken = taken.count().max(1);
        if let Some((_, field)) =
            self.chains.front().and_then(|first| first.writable.split_at(NUM_BUFFERS))
        {
            field.copy_from(&u16::try_from(taken).unwrap_or(u16::MAX).to_le_bytes());
        }
        let mut rest = count;
        let used = self.chains.drain(..taken).map(|chain| {
            self.bytes -= chain.writable.len();
            let length = rest.min(chain.writable.len());
            rest -= length;
            (chain.head, length)
        });
        let used: Vec<_> = used.collect();
        ring.give_back_all(memory, &used)
    }

    /// Leaves the other chains for later.
    fn put_back(self, ring: &mut Ring) {
        self.chains.iter().for_each(|_| ring.put_back());
    }
}

#[cfg(test)]
mod tests;
