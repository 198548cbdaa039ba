//! With a pair of sockets for a tap: one message is one frame.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::*;
use crate::config::TapSource;
use crate::virtio::driver::{BUFFER, Driver, NEXT, USED, WRITE};

/// The device without a tap's own settings.
struct Wire {
    tap: Arc<Tap>,
    merges: bool,
}

impl Device for Wire {
    fn name(&self) -> &'static str {
        "virtio-net"
    }

    fn id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn queues(&self) -> Vec<u16> {
        vec![8, 8]
    }

    fn start(&self, _: u64, _: &Arc<Interrupt>) -> io::Result<Vec<Work>> {
        Ok(vec![work(self.tap.clone(), self.merges)])
    }
}

fn driver(merges: bool) -> (Driver, UnixDatagram) {
    driver_with(merges, 0)
}

fn driver_with(merges: bool, features: u32) -> (Driver, UnixDatagram) {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let tap = Arc::new(Tap::of(File::from(OwnedFd::from(ours))));
    (Driver::ready(Arc::new(Wire { tap, merges }), features), theirs)
}

fn frame(length: usize) -> Vec<u8> {
    (0..length).map(|n| n.to_le_bytes()[0]).collect()
}

#[test]
fn what_the_driver_takes_over_needs_checksums() {
    assert_eq!(offloads(1 << VIRTIO_NET_F_GUEST_TSO4), Offloads(0));
    // Linux refuses marks of congestion without segments.
    assert_eq!(offloads(1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_ECN), Offloads(1));
    assert_eq!(offloads(1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO6), Offloads(5));
    assert_eq!(offloads(u64::MAX), Offloads(31));
}

#[test]
fn frames_are_sent_whole_however_they_lie() {
    let (driver, host) = driver(true);
    let sent = frame(HEADER + 1000);
    driver.ram.write(BUFFER, &sent).unwrap();
    driver.descriptor_of(1, 0, BUFFER, 5, NEXT, 1);
    driver.descriptor_of(1, 1, BUFFER + 5, 1007, 0, 0);
    driver.offer_next(1, 0);
    driver.used(1, 1);
    let mut got = vec![0; 2000];
    let count = host.recv(&mut got).unwrap();
    assert_eq!(got[..count], sent);
}

#[test]
fn a_frame_is_spread_over_chains_and_seen_at_once() {
    let (driver, host) = driver(true);
    for chain in 0..6 {
        driver.descriptor_of(0, chain, BUFFER + 0x1000 * chain, 400, WRITE, 0);
        driver.offer_next(0, u16::try_from(chain).unwrap());
    }
    let sent = frame(1000);
    host.send(&sent).unwrap();
    driver.used(0, 3);
    let bytes = |at: u64, length: usize| {
        let mut bytes = vec![0; length];
        driver.ram.read(at, &mut bytes).unwrap();
        bytes
    };
    assert_eq!(bytes(BUFFER, 10), sent[..10]);
    assert_eq!(bytes(BUFFER + 10, 2), [3, 0], "it says how many");
    assert_eq!(bytes(BUFFER + 12, 388), sent[12..400]);
    assert_eq!(bytes(BUFFER + 0x1000, 400), sent[400..800]);
    assert_eq!(bytes(BUFFER + 0x2000, 200), sent[800..]);
    // The other chains wait for the next frame, of which each takes one.
    for count in 4..7 {
        host.send(&frame(60)).unwrap();
        assert_eq!(driver.used(0, count), 60);
    }
    // Now there is no room; the frame waits for some.
    host.send(&frame(99)).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(driver.used_index(0), 6);
    driver.offer_next(0, 5);
    assert_eq!(driver.used(0, 7), 99);
}

#[test]
fn a_frame_waits_whole_for_the_chains_that_it_takes() {
    let (driver, host) = driver(true);
    for chain in 0..4 {
        driver.descriptor_of(0, chain, BUFFER + 0x1000 * chain, 400, WRITE, 0);
    }
    driver.offer_next(0, 0);
    driver.offer_next(0, 1);
    let sent = frame(1300);
    host.send(&sent).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(driver.used_index(0), 0, "there are too few");
    driver.offer_next(0, 2);
    driver.offer_next(0, 3);
    driver.used(0, 4);
    let mut got = Vec::new();
    for (chain, length) in [400, 400, 400, 100].into_iter().enumerate() {
        let mut bytes = vec![0; length];
        driver.ram.read(BUFFER + 0x1000 * chain as u64, &mut bytes).unwrap();
        got.extend(bytes);
    }
    assert_eq!(got[10..12], [4, 0]);
    assert_eq!(got[12..], sent[12..]);
}

#[test]
fn a_frame_that_waits_asks_for_more_chains_than_there_are() {
    // With VIRTIO_F_EVENT_IDX the device writes down, after the used ring, which chain is to wake
    // it. One that is there already would keep it busy.
    let (driver, host) = driver_with(true, 1 << VIRTIO_RING_F_EVENT_IDX);
    for chain in 0..3 {
        driver.descriptor_of(0, chain, BUFFER + 0x1000 * chain, 400, WRITE, 0);
    }
    driver.offer_next(0, 0);
    driver.offer_next(0, 1);
    host.send(&frame(1000)).unwrap();
    driver.wait(|driver| {
        let mut event = [0; 2];
        driver.ram.read(u64::from(USED) + 4 + 8 * 8, &mut event).unwrap();
        u16::from_le_bytes(event) == 2
    });
    driver.offer_next(0, 2);
    driver.used(0, 3);
}

#[test]
fn without_merging_each_frame_has_its_chain() {
    let (driver, host) = driver(false);
    driver.descriptor_of(0, 0, BUFFER, 12, WRITE | NEXT, 1);
    driver.descriptor_of(0, 1, BUFFER + 0x1000, 1500, WRITE, 0);
    driver.offer_next(0, 0);
    host.send(&frame(1000)).unwrap();
    assert_eq!(driver.used(0, 1), 1000);
}

#[test]
fn a_buffer_without_room_for_a_header_breaks_the_queue() {
    let (driver, host) = driver(true);
    driver.descriptor_of(0, 0, BUFFER, 11, WRITE, 0);
    driver.offer_next(0, 0);
    host.send(&frame(60)).unwrap();
    driver.breaks();
}

#[test]
fn a_descriptor_of_our_own_is_nobody_s_tap() {
    let own = File::open("/dev/null").unwrap();
    let source = TapSource::Descriptor(own.as_raw_fd());
    assert!(Tap::open(&source).is_err());
    // It is still open, and ours.
    own.metadata().unwrap();
}
