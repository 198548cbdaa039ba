//! Virtio devices behind memory-mapped registers, as QEMU's microvm has them.
//!
//! Source: Virtual I/O Device (VIRTIO) Version 1.2. [`mmio`] is the transport, [`slots`] says where
//! each device goes; a device sees its queues and guest memory, and nothing else.

pub mod mmio;
pub mod rng;
pub mod slots;

use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;

/// What a driver did that no driver may: its device needs a reset.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// A ring or a chain of descriptors.
    #[error("queue {queue}: {source}")]
    Queue {
        /// The queue's number.
        queue: usize,
        /// What is wrong with it.
        source: virtio_queue::Error,
    },
    /// A queue that is used before it is set up.
    #[error("queue {0} is notified before it is ready, or lies outside memory")]
    NotReady(usize),
}

/// A device behind a transport.
pub trait Device: Send {
    /// For people.
    fn name(&self) -> &'static str;
    /// Its type (section 5).
    fn id(&self) -> u32;
    /// Its features beside those of the transport.
    fn features(&self) -> u64 {
        0
    }
    /// The entries that each of its queues may have at the most.
    fn queues(&self) -> &'static [u16];
    /// Reads its configuration; `data` holds zeroes.
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}
    /// Writes its configuration.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    /// Does what `queue` asks for; whether the driver wants to hear of it.
    fn process(
        &mut self,
        number: usize,
        queue: &mut Queue,
        memory: &GuestMemoryMmap,
    ) -> Result<bool, Broken>;
}
