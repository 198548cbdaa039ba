//! The registers as drivers use and misuse them, with the entropy device behind.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::*;
use crate::bus::Device as _;
use crate::virtio::rng::Rng;

/// Bytes of guest memory.
const RAM: u64 = 2 << 20;
/// Where the driver has its rings and its buffer.
const DESC: u32 = 0x1000;
const AVAIL: u32 = 0x2000;
const USED: u32 = 0x3000;
const BUFFER: u64 = 0x8000;
/// Descriptor flags: another follows, the device writes, a table of descriptors.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

struct Driver {
    transport: Transport,
    ram: Arc<GuestRam>,
    interrupts: Arc<AtomicU32>,
}

impl Driver {
    fn new() -> Self {
        let ram = Arc::new(GuestRam::new(RAM, None).unwrap());
        let interrupts = Arc::new(AtomicU32::new(0));
        let count = interrupts.clone();
        let line: Line = Arc::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let device = Box::new(Rng::new(Path::new("/dev/urandom")).unwrap());
        Self { transport: Transport::new(device, ram.clone(), line), ram, interrupts }
    }

    fn read(&self, register: u32) -> u32 {
        let mut data = [0xff; 4];
        self.transport.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, register: u32, value: u32) {
        assert_eq!(self.transport.write(register.into(), &value.to_le_bytes()), Action::None);
    }

    fn status(&self, bits: u32) -> u32 {
        self.write(VIRTIO_MMIO_STATUS, bits);
        self.read(VIRTIO_MMIO_STATUS)
    }

    fn agree(&self) {
        assert_eq!(self.status(1), 1);
        assert_eq!(self.status(3), 3);
        self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        self.write(VIRTIO_MMIO_DRIVER_FEATURES, 1);
        assert_eq!(self.status(0xb), 0xb);
    }

    fn set_up_queue(&self, size: u32) {
        self.write(VIRTIO_MMIO_QUEUE_SEL, 0);
        self.write(VIRTIO_MMIO_QUEUE_NUM, size);
        self.write(VIRTIO_MMIO_QUEUE_DESC_LOW, DESC);
        self.write(VIRTIO_MMIO_QUEUE_AVAIL_LOW, AVAIL);
        self.write(VIRTIO_MMIO_QUEUE_USED_LOW, USED);
        self.write(VIRTIO_MMIO_QUEUE_READY, 1);
    }

    /// A driver that is ready, with a queue of eight.
    fn ready() -> Self {
        let driver = Self::new();
        driver.agree();
        driver.set_up_queue(8);
        assert_eq!(driver.status(0xf), 0xf);
        driver
    }

    fn descriptor(&self, index: u64, address: u64, length: u32, flags: u16, next: u16) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.ram.write(u64::from(DESC) + 16 * index, &bytes).unwrap();
    }

    /// Makes the heads available, as entries up to `index`, and notifies.
    fn offer(&self, heads: &[u16], index: u16) {
        let entries: Vec<u8> = heads.iter().flat_map(|head| head.to_le_bytes()).collect();
        self.ram.write(u64::from(AVAIL) + 4, &entries).unwrap();
        self.ram.write(u64::from(AVAIL) + 2, &index.to_le_bytes()).unwrap();
        self.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    }

    /// The index of the used ring, and the length in its first entry.
    fn used(&self) -> (u16, u32) {
        let (mut index, mut length) = ([0; 2], [0; 4]);
        self.ram.read(u64::from(USED) + 2, &mut index).unwrap();
        self.ram.read(u64::from(USED) + 8, &mut length).unwrap();
        (u16::from_le_bytes(index), u32::from_le_bytes(length))
    }

    fn is_broken(&self) -> bool {
        self.read(VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET != 0
    }
}

#[test]
fn a_driver_gets_its_random_bytes_and_one_interrupt() {
    let driver = Driver::ready();
    driver.descriptor(0, BUFFER, 64, WRITE, 0);
    driver.offer(&[0], 1);
    assert_eq!(driver.used(), (1, 64));
    assert_eq!(driver.interrupts.load(Ordering::Relaxed), 1);
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    driver.write(VIRTIO_MMIO_INTERRUPT_ACK, 1);
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    let mut bytes = [0; 64];
    driver.ram.read(BUFFER, &mut bytes).unwrap();
    assert_ne!(bytes, [0; 64]);
}

#[test]
fn the_registers_say_what_it_is() {
    let driver = Driver::new();
    for (register, value) in [
        (VIRTIO_MMIO_MAGIC_VALUE, 0x7472_6976),
        (VIRTIO_MMIO_VERSION, 2),
        (VIRTIO_MMIO_DEVICE_ID, VIRTIO_ID_RNG),
        (VIRTIO_MMIO_VENDOR_ID, 0x554d_4551),
        (VIRTIO_MMIO_QUEUE_NUM_MAX, 8),
        (VIRTIO_MMIO_DEVICE_FEATURES, 0),
        (VIRTIO_MMIO_STATUS, 0),
        (VIRTIO_MMIO_CONFIG_GENERATION, 0),
        (0x0fc, 0),
    ] {
        assert_eq!(driver.read(register), value, "{register:#x}");
    }
    driver.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
    assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_FEATURES), 1);
    driver.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_FEATURES), 0);
    driver.write(VIRTIO_MMIO_QUEUE_SEL, 1);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
    let mut narrow = [0xff; 2];
    driver.transport.read(0, &mut narrow);
    assert_eq!(narrow, [0, 0]);
}

#[test]
fn the_status_goes_step_by_step() {
    let driver = Driver::new();
    assert_eq!(driver.status(0xf) & 0xc, 0, "features that were not agreed on");
    assert_eq!(driver.status(0), 0);
    assert_eq!(driver.status(4), 0);
    assert_eq!(driver.status(2), 0);
    driver.agree();
    assert_eq!(driver.status(1), 0xb, "there is no way back");
    assert_eq!(driver.status(0x8f) & 0x80, 0x80, "failed");
    assert_eq!(driver.status(0), 0);
}

#[test]
fn unknown_features_and_legacy_drivers_are_refused() {
    for (low, high) in [(0, 0), (1, 1), (0, 3), (u32::MAX, u32::MAX)] {
        let driver = Driver::new();
        driver.status(3);
        for (select, value) in [(0, low), (1, high), (2, u32::MAX)] {
            driver.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            driver.write(VIRTIO_MMIO_DRIVER_FEATURES, value);
        }
        assert_eq!(driver.status(0xb), 3, "{low:#x} {high:#x}");
    }
}

#[test]
fn a_queue_keeps_still_once_it_is_ready() {
    let driver = Driver::ready();
    driver.write(VIRTIO_MMIO_QUEUE_DESC_LOW, 0x10_0000);
    driver.write(VIRTIO_MMIO_QUEUE_NUM, 2);
    driver.descriptor(0, BUFFER, 8, WRITE, 0);
    driver.offer(&[0], 1);
    assert_eq!(driver.used(), (1, 8));
}

#[test]
fn what_no_driver_may_do_stops_the_device_until_a_reset() {
    // Rings that lie outside memory, or a queue that is not ready.
    for (register, value) in [
        (VIRTIO_MMIO_QUEUE_DESC_LOW, 0xffff_f000),
        (VIRTIO_MMIO_QUEUE_AVAIL_HIGH, 7),
        (VIRTIO_MMIO_QUEUE_USED_LOW, u32::try_from(RAM).unwrap()),
    ] {
        let driver = Driver::new();
        driver.agree();
        driver.write(register, value);
        driver.set_up_queue_but(register);
        driver.status(0xf);
        driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        assert!(driver.is_broken(), "{register:#x}");
        assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 2);
        assert_eq!(driver.status(0), 0);
    }
    // An index that runs ahead of the ring.
    let driver = Driver::ready();
    driver.offer(&[0], 9);
    assert!(driver.is_broken());
    let before = driver.interrupts.load(Ordering::Relaxed);
    driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    assert_eq!(driver.interrupts.load(Ordering::Relaxed), before, "it says so once");
}

impl Driver {
    /// Sets the queue up, save what `register` has set.
    fn set_up_queue_but(&self, register: u32) {
        self.write(VIRTIO_MMIO_QUEUE_NUM, 8);
        for (other, value) in [
            (VIRTIO_MMIO_QUEUE_DESC_LOW, DESC),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, AVAIL),
            (VIRTIO_MMIO_QUEUE_USED_LOW, USED),
        ] {
            if other != register {
                self.write(other, value);
            }
        }
        self.write(VIRTIO_MMIO_QUEUE_READY, 1);
    }
}

#[test]
fn loops_and_wild_buffers_end() {
    let driver = Driver::ready();
    // A chain that is a loop, a buffer outside memory, one of 4 GiB, one that is not writable, a
    // table within a table.
    driver.descriptor(0, BUFFER, 1, WRITE | NEXT, 0);
    driver.descriptor(1, u64::MAX - 8, 64, WRITE, 0);
    driver.descriptor(2, BUFFER, u32::MAX, WRITE, 0);
    driver.descriptor(3, BUFFER, 64, 0, 0);
    driver.descriptor(4, u64::from(DESC), 16 * 8, INDIRECT, 0);
    for (count, head) in (1u16..).zip([0, 1, 2, 3, 4, 7, 0xffff]) {
        driver
            .ram
            .write(u64::from(AVAIL) + 4 + 2 * u64::from(count - 1), &u16::to_le_bytes(head))
            .unwrap();
        driver.ram.write(u64::from(AVAIL) + 2, &count.to_le_bytes()).unwrap();
        driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    }
    // It is broken or not; it answers, and a reset mends it.
    assert_eq!(driver.status(0), 0);
    driver.agree();
}

#[test]
fn an_empty_slot_has_no_device() {
    let read = |offset: u64| {
        let mut data = [0xff; 4];
        EmptySlot.read(offset, &mut data);
        u32::from_le_bytes(data)
    };
    assert_eq!((read(0), read(4), read(8), read(0x70)), (0x7472_6976, 2, 0, 0));
    assert_eq!(EmptySlot.write(0x70, &[1, 0, 0, 0]), Action::None);
}

proptest! {
    #[test]
    fn no_access_makes_it_panic(
        writes in prop::collection::vec(
            (0u64..0x210, prop::sample::select(vec![1usize, 2, 4, 8]),
             prop::sample::select(vec![0u32, 1, 2, 3, 8, 0xb, 0xf, 0x1000, 0x3000, u32::MAX])),
            0..60,
        ),
        memory in prop::collection::vec(any::<u8>(), 64),
    ) {
        let driver = Driver::new();
        driver.agree();
        for at in [DESC, AVAIL, USED] {
            driver.ram.write(at.into(), &memory).unwrap();
        }
        for (offset, width, value) in writes {
            let bytes = u64::from(value).to_le_bytes();
            driver.transport.write(offset & !3, &bytes[..width]);
            driver.transport.read(offset, &mut [0; 8][..width]);
        }
        driver.set_up_queue(8);
        driver.status(0xf);
        driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    }
}
