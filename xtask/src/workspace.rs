//! Where things are: the checkout, the products, what was fetched.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The checkout's top directory.
pub fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// A directory below `target`, made when it is not there.
pub fn target(name: &str) -> Result<PathBuf> {
    let directory = root().join("target").join(name);
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    Ok(directory)
}

/// A product's place in `target/dist`.
pub fn product(name: &str) -> Result<PathBuf> {
    Ok(target("dist")?.join(name))
}

/// The path as people type it: relative to the checkout when it lies within.
pub fn shown(path: &Path) -> std::path::Display<'_> {
    path.strip_prefix(root()).unwrap_or(path).display()
}

/// Writes a file whole or not at all, and replaces one that a running program still uses.
pub fn replace(path: &Path, write: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".partial-{}", std::process::id()));
    let partial = PathBuf::from(partial);
    write(&partial)
        .and_then(|()| fs::rename(&partial, path))
        .inspect_err(|_| drop(fs::remove_file(&partial)))
        .with_context(|| format!("writing {}", shown(path)))
}

/// Holds the directory for this process until the lock is dropped.
pub fn lock(directory: &Path, busy: &str) -> Result<File> {
    let path = directory.join(".lock");
    let file = File::create(&path).with_context(|| format!("making {}", shown(&path)))?;
    if file.try_lock().is_err() {
        eprintln!("{busy}");
        file.lock().with_context(|| format!("locking {}", shown(&path)))?;
    }
    Ok(file)
}
