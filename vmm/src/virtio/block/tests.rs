//! Requests as drivers make them, and their images afterwards.

use std::io::{Read, Seek, SeekFrom, Write};

use proptest::prelude::*;
use tempfile::NamedTempFile;

use super::*;
use crate::virtio::driver::{BUFFER, Driver, NEXT, WRITE};

/// Where the header, the data and the status are.
const HEADER: u64 = BUFFER;
const DATA: u64 = BUFFER + 0x1000;
const STATUS: u64 = BUFFER + 0x800;
const FLUSH: u32 = 1 << VIRTIO_BLK_F_FLUSH;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPPORTED: u8 = 2;

fn disk(image: &NamedTempFile) -> Disk {
    Disk { path: image.path().into(), is_raw: true, ..Disk::default() }
}

fn image(size: u64) -> NamedTempFile {
    let mut image = NamedTempFile::new().unwrap();
    image
        .write_all(&(0..size).map(|n| (n / 512 + 1).to_le_bytes()[0]).collect::<Vec<_>>())
        .unwrap();
    image
}

fn driver(disk: &Disk) -> Driver {
    Driver::ready(Arc::new(Block::new(disk).unwrap()), FLUSH)
}

/// Makes a request whose data is `length` bytes, for the device to write if `writes`; its status
/// and the bytes that were written.
fn request(driver: &Driver, kind: u32, sector: u64, length: u32, writes: bool) -> (u8, u32) {
    let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
    driver.ram.write(HEADER, &header).unwrap();
    driver.ram.write(STATUS, &[0xaa]).unwrap();
    let data = if length == 0 { 2 } else { 1 };
    driver.descriptor(0, HEADER, 16, NEXT, data);
    driver.descriptor(1, DATA, length, if writes { NEXT | WRITE } else { NEXT }, 2);
    driver.descriptor(2, STATUS, 1, WRITE, 0);
    let before = driver.used_index(0);
    driver.offer_next(0, 0);
    let written = driver.used(0, before + 1);
    let mut status = [0];
    driver.ram.read(STATUS, &mut status).unwrap();
    (status[0], written)
}

fn data(driver: &Driver, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    driver.ram.read(DATA, &mut bytes).unwrap();
    bytes
}

#[test]
fn sectors_are_read_written_and_flushed() {
    let mut image = image(8 * 512);
    let driver = driver(&disk(&image));
    assert_eq!(driver.config(0), 8_u64.to_le_bytes());
    assert_eq!(request(&driver, 0, 2, 1024, true), (OK, 1025));
    assert_eq!(data(&driver, 1024), [[3; 512], [4; 512]].concat());
    driver.ram.write(DATA, &[0x55; 512]).unwrap();
    assert_eq!(request(&driver, 1, 7, 512, false), (OK, 1));
    assert_eq!(request(&driver, 4, 0, 0, false), (OK, 1));
    let mut bytes = Vec::new();
    image.seek(SeekFrom::Start(0)).unwrap();
    image.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len(), 8 * 512);
    assert_eq!(bytes[7 * 512..], [0x55; 512]);
    assert_eq!(bytes[6 * 512..7 * 512], [7; 512]);
}

#[test]
fn what_a_disk_does_not_have_is_an_error() {
    let image = image(8 * 512);
    let driver = driver(&disk(&image));
    for (kind, sector, length) in [
        (0, 8, 512),
        (0, 7, 1024),
        (0, u64::MAX, 512),
        (0, u64::MAX / 512, 512),
        (0, 0, 511),
        (1, 8, 512),
        (11, 0, 15),
        (13, 0, 32),
    ] {
        assert_eq!(
            request(&driver, kind, sector, length, kind == 0),
            (IOERR, 1),
            "{kind} {sector}"
        );
    }
    assert_eq!(request(&driver, 99, 0, 512, true).0, UNSUPPORTED);
    assert_eq!(request(&driver, 0, 0, 512, true).0, OK, "and it goes on");
}

#[test]
fn what_is_no_request_breaks_the_queue() {
    let image = image(512);
    for (header, status) in [(15, 1), (16, 0)] {
        let driver = driver(&disk(&image));
        driver.descriptor(0, HEADER, header, NEXT, 1);
        driver.descriptor(1, STATUS, status, WRITE, 0);
        driver.offer(&[0], 1);
        driver.breaks();
    }
}

#[test]
fn a_disk_says_who_it_is() {
    let image = image(512);
    let driver = driver(&Disk { serial: "disk-0".into(), ..disk(&image) });
    assert_eq!(request(&driver, 8, 0, 20, true), (OK, 21));
    assert_eq!(data(&driver, 20), *b"disk-0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn a_disk_to_read_keeps_what_it_has() {
    let image = image(2 * 512);
    let driver = driver(&Disk { read_only: true, ..disk(&image) });
    for kind in [1, 11, 13] {
        assert_eq!(request(&driver, kind, 0, 512, false).0, IOERR);
    }
    assert_eq!(request(&driver, 0, 0, 512, true).0, OK);
    assert_eq!(data(&driver, 512), [1; 512]);
}

fn range(driver: &Driver, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
    let range = [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat();
    driver.ram.write(DATA, &range).unwrap();
    request(driver, kind, 0, 16, false).0
}

#[test]
fn sectors_are_discarded_and_made_zeroes() {
    use std::os::unix::fs::MetadataExt as _;
    let image = image(1 << 20);
    let driver = driver(&Disk { discard: true, ..disk(&image) });
    let blocks = || image.as_file().metadata().unwrap().blocks();
    let before = blocks();
    assert_eq!(range(&driver, 11, 0, 1024, 0), OK);
    assert!(blocks() < before, "{} of {before}", blocks());
    assert_eq!(range(&driver, 13, 1500, 2, 0), OK);
    assert_eq!(range(&driver, 13, 1502, 2, 1), OK);
    request(&driver, 0, 1499, 6 * 512, true);
    let expected = [vec![0xdc; 512], vec![0; 2048], vec![0xe1; 512]];
    assert_eq!(data(&driver, 6 * 512), expected.concat());
    for (kind, sector, sectors, flags, status) in [
        (11, 0, 1, 1, UNSUPPORTED),
        (13, 0, 1, 2, UNSUPPORTED),
        (13, 0, 0, 0, IOERR),
        (13, 2047, 2, 0, IOERR),
        (11, u64::MAX, 1, 0, IOERR),
        (11, 0, u32::MAX, 0, IOERR),
    ] {
        assert_eq!(range(&driver, kind, sector, sectors, flags), status, "{sector} {sectors}");
    }
    assert_eq!(image.as_file().metadata().unwrap().len(), 1 << 20);
}

#[test]
fn what_is_discarded_stays_unless_it_may_go() {
    let image = image(1 << 20);
    let driver = driver(&disk(&image));
    assert_eq!(range(&driver, 11, 0, 8, 0), OK);
    request(&driver, 0, 0, 512, true);
    assert_eq!(data(&driver, 512), [1; 512]);
}

#[test]
fn an_image_that_is_cut_short_gives_errors_and_an_odd_one_zeroes() {
    let image = image(3 * 512 + 100);
    let driver = driver(&disk(&image));
    assert_eq!(driver.config(0), 4_u64.to_le_bytes());
    assert_eq!(request(&driver, 0, 2, 1024, true), (OK, 1025));
    assert_eq!(data(&driver, 1024), [vec![3; 512], vec![4; 100], vec![0; 412]].concat());
    image.as_file().set_len(512).unwrap();
    assert_eq!(request(&driver, 0, 1, 512, true).0, IOERR);
    assert_eq!(request(&driver, 0, 0, 512, true).0, OK);
}

#[test]
fn writes_may_wait_for_a_flush_if_the_driver_says_so() {
    let image = image(512);
    let driver = driver(&disk(&image));
    assert_eq!(driver.config(32), [1]);
    assert!(driver.transport.is_driven());
    crate::bus::Device::write(&driver.transport, 0x100 + 32, &[0]);
    assert_eq!(driver.config(32), [0]);
    driver.ram.write(DATA, &[7; 512]).unwrap();
    assert_eq!(request(&driver, 1, 0, 512, false).0, OK);
}

#[test]
fn images_that_look_like_others_and_folders_are_refused() {
    let mut image = NamedTempFile::new().unwrap();
    image.write_all(b"QFI\xfb\0\0\0\x03").unwrap();
    let raw = disk(&image);
    assert!(Block::new(&raw).is_ok());
    let error = Block::new(&Disk { is_raw: false, ..raw }).err().unwrap().to_string();
    assert!(error.contains("qcow2") && error.contains("qemu-img convert"), "{error}");
    let folder = Disk { path: "/".into(), read_only: true, ..Disk::default() };
    assert!(matches!(Block::new(&folder), Err(image::Error::NoImage(_))));
    let missing = Disk { path: "/nope".into(), ..Disk::default() };
    assert!(matches!(Block::new(&missing), Err(image::Error::Open { .. })));
}

#[test]
fn one_image_is_not_two_disks() {
    let image = image(512);
    let first = Block::new(&disk(&image)).unwrap();
    let error = Block::new(&disk(&image)).err().unwrap().to_string();
    assert!(error.contains("another process uses it"), "{error}");
    drop(first);
    let reader = Disk { read_only: true, ..disk(&image) };
    let readers = [Block::new(&reader), Block::new(&reader)];
    assert!(readers.iter().all(Result::is_ok));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// However a request is cut into descriptors, it is the same request.
    #[test]
    fn framing_does_not_matter(
        cuts in prop::collection::vec(1_u32..700, 0..4), sector in 0_u64..5,
    ) {
        let image = image(8 * 512);
        let driver = driver(&disk(&image));
        let header = [&0_u32.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        driver.ram.write(HEADER, &header).unwrap();
        // The header in two, then data and status in as many as there are cuts.
        driver.descriptor(0, HEADER, 5, NEXT, 1);
        driver.descriptor(1, HEADER + 5, 11, NEXT, 2);
        let (mut index, mut at, end) = (2, 0, 1025);
        for cut in cuts.iter().copied().chain([end]) {
            let length = cut.min(end - at);
            let last = at + length == end;
            driver.descriptor(
                index, DATA + u64::from(at), length, if last { WRITE } else { WRITE | NEXT },
                u16::try_from(index + 1).unwrap(),
            );
            (index, at) = (index + 1, at + length);
            if last {
                break;
            }
        }
        driver.offer_next(0, 0);
        prop_assert_eq!(driver.used(0, 1), 1025);
        let first = u8::try_from(sector + 1).unwrap();
        let expected = [vec![first; 512], vec![first + 1; 512], vec![OK]].concat();
        prop_assert_eq!(data(&driver, 1025), expected);
    }
}
