//! The entropy device (section 5.4): fills the driver's buffers with random bytes.

use std::fs::File;
use std::io;
use std::path::Path;

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestMemoryMmap};

use super::{Broken, Device};

/// Bytes for one chain at the most: who wants more asks again.
const CHAIN_MAX: usize = 64 << 10;

/// The device, and where it has its bytes from.
pub struct Rng {
    source: File,
}

impl Rng {
    /// A device that reads from `source`.
    pub fn new(source: &Path) -> io::Result<Self> {
        Ok(Self { source: File::open(source)? })
    }

    /// Bytes that were written to the chain.
    fn fill(&mut self, chain: DescriptorChain<&GuestMemoryMmap>, memory: &GuestMemoryMmap) -> u32 {
        let mut filled = 0;
        for descriptor in chain.writable() {
            let wanted = usize::try_from(descriptor.len()).unwrap_or(usize::MAX);
            let count = wanted.min(CHAIN_MAX - filled);
            match memory.read_volatile_from(descriptor.addr(), &mut self.source, count) {
                Ok(read) => filled += read,
                // A buffer outside memory, or a source that has run dry: the driver gets less.
                Err(_) => break,
            }
            if filled == CHAIN_MAX {
                break;
            }
        }
        u32::try_from(filled).unwrap_or(u32::MAX)
    }
}

impl Device for Rng {
    fn name(&self) -> &'static str {
        "virtio-rng"
    }

    fn id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queues(&self) -> &'static [u16] {
        // As in QEMU.
        &[8]
    }

    fn process(
        &mut self,
        number: usize,
        queue: &mut Queue,
        memory: &GuestMemoryMmap,
    ) -> Result<bool, Broken> {
        let broken = |source| Broken::Queue { queue: number, source };
        // What the ring holds now and no more: a driver that adds as fast as we take would keep
        // its CPU here for ever.
        let mut left = queue.size();
        let mut used = false;
        while left > 0 {
            let Some(chain) = queue.iter(memory).map_err(broken)?.next() else { break };
            let head = chain.head_index();
            let length = self.fill(chain, memory);
            queue.add_used(memory, head, length).map_err(broken)?;
            used = true;
            left -= 1;
        }
        Ok(used && queue.needs_notification(memory).map_err(broken)?)
    }
}
