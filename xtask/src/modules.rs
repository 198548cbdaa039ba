//! Kernel modules: which files they are, and what must be loaded before them.
//!
//! A package holds no `modules.dep` (depmod writes it on installation), but each module names
//! those it needs in its `.modinfo` section.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use object::Endianness;
use object::elf::FileHeader64;
use object::read::elf::{FileHeader, SectionHeader};

use crate::{apt, process};

/// Suffixes of modules and the program that unpacks each, with its package.
const PACKED: [(&str, Option<(&str, &str)>); 4] = [
    (".ko", None),
    (".ko.xz", Some(("xz", "xz-utils"))),
    (".ko.zst", Some(("zstd", "zstd"))),
    (".ko.gz", Some(("gzip", "gzip"))),
];

/// A module ready to be loaded.
#[derive(Debug)]
pub struct Module {
    /// Its name as the kernel knows it.
    pub name: String,
    /// Its ELF file.
    pub content: Vec<u8>,
}

/// The modules of one kernel.
pub struct Modules {
    files: BTreeMap<String, PathBuf>,
}

impl Modules {
    /// Finds the modules below a kernel's module directory.
    pub fn find(directory: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        list(directory, &mut files).with_context(|| format!("listing {}", directory.display()))?;
        Ok(Self { files })
    }

    /// The module and all it needs, each after those it needs itself.
    ///
    /// What has no file is taken to be built into the kernel.
    pub fn with_dependencies(&self, name: &str) -> Result<Vec<Module>> {
        let mut ordered = Vec::new();
        self.add(&kernel_name(name), &mut Vec::new(), &mut ordered)?;
        Ok(ordered)
    }

    fn add(&self, name: &str, above: &mut Vec<String>, done: &mut Vec<Module>) -> Result<()> {
        let Some(path) = self.files.get(name) else { return Ok(()) };
        if above.iter().any(|other| other == name) {
            bail!("kernel modules need each other in a circle: {}", above.join(", "));
        }
        if done.iter().any(|module| module.name == name) {
            return Ok(());
        }
        let content = read(path)?;
        let needed = dependencies(&content).with_context(|| format!("{}", path.display()))?;
        above.push(name.to_owned());
        for dependency in needed {
            self.add(&dependency, above, done)?;
        }
        above.pop();
        done.push(Module { name: name.to_owned(), content });
        Ok(())
    }
}

fn list(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        // Installed kernels have links here to their sources and build directories.
        if entry.file_type()?.is_dir() {
            list(&path, files)?;
        } else if let Some(name) = path.file_name().and_then(|name| name.to_str())
            && let Some((stem, _)) = split_suffix(name)
        {
            files.insert(kernel_name(stem), path);
        }
    }
    Ok(())
}

type Unpacker = Option<(&'static str, &'static str)>;

fn split_suffix(name: &str) -> Option<(&str, Unpacker)> {
    PACKED.iter().find_map(|(suffix, unpacker)| Some((name.strip_suffix(suffix)?, *unpacker)))
}

/// The kernel writes `_` where file names have `-`.
fn kernel_name(file_stem: &str) -> String {
    file_stem.replace('-', "_")
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let reading = || format!("reading {}", path.display());
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    match split_suffix(name).and_then(|(_, unpacker)| unpacker) {
        None => fs::read(path).with_context(reading),
        Some((program, package)) => {
            let mut command = Command::new(apt::tool(program, package)?);
            process::output_bytes(command.arg("-dc").arg(path)).with_context(reading)
        }
    }
}

/// The names in the `depends=` entry of a module's `.modinfo` section.
fn dependencies(module: &[u8]) -> Result<Vec<String>> {
    let header = FileHeader64::<Endianness>::parse(module).context("no 64-bit ELF file")?;
    let endian = header.endian()?;
    let sections = header.sections(endian, module)?;
    let (_, section) = sections.section_by_name(endian, b".modinfo").context("no .modinfo")?;
    parse_depends(section.data(endian, module)?)
}

fn parse_depends(modinfo: &[u8]) -> Result<Vec<String>> {
    let depends = modinfo.split(|&byte| byte == 0).find_map(|item| item.strip_prefix(b"depends="));
    let names = std::str::from_utf8(depends.unwrap_or_default())?;
    Ok(names.split(',').filter(|name| !name.is_empty()).map(kernel_name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modinfo_names_what_a_module_needs() {
        let needed = |modinfo: &[u8]| parse_depends(modinfo).unwrap();
        assert_eq!(
            needed(b"license=GPL\0depends=kvm,irq-bypass\0name=kvm_amd\0"),
            ["kvm", "irq_bypass"]
        );
        assert!(needed(b"license=GPL\0depends=\0").is_empty());
        assert!(needed(b"license=GPL").is_empty());
        assert!(parse_depends(b"depends=\xff\0").is_err());
    }

    #[test]
    fn module_files_may_be_packed() {
        for (file, stem) in
            [("kvm-amd.ko", Some("kvm-amd")), ("kvm.ko.xz", Some("kvm")), ("modules.order", None)]
        {
            assert_eq!(split_suffix(file).map(|(stem, _)| stem), stem, "{file}");
        }
    }

    #[test]
    fn hostile_modules_are_errors() {
        for bytes in [&b""[..], b"\x7fELF", &[0; 64]] {
            assert!(dependencies(bytes).is_err());
        }
    }
}
