//! A root file system on a disk whose driver is a module.
//!
//! The initramfs holds, besides init, the modules below [`MODULES`], which are loaded in the order
//! of their names: a disk is there when its driver is loaded. The disk has its own `/init`.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_move};
use rustix::process::{chdir, chroot};
use rustix::system::finit_module;

/// Where the modules are in the initramfs.
pub const MODULES: &str = "/modules";
const NEW_ROOT: &str = "/root";

/// Whether init still runs from the initramfs that holds the modules.
pub fn is_initramfs() -> bool {
    Path::new(MODULES).is_dir()
}

/// Loads the modules, mounts the disk as the root, and runs its init in this process. Returns only
/// what prevented that.
pub fn enter(device: &str) -> io::Error {
    match prepare(device) {
        Ok(()) => Command::new("/init").exec(),
        Err(error) => error,
    }
}

fn prepare(device: &str) -> io::Result<()> {
    let modules = fs::read_dir(MODULES)?.map(|entry| Ok(entry?.path()));
    let mut modules = modules.collect::<io::Result<Vec<_>>>()?;
    modules.sort_unstable();
    for module in modules {
        match finit_module(File::open(module)?, c"", 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    fs::create_dir_all(NEW_ROOT)?;
    mount(device, NEW_ROOT, "ext4", MountFlags::empty(), None)?;
    chdir(NEW_ROOT)?;
    mount_move(".", "/")?;
    chroot(".")?;
    chdir("/")?;
    Ok(())
}
