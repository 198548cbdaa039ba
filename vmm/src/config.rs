//! What the command line asks for: one value, checked, nothing left to look up.

use std::path::PathBuf;

/// A virtual machine as the user wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The BIOS image; without one, the kernel is booted directly.
    pub bios: Option<PathBuf>,
    /// The kernel: a bzImage or an ELF file.
    pub kernel: Option<PathBuf>,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub append: String,
    /// Bytes of guest RAM.
    pub memory: u64,
    /// Virtual CPUs.
    pub cpus: u8,
    /// Where COM1 leads.
    pub serial: Serial,
    /// A guest reset ends the process instead.
    pub no_reboot: bool,
    /// The isa-debug-exit device.
    pub debug_exit: Option<DebugExit>,
    /// Files for fw_cfg, from `-fw_cfg`.
    pub fw_cfg: Vec<FwCfgFile>,
    /// Where the boot trace goes.
    pub boot_trace: Option<PathBuf>,
}

/// Where a serial port leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Serial {
    /// Nowhere.
    Null,
    /// Standard input and output; Ctrl-C ends the process.
    Stdio,
    /// Standard input and output; Ctrl-A is an escape, every other key goes to the guest.
    MonStdio,
    /// A file, written from its start.
    File(PathBuf),
}

/// The ports of isa-debug-exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DebugExit {
    /// The first port.
    pub iobase: u16,
    /// Ports.
    pub iosize: u16,
}

/// A file that the guest finds in fw_cfg.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FwCfgFile {
    /// Its name there.
    pub name: String,
    /// Its contents.
    pub contents: Contents,
}

/// Where a file's contents come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contents {
    /// From the command line, without a NUL.
    Text(String),
    /// From a file of the host.
    File(PathBuf),
}

impl Default for Config {
    /// What QEMU's microvm is with no options.
    fn default() -> Self {
        Self {
            bios: None,
            kernel: None,
            initrd: None,
            append: String::new(),
            memory: 128 << 20,
            cpus: 1,
            serial: Serial::Null,
            no_reboot: false,
            debug_exit: None,
            fw_cfg: Vec::new(),
            boot_trace: None,
        }
    }
}
