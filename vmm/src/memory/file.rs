//! The file behind guest RAM: made or found, checked, and big enough.
//!
//! Touching a page that a file cannot give kills the process, so what can be known before is
//! checked before: the file's size, and the room in its file system.

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{MemfdFlags, OFlags, SealFlags, fcntl_add_seals, fstatfs, memfd_create};
use rustix::io::Errno;

use super::Error;
use crate::config::{Backend, MemorySource, Pages};

/// `f_type` of hugetlbfs (Linux, include/uapi/linux/magic.h).
const HUGETLBFS: i64 = 0x9584_58f6;
/// Where the flags of memfd_create(2) have the logarithm of a huge page's size.
const HUGE_SHIFT: u32 = 26;

/// An open file for guest RAM.
#[derive(Debug)]
pub(super) struct Backing {
    pub(super) file: File,
    /// Bytes of its pages, if they are huge ones.
    pub(super) huge_page: Option<u64>,
}

/// Opens the file that `backend` asks for, with at least `size` bytes; `None` when it asks for
/// none.
pub(super) fn open(backend: &Backend, size: u64) -> Result<Option<Backing>, Error> {
    let option = &backend.option;
    let backing = match &backend.source {
        MemorySource::Anonymous => return Ok(None),
        MemorySource::Memfd { pages, seal } => memfd(option, *pages, *seal, size)?,
        MemorySource::File(path) => named(option, path, size)?,
    };
    Ok(Some(backing))
}

fn memfd(option: &str, pages: Pages, seal: bool, size: u64) -> Result<Backing, Error> {
    let failed = |errno: Errno| Error::Memfd { option: option.into(), source: errno.into() };
    let flags = match pages {
        Pages::Usual => MemfdFlags::empty(),
        Pages::Huge => MemfdFlags::HUGETLB,
        Pages::HugeOf(bytes) => {
            MemfdFlags::HUGETLB | MemfdFlags::from_bits_retain(bytes.ilog2() << HUGE_SHIFT)
        }
    };
    let flags = flags | MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("guest-ram", flags).map(File::from).map_err(|errno| match pages {
        Pages::Usual => failed(errno),
        _ => Error::NoSuchPages { option: option.into() },
    })?;
    let backing = Backing { huge_page: huge_page(&file), file };
    backing.check_size(option, size)?;
    backing.file.set_len(size).map_err(|source| Error::Memfd { option: option.into(), source })?;
    if seal {
        let seals = SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
        fcntl_add_seals(&backing.file, seals).map_err(failed)?;
    }
    Ok(backing)
}

fn named(option: &str, path: &Path, size: u64) -> Result<Backing, Error> {
    let failed = |source| Error::File { option: option.into(), path: path.into(), source };
    let (file, is_new) = open_or_create(path).map_err(failed)?;
    let backing = Backing { huge_page: huge_page(&file), file };
    let result = backing.fit(option, path, size);
    if result.is_err() && is_new {
        // Nothing is lost, and the first error is the one to tell.
        let _ = std::fs::remove_file(path);
    }
    result.map(|()| backing)
}

/// The file, and whether it was made now and has a name. In a folder, one without a name.
fn open_or_create(path: &Path) -> io::Result<(File, bool)> {
    let options = |flags: OFlags| {
        let mut options = File::options();
        let flags = flags | OFlags::NOCTTY;
        options.read(true).write(true).custom_flags(flags.bits().cast_signed());
        options.mode(0o600);
        options
    };
    if path.is_dir() {
        return Ok((options(OFlags::TMPFILE).open(path)?, false));
    }
    // A pipe must not be waited for.
    match options(OFlags::NONBLOCK).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Ok((options(OFlags::empty()).create_new(true).open(path)?, true))
        }
        result => Ok((result?, false)),
    }
}

impl Backing {
    /// Has the file hold `size` bytes. One that is not empty keeps its contents and its size, as
    /// in QEMU.
    fn fit(&self, option: &str, path: &Path, size: u64) -> Result<(), Error> {
        let failed = |source| Error::File { option: option.into(), path: path.into(), source };
        let metadata = self.file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(Error::NoFile { option: option.into(), path: path.into() });
        }
        self.check_size(option, size)?;
        let found = metadata.len();
        if (1..size).contains(&found) {
            let path = path.into();
            return Err(Error::FileSize { option: option.into(), path, found, size });
        }
        // hugetlbfs has its own count, which mmap looks at.
        if self.huge_page.is_none() {
            let blocks = metadata.blocks().saturating_mul(512);
            let room = self.room().map_err(failed)?.saturating_add(blocks);
            if room < size {
                let path = path.into();
                return Err(Error::Room { option: option.into(), path, room, size });
            }
        }
        if found == 0 {
            self.file.set_len(size).map_err(failed)?;
        }
        Ok(())
    }

    /// Bytes that its file system can still take.
    fn room(&self) -> io::Result<u64> {
        let system = fstatfs(&self.file)?;
        // A tmpfs without a limit says 0 blocks of 0.
        if system.f_blocks == 0 {
            return Ok(u64::MAX);
        }
        let block = u64::try_from(system.f_bsize).unwrap_or(1);
        Ok(system.f_bavail.saturating_mul(block))
    }

    fn check_size(&self, option: &str, size: u64) -> Result<(), Error> {
        match self.huge_page {
            Some(page) if !size.is_multiple_of(page) => {
                Err(Error::PartialPage { option: option.into(), size, page })
            }
            _ => Ok(()),
        }
    }
}

/// The size of the file's pages, if it is on hugetlbfs.
fn huge_page(file: &File) -> Option<u64> {
    let system = fstatfs(file).ok()?;
    (system.f_type == HUGETLBFS).then(|| u64::try_from(system.f_bsize).ok())?
}
