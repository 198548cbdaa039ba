//! The initramfs of a workload: init, the kernel's modules, the orders.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use abi::workload::{MODULES, ORDERS, key};
use cpio::newc::{Builder, ModeFileType, trailer};

use super::kernel::Kernel;
use super::modules::{self, Modules};
use super::options::Options;
use super::{Error, Terminal, file};

/// Our init, which is installed beside this program.
const INIT: &str = "microvm-init";
/// What the command finds in its environment, if nobody says otherwise.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const HOME: &str = "HOME=/root";
/// What a guest needs of its kernel, as modules or built in, and the options of each.
const NEEDED: [(&str, &str); 4] = [
    ("virtio_mmio", "CONFIG_VIRTIO_MMIO"),
    ("virtio_console", "CONFIG_VIRTIO_CONSOLE"),
    ("virtiofs", "CONFIG_VIRTIO_FS"),
    ("overlay", "CONFIG_OVERLAY_FS"),
];

/// Writes it to `path`.
pub fn write(
    path: &Path,
    options: &Options,
    kernel: &Kernel,
    terminal: Terminal,
) -> Result<(), Error> {
    let init = init()?;
    let init = fs::read(&init).map_err(file("reading", &init))?;
    let modules = load(options, kernel)?;
    let pack = || {
        let mut out = Archive { out: BufWriter::new(File::create(path)?), number: 0 };
        out.add("init", 0o755, ModeFileType::Regular, &init)?;
        out.add(name(ORDERS), 0o600, ModeFileType::Regular, &orders(options, terminal))?;
        out.add(name(MODULES), 0o755, ModeFileType::Directory, &[])?;
        for (order, module) in modules.iter().enumerate() {
            let path = format!("{}/{order:02}-{}.ko", name(MODULES), module.name);
            out.add(&path, 0o600, ModeFileType::Regular, &module.content)?;
        }
        trailer(out.out)?.flush()
    };
    pack().map_err(file("writing", path))
}

/// A path within an archive.
fn name(path: &str) -> &str {
    path.trim_start_matches('/')
}

/// Where init is.
fn init() -> Result<PathBuf, Error> {
    let own = std::env::current_exe();
    let own = own.map_err(|source| Error::Process("finding this program's file", source))?;
    let init = own.with_file_name(INIT);
    if init.exists() { Ok(init) } else { Err(Error::NoInit(init)) }
}

/// The modules that the kernel's folder has of what is needed, each after those it needs itself.
fn load(options: &Options, kernel: &Kernel) -> Result<Vec<modules::Module>, Error> {
    // A kernel without modules has what it has: init will say what is missing.
    let Some(folder) = &kernel.modules else { return Ok(Vec::new()) };
    let modules = Modules::find(folder)?;
    let mut found: Vec<modules::Module> = Vec::new();
    for (name, option) in NEEDED {
        if name == "overlay" && options.writable {
            continue;
        }
        if modules.lacks(name) {
            return Err(modules::Error::Missing { folder: folder.clone(), name, option }.into());
        }
        for module in modules.with_dependencies(name)? {
            if !found.iter().any(|other| other.name == module.name) {
                found.push(module);
            }
        }
    }
    Ok(found)
}

/// The orders for init.
fn orders(options: &Options, terminal: Terminal) -> Vec<u8> {
    let mut orders = Orders(Vec::new());
    let has = |name: &str| {
        options.variables.iter().any(|pair| pair.as_bytes().starts_with(name.as_bytes()))
    };
    for (name, default) in [("PATH=", PATH), ("HOME=", HOME)] {
        if !has(name) {
            orders.add(key::VARIABLE, default.as_bytes());
        }
    }
    if terminal.is_there && !has("TERM=") {
        let kind = std::env::var_os("TERM").unwrap_or_else(|| "linux".into());
        orders.add(key::VARIABLE, &[b"TERM=", kind.as_bytes()].concat());
    }
    options.variables.iter().for_each(|pair| orders.add(key::VARIABLE, pair.as_bytes()));
    options.command.iter().for_each(|word| orders.add(key::ARGUMENT, word.as_bytes()));
    orders.add(key::DIRECTORY, options.directory.as_bytes());
    for (key, set) in [
        (key::TERMINAL, terminal.is_there),
        (key::ERROR_APART, terminal.error_apart),
        (key::WRITABLE, options.writable),
    ] {
        orders.add(key, if set { b"1" } else { b"0" });
    }
    let [rows, columns] = terminal.size;
    orders.add(key::SIZE, format!("{rows}x{columns}").as_bytes());
    for volume in &options.volumes {
        let mode: &[u8] = if volume.read_only { b"ro:" } else { b"rw:" };
        orders.add(key::VOLUME, &[mode, volume.guest.as_os_str().as_bytes()].concat());
    }
    orders.0
}

struct Orders(Vec<u8>);

impl Orders {
    fn add(&mut self, key: &str, value: &[u8]) {
        self.0.extend([key.as_bytes(), b"=", value, b"\0"].concat());
    }
}

/// A newc archive that is being written.
struct Archive<W> {
    out: W,
    number: u32,
}

impl Archive<BufWriter<File>> {
    fn add(&mut self, name: &str, mode: u32, kind: ModeFileType, content: &[u8]) -> io::Result<()> {
        self.number += 1;
        let builder = Builder::new(name).ino(self.number).mode(mode).set_mode_file_type(kind);
        let size = u32::try_from(content.len()).map_err(io::Error::other)?;
        let mut writer = builder.write(&mut self.out, size);
        writer.write_all(content)?;
        writer.finish().map(drop)
    }
}
