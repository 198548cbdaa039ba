//! A disk's image: a raw file, or a block device of the host.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FallocateFlags, OFlags, fallocate, fdatasync};
use rustix::io::{Errno, retry_on_intr};

use super::lock;
use crate::config::Disk;
use crate::virtio::{Buffers, Direction};

/// Bytes of a sector, whatever a disk's blocks are (section 5.2).
pub const SECTOR: u64 = 512;
const SECTOR_SIZE: usize = 512;

/// Why an image cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be opened.
    #[error("-drive file='{path}'{hint}")]
    Open {
        /// Its name.
        path: PathBuf,
        /// What may help.
        hint: &'static str,
        /// The host's reason.
        source: io::Error,
    },
    /// It is something else.
    #[error("-drive file='{0}': neither a regular file nor a block device")]
    NoImage(PathBuf),
    /// Its format is another one.
    #[error(
        "-drive file='{path}': this looks like {format}: convert it by qemu-img convert -O raw, or \
         say format=raw if the guest is to see it as it is"
    )]
    Format {
        /// Its name.
        path: PathBuf,
        /// The other format.
        format: &'static str,
    },
    /// Somebody else has it.
    #[error(
        "-drive file='{0}': another process uses it: stop that, or say readonly=on for both, or \
         share-rw=on for both devices if the guests can share a disk"
    )]
    Locked(PathBuf),
}

/// Formats that are easily taken for a disk of their own: QEMU guesses, and warns about guessing.
const FORMATS: [(&[u8], &str); 4] =
    [(b"QFI\xfb", "qcow2"), (b"QED\0", "QED"), (b"KDMV", "VMDK"), (b"conectix", "VHD")];

/// An open image.
pub struct Image {
    file: File,
    /// The same past the host's page cache, if that is wanted.
    direct: Option<File>,
    size: u64,
    punches_holes: bool,
    flushes: bool,
    /// Something may have been written by the host's page cache.
    is_cached: AtomicBool,
    /// What became of the first flush that failed, while bytes were in that cache.
    lost: Mutex<Option<Errno>>,
}

impl Image {
    /// Opens the image of `disk`.
    pub fn open(disk: &Disk) -> Result<Self, Error> {
        let path = &disk.path;
        let file = open(path, disk.read_only, OFlags::empty())?;
        let kind = file.metadata().map_err(|source| open_error(path, source))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(Error::NoImage(path.clone()));
        }
        if disk.locking && !lock::lock(&file, !disk.read_only, disk.share) {
            return Err(Error::Locked(path.clone()));
        }
        if !disk.is_raw {
            check_format(&file, path)?;
        }
        let size = (&file).seek(SeekFrom::End(0)).map_err(|source| open_error(path, source))?;
        let direct = match disk.cache.direct {
            true => Some(open(path, disk.read_only, OFlags::DIRECT)?),
            false => None,
        };
        let (punches_holes, flushes) = (disk.discard, disk.cache.flush);
        let (is_cached, lost) = (AtomicBool::new(false), Mutex::new(None));
        Ok(Self { file, direct, size, punches_holes, flushes, is_cached, lost })
    }

    /// Sectors: a last one that is not all there counts.
    pub fn sectors(&self) -> u64 {
        self.size.div_ceil(SECTOR)
    }

    /// Whether discarded sectors are given back to the host.
    pub fn punches_holes(&self) -> bool {
        self.punches_holes
    }

    /// Fills `buffers` from here on.
    pub fn read(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
        let count = self.transfer(offset, buffers, Direction::FromFile)?;
        match buffers.split_at(count) {
            Some((_, missing)) if missing.is_empty() => Ok(()),
            // The last sector of an odd image.
            Some((_, missing)) if (missing.len() as u64) < SECTOR && self.ends(offset, buffers) => {
                missing.copy_from(&[0; SECTOR_SIZE]);
                Ok(())
            }
            // The image was cut short.
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn ends(&self, offset: u64, buffers: &Buffers<'_>) -> bool {
        offset + buffers.len() as u64 == self.sectors() * SECTOR
    }

    /// Writes `buffers` from here on, to the medium if that is asked for.
    pub fn write(&self, offset: u64, buffers: &Buffers<'_>, to_medium: bool) -> io::Result<()> {
        let direction = if to_medium { Direction::ToMedium } else { Direction::ToFile };
        match self.transfer(offset, buffers, direction)? {
            count if count == buffers.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    fn transfer(&self, offset: u64, buffers: &Buffers<'_>, way: Direction) -> io::Result<usize> {
        if let Some(direct) = self.direct.as_ref().filter(|_| buffers.is_aligned(SECTOR_SIZE)) {
            match buffers.transfer(direct.as_fd(), offset, way) {
                // Blocks of the host that are larger than sectors.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
                outcome => return outcome,
            }
        }
        if way != Direction::FromFile {
            self.is_cached.store(true, Ordering::SeqCst);
        }
        // The kernel keeps the cache and the medium as one.
        buffers.transfer(self.file.as_fd(), offset, way)
    }

    /// Waits until all that was written is on the medium. Of bytes that do not get there from its
    /// cache, Linux tells once, and takes them for written then. So the first such flush is the
    /// last that could be believed, and none succeeds after it, as in QEMU; past the cache, each
    /// write has told by itself what became of it.
    pub fn flush(&self) -> io::Result<()> {
        if !self.flushes {
            return Ok(());
        }
        // One at a time: of two at once, Linux may tell the other.
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(errno) = *lost {
            return Err(errno.into());
        }
        let outcome = retry_on_intr(|| fdatasync(&self.file));
        if self.is_cached.load(Ordering::SeqCst) {
            *lost = outcome.err();
        }
        Ok(outcome?)
    }

    /// The guest does not need these bytes any more. It is a hint, for who can make use of it.
    pub fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        if self.punches_holes {
            self.allocate(PUNCH, offset, length)?;
        }
        Ok(())
    }

    /// Makes these bytes zeroes; their room may be given back to the host if `unmap`. It may take
    /// long, and is not done when `is_stopped`.
    pub fn write_zeroes(
        &self,
        (offset, length): (u64, u64),
        unmap: bool,
        is_stopped: impl Fn() -> bool,
    ) -> io::Result<()> {
        let unmap = unmap && self.punches_holes;
        if unmap && self.allocate(PUNCH, offset, length)? || self.allocate(ZERO, offset, length)? {
            return Ok(());
        }
        self.write_zeroes_by_hand(offset, length, is_stopped)
    }

    /// Changes how these bytes are kept; false where that is not possible: on this file system, or,
    /// of a block device, for what is no whole number of its blocks.
    fn allocate(&self, how: FallocateFlags, offset: u64, length: u64) -> io::Result<bool> {
        let how = how | FallocateFlags::KEEP_SIZE;
        match retry_on_intr(|| fallocate(&self.file, how, offset, length)) {
            Ok(()) => {
                // What is zeroes from now on may be so in the cache alone.
                self.is_cached.store(true, Ordering::SeqCst);
                Ok(true)
            }
            Err(Errno::OPNOTSUPP | Errno::INVAL) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn write_zeroes_by_hand(
        &self,
        offset: u64,
        length: u64,
        is_stopped: impl Fn() -> bool,
    ) -> io::Result<()> {
        use std::os::unix::fs::FileExt as _;
        // Neither on a thread's small stack, nor in the program's file.
        let zeroes = vec![0; 64 << 10];
        self.is_cached.store(true, Ordering::SeqCst);
        let mut done = 0;
        while done < length {
            if is_stopped() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let count = (length - done).min(zeroes.len() as u64);
            let part = zeroes.get(..usize::try_from(count).unwrap_or(0)).unwrap_or_default();
            self.file.write_all_at(part, offset + done)?;
            done += count;
        }
        Ok(())
    }
}

const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE;
const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE;

fn open(path: &Path, read_only: bool, flags: OFlags) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    options.read(true).write(!read_only);
    options.custom_flags(flags.bits().cast_signed());
    options.open(path).map_err(|source| open_error(path, source))
}

fn open_error(path: &Path, source: io::Error) -> Error {
    let hint = match source.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            " (readonly=on needs less)"
        }
        io::ErrorKind::NotFound => " (truncate -s 1G FILE makes one)",
        io::ErrorKind::InvalidInput => " (this file system knows no cache=none)",
        _ => "",
    };
    Error::Open { path: path.into(), hint, source }
}

fn check_format(mut file: &File, path: &Path) -> Result<(), Error> {
    let mut start = [0; 8];
    // A file that is shorter has no format.
    let _ = file.read_exact(&mut start);
    match FORMATS.iter().find(|(magic, _)| start.starts_with(magic)) {
        Some((_, format)) => Err(Error::Format { path: path.into(), format }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::FileExt as _;

    use super::*;

    /// An image of 1 MiB on `file`, past the page cache if `direct`.
    fn on(file: impl Into<OwnedFd>, direct: bool) -> Image {
        let file = File::from(file.into());
        Image {
            direct: direct.then(|| file.try_clone().unwrap()),
            file,
            size: 1 << 20,
            punches_holes: true,
            flushes: true,
            is_cached: AtomicBool::new(false),
            lost: Mutex::new(None),
        }
    }

    /// One that knows neither holes nor flushes (EOPNOTSUPP or ENODEV, EINVAL).
    fn on_pipe(direct: bool) -> Image {
        on(io::pipe().unwrap().1, direct)
    }

    fn on_file() -> Image {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 1 << 20], 0).unwrap();
        on(file, false)
    }

    #[test]
    fn no_flush_succeeds_after_one_that_failed() {
        let mut image = on_pipe(false);
        image.is_cached = AtomicBool::new(true);
        let first = image.flush().unwrap_err().raw_os_error();
        // As Linux has it after an error: all is well.
        image.file = tempfile::tempfile().unwrap();
        assert_eq!(image.flush().unwrap_err().raw_os_error(), first);
    }

    #[test]
    fn a_flush_that_failed_is_no_matter_where_nothing_is_cached() {
        let mut image = on_pipe(true);
        assert!(image.flush().is_err());
        image.file = tempfile::tempfile().unwrap();
        assert!(image.flush().is_ok());
    }

    #[test]
    fn what_was_written_by_the_cache_counts_even_with_an_image_past_it() {
        let image = on_file();
        image.transfer(0, &Buffers::default(), Direction::FromFile).unwrap();
        assert!(!image.is_cached.load(Ordering::SeqCst));
        image.transfer(0, &Buffers::default(), Direction::ToFile).unwrap();
        assert!(image.is_cached.load(Ordering::SeqCst));
    }

    #[test]
    fn what_cannot_be_discarded_stays() {
        // procfs punches no holes, and takes no write at a place either.
        let name = Path::new("/proc/thread-self/comm");
        let image = on(File::options().read(true).write(true).open(name).unwrap(), false);
        image.discard(0, 4096).unwrap();
        assert!(image.write_zeroes((0, 4096), true, || false).is_err(), "zeroes are no hint");
    }

    #[test]
    fn zeroes_are_written_until_the_device_is_stopped() {
        let image = on_file();
        image.write_zeroes_by_hand(4096, 200_000, || false).unwrap();
        let mut bytes = vec![0; 1 << 20];
        image.file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes.iter().filter(|byte| **byte == 0).count(), 200_000);
        assert!(bytes[4096..204_096].iter().all(|byte| *byte == 0));
        let error = image.write_zeroes_by_hand(0, 4096, || true).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    }
}
