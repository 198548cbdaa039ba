//! The kernel's file systems, the host's folders, the switch to the new root.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use abi::workload::{MODULES, ROOT_TAG, VOLUME_TAG};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_move};
use rustix::system::finit_module;

use crate::context;
use crate::orders::Volume;

/// Where the command's root is before it is the root.
const ROOT: &str = "/root";
/// The host's folder, below what the command writes.
const LOWER: &str = "/lower";
/// What the command writes.
const UPPER: &str = "/upper";
/// A file system of the kernel: type, place, flags, options.
type Mount = (&'static str, &'static str, MountFlags, &'static str);
/// Those that init needs.
pub const OWN: &[Mount] = KERNEL.split_at(3).0;
/// Those that a program expects.
pub const KERNEL: [Mount; 5] = [
    ("proc", "/proc", SAFE, ""),
    ("sysfs", "/sys", SAFE, ""),
    ("devtmpfs", "/dev", MountFlags::NOSUID, ""),
    ("devpts", "/dev/pts", SAFE.difference(MountFlags::NODEV), "gid=5,mode=620,ptmxmode=666"),
    ("tmpfs", "/dev/shm", SAFE.difference(MountFlags::NOEXEC), "mode=1777"),
];
const SAFE: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
/// Names for a process's files, as everywhere.
const LINKS: [(&str, &str); 4] =
    [("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")];

/// Mounts such file systems.
pub fn mount_kernel(mounts: &[Mount]) -> io::Result<()> {
    for (kind, place, flags, options) in mounts {
        mount_at(kind, kind, Path::new(place), *flags, options)?;
    }
    Ok(())
}

/// Loads the modules of the initramfs, and frees the memory of their files.
pub fn load_modules() -> io::Result<()> {
    let Ok(modules) = fs::read_dir(MODULES) else { return Ok(()) };
    let mut modules = modules.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    modules.sort_unstable();
    for path in modules {
        match finit_module(File::open(&path)?, c"", 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(context(error, &format!("loading {}", path.display()))),
        }
    }
    fs::remove_dir_all(MODULES)
}

/// Mounts the command's root.
pub fn mount_root(writable: bool) -> io::Result<()> {
    if writable {
        return mount_shared(ROOT_TAG, Path::new(ROOT), MountFlags::empty());
    }
    mount_shared(ROOT_TAG, Path::new(LOWER), MountFlags::RDONLY)?;
    mount_at("tmpfs", "upper", Path::new(UPPER), MountFlags::empty(), "mode=755")?;
    let [data, work] = ["data", "work"].map(|name| Path::new(UPPER).join(name));
    fs::create_dir(&data)?;
    fs::create_dir(&work)?;
    let [data, work] = [data.display(), work.display()];
    let options = format!("lowerdir={LOWER},upperdir={data},workdir={work}");
    mount_at("overlay", "root", Path::new(ROOT), MountFlags::empty(), &options)
}

/// Gives a process's files the names that they have everywhere.
pub fn make_links() -> io::Result<()> {
    for (name, goal) in LINKS {
        match symlink(Path::new("/proc/self").join(goal), Path::new("/dev").join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Mounts the volumes, in the order of their tags.
pub fn mount_volumes(volumes: &[Volume]) -> io::Result<()> {
    for (number, Volume { path, read_only }) in volumes.iter().enumerate() {
        let flags = if *read_only { MountFlags::RDONLY } else { MountFlags::empty() };
        mount_shared(&format!("{VOLUME_TAG}{number}"), path, flags)?;
    }
    Ok(())
}

/// From now on the command's root is the root.
pub fn switch() -> io::Result<()> {
    rustix::process::chdir(ROOT)?;
    mount_move(".", "/").map_err(|error| context(error, "moving the root"))?;
    rustix::process::chroot(".")?;
    Ok(rustix::process::chdir("/")?)
}

fn mount_shared(tag: &str, place: &Path, flags: MountFlags) -> io::Result<()> {
    mount_at("virtiofs", tag, place, flags, "")
}

fn mount_at(
    kind: &str,
    source: &str,
    place: &Path,
    flags: MountFlags,
    options: &str,
) -> io::Result<()> {
    let doing = || format!("mounting {kind} at {}", place.display());
    fs::create_dir_all(place).map_err(|error| context(error, &doing()))?;
    let options = std::ffi::CString::new(options)?;
    match mount(source, place, kind, flags, Some(options.as_c_str())) {
        // The kernel mounts some of them itself.
        Ok(()) | Err(Errno::BUSY) => Ok(()),
        Err(Errno::NODEV) => Err(context(
            io::Error::other(format!("the kernel lacks {}", option_of(kind))),
            &doing(),
        )),
        Err(error) => Err(context(error, &doing())),
    }
}

/// What a kernel is to be built with for a file system.
fn option_of(kind: &str) -> &str {
    match kind {
        "virtiofs" => "CONFIG_VIRTIO_FS (with CONFIG_FUSE_FS)",
        "overlay" => "CONFIG_OVERLAY_FS: use one that has it, or --writable",
        "devpts" => "CONFIG_UNIX98_PTYS",
        "devtmpfs" => "CONFIG_DEVTMPFS",
        "tmpfs" => "CONFIG_TMPFS",
        "sysfs" => "CONFIG_SYSFS",
        _ => "CONFIG_PROC_FS",
    }
}
