//! A queue in the hands of who serves it.

use std::sync::Arc;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestMemory, GuestMemoryMmap, Permissions};

use super::{Broken, Buffers, Interrupt};

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
    interrupt: Arc<Interrupt>,
}

impl Ring {
    pub(super) fn new(number: usize, queue: Queue, interrupt: Arc<Interrupt>) -> Self {
        Self { number, queue, interrupt }
    }

    /// The entries that it has.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// A chain of it is not what this device's chains are.
    pub fn broken(&self, problem: &'static str) -> Broken {
        Broken::Chain { queue: self.number, problem }
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
            Some(chain) => collect(chain, memory)
                .map(Some)
                .map_err(|problem| Broken::Chain { queue: number, problem }),
            None => Ok(None),
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
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        self.queue.add_used(memory, head, length).map_err(|source| self.ring_error(source))
    }

    /// Tells the driver of what was given back, if it wants to hear of that.
    pub fn tell(&mut self, memory: &GuestMemoryMmap) -> Result<(), Broken> {
        if self.queue.needs_notification(memory).map_err(|source| self.ring_error(source))? {
            self.interrupt.used();
        }
        Ok(())
    }

    /// The driver need not say that there is more.
    pub fn ignore(&mut self, memory: &GuestMemoryMmap) -> Result<(), Broken> {
        self.queue.disable_notification(memory).map_err(|source| self.ring_error(source))
    }

    /// The driver is to say when there is more; whether there is more already.
    pub fn listen(&mut self, memory: &GuestMemoryMmap) -> Result<bool, Broken> {
        let more = self.queue.enable_notification(memory);
        Ok(more.map_err(|source| self.ring_error(source))? && !self.interrupt.is_stopped())
    }
}

fn collect<'m>(
    chain: virtio_queue::DescriptorChain<&GuestMemoryMmap>,
    memory: &'m GuestMemoryMmap,
) -> Result<Chain<'m>, &'static str> {
    let mut collected = Chain {
        head: chain.head_index(),
        readable: Buffers::default(),
        writable: Buffers::default(),
    };
    let mut complete = false;
    for descriptor in chain {
        complete = !descriptor.has_next();
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
