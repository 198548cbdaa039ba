//! Tools and packages of Debian and Ubuntu.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::process;

/// The program's path. When it is missing: installs its package as root, else says how to.
pub fn tool(program: &str, package: &str) -> Result<PathBuf> {
    if let Some(found) = process::find(program) {
        return Ok(found);
    }
    install(package, program)?;
    process::find(program).with_context(|| format!("{package} was installed without {program}"))
}

/// A file of a package, likewise.
pub fn file(path: &Path, package: &str) -> Result<PathBuf> {
    if !path.exists() {
        install(package, &path.display().to_string())?;
    }
    path.canonicalize().with_context(|| format!("{package} was installed without it"))
}

/// Installs `package` as root, for the sake of `missing`.
pub fn install(package: &str, missing: &str) -> Result<()> {
    let install = format!("apt-get install -y --no-install-recommends {package}");
    if process::find("apt-get").is_none() {
        bail!("{missing} is missing, and so is apt-get: install {missing} by other means");
    }
    if !rustix::process::getuid().is_root() {
        bail!("{missing} is missing; this installs it: sudo {install}");
    }
    eprintln!("apt: installing {package} for {missing}");
    let attempt = || {
        let mut words = install.split(' ');
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).arg("-q").env("DEBIAN_FRONTEND", "noninteractive");
        // Its talk is progress, not a product.
        process::run(command.stdin(Stdio::null()).stdout(std::io::stderr()))
    };
    if attempt().is_err() {
        update()?;
        attempt()?;
    }
    Ok(())
}

/// The packages that `package` depends on outright; none when apt does not know it.
pub fn dependencies(package: &str) -> Result<Vec<String>> {
    let mut command = Command::new("apt-cache");
    command.args(["depends", "--no-recommends", "--no-suggests", package]).env("LC_ALL", "C");
    // An unknown package is an error to apt-cache, and an empty answer to us.
    let answer = command.stdin(Stdio::null()).output().context("running apt-cache")?;
    Ok(parse_dependencies(&String::from_utf8_lossy(&answer.stdout)))
}

/// Fetches the newest version of a package into `directory`; the file's path.
pub fn download(package: &str, directory: &Path) -> Result<PathBuf> {
    eprintln!("apt: fetching {package}{}", size_note(package));
    let attempt = || {
        let mut command = Command::new("apt-get");
        // The sandbox user cannot write here; apt would warn, and do it as root anyway.
        command.args(["download", "-q", "-o", "APT::Sandbox::User=root", package]);
        process::output(command.current_dir(directory))
    };
    if let Err(error) = attempt() {
        // The lists may name a version that the mirror no longer has.
        update().with_context(|| error.to_string())?;
        attempt()?;
    }
    let is_ours = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(&format!("{package}_")) && name.ends_with(".deb")
    };
    std::fs::read_dir(directory)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(is_ours)
        .with_context(|| format!("apt-get download {package} left no file"))
}

/// Fetches a package and unpacks those of its files that `pattern` names below `directory`.
pub fn extract(package: &str, pattern: &str, directory: &Path) -> Result<()> {
    let file = download(package, directory)?;
    let mut contents = Command::new("dpkg-deb");
    let mut contents = contents
        .arg("--fsys-tarfile")
        .arg(&file)
        .stdout(Stdio::piped())
        .spawn()
        .context("starting dpkg-deb")?;
    let mut unpack = Command::new("tar");
    unpack.arg("-x").arg("-C").arg(directory).args(["--wildcards", pattern]);
    let unpacked = process::run(unpack.stdin(contents.stdout.take().context("its output")?));
    let status = contents.wait().context("waiting for dpkg-deb")?;
    unpacked.with_context(|| format!("unpacking {package}"))?;
    if !status.success() {
        bail!("dpkg-deb ended with {status} on {package}");
    }
    std::fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))
}

/// Fetches the lists of what there is: needed on a machine that never did, or long ago.
pub fn update() -> Result<()> {
    if !rustix::process::getuid().is_root() {
        bail!("the package lists are missing or old; this fetches them: sudo apt-get update");
    }
    eprintln!("apt: fetching the package lists");
    process::output(Command::new("apt-get").args(["update", "-q"])).map(drop)
}

fn size_note(package: &str) -> String {
    let mut command = Command::new("apt-cache");
    let record = process::output(command.args(["show", "--no-all-versions", package]));
    let bytes = record.ok().and_then(|text| {
        text.lines().find_map(|line| line.strip_prefix("Size: ")?.parse::<u64>().ok())
    });
    bytes.map_or_else(String::new, |bytes| format!(" ({} MB)", bytes.div_ceil(1_000_000)))
}

/// Takes the names out of `apt-cache depends`, leaving virtual packages (`<name>`) and the
/// alternatives after the first (`|Depends:` marks all but the last of a group) as they come.
fn parse_dependencies(answer: &str) -> Vec<String> {
    let name = |line: &str| {
        let line = line.trim().trim_start_matches('|');
        line.strip_prefix("Depends: ").map(str::to_owned)
    };
    answer.lines().filter_map(name).filter(|name| !name.starts_with('<')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_the_real_packages() {
        let answer = "linux-image-virtual\n  Depends: linux-image-6.8.0-49-generic\n \
                      |Depends: kmod\n  Depends: <module-init-tools>\n    kmod\n  Breaks: x\n";
        assert_eq!(parse_dependencies(answer), ["linux-image-6.8.0-49-generic", "kmod"]);
        assert!(parse_dependencies("").is_empty());
    }
}
