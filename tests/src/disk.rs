//! A root disk for Linux, and initramfs archives made of the guest's.

use std::fs;
use std::hash::Hasher;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use guest::tree_hash::TreeHash;

use crate::products::{self, product};

/// What a virtio disk on PCI needs of the distribution's kernel, each after what it needs itself.
pub const PCI_DISK: [&str; 6] = [
    "virtio/virtio_ring",
    "virtio/virtio",
    "virtio/virtio_pci_legacy_dev",
    "virtio/virtio_pci_modern_dev",
    "virtio/virtio_pci",
    "block/virtio_blk",
];
/// What the entropy device needs of it.
pub const ENTROPY: [&str; 4] =
    ["virtio/virtio_ring", "virtio/virtio", "virtio/virtio_mmio", "char/hw_random/virtio-rng"];
/// What the power button needs of it.
pub const POWER_BUTTON: [&str; 2] = ["acpi/button", "input/evdev"];

/// Makes an ext4 image in `folder` with the guest's init on it.
pub fn root_disk(folder: &Path) -> PathBuf {
    let tree = folder.join("tree");
    fs::create_dir(&tree).unwrap();
    fs::copy(product("guest-init"), tree.join("init")).unwrap();
    let image = folder.join("root.ext4");
    let mut command = Command::new("mke2fs");
    command.stdout(Stdio::null());
    command.args(["-q", "-t", "ext4", "-d"]).arg(&tree).arg(&image).arg("8M");
    let status = command.status().unwrap_or_else(|e| panic!("mke2fs (package e2fsprogs): {e}"));
    assert!(status.success(), "mke2fs: {status}");
    image
}

/// Makes an initramfs in `folder`: the guest's, and these modules of the kernel's drivers.
pub fn initramfs_with_modules(folder: &Path, modules: &[&str]) -> PathBuf {
    let mut archive = fs::read(product("initramfs.cpio")).unwrap();
    add(&mut archive, "modules", 0o40755, b"");
    for (order, module) in modules.iter().enumerate() {
        let content = fs::read(products::module(&format!("drivers/{module}"))).unwrap();
        add(&mut archive, &format!("modules/{order}.ko"), 0o100_644, &content);
    }
    add(&mut archive, "TRAILER!!!", 0, b"");
    let path = folder.join("initramfs.cpio");
    fs::write(&path, archive).unwrap();
    path
}

/// An initrd and what guests make of it.
pub struct Initrd {
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub size: usize,
    /// The hash of all its bytes, which the payload prints.
    pub hash: String,
    /// The hash of the files within, which Linux's init prints.
    pub tree_hash: String,
}

/// The guest's initramfs: an odd number of bytes.
pub fn initramfs() -> Initrd {
    let path = product("initramfs.cpio");
    let bytes = fs::read(&path).unwrap();
    let tree_hash = fs::read_to_string(product("initramfs.hash")).unwrap().trim().to_owned();
    Initrd { path, size: bytes.len(), hash: hash(&bytes), tree_hash }
}

/// Makes an initramfs of `size` bytes, a multiple of 4, in `folder`: the guest's, and a file with
/// the rest.
pub fn large_initramfs(folder: &Path, size: usize) -> Initrd {
    const NAME: &str = "the-rest";
    const TRAILER: &str = "TRAILER!!!";
    let small = initramfs();
    let mut archive = fs::read(&small.path).unwrap();
    let header = |name: &str| (HEADER + name.len() + 1).next_multiple_of(4);
    let around = archive.len().next_multiple_of(4) + header(NAME) + header(TRAILER);
    // No two words are the same, so none can stand for another.
    let rest: Vec<u8> = (0..(size - around) as u64 / 4).flat_map(scramble).collect();
    add(&mut archive, NAME, 0o100_644, &rest);
    add(&mut archive, TRAILER, 0, b"");
    archive.resize(archive.len().next_multiple_of(4), 0);
    assert_eq!(archive.len(), size);
    // It sorts after the guest's own files.
    let mut tree_hash = TreeHash::resume(&small.tree_hash).unwrap();
    tree_hash.add(format!("/{NAME}").as_bytes(), rest.as_slice()).unwrap();
    let path = folder.join(format!("initramfs-{size}.cpio"));
    fs::write(&path, &archive).unwrap();
    Initrd { path, size, hash: hash(&archive), tree_hash: tree_hash.finish() }
}

/// Four bytes that no other number below 2^32 gives.
fn scramble(number: u64) -> [u8; 4] {
    let [a, b, c, d, ..] = number.wrapping_mul(0x9e37_79b1).to_le_bytes();
    [a, b, c, d]
}

/// The hash of an initrd's bytes that the payload prints.
pub fn hash(bytes: &[u8]) -> String {
    let mut hasher = fnv::FnvHasher::default();
    hasher.write(bytes);
    format!("{:016x}", hasher.finish())
}

/// Bytes of an entry's header, before its name.
const HEADER: usize = 110;

/// Adds an entry in the newc format (Linux, Documentation/driver-api/early-userspace).
pub(crate) fn add(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    let pad = |archive: &mut Vec<u8>| archive.resize(archive.len().next_multiple_of(4), 0);
    pad(archive);
    let size = u32::try_from(content.len()).unwrap();
    let name_size = u32::try_from(name.len() + 1).unwrap();
    // Number, mode, owner, group, links, time, size, four device numbers, name's size, checksum.
    let fields = [0, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
    archive.extend_from_slice(b"070701");
    fields.iter().for_each(|field| archive.extend(format!("{field:08x}").bytes()));
    archive.extend(name.bytes().chain([0]));
    pad(archive);
    archive.extend_from_slice(content);
}
