//! A medium of limited room, the power of which can fail.
//!
//! A killed VMM loses nothing that it handed to the kernel, flushed or not. So the disk is a loop
//! device: what is written to it waits in the device's page cache, and is in the file below once
//! it was flushed. That file is what is left when the power fails.
//!
//! Needs root on a Linux whose loop devices are the tests': the nested lab's.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use guest::durable::{self, BLOCK};

use crate::busybox::{host, load_on_host};
use crate::products::busybox;

/// The medium: a file in a file system of its own, under a loop device.
pub struct Medium {
    device: String,
    backing: PathBuf,
    mounted: String,
    /// The last to close a device has the kernel write all of it: that is not the VMM.
    held: Option<File>,
}

impl Medium {
    /// One of `mib` MiB, with room for as many as `room` says, as mount's `size=`.
    pub fn new(folder: &Path, mib: u64, room: &str) -> Self {
        load_on_host(&["drivers/block/loop"]);
        let mounted = folder.join("medium").display().to_string();
        fs::create_dir_all(&mounted).unwrap();
        host(&["mount", "-t", "tmpfs", "-o", &format!("size={room}"), "medium", &mounted]);
        let backing = Path::new(&mounted).join("backing");
        File::create(&backing).unwrap().set_len(mib << 20).unwrap();
        let device = host(&["losetup", "-f"]).trim().to_owned();
        host(&["losetup", &device, &backing.display().to_string()]);
        let held = File::open(&device).unwrap();
        Self { device, backing, mounted, held: Some(held) }
    }

    /// The disk.
    pub fn device(&self) -> &Path {
        Path::new(&self.device)
    }

    /// The file below: what is left of the disk when the power fails now.
    pub fn left(&self) -> &Path {
        &self.backing
    }
}

impl Drop for Medium {
    fn drop(&mut self) {
        self.held = None;
        // A failed test must say why it failed, not that its medium is still in use.
        for arguments in [["losetup", "-d", &self.device], ["umount", "-l", &self.mounted]] {
            let _ = Command::new(busybox()).args(arguments).status();
        }
    }
}

/// The numbers of the blocks that `guest-work durable` said were flushed.
pub fn flushed(output: &str) -> Vec<u64> {
    let number = |line: &str| line.strip_prefix("flushed ")?.strip_suffix('.')?.parse().ok();
    // A line that was cut off has no end.
    output.split_inclusive('\n').filter_map(|line| number(line.trim_end())).collect()
}

/// Which of these blocks are not on `image` as they were written.
pub fn lost(image: &Path, numbers: &[u64]) -> Vec<u64> {
    let image = File::open(image).unwrap();
    let blocks = image.metadata().unwrap().len() / BLOCK as u64;
    let is_lost = |number: &&u64| {
        let mut found = [0; BLOCK];
        let offset = durable::place(**number, blocks) * BLOCK as u64;
        image.read_exact_at(&mut found, offset).unwrap();
        found != durable::contents(**number)
    };
    numbers.iter().filter(is_lost).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_lines_name_flushed_blocks() {
        let output = "flushed 0.\r\n[ 1.2] noise.\r\nflushed 12.\r\nflushed x.\nflushed 1";
        assert_eq!(flushed(output), [0, 12]);
    }

    #[test]
    fn a_block_that_is_elsewhere_or_another_is_lost() {
        let named = tempfile::NamedTempFile::new().unwrap();
        let (image, path) = (named.as_file(), named.path());
        image.set_len(64 << 12).unwrap();
        for number in [0, 1, 3] {
            let offset = durable::place(number, 64) << 12;
            image.write_all_at(&durable::contents(number), offset).unwrap();
        }
        assert_eq!(lost(path, &[0, 1, 2, 3]), [2]);
        image.write_all_at(&durable::contents(1), durable::place(3, 64) << 12).unwrap();
        assert_eq!(lost(path, &[0, 1, 3]), [3]);
    }
}
