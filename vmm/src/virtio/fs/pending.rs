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
/// The opcode that begins a mount.
const FUSE_INIT: u32 = 26;
/// Bytes of `struct fuse_out_header`: length, error, and the request's number.
const OUT_HEADER: u32 = 16;
/// The error: -EIO.
const ERROR: i32 = -libc::EIO;

/// The requests of a queue that are with the daemon.
#[derive(Debug, Default)]
pub struct Pending {
    /// Those that were seen, by the numbers of their chains, and how often each was asked with and
    /// not answered: between two looks that may be several times.
    seen: BTreeMap<u16, u16>,
    /// What was looked at of each ring.
    available: u16,
    used: u16,
    /// Requests that were not seen, as more was asked between two looks than the ring holds.
    unseen: u16,
}

impl Pending {
    /// None yet, of a daemon that begins where the ring is.
    pub fn at(ring: &Ring) -> Self {
        let state = ring.state();
        Self { available: state.next_avail, used: state.next_used, ..Self::default() }
    }

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
        let count = self.seen.entry(head).or_default();
        *count = count.saturating_add(1);
        self.available = self.available.wrapping_add(1);
    }

    fn answer(&mut self, head: u32) {
        self.used = self.used.wrapping_add(1);
        let head = u16::try_from(head).ok();
        match head.and_then(|head| Some((head, self.seen.get_mut(&head)?))) {
            Some((head, 1)) => drop(self.seen.remove(&head)),
            Some((_, count)) => *count -= 1,
            None => self.unseen = self.unseen.saturating_sub(1),
        }
    }

    /// Answers all of them with an error; the ring is ours from now on.
    pub fn refuse(self, ring: &mut Ring, wake: &Wake<'_>) -> Result<(), Broken> {
        if self.unseen > 0 {
            return Err(ring.broken("the daemon left requests that nobody knows"));
        }
        ring.seek(self.available, self.used);
        // One that waits for long is not in the ring of what is available any more: many others
        // were asked and answered since.
        for head in self.seen.into_keys() {
            let chain = ring.chain(wake.memory(), head)?;
            let written = refuse(&chain);
            ring.give_back(wake.memory(), head, written)?;
        }
        ring.tell(wake.memory())
    }
}

/// Answers what is asked with an error, up to a request that begins a mount, which is left in the
/// ring; whether there is one.
pub fn refuse_until_mount(ring: &mut Ring, wake: &Wake<'_>) -> Result<bool, Broken> {
    let memory = wake.memory();
    loop {
        ring.ignore(memory)?;
        while let Some(chain) = ring.next(memory)? {
            if is_mount(&chain) {
                ring.put_back();
                ring.tell(memory)?;
                return Ok(true);
            }
            ring.give_back(memory, chain.head, refuse(&chain))?;
        }
        ring.tell(memory)?;
        if !ring.listen(memory)? {
            return Ok(false);
        }
    }
}

/// Answers the next request with an error, whatever it is, if there is one.
pub fn refuse_next(ring: &mut Ring, wake: &Wake<'_>) -> Result<(), Broken> {
    let Some(chain) = ring.next(wake.memory())? else { return Ok(()) };
    ring.give_back(wake.memory(), chain.head, refuse(&chain))?;
    ring.tell(wake.memory())
}

fn is_mount(chain: &Chain<'_>) -> bool {
    let header = chain.readable.read::<IN_HEADER>();
    header.is_some_and(|[_, _, _, _, a, b, c, d, ..]| u32::from_le_bytes([a, b, c, d]) == FUSE_INIT)
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
        assert!(!refuse_until_mount(&mut ring, &wake).unwrap());
        assert_eq!((used(&ram), answer(&ram, 6)[8]), (4, 7));
    }

    #[test]
    fn a_request_that_waits_while_many_others_are_answered_is_answered_too() {
        let ram = GuestRam::new(1 << 20, None).unwrap();
        let mut ring = ring(&ram);
        let mut pending = Pending::default();
        request(&ram, 0, 100);
        offer(&ram, 0, 0);
        pending.look(&ring, ram.regions()).unwrap();
        let others = SIZE * 2;
        for number in 0..others {
            request(&ram, 2, u64::from(number));
            offer(&ram, number + 1, 2);
            pending.look(&ring, ram.regions()).unwrap();
            give(&ram, number, 2);
        }
        pending.look(&ring, ram.regions()).unwrap();
        pending.refuse(&mut ring, &Wake { ram: &ram, source: true }).unwrap();
        assert_eq!((used(&ram), answer(&ram, 0)[8]), (others + 1, 100));
        assert_eq!(ring.state().next_avail, others + 1);
    }

    #[test]
    fn a_chain_in_a_table_of_its_own_is_found_and_one_without_an_end_is_not() {
        let ram = GuestRam::new(1 << 20, None).unwrap();
        let ring = ring(&ram);
        request(&ram, 2, 50);
        // The table is the two descriptors of that chain, which name each other by other numbers.
        let table = [&0x1020_u64.to_le_bytes()[..], &32_u32.to_le_bytes(), &4_u32.to_le_bytes()];
        ram.write(DESCRIPTORS, &table.concat()).unwrap();
        ram.write(DESCRIPTORS + 0x20 + 14, &1_u16.to_le_bytes()).unwrap();
        let chain = ring.chain(ram.regions(), 0).unwrap();
        assert_eq!((chain.head, chain.readable.len(), chain.writable.len()), (0, 40, 16));
        // A table within itself, and one of no whole descriptor.
        ram.write(DESCRIPTORS + 0x20 + 12, &4_u16.to_le_bytes()).unwrap();
        assert!(ring.chain(ram.regions(), 0).is_err());
        ram.write(DESCRIPTORS + 8, &15_u32.to_le_bytes()).unwrap();
        assert!(ring.chain(ram.regions(), 0).is_err());
        // A circle, a number that no descriptor has, and a table at the end of all addresses.
        request(&ram, 4, 50);
        ram.write(DESCRIPTORS + 0x40 + 14, &4_u16.to_le_bytes()).unwrap();
        assert!(ring.chain(ram.regions(), 4).is_err());
        assert!(ring.chain(ram.regions(), SIZE).is_err());
        ram.write(DESCRIPTORS, &u64::MAX.to_le_bytes()).unwrap();
        ram.write(DESCRIPTORS + 8, &32_u32.to_le_bytes()).unwrap();
        assert!(ring.chain(ram.regions(), 0).is_err());
    }

    #[test]
    fn a_mount_is_left_in_the_ring() {
        let ram = GuestRam::new(1 << 20, None).unwrap();
        let mut ring = ring(&ram);
        let wake = Wake { ram: &ram, source: true };
        for head in [0, 2, 4] {
            request(&ram, head, 100 + u64::from(head));
            offer(&ram, head / 2, head);
        }
        ram.write(BUFFERS + 2 * 64 + 4, &FUSE_INIT.to_le_bytes()).unwrap();
        assert!(refuse_until_mount(&mut ring, &wake).unwrap());
        assert_eq!((used(&ram), answer(&ram, 0)[8], answer(&ram, 2)[8]), (1, 100, 0));
        // A daemon that takes over begins with it, and knows of nothing before.
        assert_eq!(ring.state().next_avail, 1);
        let mut pending = Pending::at(&ring);
        pending.look(&ring, ram.regions()).unwrap();
        assert_eq!(pending.seen.into_keys().collect::<Vec<_>>(), [2, 4]);
        // Nobody does.
        refuse_next(&mut ring, &wake).unwrap();
        assert_eq!((used(&ram), answer(&ram, 2)[8]), (2, 102));
        assert!(!refuse_until_mount(&mut ring, &wake).unwrap());
        assert_eq!((used(&ram), answer(&ram, 4)[8]), (3, 104));
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
