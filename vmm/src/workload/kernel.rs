//! The kernel of a workload, and where its modules are.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::OFlags;

/// Where distributions install kernels.
const BOOT: &str = "/boot";
/// Where this repository's tasks put the one that they fetch, from the program's folder on.
const FETCHED: &str = "../cache/kernel/boot";
/// A bzImage's header, and where it says where the kernel's version is, from 0x200 on (Linux,
/// Documentation/arch/x86/boot.rst).
const MAGIC: std::ops::Range<usize> = 0x202..0x206;
const VERSION: usize = 0x20e;
const VERSION_BASE: usize = 0x200;
/// Bytes of a bzImage in which its version is: those of the setup code.
const SETUP_MAX: u64 = 64 * 512;

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none on this host.
    #[error(
        "no kernel in {BOOT}: give --kernel FILE, or install one: apt-get install \
         linux-image-cloud-amd64 (where this program was built, cargo xtask boot fetches one)"
    )]
    None,
    /// It cannot be read.
    #[error("the kernel '{path}'")]
    Read {
        /// The file.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
}

/// A kernel.
pub struct Kernel {
    /// Its image.
    pub path: PathBuf,
    /// The folder of its modules, if it has one.
    pub modules: Option<PathBuf>,
    /// The release of one whose modules were looked for in vain: it may need none.
    pub without: Option<String>,
}

/// The kernel that is given, or the host's: the one that runs, or the newest. A host that has none
/// may have the one that was fetched where this program was built.
pub fn find(given: Option<&Path>, modules: Option<&Path>) -> Result<Kernel, Error> {
    let path = match given {
        Some(path) => path.to_owned(),
        None => installed().ok_or(Error::None)?,
    };
    let release = release(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
    let modules = match (modules, &release) {
        (Some(modules), _) => Some(modules.to_owned()),
        (None, Some(release)) => modules_of(&path, release),
        (None, None) => None,
    };
    let without = release.filter(|_| modules.is_none());
    Ok(Kernel { path, modules, without })
}

fn installed() -> Option<PathBuf> {
    let running = rustix::system::uname();
    let running = Path::new(BOOT).join(format!("vmlinuz-{}", running.release().to_string_lossy()));
    if running.exists() {
        return Some(running);
    }
    let fetched = || newest(&std::env::current_exe().ok()?.parent()?.join(FETCHED));
    newest(Path::new(BOOT)).or_else(fetched)
}

/// The newest kernel in a folder.
fn newest(folder: &Path) -> Option<PathBuf> {
    let kernels = fs::read_dir(folder).ok()?.filter_map(Result::ok);
    let kernels = kernels.filter(|file| file.file_name().to_string_lossy().starts_with("vmlinuz-"));
    let age = |path: &PathBuf| {
        path.metadata().and_then(|file| file.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
    };
    kernels.map(|file| file.path()).max_by_key(age)
}

/// The release that a bzImage names in itself, and an ELF kernel in its file's name.
fn release(path: &Path) -> io::Result<Option<String>> {
    let mut front = Vec::new();
    // A pipe that nobody writes to would make us wait.
    let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(nonblocking).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file; copy it to one"));
    }
    file.take(SETUP_MAX).read_to_end(&mut front)?;
    let named = || path.file_name()?.to_str()?.strip_prefix("vmlinux-").map(str::to_owned);
    Ok(release_within(&front).or_else(named))
}

fn release_within(front: &[u8]) -> Option<String> {
    if front.get(MAGIC)? != b"HdrS" {
        return None;
    }
    let at = usize::from(abi::bytes::get_u16(front, VERSION)?);
    let text = front.get(VERSION_BASE + at..)?;
    let end = text.iter().position(|byte| matches!(byte, 0 | b' '))?;
    let release = std::str::from_utf8(text.get(..end)?).ok()?;
    // It becomes part of a path.
    (!release.is_empty() && !release.contains('/')).then(|| release.to_owned())
}

/// Where the modules of this release are: beside the kernel, as in a package, or the host's.
fn modules_of(kernel: &Path, release: &str) -> Option<PathBuf> {
    let beside = kernel.canonicalize().ok()?;
    let package = beside.ancestors().nth(2).map(|root| root.join("lib/modules"));
    let places = package.into_iter().chain([PathBuf::from("/lib/modules")]);
    places.map(|place| place.join(release)).find(|folder| folder.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_taken_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(newest(&folder.path().join("none")), None);
        for (name, age_s) in [("vmlinuz-6.1", 30), ("vmlinuz-5.10", 10), ("System.map-6.1", 0)] {
            let file = File::create(folder.path().join(name)).unwrap();
            file.set_modified(SystemTime::now() - std::time::Duration::from_secs(age_s)).unwrap();
        }
        assert_eq!(newest(folder.path()), Some(folder.path().join("vmlinuz-5.10")));
    }

    #[test]
    fn an_image_names_its_release() {
        let mut front = vec![0; 0x400];
        front[MAGIC].copy_from_slice(b"HdrS");
        front[VERSION] = 0x80;
        front[0x280..0x290].copy_from_slice(b"6.1.0-7-cloud (x");
        assert_eq!(release_within(&front).as_deref(), Some("6.1.0-7-cloud"));
        front[0x282] = b'/';
        assert_eq!(release_within(&front), None);
        front[VERSION + 1] = 0xff;
        assert_eq!(release_within(&front), None);
        assert_eq!(release_within(b"\x7fELF"), None);
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
        assert!(release(&pipe).unwrap_err().to_string().contains("regular"), "nobody writes to it");
    }
}
