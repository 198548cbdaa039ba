//! A root file system on a disk whose driver is a module.
//!
//! The initramfs holds, besides init, the modules below [`modules::FOLDER`], loaded in the order
//! of their names: a disk is there when its driver is loaded. The disk has its own `/init`.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::mount::{MountFlags, mount, mount_move};
use rustix::process::{chdir, chroot};

use crate::modules;

const NEW_ROOT: &str = "/root";

/// Whether init still runs from the initramfs that holds the modules.
pub fn is_initramfs() -> bool {
    Path::new(modules::FOLDER).is_dir()
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
    modules::load()?;
    fs::create_dir_all(NEW_ROOT)?;
    mount(device, NEW_ROOT, "ext4", MountFlags::empty(), None)?;
    chdir(NEW_ROOT)?;
    mount_move(".", "/")?;
    chroot(".")?;
    chdir("/")?;
    Ok(())
}
