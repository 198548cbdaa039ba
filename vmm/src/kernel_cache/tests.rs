//! Kernels of every packing, files that change, and caches of others.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::time::SystemTime;

use super::*;

/// An ELF file of nothing but a PVH note, and some bytes that pack well.
fn elf(fill: u8) -> Vec<u8> {
    let mut elf = vec![fill; 8192];
    elf[..64].fill(0);
    elf[..5].copy_from_slice(b"\x7fELF\x02");
    for (at, value) in [(0x20, 64), (0x36, 56), (0x38, 1), (64, 4), (72, 128), (96, 20)] {
        elf[at..at + 2].copy_from_slice(&u16::to_le_bytes(value));
    }
    elf[66..72].fill(0);
    elf[74..80].fill(0);
    elf[98..104].fill(0);
    let note = [4_u32, 4, 18].map(u32::to_le_bytes).concat();
    elf[128..140].copy_from_slice(&note);
    elf[140..144].copy_from_slice(b"Xen\0");
    elf
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// As `lz4 -l` does it.
fn lz4(bytes: &[u8]) -> Vec<u8> {
    let block = lz4_flex::block::compress(bytes);
    let length = u32::try_from(block.len()).unwrap().to_le_bytes();
    [&[0x02, 0x21, 0x4c, 0x18][..], &length, &block].concat()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

fn sized(mut packed: Vec<u8>, size: usize) -> Vec<u8> {
    packed.extend(u32::try_from(size).unwrap().to_le_bytes());
    packed
}

/// A bzImage with this payload.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 1024];
    image[0x1f1] = 1;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    image[0x211] = 1;
    image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
    image.extend([0; 16]);
    image.extend(payload);
    image
}

fn line(image: &[u8]) -> String {
    unpack::unpack(image).unwrap_err().to_string()
}

#[test]
fn a_kernel_is_unpacked_from_what_a_build_packs_it_with() {
    let elf = elf(7);
    for payload in [gzip(&elf), sized(lz4(&elf), elf.len()), sized(zstd(&elf), elf.len())] {
        assert!(unpack::unpack(&bzimage(&payload)).unwrap() == elf, "{:x?}", &payload[..4]);
    }
}

#[test]
fn what_cannot_be_unpacked_says_why() {
    let elf = elf(7);
    let good = sized(lz4(&elf), elf.len());
    assert!(line(&bzimage(&sized(lz4(&elf), elf.len() - 1))).contains("another size"));
    assert!(line(&bzimage(&sized(lz4(&elf), elf.len() + 1))).contains("another size"));
    assert!(line(&bzimage(&sized(lz4(&elf), 1 << 30))).contains("another size"));
    assert!(line(&bzimage(&sized(b"BZh9xxxx".to_vec(), 9))).contains("not packed by"));
    assert!(line(&bzimage(&[])).contains("no packed kernel"));
    assert!(line(&[0; 1024]).contains("HdrS"));
    let mut noteless = elf.clone();
    noteless[136] = 17;
    assert!(line(&bzimage(&sized(lz4(&noteless), elf.len()))).contains("CONFIG_PVH"));
    let image = bzimage(&good);
    for length in 0..image.len() {
        assert!(unpack::unpack(&image[..length]).is_err(), "{length}");
    }
    for at in 0..image.len() {
        let mut image = image.clone();
        image[at] ^= 0xff;
        // Whatever comes of it, it comes to an end.
        let _ = unpack::unpack(&image);
    }
}

/// A folder like the cache's, and a kernel beside it that was written `age` seconds ago.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::create_dir(place.cache()).unwrap();
        fs::set_permissions(place.cache(), fs::Permissions::from_mode(0o700)).unwrap();
        place
    }

    fn cache(&self) -> PathBuf {
        self.0.path().join("cache")
    }

    fn write(&self, fill: u8, age: u64) -> PathBuf {
        self.write_at(fill, SystemTime::now() - Duration::from_secs(age))
    }

    fn write_at(&self, fill: u8, time: SystemTime) -> PathBuf {
        let path = self.0.path().join("bzImage");
        fs::write(&path, bzimage(&gzip(&elf(fill)))).unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        path
    }

    fn find(&self, path: &Path) -> Result<PathBuf, Error> {
        find_in(&self.cache(), path, &File::open(path).unwrap()).map(|found| found.path)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.cache()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

#[test]
fn a_kernel_is_unpacked_once_and_again_when_it_changes() {
    let place = Place::new();
    let path = place.write(1, 10);
    let first = place.find(&path).unwrap();
    assert_eq!(fs::read(&first).unwrap(), elf(1));
    let link = place.find(&path).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read(&link).unwrap(), elf(1));
    // Another kernel in the same file: the old one is no use to anybody.
    let second = place.find(&place.write(2, 5)).unwrap();
    assert_eq!(fs::read(second).unwrap(), elf(2));
    assert_eq!(place.names().len(), 2, "{:?}", place.names());
}

#[test]
fn a_file_that_was_just_written_is_not_known_by_its_times() {
    let place = Place::new();
    for fill in [1, 2, 1] {
        let found = place.find(&place.write(fill, 0)).unwrap();
        assert_eq!(fs::read(found).unwrap(), elf(fill));
    }
    assert!(place.names().iter().all(|name| name.ends_with(".elf")), "{:?}", place.names());
}

#[test]
fn a_file_from_the_future_is_known_by_its_times() {
    let place = Place::new();
    let future = SystemTime::now() + Duration::from_secs(3600);
    let path = place.write_at(1, future);
    place.find(&path).unwrap();
    assert!(fs::symlink_metadata(place.find(&path).unwrap()).unwrap().is_symlink());
    // Whoever writes to it, writes now.
    let found = place.find(&place.write(2, 5)).unwrap();
    assert_eq!(fs::read(found).unwrap(), elf(2));
}

/// A file system may keep a name and lose what it is the name of.
#[test]
fn a_kernel_that_is_not_whole_is_unpacked_again() {
    let place = Place::new();
    let path = place.write(1, 10);
    let kernel = place.find(&path).unwrap();
    let whole = elf(1);
    for (lost, what) in [
        (&whole[..0], "all"),
        (&whole[..3], "more than the magic number"),
        (&whole[..whole.len() - 1], "the last byte"),
        (&vec![0; whole.len()][..], "the blocks"),
    ] {
        fs::write(&kernel, lost).unwrap();
        let found = find_in(&place.cache(), &path, &File::open(&path).unwrap()).unwrap();
        assert!(found.is_new(), "{what}");
        assert_eq!(fs::read(found.path()).unwrap(), whole, "{what}");
        drop(found);
        // By its link, it is the same.
        assert_eq!(fs::read(place.find(&path).unwrap()).unwrap(), whole, "{what}");
        assert_eq!(place.names().len(), 2, "{what}: {:?}", place.names());
    }
    // The same without its link.
    fs::write(&kernel, &whole[..9]).unwrap();
    fs::rename(&path, place.0.path().join("moved")).unwrap();
    let path = place.write(1, 9);
    assert_eq!(fs::read(place.find(&path).unwrap()).unwrap(), whole);
}

#[test]
fn a_cache_that_others_can_write_to_is_refused() {
    let place = Place::new();
    fs::set_permissions(place.cache(), fs::Permissions::from_mode(0o770)).unwrap();
    let error = place.find(&place.write(1, 10)).unwrap_err();
    assert!(error.to_string().contains("chmod go-w"), "{error}");
}

#[test]
fn the_kernel_of_the_open_file_is_found_whatever_its_name_leads_to_now() {
    let place = Place::new();
    let path = place.write(1, 10);
    let file = File::open(&path).unwrap();
    fs::rename(&path, place.0.path().join("moved")).unwrap();
    place.write(2, 10);
    let found = find_in(&place.cache(), &path, &file).unwrap();
    assert_eq!(fs::read(&found.path).unwrap(), elf(1));
}

#[test]
fn what_a_killed_process_left_is_removed_some_time() {
    let place = Place::new();
    let partial = |name: &str, age: u64| {
        let file = File::create(place.cache().join(name)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
    };
    partial("old.7.partial", 4000);
    partial("new.8.partial", 5);
    place.find(&place.write(1, 10)).unwrap();
    let names = place.names();
    assert!(names.iter().any(|name| name == "new.8.partial"), "{names:?}");
    assert!(!names.iter().any(|name| name == "old.7.partial"), "{names:?}");
}

#[test]
fn a_kernel_that_cannot_be_kept_leaves_nothing() {
    let place = Place::new();
    let kernel = place.cache().join("in-the-way-1.elf");
    // A folder with something in it gives its name to no file.
    fs::create_dir_all(kernel.join("x")).unwrap();
    assert!(write(&kernel, b"x").is_err());
    assert!(!place.names().iter().any(|name| name.ends_with(".partial")), "{:?}", place.names());
}
