//! Where the built programs and images are.

use std::path::PathBuf;

/// Names the folder of the built products.
pub const DIST: &str = "MICROVM_DIST";
/// Names an unmodified distribution kernel, a bzImage.
pub const KERNEL: &str = "MICROVM_KERNEL";

/// The product `name`. Panics, with what to do, when it was not built.
pub fn product(name: &str) -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/dist");
    let folder = std::env::var_os(DIST).map_or_else(|| PathBuf::from(default), PathBuf::from);
    existing(folder.join(name))
}

/// The distribution's kernel. Panics, with what to do, when it was not fetched.
pub fn kernel() -> PathBuf {
    match std::env::var_os(KERNEL) {
        Some(path) => existing(path.into()),
        None => panic!("{KERNEL} is not set: run this test by `cargo xtask test`"),
    }
}

fn existing(path: PathBuf) -> PathBuf {
    assert!(path.exists(), "{} is missing: run `cargo xtask test`", path.display());
    path
}
