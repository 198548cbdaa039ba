//! Kernel modules: which files they are, and what must be loaded before them.
//!
//! A folder of modules need not have a `modules.dep` (depmod writes it on installation), but each
//! module names those it needs in its `.modinfo` section.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use object::Endianness;
use object::elf::FileHeader64;
use object::read::elf::{FileHeader, SectionHeader};

use crate::kernel_cache::unpack;

/// Why a module cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder.
    #[error("kernel modules: reading '{path}'")]
    Read {
        /// Where.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// A file that is no module.
    #[error("kernel modules: '{path}': {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Modules that need each other.
    #[error("kernel modules need each other in a circle: {0}")]
    Circle(String),
    /// The kernel has it neither built in nor as a file.
    #[error("the kernel of '{folder}' has no {name}: use one that is built with {option}")]
    Missing {
        /// The folder of the kernel's modules.
        folder: PathBuf,
        /// The module.
        name: &'static str,
        /// The option of the kernel's configuration.
        option: &'static str,
    },
}

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
    /// Those that the kernel has within itself, if somebody says so.
    built_in: Option<BTreeSet<String>>,
}

impl Modules {
    /// Finds the modules below a kernel's module directory.
    pub fn find(directory: &Path) -> Result<Self, Error> {
        let listed = |name: &str| {
            let text = fs::read_to_string(directory.join(name)).ok()?;
            let paths = text.lines().map(|line| line.split(':').next().unwrap_or(line));
            Some(paths.filter_map(named).map(|(name, path)| (name, directory.join(path))).collect())
        };
        let files = match listed("modules.dep") {
            Some(files) => files,
            None => {
                let mut files = BTreeMap::new();
                let failed = |source| Error::Read { path: directory.into(), source };
                walk(directory, &mut files).map_err(failed)?;
                files
            }
        };
        let built_in = listed("modules.builtin");
        Ok(Self { files, built_in: built_in.map(|built_in| built_in.into_keys().collect()) })
    }

    /// Whether the kernel is known to have no such module.
    pub fn lacks(&self, name: &str) -> bool {
        let elsewhere = self.built_in.as_ref().is_some_and(|known| !known.contains(name));
        elsewhere && !self.files.contains_key(name)
    }

    /// The module and all it needs, each after those it needs itself.
    ///
    /// What has no file is taken to be built into the kernel.
    pub fn with_dependencies(&self, name: &str) -> Result<Vec<Module>, Error> {
        let mut ordered = Vec::new();
        self.add(&kernel_name(name), &mut Vec::new(), &mut ordered)?;
        Ok(ordered)
    }

    fn add(
        &self,
        name: &str,
        above: &mut Vec<String>,
        done: &mut Vec<Module>,
    ) -> Result<(), Error> {
        let Some(path) = self.files.get(name) else { return Ok(()) };
        if above.iter().any(|other| other == name) {
            return Err(Error::Circle(above.join(", ")));
        }
        if done.iter().any(|module| module.name == name) {
            return Ok(());
        }
        let content = read(path)?;
        let needed = dependencies(&content)
            .map_err(|why| Error::Damaged { path: path.clone(), why: why.into() })?;
        above.push(name.to_owned());
        for dependency in needed {
            self.add(&dependency, above, done)?;
        }
        above.pop();
        done.push(Module { name: name.to_owned(), content });
        Ok(())
    }
}

fn walk(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        // Installed kernels have links here to their sources and build directories.
        if entry.file_type()?.is_dir() {
            walk(&path, files)?;
        } else if let Some((name, _)) = path.to_str().and_then(named) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// The name of the module that is in such a file, and the path; `None` for other files.
fn named(path: &str) -> Option<(String, &str)> {
    const SUFFIXES: [&str; 4] = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"];
    let (_, file) = path.rsplit_once('/').unwrap_or(("", path));
    let stem = SUFFIXES.iter().find_map(|suffix| file.strip_suffix(suffix))?;
    Some((kernel_name(stem), path))
}

/// The kernel writes `_` where file names have `-`.
fn kernel_name(file_stem: &str) -> String {
    file_stem.replace('-', "_")
}

/// Bytes of a module, at the most: hostile ones would unpack to more.
const SIZE_MAX: u64 = 64 << 20;

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let content = fs::read(path).map_err(|source| Error::Read { path: path.into(), source })?;
    if content.starts_with(b"\x7fELF") {
        return Ok(content);
    }
    unpack(&content, SIZE_MAX).map_err(|why| Error::Damaged { path: path.into(), why })
}

fn unpack(content: &[u8], most: u64) -> Result<Vec<u8>, String> {
    let stream = unpack::open(content, content);
    let stream = stream.map_err(|_| "not packed by gzip, xz or zstd")?;
    let mut unpacked = Vec::new();
    let size = stream.take(most + 1).read_to_end(&mut unpacked);
    match size.map_err(|error| error.to_string())? {
        size if size as u64 > most => Err(format!("it unpacks to more than {most} bytes")),
        _ => Ok(unpacked),
    }
}

/// The names in the `depends=` entry of a module's `.modinfo` section.
fn dependencies(module: &[u8]) -> Result<Vec<String>, &'static str> {
    let parse = || {
        let header = FileHeader64::<Endianness>::parse(module).ok()?;
        let endian = header.endian().ok()?;
        let sections = header.sections(endian, module).ok()?;
        let (_, section) = sections.section_by_name(endian, b".modinfo")?;
        section.data(endian, module).ok()
    };
    parse_depends(parse().ok_or("no 64-bit ELF file with a .modinfo section")?)
}

fn parse_depends(modinfo: &[u8]) -> Result<Vec<String>, &'static str> {
    let depends = modinfo.split(|&byte| byte == 0).find_map(|item| item.strip_prefix(b"depends="));
    let names = std::str::from_utf8(depends.unwrap_or_default());
    let names = names.map_err(|_| "the modules that it needs have names that are not UTF-8")?;
    Ok(names.split(',').filter(|name| !name.is_empty()).map(kernel_name).collect())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::write::GzEncoder;

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
        for (file, name) in [
            ("kernel/kvm-amd.ko", Some("kvm_amd")),
            ("a.ko/kvm.ko.xz", Some("kvm")),
            ("modules.order", None),
        ] {
            assert_eq!(named(file).map(|(name, _)| name).as_deref(), name, "{file}");
        }
    }

    #[test]
    fn a_module_is_unpacked_whole_or_not_at_all() {
        let mut packer = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packer.write_all(&[7; 1000]).unwrap();
        let packed = packer.finish().unwrap();
        assert_eq!(unpack(&packed, 1000).unwrap(), [7; 1000]);
        assert!(unpack(&packed, 999).unwrap_err().contains("more than 999 bytes"));
        assert!(unpack(b"text", 999).is_err());
    }

    #[test]
    fn hostile_modules_are_errors() {
        for bytes in [&b""[..], b"\x7fELF", &[0; 64]] {
            assert!(dependencies(bytes).is_err());
        }
    }

    #[test]
    fn what_is_neither_a_file_nor_built_in_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("modules.dep", "kernel/fs/fuse/virtiofs.ko.xz: kernel/fs/fuse/fuse.ko.xz\n");
        let lacks = |name| Modules::find(folder.path()).unwrap().lacks(name);
        assert!(!lacks("overlay"), "nobody knows");
        write("modules.builtin", "kernel/fs/overlayfs/overlay.ko\n");
        assert!(!lacks("overlay") && !lacks("virtiofs") && lacks("virtio_mmio"));
    }
}
