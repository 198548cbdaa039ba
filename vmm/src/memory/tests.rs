//! Guest memory: where it is, and what is refused.

use super::*;
use std::io::Write;

const MIB: u64 = 1 << 20;

fn image(size: u64) -> File {
    let mut file = tempfile::tempfile().unwrap();
    let bytes: Vec<u8> = (0..size).map(|i| (i / 0x1_0000 + 1).to_le_bytes()[0]).collect();
    file.write_all(&bytes).unwrap();
    file
}

#[test]
fn ram_has_a_hole_below_four_gib() {
    assert_eq!(ranges(128 * MIB), [Range::between(0, 128 * MIB)]);
    assert_eq!(ranges(3072 * MIB), [Range::between(0, 3072 * MIB)]);
    let five = ranges(5120 * MIB);
    assert_eq!(five[0], Range::between(0, layout::LOW_RAM_MAX));
    assert_eq!(five[1], Range::new(layout::FOUR_GIB, 2048 * MIB).unwrap());
}

#[test]
fn huge_pages_can_back_it() {
    let ram = GuestRam::new(4 * MIB, None).unwrap();
    let slots = ram.slots();
    assert_eq!(slots.len(), 1);
    assert_eq!(slots[0].host % HUGE_PAGE as u64, 0);
    assert_eq!(slots[0].guest, Range::between(0, 4 * MIB));
}

#[test]
fn a_small_bios_is_one_memory_at_two_places() {
    let ram = GuestRam::new(4 * MIB, Some(0x1_0000)).unwrap();
    ram.load_bios(&image(0x1_0000)).unwrap();
    let slots = ram.slots();
    assert_eq!(slots[1].guest, layout::BIOS_HIGH);
    assert_eq!(slots[1].host, slots[0].host + layout::BIOS_LOW.start());
    let mut byte = [0];
    ram.read(layout::BIOS_LOW.start(), &mut byte).unwrap();
    assert_eq!(byte, [1]);
    ram.read(layout::BIOS_LOW.start() - 1, &mut byte).unwrap();
    assert_eq!(byte, [0]);
}

#[test]
fn of_a_big_bios_the_last_128_kib_are_aliased() {
    let ram = GuestRam::new(4 * MIB, Some(0x4_0000)).unwrap();
    ram.load_bios(&image(0x4_0000)).unwrap();
    let slots = ram.slots();
    assert_eq!(slots[1].guest.len(), 0x4_0000);
    let mut bytes = [0; 0x2_0001];
    ram.read(0xd_ffff, &mut bytes).unwrap();
    assert_eq!((bytes[0], bytes[1], bytes[0x1_0001]), (0, 3, 4));
}

#[test]
fn what_is_no_ram_is_an_error() {
    let ram = GuestRam::new(2 * MIB, None).unwrap();
    for (address, length) in [(2 * MIB, 1), (2 * MIB - 1, 2), (u64::MAX, 1), (0, u64::MAX)] {
        assert!(!ram.contains(address, length));
        assert!(ram.zero(address, length).is_err());
    }
    assert!(ram.write(2 * MIB - 1, &[1, 2]).is_err());
    assert!(ram.load(2 * MIB - 1, &image(16), 0, 16).is_err());
    assert!(ram.load(0, &image(16), 8, 16).is_err(), "the file ends before");
    ram.load(0, &image(16), 8, 8).unwrap();
}
