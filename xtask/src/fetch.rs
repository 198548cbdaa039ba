//! Things that are not built here: a distribution's kernel, QEMU.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{apt, process, workspace};

/// Packages that depend on the newest kernel for virtual machines: Debian's, Ubuntu's.
const META_PACKAGES: [&str; 3] =
    ["linux-image-cloud-amd64", "linux-image-virtual", "linux-image-generic"];

/// An unmodified kernel out of a distribution's package.
#[derive(Debug)]
pub struct Kernel {
    /// The bzImage.
    pub vmlinuz: PathBuf,
    /// Its modules' directory.
    pub modules: PathBuf,
    /// Its release, as `uname -r` prints it.
    pub release: String,
}

/// The kernel, fetched when it is not there. To fetch the newest: remove `target/cache/kernel`.
pub fn kernel() -> Result<Kernel> {
    let cache = workspace::target("cache")?;
    let directory = cache.join("kernel");
    let _lock = workspace::lock(&cache, "fetch: waiting for another xtask")?;
    if !directory.is_dir() {
        // The directory appears whole: a fetch that was cut off leaves nothing behind it.
        let partial = cache.join("kernel.partial");
        if partial.exists() {
            fs::remove_dir_all(&partial).context("removing a fetch that was cut off")?;
        }
        fs::create_dir(&partial).with_context(|| format!("making {}", partial.display()))?;
        fetch_kernel(&partial)?;
        find_kernel(&partial)?;
        fs::rename(&partial, &directory).context("keeping the fetched kernel")?;
    }
    find_kernel(&directory)
}

/// QEMU's system emulator, installed when it is missing.
pub fn qemu() -> Result<PathBuf> {
    apt::tool("qemu-system-x86_64", "qemu-system-x86")
}

fn fetch_kernel(directory: &Path) -> Result<()> {
    if process::find("apt-get").is_none() || process::find("dpkg-deb").is_none() {
        bail!("a kernel package is fetched by apt-get and dpkg-deb, which are not here");
    }
    for package in kernel_packages()? {
        let file = apt::download(&package, directory)?;
        process::run(Command::new("dpkg-deb").arg("-x").arg(&file).arg(directory))?;
        fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
    }
    Ok(())
}

/// The packages of the kernel and its modules, which some distributions part.
fn kernel_packages() -> Result<Vec<String>> {
    let resolve = || -> Result<Option<String>> {
        for meta in META_PACKAGES {
            let image = |name: &String| name.starts_with("linux-image-") && has_digit(name);
            if let Some(package) = apt::dependencies(meta)?.into_iter().find(image) {
                return Ok(Some(package));
            }
        }
        Ok(None)
    };
    let image = match resolve()? {
        Some(image) => image,
        None => {
            apt::update()?;
            resolve()?.with_context(|| {
                format!("apt knows no kernel: none of {}", META_PACKAGES.join(", "))
            })?
        }
    };
    let modules = apt::dependencies(&image)?;
    let modules = modules.into_iter().filter(|name| name.starts_with("linux-modules-"));
    Ok(std::iter::once(image).chain(modules).collect())
}

fn has_digit(name: &str) -> bool {
    // A versioned package, not another meta package.
    name.split('-').any(|part| part.starts_with(|c: char| c.is_ascii_digit()))
}

fn find_kernel(directory: &Path) -> Result<Kernel> {
    let boot = directory.join("boot");
    let names = fs::read_dir(&boot).with_context(|| format!("reading {}", boot.display()))?;
    let release = names
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find_map(|name| name.strip_prefix("vmlinuz-").map(str::to_owned))
        .with_context(|| format!("no kernel in {}", boot.display()))?;
    let vmlinuz = boot.join(format!("vmlinuz-{release}"));
    let modules = ["lib/modules", "usr/lib/modules"]
        .map(|place| directory.join(place).join(&release))
        .into_iter()
        .find(|path| path.is_dir())
        .with_context(|| format!("no modules of {release} in {}", directory.display()))?;
    Ok(Kernel { vmlinuz, modules, release })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_versioned_package_is_told_from_a_meta_package() {
        assert!(has_digit("linux-image-6.1.0-56-cloud-amd64"));
        assert!(!has_digit("linux-image-cloud-amd64"));
        assert!(!has_digit("linux-image-virtual"));
    }
}
