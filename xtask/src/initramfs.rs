//! An initramfs: a tree of files, in memory or the host's, as a newc archive.
//!
//! The same tree gives the same bytes: entries are sorted, numbered in order and dated to the
//! epoch.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use cpio::newc::{Builder, ModeFileType, trailer};
use guest::tree_hash::TreeHash;

/// Permission bits, without those that say what kind of file it is.
const PERMISSIONS: u32 = 0o7777;

/// A tree of files.
#[derive(Debug)]
pub struct Archive {
    /// By path without the leading slash: a directory sorts before what is in it.
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
enum Entry {
    Directory,
    File { mode: u32, content: Content },
    Symlink(Vec<u8>),
    Console,
}

#[derive(Debug)]
enum Content {
    Bytes(Vec<u8>),
    Host(PathBuf),
}

impl Archive {
    /// A tree with what every init needs: a console to begin with, and places to mount on.
    pub fn new() -> Self {
        let mut entries: BTreeMap<_, _> = ["dev", "proc", "run", "sys", "tmp"]
            .map(|name| (name.to_owned(), Entry::Directory))
            .into();
        entries.insert("dev/console".into(), Entry::Console);
        Self { entries }
    }

    /// The tested guest's tree: its init, and a file that no two loaders get right by chance.
    pub fn for_guest(init: &Path) -> Result<Self> {
        let mut archive = Self::new();
        archive.host_file(Path::new("/init"), init)?;
        archive.bytes(Path::new("/noise"), 0o444, noise(5003))?;
        Ok(archive)
    }

    /// Adds a file with this content.
    pub fn bytes(&mut self, path: &Path, mode: u32, content: Vec<u8>) -> Result<()> {
        self.insert(path, Entry::File { mode, content: Content::Bytes(content) })
    }

    /// Adds a host's file, its permissions kept, or a directory with all that is in it.
    ///
    /// A symbolic link given here is followed; those inside a directory are kept as links.
    pub fn host_file(&mut self, path: &Path, host: &Path) -> Result<()> {
        let reading = || format!("reading {}", host.display());
        let metadata = fs::metadata(host).with_context(reading)?;
        if metadata.is_file() {
            let mode = metadata.permissions().mode() & PERMISSIONS;
            let content = Content::Host(host.to_owned());
            return self.insert(path, Entry::File { mode, content });
        }
        if !metadata.is_dir() {
            bail!("{} is neither a file nor a directory", host.display());
        }
        self.insert(path, Entry::Directory)?;
        for entry in fs::read_dir(host).with_context(reading)? {
            let entry = entry.with_context(reading)?;
            let inner = path.join(entry.file_name());
            if entry.file_type().with_context(reading)?.is_symlink() {
                let goal = fs::read_link(entry.path()).with_context(reading)?;
                self.insert(&inner, Entry::Symlink(goal.as_os_str().as_bytes().to_vec()))?;
            } else {
                self.host_file(&inner, &entry.path())?;
            }
        }
        Ok(())
    }

    /// Adds an empty directory.
    pub fn directory(&mut self, path: &Path) -> Result<()> {
        self.insert(path, Entry::Directory)
    }

    /// Whether there is a file at this path.
    pub fn has_file(&self, path: &Path) -> bool {
        archive_name(path)
            .is_ok_and(|name| matches!(self.entries.get(&name), Some(Entry::File { .. })))
    }

    /// The host's files that are in the tree.
    pub fn host_files(&self) -> Vec<PathBuf> {
        let host = |entry: &Entry| match entry {
            Entry::File { content: Content::Host(path), .. } => Some(path.clone()),
            _ => None,
        };
        self.entries.values().filter_map(host).collect()
    }

    /// Writes the archive, one byte longer than its format asks for: no loader may count on
    /// whole pages, or on whole words.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut out = BufWriter::new(File::create(path)?);
        for (number, (name, entry)) in (1..).zip(&self.entries) {
            out = entry.write(Builder::new(name).ino(number), out)?;
        }
        let mut out = trailer(out)?;
        out.write_all(&[0])?;
        out.flush()
    }

    /// The hash that the guest's init prints of the same tree when it has come through whole.
    pub fn tree_hash(&self) -> Result<String> {
        let mut hash = TreeHash::default();
        for (name, entry) in &self.entries {
            let path = format!("/{name}");
            match entry {
                Entry::File { content: Content::Bytes(bytes), .. } => {
                    hash.add(path.as_bytes(), bytes.as_slice())?;
                }
                Entry::File { content: Content::Host(host), .. } => {
                    hash.add(path.as_bytes(), File::open(host)?)?;
                }
                Entry::Directory | Entry::Symlink(_) | Entry::Console => {}
            }
        }
        Ok(hash.finish())
    }

    fn insert(&mut self, path: &Path, entry: Entry) -> Result<()> {
        let name = archive_name(path)?;
        for (end, _) in name.match_indices('/') {
            let parent = name.get(..end).unwrap_or_default();
            match self.entries.entry(parent.to_owned()).or_insert(Entry::Directory) {
                Entry::Directory => {}
                _ => bail!("{} lies in /{parent}, which is a file", path.display()),
            }
        }
        if !name.is_empty()
            && self.entries.insert(name, entry).is_some_and(|old| !old.is_directory())
        {
            bail!("{} is carried twice", path.display());
        }
        Ok(())
    }
}

impl Entry {
    fn is_directory(&self) -> bool {
        matches!(self, Self::Directory)
    }

    fn write<W: Write>(&self, builder: Builder, out: W) -> io::Result<W> {
        match self {
            Self::Directory => builder
                .mode(0o755)
                .set_mode_file_type(ModeFileType::Directory)
                .nlink(2)
                .write(out, 0)
                .finish(),
            // Character device 5:1 is what the kernel opens for an init's first three files.
            Self::Console => builder
                .mode(0o600)
                .set_mode_file_type(ModeFileType::Char)
                .rdev_major(5)
                .rdev_minor(1)
                .write(out, 0)
                .finish(),
            Self::Symlink(goal) => {
                let builder = builder.mode(0o777).set_mode_file_type(ModeFileType::Symlink);
                write_content(builder, out, goal.as_slice(), goal.len() as u64)
            }
            Self::File { mode, content } => {
                let builder = builder.mode(*mode).set_mode_file_type(ModeFileType::Regular);
                match content {
                    Content::Bytes(bytes) => {
                        write_content(builder, out, bytes.as_slice(), bytes.len() as u64)
                    }
                    Content::Host(path) => {
                        let file = File::open(path)?;
                        let size = file.metadata()?.len();
                        write_content(builder, out, file, size)
                    }
                }
            }
        }
    }
}

fn write_content<W: Write>(
    builder: Builder,
    out: W,
    mut content: impl io::Read,
    size: u64,
) -> io::Result<W> {
    let size = u32::try_from(size).map_err(|_| io::Error::other("a file of 4 GiB or more"))?;
    let mut writer = builder.write(out, size);
    let copied = io::copy(&mut content, &mut writer)?;
    // The header is written with the first byte; the next file's would follow too early.
    if copied != u64::from(size) {
        return Err(io::Error::other("a file changed while it was packed"));
    }
    writer.finish()
}

/// The path as it stands in an archive: absolute, plain, in UTF-8 (the cpio crate's names are).
fn archive_name(path: &Path) -> Result<String> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => {
                names.push(name.to_str().with_context(|| format!("{path:?} is not UTF-8"))?);
            }
            Component::ParentDir | Component::Prefix(_) => {
                bail!("{}: a carried path has no `..`", path.display());
            }
        }
    }
    Ok(names.join("/"))
}

/// Bytes without any order, the same on every call (xorshift64, George Marsaglia 2003).
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x6d69_6372_6f76_6d21_u64;
    let step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(step).take(length).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Archive {
        let mut archive = Archive::new();
        archive.bytes(Path::new("/lab/command"), 0o644, b"abc".to_vec()).unwrap();
        archive.bytes(Path::new("/a.b"), 0o755, vec![]).unwrap();
        archive.bytes(Path::new("/a/b"), 0o600, vec![0; 5]).unwrap();
        archive
    }

    fn written(archive: &Archive, name: &str) -> Vec<u8> {
        let path = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
        archive.write(&path).unwrap();
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(path).unwrap();
        bytes
    }

    #[test]
    fn an_archive_reads_back_sorted_with_directories_first() {
        let bytes = written(&sample(), "reads-back");
        let mut rest = bytes.as_slice();
        let mut names = Vec::new();
        loop {
            let mut reader = cpio::newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            names.push((reader.entry().name().to_owned(), reader.entry().mode()));
            let mut content = Vec::new();
            io::Read::read_to_end(&mut reader, &mut content).unwrap();
            if names.last().unwrap().0 == "lab/command" {
                assert_eq!(content, b"abc");
            }
            rest = reader.finish().unwrap();
        }
        let expected = [
            ("a", 0o40755),
            ("a.b", 0o100_755),
            ("a/b", 0o100_600),
            ("dev", 0o40755),
            ("dev/console", 0o20600),
            ("lab", 0o40755),
            ("lab/command", 0o100_644),
            ("proc", 0o40755),
            ("run", 0o40755),
            ("sys", 0o40755),
            ("tmp", 0o40755),
        ];
        assert_eq!(names, expected.map(|(name, mode)| (name.to_owned(), mode)));
    }

    #[test]
    fn the_same_tree_gives_the_same_bytes_of_an_odd_length() {
        let bytes = written(&sample(), "same-tree");
        assert_eq!(bytes, written(&sample(), "same-tree"));
        assert_eq!(bytes.len() % 2, 1);
    }

    #[test]
    fn the_hash_is_that_of_the_unpacked_files() {
        let mut expected = TreeHash::default();
        expected.add(b"/a.b", [].as_slice()).unwrap();
        expected.add(b"/a/b", [0; 5].as_slice()).unwrap();
        expected.add(b"/lab/command", b"abc".as_slice()).unwrap();
        assert_eq!(sample().tree_hash().unwrap(), expected.finish());
    }

    #[test]
    fn refuses_paths_that_cannot_be() {
        for path in ["/a.b/c", "/a.b", "/x/../y"] {
            assert!(sample().bytes(Path::new(path), 0o644, vec![]).is_err(), "{path}");
        }
    }
}
