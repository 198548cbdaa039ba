//! The files that a machine is made of: opened once, read where they are needed.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use abi::linux::SetupHeader;

use crate::config::{Config, Contents, KernelCache};
use crate::{console, kernel_cache};

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be opened or read.
    #[error("{what} '{path}'")]
    Read {
        /// The option's name for it.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// It is no regular file.
    #[error("{what} '{path}': not a regular file; copy it to one")]
    NoFile {
        /// The option's name for it.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The unpacked kernel.
    #[error(transparent)]
    Cache(#[from] kernel_cache::Error),
    /// Its size cannot be.
    #[error("{what} '{path}': {size} bytes; {wanted}")]
    Size {
        /// The option's name for it.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Bytes.
        size: u64,
        /// What it should be.
        wanted: &'static str,
    },
    /// It is no kernel.
    #[error("-kernel '{path}': {why}; give a bzImage (vmlinuz) or an ELF vmlinux with a PVH note")]
    NoKernel {
        /// The file.
        path: PathBuf,
        /// Why it is no bzImage.
        why: abi::linux::Error,
    },
}

/// An open file and its size.
#[derive(Debug)]
pub struct Image {
    what: &'static str,
    path: PathBuf,
    file: File,
    size: u64,
}

impl Image {
    /// Opens `path`; `what` is the option that named it.
    pub fn open(what: &'static str, path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Read { what, path: path.into(), source };
        // A pipe without a writer would block the open itself, before it can be refused.
        let mut options = File::options();
        let file = options.read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(Error::NoFile { what, path: path.into() });
        }
        let size = metadata.len();
        if u32::try_from(size).is_err() {
            return Err(Error::Size {
                what,
                path: path.into(),
                size,
                wanted: "at most 4 GiB can be handed to a guest",
            });
        }
        Ok(Self { what, path: path.into(), file, size })
    }

    /// The open file. Its position belongs to nobody: everyone seeks.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Reads at `offset`; less than `bytes` only at the end.
    pub fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(bytes, offset)
    }

    /// Its name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The first `length` bytes, or as many as there are.
    pub fn head(&self, length: u64) -> Result<Vec<u8>, Error> {
        let length = usize::try_from(length.min(self.size)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, 0).map_err(|source| Error::Read {
            what: self.what,
            path: self.path.clone(),
            source,
        })?;
        Ok(bytes)
    }
}

/// A kernel and what its first bytes say.
#[derive(Debug)]
pub struct Kernel {
    /// The file.
    pub image: Arc<Image>,
    /// Its form.
    pub format: Format,
}

/// The two forms of kernel.
#[derive(Debug)]
pub enum Format {
    /// A bzImage: its setup header, and its whole real-mode part.
    BzImage(SetupHeader, Vec<u8>),
    /// An ELF file.
    Elf,
}

impl Kernel {
    fn open(path: &Path) -> Result<Self, Error> {
        let image = Arc::new(Image::open("-kernel", path)?);
        let no_kernel = |why| Error::NoKernel { path: path.into(), why };
        let head = image.head(abi::linux::HEADER_END as u64)?;
        let format = match SetupHeader::parse(&head) {
            Ok(header) if u64::from(header.setup_size) >= image.size => {
                return Err(no_kernel(abi::linux::Error::Truncated));
            }
            Ok(header) => {
                let size = image.size - u64::from(header.setup_size);
                header.check_size(size).map_err(no_kernel)?;
                let setup = image.head(u64::from(header.setup_size))?;
                Format::BzImage(header, setup)
            }
            Err(abi::linux::Error::Elf) => Format::Elf,
            Err(why) => return Err(no_kernel(why)),
        };
        Ok(Self { image, format })
    }

    /// The kernel within a bzImage, if that is wanted; an ELF file is unpacked already.
    fn cached(self, wish: KernelCache) -> Result<Self, Error> {
        match (wish, &self.format) {
            (KernelCache::Off, _) | (_, Format::Elf) => Ok(self),
            // What cannot be unpacked here, the guest unpacks.
            (KernelCache::Auto, _) => Ok(self.unpacked(false).unwrap_or(self)),
            (KernelCache::On, _) => self.unpacked(true),
        }
    }

    fn unpacked(&self, say: bool) -> Result<Self, Error> {
        let found = kernel_cache::find(self.image.path(), self.image.file())?;
        let image = Arc::new(Image::open("-kernel", found.path())?);
        if say && found.is_new() {
            console::say(&format!(
                "kernel-cache: unpacked '{}' to '{}' ({} bytes); it starts without its own KASLR",
                self.image.path().display(),
                found.path().display(),
                image.size()
            ));
        }
        Ok(Self { image, format: Format::Elf })
    }

    /// Whether it looks like Linux, and not like a small program of the same form: Linux has a
    /// version string in its setup code, and an uncompressed one is big.
    pub fn is_linux(&self) -> bool {
        match &self.format {
            Format::BzImage(_, setup) => {
                let version = abi::bytes::get_u16(setup, 0x20e).map_or(0, usize::from);
                // kernel_version is relative to 0x200; 0 for none.
                version != 0 && setup.get(version + 0x200).is_some_and(u8::is_ascii_digit)
            }
            Format::Elf => self.image.size >= 1 << 20,
        }
    }
}

/// All files of a machine.
#[derive(Debug)]
pub struct Images {
    /// The BIOS image.
    pub bios: Option<Image>,
    /// The kernel.
    pub kernel: Option<Kernel>,
    /// The initial RAM disk.
    pub initrd: Option<Arc<Image>>,
    /// Files for fw_cfg: name and contents.
    pub fw_cfg: Vec<(String, Blob)>,
}

/// Contents of a file for fw_cfg.
#[derive(Debug)]
pub enum Blob {
    /// From the command line.
    Bytes(Vec<u8>),
    /// From a file.
    Image(Arc<Image>),
}

/// Bytes of the smallest BIOS image, of which every other is a multiple.
const BIOS_UNIT: u64 = abi::layout::BIOS_SIZE;
/// Bytes of the biggest BIOS image.
const BIOS_MAX: u64 = 1 << 20;

impl Images {
    /// Opens every file that `config` names.
    pub fn open(config: &Config) -> Result<Self, Error> {
        let optional = |what, path: &Option<PathBuf>| {
            path.as_deref().map(|path| Image::open(what, path)).transpose()
        };
        let bios = optional("-bios", &config.bios)?;
        if let Some(bios) = &bios
            && (bios.size == 0 || bios.size > BIOS_MAX || !bios.size.is_multiple_of(BIOS_UNIT))
        {
            return Err(Error::Size {
                what: "-bios",
                path: bios.path.clone(),
                size: bios.size,
                wanted: "a BIOS image has a multiple of 64 KiB, up to 1 MiB",
            });
        }
        let kernel = config.kernel.as_deref().map(Kernel::open).transpose()?;
        let kernel = kernel.map(|kernel| kernel.cached(config.kernel_cache)).transpose()?;
        let mut fw_cfg = Vec::new();
        for file in &config.fw_cfg {
            let blob = match &file.contents {
                Contents::Text(text) => Blob::Bytes(text.clone().into()),
                Contents::File(path) => Blob::Image(Image::open("-fw_cfg", path)?.into()),
            };
            fw_cfg.push((file.name.clone(), blob));
        }
        Ok(Self {
            bios,
            kernel,
            initrd: optional("-initrd", &config.initrd)?.map(Arc::new),
            fw_cfg,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(what: &str, bytes: Option<&[u8]>) -> Result<Images, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        if let Some(bytes) = bytes {
            std::fs::write(&path, bytes).unwrap();
        }
        let mut config = Config::default();
        match what {
            "-bios" => config.bios = Some(path.clone()),
            "-kernel" => config.kernel = Some(path.clone()),
            _ => config.initrd = Some(path.clone()),
        }
        let name = path.display().to_string();
        Images::open(&config).map_err(|e| e.to_string().replace(&name, "FILE"))
    }

    #[test]
    fn error_lines_name_the_file_and_the_remedy() {
        for (what, bytes, expected) in [
            ("-bios", None, "-bios 'FILE'"),
            ("-initrd", None, "-initrd 'FILE'"),
            (
                "-bios",
                Some(&[0; 100][..]),
                "-bios 'FILE': 100 bytes; a BIOS image has a multiple of 64 KiB, up to 1 MiB",
            ),
            (
                "-kernel",
                Some(b"no kernel"),
                "-kernel 'FILE': it has no HdrS magic, so it is no bzImage; give a bzImage \
                 (vmlinuz) or an ELF vmlinux with a PVH note",
            ),
        ] {
            let line = open(what, bytes).unwrap_err();
            assert!(line == expected || line.contains("ends within"), "{line}");
        }
    }

    #[test]
    fn sizes_of_bios_images() {
        for (size, good) in [
            (0, false),
            (0x1_0000, true),
            (0x3_0000, true),
            (0x10_0000, true),
            (0x11_0000, false),
            (0x1_0001, false),
        ] {
            assert_eq!(open("-bios", Some(&vec![0; size])).is_ok(), good, "{size:#x}");
        }
    }

    #[test]
    fn an_elf_file_is_known_by_its_magic() {
        let images = open("-kernel", Some(b"\x7fELF\x02\x01")).unwrap();
        assert!(matches!(images.kernel.unwrap().format, Format::Elf));
    }
}
