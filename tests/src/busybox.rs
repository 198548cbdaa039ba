//! Guests that run a shell script: busybox, modules of the kernel, and the script.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::disk::add;
use crate::products::{busybox, module, product};

/// What every virtio device needs of the distribution's kernel.
pub const VIRTIO: [&str; 3] =
    ["drivers/virtio/virtio_ring", "drivers/virtio/virtio", "drivers/virtio/virtio_mmio"];
/// Disks, beside [`VIRTIO`].
pub const DISK: [&str; 1] = ["drivers/block/virtio_blk"];
/// Network cards.
pub const NETWORK: [&str; 3] =
    ["net/core/failover", "drivers/net/net_failover", "drivers/net/virtio_net"];
/// Sockets between guest and host.
pub const SOCKETS: [&str; 3] = [
    "net/vmw_vsock/vsock",
    "net/vmw_vsock/vmw_vsock_virtio_transport_common",
    "net/vmw_vsock/vmw_vsock_virtio_transport",
];
/// The console.
pub const CONSOLE: [&str; 1] = ["drivers/char/virtio_console"];
/// The host's entropy.
pub const ENTROPY: [&str; 1] = ["drivers/char/hw_random/virtio-rng"];
/// Folders of the host.
pub const FOLDERS: [&str; 2] = ["fs/fuse/fuse", "fs/fuse/virtiofs"];
/// The balloon.
pub const BALLOON: [&str; 1] = ["drivers/virtio/virtio_balloon"];

/// What stands before each script.
const PRELUDE: &str = "#!/bin/sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
for module in /modules/*.ko; do
  [ -e $module ] || break
  insmod $module || echo failed: insmod $module
done
";

/// And after it: what is written is on the disk, and the machine goes off.
const EPILOGUE: &str = "\nsync\npoweroff -f\n";

const EXECUTABLE: u32 = 0o100_755;
const FOLDER: u32 = 0o40755;
const SYMLINK: u32 = 0o120_777;

/// Makes an initramfs in `folder` whose init loads these modules, beside [`VIRTIO`], and runs
/// `script`.
pub fn initramfs(folder: &Path, name: &str, modules: &[&str], script: &str) -> PathBuf {
    pack(folder, name, &[&VIRTIO, modules].concat(), script)
}

/// The same for a kernel that has its drivers built in.
pub fn initramfs_without_modules(folder: &Path, name: &str, script: &str) -> PathBuf {
    pack(folder, name, &[], script)
}

fn pack(folder: &Path, name: &str, modules: &[&str], script: &str) -> PathBuf {
    let mut archive = Vec::new();
    for name in ["bin", "dev", "proc", "sys", "tmp", "root", "modules"] {
        add(&mut archive, name, FOLDER, b"");
    }
    let host =
        |path: PathBuf| fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    add(&mut archive, "bin/busybox", EXECUTABLE, &host(busybox()));
    add(&mut archive, "bin/sh", SYMLINK, b"busybox");
    add(&mut archive, "bin/guest-work", EXECUTABLE, &host(product("guest-work")));
    for (order, name) in modules.iter().enumerate() {
        add(&mut archive, &format!("modules/{order:02}.ko"), 0o100_644, &host(module(name)));
    }
    let init = [PRELUDE, script, EPILOGUE].concat();
    add(&mut archive, "init", EXECUTABLE, init.as_bytes());
    add(&mut archive, "TRAILER!!!", 0, b"");
    let path = folder.join(format!("{name}.cpio"));
    fs::write(&path, archive).unwrap();
    path
}

/// Makes an ext4 image of `mib` MiB in `folder` with busybox and `script` as its `/sbin/init`.
pub fn root_disk(folder: &Path, mib: u64, script: &str) -> PathBuf {
    let tree = folder.join("tree");
    for name in ["bin", "dev", "proc", "sys", "sbin", "tmp", "modules"] {
        fs::create_dir_all(tree.join(name)).unwrap();
    }
    fs::copy(busybox(), tree.join("bin/busybox")).unwrap();
    symlink("busybox", tree.join("bin/sh")).unwrap();
    let init = tree.join("sbin/init");
    fs::write(&init, [PRELUDE, script, EPILOGUE].concat()).unwrap();
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).unwrap();
    let image = folder.join("root.ext4");
    let mut command = Command::new("mke2fs");
    command.stdout(Stdio::null()).args(["-q", "-t", "ext4", "-d"]).arg(&tree);
    let status = command.arg(&image).arg(format!("{mib}M")).status();
    let status = status.unwrap_or_else(|e| panic!("mke2fs (package e2fsprogs): {e}"));
    assert!(status.success(), "mke2fs: {status}");
    image
}

/// Whether the file system on `image` is as it should be; what e2fsck says.
pub fn check_disk(image: &Path) -> Result<(), String> {
    let output = Command::new("e2fsck").arg("-fn").arg(image).output();
    let output = output.unwrap_or_else(|e| panic!("e2fsck (package e2fsprogs): {e}"));
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stdout).into_owned()),
    }
}

/// Runs busybox on this machine, as root; what it prints.
pub fn host(arguments: &[&str]) -> String {
    let output = Command::new(busybox()).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "busybox {arguments:?}: {text}{error}");
    text
}

/// Loads modules of the kernel that this machine, a lab, runs: the same as the guest's.
pub fn load_on_host(modules: &[&str]) {
    for name in modules {
        let path = module(name);
        let output = Command::new(busybox()).arg("insmod").arg(&path).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        // Another test may have loaded it.
        assert!(output.status.success() || error.contains("File exists"), "insmod {name}: {error}");
    }
}
