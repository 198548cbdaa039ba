//! One number over all regular files of a tree, for both ends of an initramfs.
//!
//! The packer computes it from what it packs, the guest from what it finds unpacked: a byte lost
//! or changed between the two shows. It guards against accidents, not against attackers.

use std::fs::{self, File};
use std::hash::Hasher;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use fnv::FnvHasher;

/// FNV-1a, 64 bits, over each file's absolute path, a NUL and its content.
///
/// The caller adds the files sorted by the bytes of their paths.
#[derive(Default)]
pub struct TreeHash(FnvHasher);

impl TreeHash {
    /// Goes on from a finished hash, for files that sort after all of its own; `None` when it is
    /// none.
    pub fn resume(finished: &str) -> Option<Self> {
        // FNV's result is its state.
        Some(Self(FnvHasher::with_key(u64::from_str_radix(finished, 16).ok()?)))
    }

    /// Adds the file that stands at `path` in the guest, `/`-rooted.
    pub fn add(&mut self, path: &[u8], mut content: impl Read) -> io::Result<()> {
        self.0.write(path);
        self.0.write(&[0]);
        let mut chunk = [0; 16 * 1024];
        loop {
            match content.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(length) => self.0.write(chunk.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The hash as 16 hexadecimal digits.
    pub fn finish(&self) -> String {
        format!("{:016x}", self.0.finish())
    }
}

/// Hashes the regular files below `root`, leaving out what other file systems hold.
///
/// Paths count as seen from `root`, so the tree may stand anywhere.
pub fn hash_tree(root: &Path) -> io::Result<String> {
    let mut files = Vec::new();
    let device = fs::metadata(root)?.dev();
    list_files(root, device, &mut files)?;
    let mut sorted: Vec<_> = files
        .iter()
        .filter_map(|path| Some((Path::new("/").join(path.strip_prefix(root).ok()?), path)))
        .collect();
    sorted
        .sort_unstable_by(|(a, _), (b, _)| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    let mut hash = TreeHash::default();
    for (name, path) in sorted {
        hash.add(name.as_os_str().as_bytes(), File::open(path)?)?;
    }
    Ok(hash.finish())
}

fn list_files(directory: &Path, device: u64, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        // Not `DirEntry::metadata`: that of a mount point is the one beneath the mount.
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.dev() != device {
            continue;
        }
        if metadata.is_dir() {
            list_files(&path, device, files)?;
        } else if metadata.is_file() {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(files: &[(&str, &[u8])]) -> String {
        let mut hash = TreeHash::default();
        for (path, content) in files {
            hash.add(path.as_bytes(), *content).unwrap();
        }
        hash.finish()
    }

    #[test]
    fn no_file_gives_the_offset_basis() {
        assert_eq!(hash(&[]), "cbf29ce484222325");
    }

    #[test]
    fn path_and_content_both_count() {
        let one = hash(&[("/init", b"abc")]);
        assert_ne!(one, hash(&[("/init", b"abd")]));
        assert_ne!(one, hash(&[("/inid", b"abc")]));
        assert_ne!(one, hash(&[("/init", b"abc"), ("/x", b"")]));
    }

    #[test]
    fn a_finished_hash_goes_on_with_later_files() {
        let mut resumed = TreeHash::resume(&hash(&[("/a", b"1")])).unwrap();
        resumed.add(b"/b", b"2".as_slice()).unwrap();
        assert_eq!(resumed.finish(), hash(&[("/a", b"1"), ("/b", b"2")]));
        assert!(TreeHash::resume("no hash").is_none());
    }

    #[test]
    fn a_tree_hashes_as_its_sorted_files() {
        let root = std::env::temp_dir().join(format!("tree-hash-{}", std::process::id()));
        fs::create_dir_all(root.join("a")).unwrap();
        // "/a.b" sorts before "/a/b" by bytes, though "a" is the shorter component.
        fs::write(root.join("a/b"), [1, 2, 3]).unwrap();
        fs::write(root.join("a.b"), []).unwrap();
        std::os::unix::fs::symlink("a.b", root.join("link")).unwrap();
        let found = hash_tree(&root).unwrap();
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(found, hash(&[("/a.b", b""), ("/a/b", &[1, 2, 3])]));
    }
}
