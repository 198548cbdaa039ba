//! Guest memory: where it is, and what is refused.

use super::*;
use crate::config::{MemorySource, Pages};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

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
    assert_eq!(slots[0].host % mapping::HUGE_PAGE, 0);
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

fn memfd(share: bool) -> Backend {
    let source = MemorySource::Memfd { pages: Pages::Usual, seal: true };
    Backend { source, share, ..Backend::default() }
}

fn file(path: &Path, share: bool) -> Backend {
    Backend { source: MemorySource::File(path.into()), share, ..Backend::default() }
}

fn refused(backend: &Backend, size: u64) -> Error {
    match GuestRam::on(backend, size, None) {
        Err(error) => error,
        Ok(_) => panic!("{backend:?}"),
    }
}

#[test]
fn every_backend_is_ram_from_zero_on() {
    let folder = tempfile::tempdir().unwrap();
    let anonymous = Backend::default();
    for backend in [
        Backend { reserve: true, merge: false, dump: false, ..anonymous.clone() },
        Backend { prealloc: true, ..anonymous.clone() },
        memfd(true),
        memfd(false),
        file(folder.path(), false),
        file(folder.path(), true),
        file(&folder.path().join("shared"), true),
        file(&folder.path().join("private"), false),
    ] {
        let ram = GuestRam::on(&backend, 4 * MIB, Some(0x1_0000)).unwrap();
        let mut bytes = [1; 3];
        ram.read(4 * MIB - 3, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 3], "{backend:?}");
        ram.write(4 * MIB - 3, b"end").unwrap();
        ram.read(4 * MIB - 3, &mut bytes).unwrap();
        assert_eq!(&bytes, b"end", "{backend:?}");
        ram.load_bios(&image(0x1_0000)).unwrap();
        ram.read(layout::BIOS_LOW.start(), &mut bytes).unwrap();
        assert_eq!(bytes, [1; 3], "{backend:?}");
        let slots = ram.slots();
        assert!(slots[0].host.is_multiple_of(mapping::HUGE_PAGE), "{backend:?}");
        assert_eq!(slots[1].host, slots[0].host + layout::BIOS_LOW.start(), "{backend:?}");
        assert_eq!(ram.shared().count(), usize::from(backend.share), "{backend:?}");
    }
}

#[test]
fn one_file_has_both_sides_of_the_hole() {
    let ram = GuestRam::on(&memfd(true), 3080 * MIB, None).unwrap();
    ram.write(MIB, b"low").unwrap();
    ram.write(layout::FOUR_GIB + MIB, b"high").unwrap();
    let shared: Vec<_> = ram.shared().collect();
    assert_eq!(shared.len(), 2);
    for (region, slot, offset, text) in [
        (shared[0], ram.slots()[0], 0, &b"low"[..]),
        (shared[1], ram.slots()[1], layout::LOW_RAM_MAX, b"high"),
    ] {
        assert_eq!((region.guest, region.host, region.offset), (slot.guest, slot.host, offset));
        let mut bytes = vec![0; text.len()];
        region.file.read_exact_at(&mut bytes, region.offset + MIB).unwrap();
        assert_eq!(bytes, text);
    }
    assert_eq!(shared[0].file.metadata().unwrap().len(), 3080 * MIB);
    // Nobody can take the memory away from under the guest.
    assert!(shared[0].file.set_len(0).is_err());
}

#[test]
fn a_shared_file_keeps_what_the_guest_writes_and_a_private_one_what_it_had() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ram");
    {
        let ram = GuestRam::on(&file(&path, true), 64 * MIB, None).unwrap();
        ram.write(5, b"first").unwrap();
    }
    let metadata = path.metadata().unwrap();
    assert_eq!((metadata.len(), metadata.permissions().mode() & 0o777), (64 * MIB, 0o600));
    assert!(metadata.blocks() * 512 < 32 * MIB, "what nobody touched takes no room");
    for share in [false, true] {
        let ram = GuestRam::on(&file(&path, share), 64 * MIB, None).unwrap();
        let mut bytes = [0; 5];
        ram.read(5, &mut bytes).unwrap();
        assert_eq!(&bytes, b"first");
        ram.write(5, b"other").unwrap();
        drop(ram);
        File::open(&path).unwrap().read_exact_at(&mut bytes, 5).unwrap();
        assert_eq!(&bytes, if share { b"other" } else { b"first" });
    }
    // A bigger file is fine, and only its beginning is RAM.
    assert!(GuestRam::on(&file(&path, true), MIB, None).is_ok());
    assert_eq!(path.metadata().unwrap().len(), 64 * MIB);
}

#[test]
fn memory_can_be_filled_in_advance() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ram");
    let backend = Backend { prealloc: true, ..file(&path, true) };
    let _ram = GuestRam::on(&backend, 2 * MIB, None).unwrap();
    assert!(path.metadata().unwrap().blocks() * 512 >= 2 * MIB);
}

#[test]
fn a_file_that_cannot_be_ram_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("small"), "x").unwrap();
    let pipe = at("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    for (path, size, expected) in [
        (at("missing/ram"), MIB, "-m: guest memory in 'PATH'"),
        (
            at("small"),
            MIB,
            "-m: 'PATH' has 1 bytes and guest memory 1048576: give a file of that size, an empty \
             one or a new one",
        ),
        (pipe, MIB, "-m: 'PATH' is neither a regular file nor a folder"),
        ("/dev/null".into(), MIB, "-m: '/dev/null' is neither a regular file nor a folder"),
        (at("big"), 1 << 50, "-m: the file system of 'PATH' has room for "),
    ] {
        let line = refused(&file(&path, true), size).to_string();
        let expected = expected.replace("PATH", path.to_str().unwrap());
        assert!(line.starts_with(&expected), "{line}");
    }
    assert!(!at("big").exists(), "what was made in vain is removed");
}

#[test]
fn huge_pages_are_there_or_the_line_says_how_to_get_them() {
    let huge = |pages| Backend {
        source: MemorySource::Memfd { pages, seal: true },
        share: true,
        reserve: true,
        ..Backend::default()
    };
    for pages in [Pages::Huge, Pages::HugeOf(2 * MIB), Pages::HugeOf(1 << 30)] {
        match GuestRam::on(&huge(pages), 1 << 40, None) {
            Err(Error::HugePages { count, kib, .. }) => assert_eq!(count * kib, 1 << 30),
            Err(Error::NoSuchPages { .. }) => {}
            Err(other) => panic!("{pages:?}: {other}"),
            Ok(_) => panic!("{pages:?}: a TiB of huge pages"),
        }
    }
    for (pages, size) in [(Pages::HugeOf(8192), MIB), (Pages::HugeOf(1 << 63), MIB)] {
        assert!(matches!(refused(&huge(pages), size), Error::NoSuchPages { .. }), "{pages:?}");
    }
    let odd = refused(&huge(Pages::Huge), 2 * MIB + 8192);
    assert!(matches!(odd, Error::PartialPage { .. } | Error::NoSuchPages { .. }), "{odd}");
}

#[test]
fn too_much_is_an_error() {
    for size in [1 << 60, u64::MAX - 8191] {
        let anonymous = refused(&Backend::default(), size);
        assert!(matches!(anonymous, Error::TooMuch { .. }), "{anonymous}");
        let memfd = refused(&memfd(true), size);
        assert!(matches!(memfd, Error::TooMuch { .. } | Error::Memfd { .. }), "{memfd}");
    }
}

#[test]
fn what_is_cleared_reads_as_zero_and_its_neighbours_stay() {
    for backend in [Backend::default(), memfd(true), memfd(false)] {
        let ram = GuestRam::on(&backend, 3074 * MIB, None).unwrap();
        for (start, length) in [
            (0x1fff, 0x3002),
            (0x2000, 0x1000),
            (0x2001, 5),
            (0x2fff, 2),
            (0x2000, 0),
            (layout::FOUR_GIB + 0x1234, 0x5000),
            (layout::LOW_RAM_MAX - 0x2345, 0x2000),
        ] {
            let around = vec![0xa5; 0x8000.min(usize::try_from(length).unwrap() + 2)];
            ram.write(start - 1, &around).unwrap();
            ram.clear(start, length).unwrap();
            let mut found = around.clone();
            ram.read(start - 1, &mut found).unwrap();
            let mut expected = around;
            let end = expected.len() - 1;
            expected[1..end].fill(0);
            assert!(found == expected, "{backend:?}: {start:#x}+{length:#x}");
        }
        assert!(ram.clear(layout::LOW_RAM_MAX - 1, 2).is_err());
        assert!(ram.clear(1, u64::MAX).is_err());
    }
}
