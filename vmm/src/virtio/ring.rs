//! A queue in the hands of who serves it.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

use super::{Broken, Buffers, Event, Interrupt};

/// A chain of descriptors that the driver has made available.
#[derive(Clone, Debug)]
pub struct Chain<'m> {
    /// Its number, by which it is given back.
    pub head: u16,
    /// What the device may read, which comes first.
    pub readable: Buffers<'m>,
    /// What the device may write.
    pub writable: Buffers<'m>,
}

/// A queue, where its bytes are, and who is to hear of what happened on it.
pub struct Ring {
    number: usize,
    queue: Queue,
    kick: Event,
    interrupt: Arc<Interrupt>,
    /// Chains that were given back, and that the driver was not told of.
    unannounced: u16,
}

/// How long requests may take together before the driver is told of those that are done: one that
/// takes this long is told of at once.
const TOGETHER: Duration = Duration::from_micros(50);

/// The driver's flag that it wants to hear of nothing (section 2.7.6).
const NO_INTERRUPT: u16 = 1;

impl Ring {
    /// The queue `number`, of which `kick` tells that there is something on it.
    pub fn new(number: usize, queue: Queue, kick: Event, interrupt: Arc<Interrupt>) -> Self {
        Self { number, queue, kick, interrupt, unannounced: 0 }
    }

    /// The entries that it has.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// What happens when the driver notifies of it.
    pub fn kick(&self) -> &Event {
        &self.kick
    }

    /// Where it is, for others who serve it.
    pub fn state(&self) -> QueueState {
        self.queue.state()
    }

    /// A chain of it is not what this device's chains are.
    pub fn broken(&self, problem: &'static str) -> Broken {
        Broken::Chain { queue: self.number, problem }
    }

    /// The ring itself cannot be reached.
    pub fn out_of_reach(&self, source: vm_memory::GuestMemoryError) -> Broken {
        self.ring_error(virtio_queue::Error::GuestMemory(source))
    }

    /// Goes on where somebody else was: the indexes of the next chain to take and to give back.
    pub fn seek(&mut self, available: u16, used: u16) {
        self.queue.set_next_avail(available);
        self.queue.set_next_used(used);
    }

    /// The index up to which chains were given back, whoever did so.
    pub fn used_index(&self, memory: &GuestMemoryMmap) -> Result<u16, Broken> {
        let at = GuestAddress(self.queue.used_ring() + 2);
        let index = memory.load(at, Ordering::Acquire).map(u16::from_le);
        index.map_err(|source| self.out_of_reach(source))
    }

    fn ring_error(&self, source: virtio_queue::Error) -> Broken {
        Broken::Ring { queue: self.number, source }
    }

    /// The next chain, if there is one.
    pub fn next<'m>(&mut self, memory: &'m GuestMemoryMmap) -> Result<Option<Chain<'m>>, Broken> {
        if self.interrupt.is_stopped() || !self.queue.ready() {
            return Ok(None);
        }
        let number = self.number;
        let broken = |source| Broken::Ring { queue: number, source };
        let mut available = self.queue.iter(memory).map_err(broken)?;
        match available.next() {
            Some(chain) => collect(chain.head_index(), chain, self.queue.size(), memory)
                .map(Some)
                .map_err(|problem| Broken::Chain { queue: number, problem }),
            None => Ok(None),
        }
    }

    /// The chain that begins at `head`, which was taken by somebody else: it need not be in the
    /// ring of what is available any more.
    pub fn chain<'m>(&self, memory: &'m GuestMemoryMmap, head: u16) -> Result<Chain<'m>, Broken> {
        let descriptors = self.descriptors(memory, head);
        let chain = descriptors.and_then(|found| collect(head, found, self.size(), memory));
        chain.map_err(|problem| self.broken(problem))
    }

    /// The descriptors of that chain (sections 2.7.5 and 2.7.5.3), one more than the queue has at
    /// the most.
    fn descriptors(
        &self,
        memory: &GuestMemoryMmap,
        head: u16,
    ) -> Result<Vec<Descriptor>, &'static str> {
        const OUTSIDE: &str = "a descriptor outside its table";
        const SIZE: u32 = 16;
        let (mut table, mut count) = (self.queue.desc_table(), u32::from(self.size()));
        let (mut index, mut is_nested) = (head, false);
        let mut found = Vec::new();
        while found.len() <= usize::from(self.size()) {
            let offset = u64::from(index) * u64::from(SIZE);
            let at = table.checked_add(offset).filter(|_| u32::from(index) < count);
            let at = GuestAddress(at.ok_or(OUTSIDE)?);
            let descriptor: Descriptor = memory.read_obj(at).map_err(|_| OUTSIDE)?;
            if descriptor.refers_to_indirect_table() {
                if is_nested {
                    return Err("a table of descriptors within another");
                }
                (table, count) = (descriptor.addr().0, descriptor.len() / SIZE);
                (index, is_nested) = (0, true);
                continue;
            }
            found.push(descriptor);
            if !descriptor.has_next() {
                break;
            }
            index = descriptor.next();
        }
        Ok(found)
    }

    /// Has `serve` do what each chain asks for, until there is none, and gives it back with the
    /// bytes that were written to it. What is no request of the device's breaks the queue.
    pub fn drain<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
        serve: impl FnMut(&Chain<'m>) -> Result<usize, &'static str>,
    ) -> Result<(), Broken> {
        self.drain_some_slow(memory, |_| false, serve)
    }

    /// The same where some chains are `slow`: the driver is told of those before them first.
    pub fn drain_some_slow<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
        slow: impl Fn(&Chain<'m>) -> bool,
        mut serve: impl FnMut(&Chain<'m>) -> Result<usize, &'static str>,
    ) -> Result<(), Broken> {
        // When the first of those began that the driver has not heard of.
        let mut first: Option<Instant> = None;
        loop {
            self.ignore(memory)?;
            while let Some(chain) = self.next(memory)? {
                if slow(&chain) {
                    self.tell(memory)?;
                    first = None;
                }
                let since = *first.get_or_insert_with(Instant::now);
                match serve(&chain) {
                    Ok(written) => self.give_back(memory, chain.head, written)?,
                    Err(problem) => {
                        // Those before it were good.
                        self.tell(memory)?;
                        return Err(self.broken(problem));
                    }
                }
                // Who waits for this one does not wait long for the next; one interrupt for many
                // saves the guest more than that.
                if since.elapsed() > TOGETHER {
                    self.tell(memory)?;
                    first = None;
                }
            }
            self.tell(memory)?;
            first = None;
            if !self.listen(memory)? {
                return Ok(());
            }
        }
    }

    /// The chain that was taken last is taken again by the next call of [`Self::next`].
    pub fn put_back(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives a chain back, of which `length` bytes were written.
    pub fn give_back(
        &mut self,
        memory: &GuestMemoryMmap,
        head: u16,
        length: usize,
    ) -> Result<(), Broken> {
        self.give_back_all(memory, &[(head, length)])
    }

    /// Gives chains back, each with the bytes that were written: the driver sees all at once.
    pub fn give_back_all(
        &mut self,
        memory: &GuestMemoryMmap,
        chains: &[(u16, usize)],
    ) -> Result<(), Broken> {
        let Some(((last, length), before)) = chains.split_last() else { return Ok(()) };
        let narrow = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        for (head, length) in before {
            let next = self.queue.next_used();
            let element = [u32::from(*head).to_le_bytes(), narrow(*length).to_le_bytes()].concat();
            let at = self.queue.used_ring() + 4 + 8 * u64::from(next % self.queue.size());
            memory
                .write_slice(&element, GuestAddress(at))
                .map_err(|source| self.ring_error(virtio_queue::Error::GuestMemory(source)))?;
            self.queue.set_next_used(next.wrapping_add(1));
            self.unannounced = self.unannounced.wrapping_add(1);
        }
        // This one makes the new index of the ring known.
        self.unannounced = self.unannounced.wrapping_add(1);
        let added = self.queue.add_used(memory, *last, narrow(*length));
        added.map_err(|source| self.ring_error(source))
    }

    /// Tells the driver of what was given back, if it wants to hear of that (section 2.7.7.2).
    pub fn tell(&mut self, memory: &GuestMemoryMmap) -> Result<(), Broken> {
        let added = std::mem::take(&mut self.unannounced);
        if added == 0 {
            return Ok(());
        }
        let (ring, size) = (self.queue.avail_ring(), u64::from(self.queue.size()));
        // The driver sees the ring's new index before we look at what it wants, or we see that.
        fence(Ordering::SeqCst);
        let load = |at| memory.load(GuestAddress(at), Ordering::Acquire).map(u16::from_le);
        let failed = |source| self.ring_error(virtio_queue::Error::GuestMemory(source));
        let wanted = if self.queue.event_idx_enabled() {
            let event = load(ring + 4 + 2 * size).map_err(failed)?;
            let passed = self.queue.next_used().wrapping_sub(event).wrapping_sub(1);
            passed < added
        } else {
            load(ring).map_err(failed)? & NO_INTERRUPT == 0
        };
        if wanted {
            self.interrupt.used();
        }
        Ok(())
    }

    /// The driver need not say that there is more.
    pub fn ignore(&mut self, memory: &GuestMemoryMmap) -> Result<(), Broken> {
        if !self.queue.ready() {
            return Ok(());
        }
        self.queue.disable_notification(memory).map_err(|source| self.ring_error(source))
    }

    /// Whether no more is to be done for the driver.
    pub fn is_stopped(&self) -> bool {
        self.interrupt.is_stopped()
    }

    /// As [`Self::listen`], when the next `ahead` chains alone are of no use.
    pub fn listen_beyond(&mut self, memory: &GuestMemoryMmap, ahead: u16) -> Result<bool, Broken> {
        let next = self.queue.next_avail();
        self.queue.set_next_avail(next.wrapping_add(ahead));
        let more = self.listen(memory);
        self.queue.set_next_avail(next);
        more
    }

    /// The driver is to say when there is more; whether there is more already.
    pub fn listen(&mut self, memory: &GuestMemoryMmap) -> Result<bool, Broken> {
        if !self.queue.ready() {
            return Ok(false);
        }
        let more = self.queue.enable_notification(memory);
        Ok(more.map_err(|source| self.ring_error(source))? && !self.interrupt.is_stopped())
    }
}

/// A chain of at most `most` descriptors: as many as its queue has (section 2.7.5.3.1). What walks
/// it ends before 4 GiB, which are more than it may have (2.7.4).
fn collect<'m>(
    head: u16,
    descriptors: impl IntoIterator<Item = Descriptor>,
    most: u16,
    memory: &'m GuestMemoryMmap,
) -> Result<Chain<'m>, &'static str> {
    let mut collected = Chain { head, readable: Buffers::default(), writable: Buffers::default() };
    let (mut complete, mut count) = (false, 0_u16);
    for descriptor in descriptors {
        complete = !descriptor.has_next();
        count = count.saturating_add(1);
        if count > most {
            return Err("a chain of more descriptors than the queue has");
        }
        let (buffers, access) = match descriptor.is_write_only() {
            true => (&mut collected.writable, Permissions::Write),
            false if !collected.writable.is_empty() => {
                return Err("a descriptor to read follows one to write");
            }
            false => (&mut collected.readable, Permissions::Read),
        };
        const OUTSIDE: &str = "a descriptor outside memory";
        let length = usize::try_from(descriptor.len()).map_err(|_| OUTSIDE)?;
        let pieces = memory.get_slices(descriptor.addr(), length, access).map_err(|_| OUTSIDE)?;
        for piece in pieces {
            buffers.push(piece.map_err(|_| OUTSIDE)?);
        }
    }
    // What walks chains ends those that it cannot follow.
    if complete { Ok(collected) } else { Err("a chain of descriptors without an end") }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Barrier;
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::virtio::driver::{BUFFER, Driver};
    use crate::virtio::{Device, Server, Wake, Work};

    /// Bytes of the chains that are done at once, that wait, and that are none.
    const FAST: u32 = 1;
    const SLOW: u32 = 2;
    const BAD: u32 = 3;

    /// A device whose slow chains wait for somebody at the barrier.
    #[derive(Clone)]
    struct Waiter(Arc<Barrier>);

    impl Device for Waiter {
        fn name(&self) -> &'static str {
            "waiter"
        }

        fn id(&self) -> u32 {
            virtio_bindings::virtio_ids::VIRTIO_ID_RNG
        }

        fn queues(&self) -> Vec<u16> {
            vec![8]
        }

        fn start(&self, _: u64, _: &Arc<Interrupt>) -> io::Result<Vec<Work>> {
            Ok(vec![Work { queues: vec![0], server: Box::new(self.clone()) }])
        }
    }

    impl Server for Waiter {
        fn serve(&mut self, rings: &mut [Ring], wake: &Wake<'_>) -> Result<(), Broken> {
            let is = |chain: &Chain<'_>, length: u32| chain.readable.len() == length as usize;
            let serve = |chain: &Chain<'_>| {
                if is(chain, SLOW) {
                    self.0.wait();
                }
                if is(chain, BAD) { Err("bad") } else { Ok(0) }
            };
            rings.iter_mut().try_for_each(|ring| {
                ring.drain_some_slow(wake.memory(), |chain| is(chain, SLOW), serve)
            })
        }
    }

    fn driver(chains: [u32; 2]) -> (Driver, Arc<Barrier>) {
        let barrier = Arc::new(Barrier::new(2));
        let driver = Driver::ready(Arc::new(Waiter(barrier.clone())), 0);
        for (index, length) in (0..).zip(chains) {
            driver.descriptor(index, BUFFER, length, 0, 0);
        }
        driver.offer(&[0, 1], 2);
        (driver, barrier)
    }

    #[test]
    fn a_driver_hears_of_what_is_done_before_the_next_one_waits() {
        let (driver, barrier) = driver([FAST, SLOW]);
        driver.wait(|driver| driver.interrupts.load(Ordering::SeqCst) == 1);
        assert_eq!(driver.used_index(0), 1);
        barrier.wait();
        driver.used(0, 2);
        driver.wait(|driver| driver.interrupts.load(Ordering::SeqCst) == 2);
    }

    #[test]
    fn a_driver_hears_of_what_was_done_before_the_queue_broke() {
        let (driver, _) = driver([FAST, BAD]);
        driver.breaks();
        assert_eq!(driver.used_index(0), 1);
        // Used buffers, and a device that needs a reset.
        driver.wait(|driver| driver.read(0x60) == 3);
    }
}
