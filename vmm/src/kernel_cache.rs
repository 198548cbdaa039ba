//! `-M kernel-cache=on`: a bzImage is unpacked once, on the host.
//!
//! From then on its guests start with the ELF kernel within, which spares each of them the
//! unpacking. A folder of this user's keeps those kernels under the SHA-256 of their bzImages, and
//! a symbolic link for each file that was given, named by what changes when the file does.

pub mod unpack;

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

/// A file that was written this recently may be written again with no trace in its times.
const SETTLED: Duration = Duration::from_secs(2);
/// What a process that was killed left behind is removed when it is this old.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Why there is no unpacked kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody says where the cache is.
    #[error("kernel-cache=on: set HOME or XDG_CACHE_HOME to say where the cache is")]
    Nowhere,
    /// Somebody else could put a kernel there.
    #[error("kernel-cache=on: '{0}' is not this user's alone; chown it, and chmod go-w")]
    NotOurs(PathBuf),
    /// A file operation.
    #[error("kernel-cache=on: {what} '{path}'")]
    File {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// The image is not one to unpack.
    #[error("-kernel '{path}': {why}; start it without kernel-cache=on")]
    Unfit {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: unpack::Error,
    },
}

/// The file of an unpacked kernel. While this lives, no other process removes it.
pub struct Found {
    path: PathBuf,
    is_new: bool,
    // The folder, locked.
    _lock: File,
}

impl Found {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it was unpacked just now.
    pub fn is_new(&self) -> bool {
        self.is_new
    }
}

/// The unpacked kernel of a bzImage: `path`, which is open as `file`. The first time, it is
/// unpacked.
pub fn find(path: &Path, file: &File) -> Result<Found, Error> {
    find_in(&folder()?, path, file)
}

fn find_in(folder: &Path, path: &Path, file: &File) -> Result<Found, Error> {
    check(folder)?;
    let metadata = file.metadata().map_err(failed("looking at", path))?;
    let link = folder.join(stamp(&metadata));
    let lock = File::open(folder).map_err(failed("opening", folder))?;
    lock.lock_shared().map_err(failed("locking", folder))?;
    if fs::read_link(&link).is_ok_and(|name| is_whole(&folder.join(name))) {
        return Ok(Found { path: link, is_new: false, _lock: lock });
    }
    lock.unlock().map_err(failed("unlocking", folder))?;
    // The open file: its name may lead to another one by now.
    let image = read(file).map_err(failed("reading", path))?;
    let unfit = |why| Error::Unfit { path: path.into(), why };
    let size = unpack::size(&image).map_err(unfit)?;
    let name = format!("{}-{size}.elf", hex(&Sha256::digest(&image)));
    let kernel = folder.join(&name);
    let unpack = || unpack::unpack(&image).map_err(unfit);
    // It takes long, and others may start meanwhile.
    let elf = if is_whole(&kernel) { None } else { Some(unpack()?) };
    lock.lock().map_err(failed("locking", folder))?;
    // One that was there, and was removed before the lock was ours.
    let elf = if elf.is_none() && !is_whole(&kernel) { Some(unpack()?) } else { elf };
    let is_new = elf.is_some();
    if let Some(elf) = elf {
        write(&kernel, &elf)?;
    }
    if is_settled(&metadata) {
        forget_old(folder, &metadata, &name).map_err(failed("tidying up", folder))?;
        make_link(&link, &name).map_err(failed("making", &link))?;
    }
    Ok(Found { path: kernel, is_new, _lock: lock })
}

/// All of a file, whatever was read of it before.
fn read(file: &File) -> io::Result<Vec<u8>> {
    let size = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Whether a kernel is there with the size in its name, and begins as one. It is not read any
/// further: this is for what a file system lost when its machine stopped, not for who can write in
/// the folder.
fn is_whole(kernel: &Path) -> bool {
    let stem = kernel.file_stem().and_then(|stem| stem.to_str());
    let size = stem.and_then(|stem| stem.rsplit_once('-')?.1.parse::<u64>().ok());
    let look = || {
        let file = File::open(kernel)?;
        let mut magic = [0; unpack::ELF_64.len()];
        file.read_exact_at(&mut magic, 0)?;
        Ok::<_, io::Error>(magic == unpack::ELF_64 && size == Some(file.metadata()?.len()))
    };
    look().unwrap_or(false)
}

/// Whether the file's times would tell if it were written once more: it would get the time of
/// then. A file from the future, as other machines' archives and clocks make them, tells as well
/// as an old one.
fn is_settled(metadata: &fs::Metadata) -> bool {
    metadata.modified().is_ok_and(|time| distance(time) >= SETTLED)
}

/// From now, into the past or into the future.
fn distance(time: SystemTime) -> Duration {
    time.elapsed().unwrap_or_else(|ahead| ahead.duration())
}

/// The user's cache, by the XDG Base Directory Specification.
fn folder() -> Result<PathBuf, Error> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let cache = absolute("XDG_CACHE_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".cache")))
        .ok_or(Error::Nowhere)?;
    let folder = cache.join("microvm").join("kernels");
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
    made.map_err(failed("making", &folder))?;
    Ok(folder)
}

/// Whoever can write there says what this user's guests run.
fn check(folder: &Path) -> Result<(), Error> {
    let metadata = fs::metadata(folder).map_err(failed("looking at", folder))?;
    let ours = metadata.uid() == rustix::process::geteuid().as_raw();
    if ours && metadata.mode() & 0o022 == 0 { Ok(()) } else { Err(Error::NotOurs(folder.into())) }
}

/// Which file, before the dot; in which state, after.
fn stamp(metadata: &fs::Metadata) -> String {
    let times = [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()];
    let times = times.map(|time| format!("{time:x}")).join("-");
    format!("{}.{:x}-{times}", which(metadata), metadata.size())
}

fn which(metadata: &fs::Metadata) -> String {
    format!("{:x}-{:x}", metadata.dev(), metadata.ino())
}

/// Removes the links of this file's earlier states, the kernels that no link leads to, and what
/// killed processes left. Its caller has the lock.
fn forget_old(folder: &Path, metadata: &fs::Metadata, name: &str) -> io::Result<()> {
    let earlier = format!("{}.", which(metadata));
    let (mut kernels, mut wanted) = (Vec::new(), vec![PathBuf::from(name)]);
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let file_name = entry.file_name();
        if entry.file_type()?.is_symlink() {
            if file_name.as_encoded_bytes().starts_with(earlier.as_bytes()) {
                fs::remove_file(entry.path())?;
            } else {
                wanted.push(fs::read_link(entry.path())?);
            }
            continue;
        }
        let ending = Path::new(&file_name).extension().unwrap_or_default().to_owned();
        if ending == "elf" {
            kernels.push(file_name);
        } else if ending == "partial" && distance(entry.metadata()?.modified()?) > ABANDONED {
            fs::remove_file(entry.path())?;
        }
    }
    for kernel in kernels.iter().filter(|kernel| !wanted.iter().any(|name| name == *kernel)) {
        fs::remove_file(folder.join(kernel))?;
    }
    Ok(())
}

/// Another process may do the same at the same time, and the machine may stop at any: what has a
/// name is whole, on the disk too.
fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    let write = || {
        let mut file = File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    let written = write().map_err(failed("writing", &partial));
    let named = written.and_then(|()| fs::rename(&partial, path).map_err(failed("writing", path)));
    if named.is_err() {
        // A disk that is full would stay so. What is not there need not go.
        let _ = fs::remove_file(&partial);
    }
    named
}

fn make_link(link: &Path, name: &str) -> io::Result<()> {
    match symlink(name, link) {
        // Somebody was quicker, with the same.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + use<'a> {
    move |source| Error::File { what, path: path.into(), source }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
