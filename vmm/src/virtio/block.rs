//! The block device (section 5.2): a disk of 512-byte sectors on an [`image`].
//!
//! A request is done by one call of the kernel, on the thread of its queue: what is in the host's
//! page cache is there at once, and what is not may block this queue and nothing else.

pub mod image;
mod lock;
mod request;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::{Broken, Chain, Device, Interrupt, Ring, Server, Wake, Work};
use crate::config::Disk;
use image::Image;

/// Sectors that one request may discard or make zeroes, as in QEMU: just below 2 GiB.
const RANGE_MAX: u32 = 0x3f_ffff;
/// Where the configuration says whether writes may wait in a cache, and how long all of it is.
const WRITEBACK: u64 = 32;
const CONFIG: usize = 60;

/// The device.
pub struct Block {
    disk: Disk,
    backend: Arc<Backend>,
}

/// What all queues work on.
struct Backend {
    image: Image,
    name: String,
    serial: String,
    read_only: bool,
    /// Writes may wait in the host's cache until they are flushed.
    writeback: AtomicBool,
    /// The host's first error was told.
    told: AtomicBool,
}

impl Block {
    /// A device on the image of `disk`.
    pub fn new(disk: &Disk) -> Result<Self, image::Error> {
        let backend = Backend {
            image: Image::open(disk)?,
            name: disk.path.display().to_string(),
            serial: disk.serial.clone(),
            read_only: disk.read_only,
            writeback: AtomicBool::new(disk.cache.writeback),
            told: AtomicBool::new(false),
        };
        Ok(Self { disk: disk.clone(), backend: Arc::new(backend) })
    }
}

impl Device for Block {
    fn name(&self) -> &'static str {
        "virtio-blk"
    }

    fn id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        let mut features = 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_TOPOLOGY
            | 1 << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_BLK_F_CONFIG_WCE;
        features |= match self.disk.read_only {
            true => 1 << VIRTIO_BLK_F_RO,
            false => 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES,
        };
        if self.disk.queues > 1 {
            features |= 1 << VIRTIO_BLK_F_MQ;
        }
        features
    }

    fn queues(&self) -> Vec<u16> {
        vec![self.disk.queue_size; self.disk.queues.into()]
    }

    /// `struct virtio_blk_config`.
    fn config(&self) -> Vec<u8> {
        let Disk { logical_block_size, physical_block_size, queues, .. } = self.disk;
        let exponent = (physical_block_size / logical_block_size).ilog2();
        let sectors_of_block = logical_block_size / 512;
        let mut config = [0; CONFIG];
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(field) = config.get_mut(at..at + bytes.len()) {
                field.copy_from_slice(bytes);
            }
        };
        put(0, &self.backend.image.sectors().to_le_bytes());
        // Besides the data, a request has a header and a status.
        put(12, &u32::from(self.disk.queue_size.saturating_sub(2)).to_le_bytes());
        put(20, &logical_block_size.to_le_bytes());
        put(24, &[exponent.to_le_bytes()[0]]);
        put(32, &[u8::from(self.backend.writeback.load(Ordering::SeqCst))]);
        put(34, &queues.to_le_bytes());
        let range_max = RANGE_MAX / sectors_of_block * sectors_of_block;
        put(36, &range_max.to_le_bytes());
        put(40, &1_u32.to_le_bytes());
        put(44, &sectors_of_block.to_le_bytes());
        put(48, &range_max.to_le_bytes());
        put(52, &1_u32.to_le_bytes());
        put(56, &[u8::from(self.backend.image.punches_holes())]);
        config.into()
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        if let (WRITEBACK, [value]) = (offset, data) {
            self.backend.writeback.store(value & 1 == 1, Ordering::SeqCst);
        }
    }

    fn start(&self, features: u64, interrupt: &Arc<Interrupt>) -> io::Result<Vec<Work>> {
        // Who cannot ask for a flush takes every write for durable (section 5.2.6.2).
        let flushes = 1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_CONFIG_WCE;
        let through = features & flushes == 0;
        let work = |queue| {
            let (backend, interrupt) = (self.backend.clone(), interrupt.clone());
            Work { queues: vec![queue], server: Box::new(Queue { backend, through, interrupt }) }
        };
        Ok((0..usize::from(self.disk.queues)).map(work).collect())
    }
}

/// Who serves one queue.
struct Queue {
    backend: Arc<Backend>,
    /// The driver cannot flush.
    through: bool,
    interrupt: Arc<Interrupt>,
}

impl Queue {
    /// Whether a write is to be on the medium when it is done.
    fn writes_through(&self) -> bool {
        self.through || !self.backend.writeback.load(Ordering::SeqCst)
    }
}

impl Server for Queue {
    fn serve(&mut self, rings: &mut [Ring], wake: &Wake<'_>) -> Result<(), Broken> {
        let slow = |chain: &Chain<'_>| request::is_slow(self, chain);
        let execute = |chain: &Chain<'_>| request::execute(self, chain).ok_or("no block request");
        rings.iter_mut().try_for_each(|ring| ring.drain_some_slow(wake.memory(), slow, execute))
    }
}

#[cfg(test)]
mod tests;
