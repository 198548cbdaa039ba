//! Where the built programs and images are.

use std::path::{Path, PathBuf};

/// Names the folder of the built products.
pub const DIST: &str = "MICROVM_DIST";
/// Names an unmodified distribution kernel, a bzImage.
pub const KERNEL: &str = "MICROVM_KERNEL";
/// Names the same distribution's kernel for any machine, a bzImage.
pub const STANDARD_KERNEL: &str = "MICROVM_STANDARD_KERNEL";
/// Names our small kernel for microVMs, a bzImage.
pub const GUEST_KERNEL: &str = "MICROVM_GUEST_KERNEL";
/// Names iPXE as a kernel.
pub const IPXE: &str = "MICROVM_IPXE";
/// Names Memtest86+ as a kernel.
pub const MEMTEST: &str = "MICROVM_MEMTEST";
/// Names a static busybox.
pub const BUSYBOX: &str = "MICROVM_BUSYBOX";
/// Names the folder of a QMP client's Python modules.
pub const QMP_CLIENT: &str = "MICROVM_QMP_CLIENT";

/// Names the virtiofsd that is written in Rust.
const OTHER_VIRTIOFSD: &str = "MICROVM_OTHER_VIRTIOFSD";
/// QEMU's virtiofsd, where Debian 12 has it.
pub const VIRTIOFSD: &str = "/usr/lib/qemu/virtiofsd";
/// Names the program that serves guests' sockets.
pub const VHOST_DEVICE_VSOCK: &str = "MICROVM_VHOST_DEVICE_VSOCK";
/// Set when all is to be tested, not a sample.
const FULL: &str = "MICROVM_FULL";
/// Set where the tests' KVM is an emulator's.
const NESTED: &str = "MICROVM_NESTED";

/// Whether all is to be tested, however long that takes.
pub fn is_full() -> bool {
    std::env::var_os(FULL).is_some()
}

/// Whether the tests run in the nested lab.
pub fn is_nested() -> bool {
    std::env::var_os(NESTED).is_some()
}

/// The product `name`. Panics, with what to do, when it was not built.
pub fn product(name: &str) -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/dist");
    let folder = std::env::var_os(DIST).map_or_else(|| PathBuf::from(default), PathBuf::from);
    existing(folder.join(name))
}

/// The distribution's kernel for virtual machines.
pub fn kernel() -> PathBuf {
    fetched(KERNEL)
}

/// Our small kernel for microVMs, which has all drivers built in.
pub fn guest_kernel() -> PathBuf {
    fetched(GUEST_KERNEL)
}

/// The folder of a QMP client's Python modules.
pub fn qmp_client() -> PathBuf {
    fetched(QMP_CLIENT)
}

/// A shell and tools in one static program.
pub fn busybox() -> PathBuf {
    fetched(BUSYBOX)
}

/// The programs that share folders: QEMU's, and when all is to be tested, the one in Rust.
pub fn virtiofsds() -> Vec<PathBuf> {
    let other = std::env::var_os(OTHER_VIRTIOFSD).map(|path| existing(path.into()));
    std::iter::once(PathBuf::from(VIRTIOFSD)).chain(other).collect()
}

/// A module of the distribution's kernel, below its `kernel` folder and without `.ko`.
pub fn module(name: &str) -> PathBuf {
    let kernel = kernel();
    let version = kernel.file_name().unwrap().to_str().unwrap().trim_start_matches("vmlinuz-");
    let package = kernel.ancestors().nth(2).unwrap();
    existing(package.join("lib/modules").join(version).join("kernel").join(format!("{name}.ko")))
}

/// The ELF kernel within the bzImage `kernel`.
pub fn vmlinux(kernel: &Path) -> PathBuf {
    let name = kernel.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    existing(kernel.with_file_name(name.replacen("vmlinuz", "vmlinux", 1)))
}

/// The path in this variable. Panics, with what to do, when it was not fetched.
pub fn fetched(variable: &str) -> PathBuf {
    match std::env::var_os(variable) {
        Some(path) => existing(path.into()),
        None => panic!("{variable} is not set: run this test by `cargo xtask test`"),
    }
}

fn existing(path: PathBuf) -> PathBuf {
    assert!(path.exists(), "{} is missing: run `cargo xtask test`", path.display());
    path
}
