//! The registers as drivers use and misuse them, with the entropy device behind.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_MAGIC_VALUE,
    VIRTIO_MMIO_VERSION,
};

use super::*;
use crate::bus::Device as _;
use crate::virtio::driver::{AVAIL, BUFFER, DESC, Driver, INDIRECT, NEXT, RAM, USED, WRITE};
use crate::virtio::rng::Rng;

fn rng() -> Arc<Rng> {
    Arc::new(Rng::new(Path::new("/dev/urandom")).unwrap())
}

fn new() -> Driver {
    Driver::new(rng())
}

fn ready() -> Driver {
    Driver::ready(rng(), 0)
}

#[test]
fn a_driver_gets_its_random_bytes_and_one_interrupt() {
    let driver = ready();
    driver.descriptor(0, BUFFER, 64, WRITE, 0);
    driver.offer(&[0], 1);
    assert_eq!(driver.used(0, 1), 64);
    driver.wait(|driver| driver.interrupts.load(Ordering::SeqCst) == 1);
    assert_eq!(driver.interrupts.load(Ordering::Relaxed), 1);
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    driver.write(VIRTIO_MMIO_INTERRUPT_ACK, 1);
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    let mut bytes = [0; 64];
    driver.ram.read(BUFFER, &mut bytes).unwrap();
    assert_ne!(bytes, [0; 64]);
}

#[test]
fn there_are_no_shared_memory_regions() {
    let driver = Driver::ready(rng(), 0);
    // Length and base, each in two halves: -1 for "not there"; 0 were an empty region.
    for register in [0xb0, 0xb4, 0xb8, 0xbc] {
        assert_eq!(driver.read(register), u32::MAX, "{register:#x}");
    }
}

#[test]
fn a_driver_that_waits_to_be_asked_is_asked_each_time() {
    // With VIRTIO_F_EVENT_IDX a driver notifies when the ring's index passes what the device wrote
    // after the used ring.
    let driver = Driver::ready(rng(), 1 << VIRTIO_RING_F_EVENT_IDX);
    driver.descriptor(0, BUFFER, 8, WRITE, 0);
    for count in 1..4_u16 {
        driver.offer_next(0, 0);
        driver.used(0, count);
        driver.wait(|driver| {
            let mut event = [0; 2];
            driver.ram.read(u64::from(USED) + 4 + 8 * 8, &mut event).unwrap();
            u16::from_le_bytes(event) == count
        });
    }
    // Its own wish, after the available ring, stays at 0: it hears of the first one only.
    assert_eq!(driver.interrupts.load(Ordering::SeqCst), 1);
}

#[test]
fn the_registers_say_what_it_is() {
    let driver = new();
    for (register, value) in [
        (VIRTIO_MMIO_MAGIC_VALUE, 0x7472_6976),
        (VIRTIO_MMIO_VERSION, 2),
        (VIRTIO_MMIO_DEVICE_ID, VIRTIO_ID_RNG),
        (VIRTIO_MMIO_VENDOR_ID, 0x554d_4551),
        (VIRTIO_MMIO_QUEUE_NUM_MAX, 8),
        (VIRTIO_MMIO_DEVICE_FEATURES, 0x3000_0000),
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
    // As it is memory: QEMU has zeroes for what is no whole register.
    let mut narrow = [0xff; 2];
    driver.transport.read(2, &mut narrow);
    assert_eq!(narrow, *b"rt");
}

#[test]
fn the_status_goes_step_by_step() {
    let driver = new();
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
        let driver = new();
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
    let driver = ready();
    driver.write(VIRTIO_MMIO_QUEUE_DESC_LOW, 0x10_0000);
    driver.write(VIRTIO_MMIO_QUEUE_NUM, 2);
    driver.descriptor(0, BUFFER, 8, WRITE, 0);
    driver.offer(&[0], 1);
    assert_eq!(driver.used(0, 1), 8);
}

#[test]
fn what_no_driver_may_do_stops_the_device_until_a_reset() {
    // Rings that lie outside memory, or a queue that is not ready.
    for (register, value) in [
        (VIRTIO_MMIO_QUEUE_DESC_LOW, 0xffff_f000),
        (VIRTIO_MMIO_QUEUE_AVAIL_HIGH, 7),
        (VIRTIO_MMIO_QUEUE_USED_LOW, u32::try_from(RAM).unwrap()),
    ] {
        let driver = new();
        driver.agree();
        driver.write(register, value);
        set_up_queue_but(&driver, register);
        driver.status(0xf);
        driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        driver.breaks();
        assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 2);
        assert_eq!(driver.status(0), 0);
    }
    // An index that runs ahead of the ring.
    let driver = ready();
    driver.offer(&[0], 9);
    driver.breaks();
    driver.wait(|driver| driver.interrupts.load(Ordering::SeqCst) == 1);
    let before = driver.interrupts.load(Ordering::Relaxed);
    driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    assert_eq!(driver.interrupts.load(Ordering::Relaxed), before, "it says so once");
}

/// Sets the queue up, save what `register` has set.
fn set_up_queue_but(driver: &Driver, register: u32) {
    driver.write(VIRTIO_MMIO_QUEUE_NUM, 8);
    for (other, value) in [
        (VIRTIO_MMIO_QUEUE_DESC_LOW, DESC),
        (VIRTIO_MMIO_QUEUE_AVAIL_LOW, AVAIL),
        (VIRTIO_MMIO_QUEUE_USED_LOW, USED),
    ] {
        if other != register {
            driver.write(other, value);
        }
    }
    driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
}

#[test]
fn chains_that_no_driver_may_make_stop_the_device_until_a_reset() {
    // A loop, a buffer outside memory, one of 4 GiB, a table within a table, one that is no
    // multiple of a descriptor, a chain that leaves the table, a head outside it, one to read
    // after one to write.
    let table = u64::from(DESC);
    let chains: [&[(u64, u32, u16, u16)]; 7] = [
        &[(BUFFER, 1, WRITE | NEXT, 0)],
        &[(u64::MAX - 8, 64, WRITE, 0)],
        &[(BUFFER, u32::MAX, WRITE, 0)],
        &[(table, 16, INDIRECT, 0)],
        &[(table, 17, INDIRECT, 0)],
        &[(BUFFER, 1, WRITE | NEXT, 8)],
        &[(BUFFER, 1, WRITE | NEXT, 1), (BUFFER, 1, 0, 0)],
    ];
    let driver = new();
    for chain in chains {
        driver.agree();
        driver.set_up_queue(0, 8);
        driver.status(0xf);
        for (index, (address, length, flags, next)) in (0..).zip(chain) {
            driver.descriptor(index, *address, *length, *flags, *next);
        }
        driver.offer(&[0], 1);
        driver.breaks();
        assert_eq!(driver.used_index(0), 0, "{chain:?}");
        assert_eq!(driver.status(0), 0);
    }
    // And a reset mends it.
    driver.ram.write(u64::from(AVAIL) + 2, &[0, 0]).unwrap();
    driver.agree();
    driver.set_up_queue(0, 8);
    driver.status(0xf);
    driver.descriptor(0, BUFFER, 8, WRITE, 0);
    driver.offer(&[0], 1);
    assert_eq!(driver.used(0, 1), 8);
}

#[test]
fn a_chain_has_no_more_descriptors_than_its_queue() {
    for (count, is_taken) in [(8_u16, true), (9, false)] {
        let driver = ready();
        for index in 0..count {
            let flags = if index + 1 < count { WRITE | NEXT } else { WRITE };
            driver.descriptor(32 + u64::from(index), BUFFER, 1, flags, index + 1);
        }
        driver.descriptor(0, u64::from(DESC) + 32 * 16, 16 * u32::from(count), INDIRECT, 0);
        driver.offer(&[0], 1);
        match is_taken {
            true => assert_eq!(driver.used(0, 1), 8),
            false => driver.breaks(),
        }
    }
}

/// Notifications that KVM would take: where they are written, and what.
#[derive(Default)]
struct Attached(Mutex<Vec<(u64, u32)>>);

impl Attached {
    fn list(&self) -> Vec<(u64, u32)> {
        self.0.lock().unwrap().clone()
    }
}

impl Doorbells for Attached {
    fn attach(&self, address: u64, value: u32, _: &Event) -> io::Result<()> {
        self.0.lock().unwrap().push((address, value));
        Ok(())
    }

    fn detach(&self, address: u64, value: u32, _: &Event) {
        self.0.lock().unwrap().retain(|attached| *attached != (address, value));
    }
}

/// A device of two parts, of which the second cannot be started if `fails`.
struct Halves {
    fails: bool,
}

impl Device for Halves {
    fn name(&self) -> &'static str {
        "halves"
    }

    fn id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queues(&self) -> Vec<u16> {
        vec![8, 8]
    }

    fn start(&self, _: u64, interrupt: &Arc<Interrupt>) -> io::Result<Vec<Work>> {
        let mut works = rng().start(0, interrupt)?;
        if self.fails {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        works.extend(
            rng().start(0, interrupt)?.into_iter().map(|work| Work { queues: vec![1], ..work }),
        );
        Ok(works)
    }
}

#[test]
fn what_is_attached_at_a_start_is_detached_by_a_reset() {
    for fails in [false, true] {
        let attached = Arc::new(Attached::default());
        let driver = Driver::with(Arc::new(Halves { fails }), attached.clone());
        for _ in 0..2 {
            driver.agree();
            (0..2).for_each(|queue| driver.set_up_queue(queue, 8));
            driver.status(0xf);
            assert_eq!(driver.is_broken(), fails);
            let expected = [(0x50, 0), (0x50, 1), (0x64, 1)];
            assert_eq!(attached.list(), if fails { &[][..] } else { &expected });
            assert_eq!(driver.status(0), 0);
            assert_eq!(attached.list(), []);
        }
    }
}

#[test]
fn a_queue_that_is_taken_away_in_use_stops_the_device() {
    let driver = ready();
    driver.write(VIRTIO_MMIO_QUEUE_READY, 0);
    assert!(driver.is_broken());
    assert_eq!(driver.status(0), 0);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
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
        let driver = new();
        driver.agree();
        for at in [DESC, AVAIL, USED] {
            driver.ram.write(at.into(), &memory).unwrap();
        }
        for (offset, width, value) in writes {
            let bytes = u64::from(value).to_le_bytes();
            driver.transport.write(offset & !3, &bytes[..width]);
            driver.transport.read(offset, &mut [0; 8][..width]);
        }
        driver.set_up_queue(0, 8);
        driver.status(0xf);
        driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    }
}
