//! A driver for tests, as a guest's would be, or worse.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_MMIO_DRIVER_FEATURES_SEL,
    VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY,
    VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL,
    VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_STATUS,
};

use super::mmio::Transport;
use super::registers::Registers;
use super::{Device, Doorbells, Event};
use crate::bus::{Action, Device as _};
use crate::config::{Backend, MemorySource, Pages};
use crate::control::Line;
use crate::memory::GuestRam;

/// Bytes of guest memory.
pub const RAM: u64 = 2 << 20;
/// Where the driver has the rings of queue 0 (those of the others follow), and its buffers.
pub const DESC: u32 = 0x1000;
pub const AVAIL: u32 = 0x2000;
pub const USED: u32 = 0x3000;
pub const BUFFER: u64 = 0x10_0000;
/// From one queue's rings to the next one's.
const STRIDE: u32 = 0x4000;
/// Descriptor flags: another follows, the device writes, a table of descriptors.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;
/// Longer than any device here takes for anything.
const DEADLINE: Duration = Duration::from_secs(10);

/// No KVM: notifications come by the register.
struct NoDoorbells;

impl Doorbells for NoDoorbells {
    fn attach(&self, _: u64, _: u32, _: &Event) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    fn detach(&self, _: u64, _: u32, _: &Event) {}
}

pub struct Driver {
    pub transport: Transport,
    pub ram: Arc<GuestRam>,
    pub interrupts: Arc<AtomicU32>,
}

impl Driver {
    pub fn new(device: Arc<dyn Device>) -> Self {
        Self::with(device, Arc::new(NoDoorbells))
    }

    pub fn with(device: Arc<dyn Device>, doorbells: Arc<dyn Doorbells>) -> Self {
        // Some devices are served by who maps it, too.
        let source = MemorySource::Memfd { pages: Pages::Usual, seal: true };
        let backend = Backend { source, share: true, ..Backend::default() };
        let ram = Arc::new(GuestRam::on(&backend, RAM, None).unwrap());
        let interrupts = Arc::new(AtomicU32::new(0));
        let count = interrupts.clone();
        let line: Line = Arc::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        });
        let place = (0, Registers::unseen());
        let transport = Transport::new(device, place, ram.clone(), line, doorbells);
        Self { transport, ram, interrupts }
    }

    /// A driver that is ready, with queues of eight, and that took these features too.
    pub fn ready(device: Arc<dyn Device>, features: u32) -> Self {
        let queues = device.queues().len();
        let driver = Self::new(device);
        driver.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
        driver.write(VIRTIO_MMIO_DRIVER_FEATURES, features);
        driver.agree();
        (0..queues).for_each(|queue| driver.set_up_queue(u32::try_from(queue).unwrap(), 8));
        assert_eq!(driver.status(0xf), 0xf);
        driver
    }

    pub fn read(&self, register: u32) -> u32 {
        let mut data = [0xff; 4];
        self.transport.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write(&self, register: u32, value: u32) {
        assert_eq!(self.transport.write(register.into(), &value.to_le_bytes()), Action::None);
    }

    /// Bytes of the device's configuration.
    pub fn config<const N: usize>(&self, offset: u32) -> [u8; N] {
        let mut data = [0xff; N];
        self.transport.read((VIRTIO_MMIO_CONFIG + offset).into(), &mut data);
        data
    }

    pub fn status(&self, bits: u32) -> u32 {
        self.write(VIRTIO_MMIO_STATUS, bits);
        self.read(VIRTIO_MMIO_STATUS)
    }

    pub fn agree(&self) {
        assert_eq!(self.status(1), 1);
        assert_eq!(self.status(3), 3);
        self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        self.write(VIRTIO_MMIO_DRIVER_FEATURES, 1);
        assert_eq!(self.status(0xb), 0xb);
    }

    pub fn set_up_queue(&self, queue: u32, size: u32) {
        self.write(VIRTIO_MMIO_QUEUE_SEL, queue);
        self.write(VIRTIO_MMIO_QUEUE_NUM, size);
        self.write(VIRTIO_MMIO_QUEUE_DESC_LOW, DESC + queue * STRIDE);
        self.write(VIRTIO_MMIO_QUEUE_AVAIL_LOW, AVAIL + queue * STRIDE);
        self.write(VIRTIO_MMIO_QUEUE_USED_LOW, USED + queue * STRIDE);
        self.write(VIRTIO_MMIO_QUEUE_READY, 1);
    }

    pub fn descriptor(&self, index: u64, address: u64, length: u32, flags: u16, next: u16) {
        self.descriptor_of(0, index, address, length, flags, next);
    }

    pub fn descriptor_of(
        &self,
        queue: u32,
        index: u64,
        address: u64,
        length: u32,
        flags: u16,
        next: u16,
    ) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        let at = u64::from(DESC + queue * STRIDE) + 16 * index;
        self.ram.write(at, &bytes).unwrap();
    }

    /// Makes the heads available, as entries up to `index`, and notifies.
    pub fn offer(&self, heads: &[u16], index: u16) {
        let entries: Vec<u8> = heads.iter().flat_map(|head| head.to_le_bytes()).collect();
        self.ram.write(u64::from(AVAIL) + 4, &entries).unwrap();
        self.ram.write(u64::from(AVAIL) + 2, &index.to_le_bytes()).unwrap();
        self.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    }

    /// Makes one more chain of `queue` available, and notifies.
    pub fn offer_next(&self, queue: u32, head: u16) {
        let ring = u64::from(AVAIL + queue * STRIDE);
        let mut index = [0; 2];
        self.ram.read(ring + 2, &mut index).unwrap();
        let index = u16::from_le_bytes(index);
        self.ram.write(ring + 4 + 2 * u64::from(index % 8), &head.to_le_bytes()).unwrap();
        self.ram.write(ring + 2, &index.wrapping_add(1).to_le_bytes()).unwrap();
        self.write(VIRTIO_MMIO_QUEUE_NOTIFY, queue);
    }

    /// Waits until `done`.
    pub fn wait(&self, done: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < DEADLINE, "the device does nothing");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until the device has used so many chains of `queue`; the length of the last one.
    pub fn used(&self, queue: u32, count: u16) -> u32 {
        let ring = u64::from(USED + queue * STRIDE);
        self.wait(|driver| driver.used_index(queue) == count);
        let mut length = [0; 4];
        let last = u64::from(count.wrapping_sub(1) % 8);
        self.ram.read(ring + 4 + 8 * last + 4, &mut length).unwrap();
        u32::from_le_bytes(length)
    }

    pub fn used_index(&self, queue: u32) -> u16 {
        let mut index = [0; 2];
        self.ram.read(u64::from(USED + queue * STRIDE) + 2, &mut index).unwrap();
        u16::from_le_bytes(index)
    }

    pub fn is_broken(&self) -> bool {
        self.read(VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET != 0
    }

    /// Waits until the device says that it needs a reset.
    pub fn breaks(&self) {
        self.wait(Self::is_broken);
    }
}
