//! Requests that a daemon has not answered, and their answers when it never will.
//!
//! The available ring says what was asked, the used ring what was answered, in any order; both are
//! looked through whenever the daemon used something. FUSE's headers are those of Linux,
//! include/uapi/linux/fuse.h.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError as Error, GuestMemoryMmap};

use crate::virtio::{Broken, Chain, Ring, Wake};

/// Bytes of `struct fuse_in_header` that are looked at: length, opcode, and the request's number.
const IN_HEADER: usize = 16;
/// Bytes of `struct fuse_out_header`: length, error, and the request's number.
const OUT_HEADER: u32 = 16;
/// The error: -EIO.
const ERROR: i32 = -libc::EIO;

/// The requests of a queue that are with the daemon.
#[derive(Debug, Default)]
pub struct Pending {
    /// Where in the available ring each was, by the number of its chain.
    positions: BTreeMap<u16, u16>,
    /// What was looked at of each ring.
    available: u16,
    used: u16,
    /// More was asked between two looks than the ring holds.
    lost: bool,
}

impl Pending {
    /// Looks at what was asked and answered since the last time.
    pub fn look(&mut self, ring: &Ring, memory: &GuestMemoryMmap) -> Result<(), Error> {
        let (queue, size) = (ring.state(), ring.size());
        let index =
            |at: u64| memory.load(GuestAddress(at + 2), Ordering::Acquire).map(u16::from_le);
        // What was answered by now was asked before.
        let used = index(queue.used_ring)?;
        let available = index(queue.avail_ring)?;
        let entry = |position: u16| u64::from(position % size.max(1));
        self.lost |= available.wrapping_sub(self.available) > size;
        self.lost |= used.wrapping_sub(self.used) > size;
        while self.available != available && !self.lost {
            let at = queue.avail_ring + 4 + 2 * entry(self.available);
            let head = memory.load(GuestAddress(at), Ordering::Relaxed).map(u16::from_le)?;
            self.positions.insert(head, self.available);
            self.available = self.available.wrapping_add(1);
        }
        while self.used != used && !self.lost {
            let at = queue.used_ring + 4 + 8 * entry(self.used);
            let head: u32 = memory.load(GuestAddress(at), Ordering::Relaxed).map(u32::from_le)?;
            u16::try_from(head).ok().and_then(|head| self.positions.remove(&head));
            self.used = self.used.wrapping_add(1);
        }
        Ok(())
    }

    /// Answers all of them with an error; the ring is ours from now on.
    pub fn refuse(self, ring: &mut Ring, wake: &Wake<'_>) -> Result<(), Broken> {
        if self.lost {
            return Err(ring.broken("the daemon left requests that nobody knows"));
        }
        ring.seek(self.available, self.used);
        for position in self.positions.into_values() {
            if self.available.wrapping_sub(position) > ring.size() {
                return Err(
                    ring.broken("the daemon left a request that is not in the ring any more")
                );
            }
            ring.seek(position, ring.state().next_used);
            if let Some(chain) = ring.next(wake.memory())? {
                let written = refuse(&chain);
                ring.give_back(wake.memory(), chain.head, written)?;
            }
        }
        ring.seek(self.available, ring.state().next_used);
        ring.tell(wake.memory())
    }
}

/// Answers whatever is asked with an error.
pub fn refuse_all(ring: &mut Ring, wake: &Wake<'_>) -> Result<(), Broken> {
    ring.drain(wake.memory(), |chain| Ok(refuse(chain)))
}

/// Answers a request with an error, if it wants an answer; the bytes written.
fn refuse(chain: &Chain<'_>) -> usize {
    let Some([_, _, _, _, _, _, _, _, unique @ ..]) = chain.readable.read::<IN_HEADER>() else {
        return 0;
    };
    let answer = [&OUT_HEADER.to_le_bytes()[..], &ERROR.to_le_bytes(), &unique].concat();
    if chain.writable.len() < answer.len() { 0 } else { chain.writable.copy_from(&answer) }
}
