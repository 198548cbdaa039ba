//! The file systems that the kernel shows its state in.

use std::fs;
use std::io;
use std::path::Path;

use rustix::mount::{MountFlags, mount};

/// Mounts a kernel file system of this type there, making the directory when it is missing.
///
/// One that is mounted already is left alone: some kernels mount devtmpfs by themselves.
pub fn mount_kernel(fs_type: &str, target: &str) -> io::Result<()> {
    if !Path::new(target).is_dir() {
        fs::create_dir_all(target)?;
    }
    match mount(fs_type, target, fs_type, MountFlags::empty(), None) {
        Ok(()) | Err(rustix::io::Errno::BUSY) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
