//! A disk's image: a raw file, or a block device of the host.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, OFlags, fallocate, fdatasync};

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
        Ok(Self { file, direct, size, punches_holes, flushes })
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
        // The kernel keeps the cache and the medium as one.
        buffers.transfer(self.file.as_fd(), offset, way)
    }

    /// Waits until all that was written is on the medium.
    pub fn flush(&self) -> io::Result<()> {
        match self.flushes {
            true => Ok(fdatasync(&self.file)?),
            false => Ok(()),
        }
    }

    /// The guest does not need these bytes any more.
    pub fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        match self.punches_holes {
            true => self.punch(offset, length),
            false => Ok(()),
        }
    }

    /// Makes these bytes zeroes; their room may be given back to the host if `unmap`.
    pub fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        if unmap && self.punches_holes {
            return self.punch(offset, length);
        }
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, flags, offset, length) {
            Err(rustix::io::Errno::OPNOTSUPP) => self.write_zeroes_by_hand(offset, length),
            outcome => Ok(outcome?),
        }
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, flags, offset, length) {
            // The file system cannot; what is discarded has no contents, but zeroes have.
            Err(rustix::io::Errno::OPNOTSUPP) => self.write_zeroes_by_hand(offset, length),
            outcome => Ok(outcome?),
        }
    }

    fn write_zeroes_by_hand(&self, offset: u64, length: u64) -> io::Result<()> {
        use std::os::unix::fs::FileExt as _;
        let zeroes = [0; 64 << 10];
        let mut done = 0;
        while done < length {
            let count = (length - done).min(zeroes.len() as u64);
            let part = zeroes.get(..usize::try_from(count).unwrap_or(0)).unwrap_or_default();
            self.file.write_all_at(part, offset + done)?;
            done += count;
        }
        Ok(())
    }
}

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
