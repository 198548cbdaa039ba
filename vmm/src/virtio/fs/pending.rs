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
    /// Those that were seen, by the numbers of their chains.
    seen: BTreeMap<u16, Seen>,
    /// What was looked at of each ring.
    available: u16,
    used: u16,
    /// Requests that were not seen, as more was asked between two looks than the ring holds.
    unseen: u16,
}

/// A chain between two looks: its number may have been asked with and answered several times.
#[derive(Debug)]
struct Seen {
    /// Where in the available ring it was the last time.
    position: u16,
    /// How often it was asked with and not answered.
    count: u16,
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
        let missed =
            available.wrapping_sub(self.available) > size || used.wrapping_sub(self.used) > size;
        if missed || used == available {
            // When all is answered, what was missed before does not matter any more.
            let unseen = available.wrapping_sub(used);
            *self = Self { seen: BTreeMap::new(), available, used, unseen };
            return Ok(());
        }
        while self.available != available {
            let at = queue.avail_ring + 4 + 2 * entry(self.available);
            let head = memory.load(GuestAddress(at), Ordering::Relaxed).map(u16::from_le)?;
            self.ask(head);
        }
        while self.used != used {
            let at = queue.used_ring + 4 + 8 * entry(self.used);
            let head: u32 = memory.load(GuestAddress(at), Ordering::Relaxed).map(u32::from_le)?;
            self.answer(head);
        }
        Ok(())
    }

    fn ask(&mut self, head: u16) {
        let seen = self.seen.entry(head).or_insert(Seen { position: 0, count: 0 });
        seen.position = self.available;
        seen.count = seen.count.saturating_add(1);
        self.available = self.available.wrapping_add(1);
    }

    fn answer(&mut self, head: u32) {
        self.used = self.used.wrapping_add(1);
        let head = u16::try_from(head).ok();
        match head.and_then(|head| Some((head, self.seen.get_mut(&head)?))) {
            Some((head, Seen { count: 1, .. })) => drop(self.seen.remove(&head)),
            Some((_, seen)) => seen.count -= 1,
            None => self.unseen = self.unseen.saturating_sub(1),
        }
    }

    /// Answers all of them with an error; the ring is ours from now on.
    pub fn refuse(self, ring: &mut Ring, wake: &Wake<'_>) -> Result<(), Broken> {
        if self.unseen > 0 {
            return Err(ring.broken("the daemon left requests that nobody knows"));
        }
        ring.seek(self.available, self.used);
        for Seen { position, .. } in self.seen.into_values() {
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use virtio_queue::{Queue, QueueT};

    use super::*;
    use crate::memory::GuestRam;
    use crate::virtio::registers::Registers;
    use crate::virtio::{Event, Interrupt};

    const DESCRIPTORS: u64 = 0x1000;
    const AVAILABLE: u64 = 0x2000;
    const USED: u64 = 0x3000;
    /// Each request has its bytes here, then its answer.
    const BUFFERS: u64 = 0x4000;
    const SIZE: u16 = 8;

    fn ring(ram: &GuestRam) -> Ring {
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_desc_table_address(Some(0x1000), Some(0));
        queue.set_avail_ring_address(Some(0x2000), Some(0));
        queue.set_used_ring_address(Some(0x3000), Some(0));
        queue.set_ready(true);
        assert!(queue.is_valid(ram.regions()));
        let registers = Arc::new(Registers::unseen());
        let interrupt = Arc::new(Interrupt::new("x", Arc::new(|| ()), registers));
        Ring::new(0, queue, Event::new().unwrap(), interrupt)
    }

    /// A request of two descriptors from `head` on, whose number is `unique`.
    fn request(ram: &GuestRam, head: u16, unique: u64) {
        let at = BUFFERS + u64::from(head) * 64;
        let descriptor = |address: u64, length: u32, flags: u16, next: u16| {
            let [a, b] = [flags.to_le_bytes(), next.to_le_bytes()];
            [&address.to_le_bytes()[..], &length.to_le_bytes(), &a, &b].concat()
        };
        let chain = [descriptor(at, 40, 1, head + 1), descriptor(at + 40, 16, 2, 0)].concat();
        ram.write(DESCRIPTORS + u64::from(head) * 16, &chain).unwrap();
        ram.write(at + 8, &unique.to_le_bytes()).unwrap();
    }

    fn offer(ram: &GuestRam, position: u16, head: u16) {
        let at = AVAILABLE + 4 + 2 * u64::from(position % SIZE);
        ram.write(at, &head.to_le_bytes()).unwrap();
        ram.write(AVAILABLE + 2, &(position + 1).to_le_bytes()).unwrap();
    }

    fn answer(ram: &GuestRam, head: u16) -> [u8; 16] {
        let mut answer = [0; 16];
        ram.read(BUFFERS + u64::from(head) * 64 + 40, &mut answer).unwrap();
        answer
    }

    fn used(ram: &GuestRam) -> u16 {
        let mut index = [0; 2];
        ram.read(USED + 2, &mut index).unwrap();
        u16::from_le_bytes(index)
    }

    #[test]
    fn what_was_not_answered_is_answered_with_an_error_once() {
        let ram = GuestRam::new(1 << 20, None).unwrap();
        let mut ring = ring(&ram);
        for (position, head) in [0, 2, 4].into_iter().enumerate() {
            request(&ram, head, 100 + u64::from(head));
            offer(&ram, u16::try_from(position).unwrap(), head);
        }
        let mut pending = Pending::default();
        pending.look(&ring, ram.regions()).unwrap();
        // The daemon answers the second one.
        ram.write(USED + 4, &2_u32.to_le_bytes()).unwrap();
        ram.write(USED + 2, &1_u16.to_le_bytes()).unwrap();
        pending.look(&ring, ram.regions()).unwrap();
        let wake = Wake { ram: &ram, source: true };
        pending.refuse(&mut ring, &wake).unwrap();
        assert_eq!(used(&ram), 3);
        for (head, error) in [(0_u16, true), (2, false), (4, true)] {
            let mut expected = [0; 16];
            if error {
                expected[0] = 16;
                expected[4..8].copy_from_slice(&(-5_i32).to_le_bytes());
                expected[8] = 100 + head.to_le_bytes()[0];
            }
            assert_eq!(answer(&ram, head), expected, "{head}");
        }
        // What comes later is refused, too.
        request(&ram, 6, 7);
        offer(&ram, 3, 6);
        refuse_all(&mut ring, &wake).unwrap();
        assert_eq!((used(&ram), answer(&ram, 6)[8]), (4, 7));
    }

    /// The daemon's answer to the request of `head`.
    fn give(ram: &GuestRam, position: u16, head: u16) {
        let at = USED + 4 + 8 * u64::from(position % SIZE);
        ram.write(at, &u32::from(head).to_le_bytes()).unwrap();
        ram.write(USED + 2, &(position + 1).to_le_bytes()).unwrap();
    }

    #[test]
    fn a_chain_that_is_asked_with_again_between_two_looks_is_answered() {
        let ram = GuestRam::new(1 << 20, None).unwrap();
        let mut ring = ring(&ram);
        let mut pending = Pending::default();
        request(&ram, 2, 50);
        offer(&ram, 0, 2);
        request(&ram, 0, 100);
        offer(&ram, 1, 0);
        give(&ram, 0, 0);
        request(&ram, 0, 101);
        offer(&ram, 2, 0);
        pending.look(&ring, ram.regions()).unwrap();
        pending.refuse(&mut ring, &Wake { ram: &ram, source: true }).unwrap();
        assert_eq!((used(&ram), answer(&ram, 0)[8], answer(&ram, 2)[8]), (3, 101, 50));
    }

    #[test]
    fn what_was_not_seen_is_forgotten_when_it_is_answered() {
        let ram = GuestRam::new(1 << 20, None).unwrap();
        let mut ring = ring(&ram);
        let mut pending = Pending::default();
        for position in 0..SIZE + 3 {
            offer(&ram, position, 0);
        }
        for position in 0..SIZE + 2 {
            give(&ram, position, 0);
        }
        pending.look(&ring, ram.regions()).unwrap();
        assert_eq!(pending.unseen, 1);
        // That one is answered, while another is asked.
        request(&ram, 4, 9);
        offer(&ram, SIZE + 3, 4);
        give(&ram, SIZE + 2, 0);
        pending.look(&ring, ram.regions()).unwrap();
        assert_eq!(pending.unseen, 0);
        pending.refuse(&mut ring, &Wake { ram: &ram, source: true }).unwrap();
        assert_eq!((used(&ram), answer(&ram, 4)[8]), (SIZE + 4, 9));
    }

    #[test]
    fn requests_that_were_not_seen_break_the_queue() {
        let ram = GuestRam::new(1 << 20, None).unwrap();
        let mut ring = ring(&ram);
        ram.write(AVAILABLE + 2, &(SIZE + 1).to_le_bytes()).unwrap();
        let mut pending = Pending::default();
        pending.look(&ring, ram.regions()).unwrap();
        assert!(pending.refuse(&mut ring, &Wake { ram: &ram, source: true }).is_err());
    }
}
