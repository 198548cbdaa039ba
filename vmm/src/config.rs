//! What the command line asks for: one value, checked, nothing left to look up.

mod virtio;

use std::path::PathBuf;

use crate::cpuid::Feature;
pub use virtio::{Balloon, Disk, DiskCache, Fs, Net, Port, TapSource, Virtio};

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
    /// What guest RAM is made of.
    pub backend: Backend,
    /// Virtual CPUs.
    pub cpus: u8,
    /// What each of them is.
    pub cpu: Cpu,
    /// Where COM1 leads.
    pub serial: Chardev,
    /// Whether ACPI describes the machine; if not, an MP table does.
    pub acpi: bool,
    /// Whose interrupt chips there are, if that is said.
    pub irqchip: Option<Irqchip>,
    /// Whether a bzImage is unpacked on the host, once, and its ELF kernel started.
    pub kernel_cache: KernelCache,
    /// Whether there is a COM1.
    pub isa_serial: bool,
    /// What is done when the guest resets itself, powers off or panics.
    pub actions: Actions,
    /// The machine waits for `cont`.
    pub start_stopped: bool,
    /// Whether the process may end before KVM has taken its machine apart.
    pub async_teardown: bool,
    /// The isa-debug-exit device.
    pub debug_exit: Option<DebugExit>,
    /// The pvpanic device.
    pub pvpanic: Option<PvPanic>,
    /// Virtio devices, in the order of the command line.
    pub virtio: Vec<Virtio>,
    /// A Linux without ACPI is told of virtio devices on its command line.
    pub auto_kernel_cmdline: bool,
    /// Where QMP is spoken.
    pub qmp: Vec<Qmp>,
    /// The guest's name.
    pub name: Option<String>,
    /// The process's name.
    pub process_name: Option<String>,
    /// The file that has the process's number while it runs.
    pub pidfile: Option<PathBuf>,
    /// Where messages go too.
    pub log: Option<PathBuf>,
    /// Files for fw_cfg, from `-fw_cfg`.
    pub fw_cfg: Vec<FwCfgFile>,
    /// Where the boot trace goes.
    pub boot_trace: Option<PathBuf>,
}

/// The host's CPU, and what is to be different.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Features that are to be there or not, each once; all others are as KVM offers them.
    pub features: Vec<(Feature, bool)>,
    /// The guest sees that it runs on KVM.
    pub kvm: bool,
    /// The guest is told the rates of its clocks (leaf 0x4000_0010).
    pub rates: bool,
    /// There are performance counters.
    pub counters: bool,
    /// What only this host has stays away.
    pub migratable: bool,
    /// What to do about features that this host does not have.
    pub missing: OnMissing,
}

/// What to do about a feature that was asked for and that the host does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnMissing {
    /// Nothing.
    Ignore,
    /// Say so, and go on without.
    Warn,
    /// Stop.
    Refuse,
}

/// What guest RAM is made of, and how it is treated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// The option that asked for it, for error lines.
    pub option: String,
    /// Where the bytes are.
    pub source: MemorySource,
    /// What the guest writes is seen by whoever else maps the file, and stays in it.
    pub share: bool,
    /// All of it is filled in before the guest starts.
    pub prealloc: bool,
    /// The host's kernel may merge equal pages (`MADV_MERGEABLE`).
    pub merge: bool,
    /// It is part of this process's core dump.
    pub dump: bool,
    /// The host is to back it by huge pages where it can: fewer page faults, more memory.
    pub huge: bool,
    /// The host is to refuse at once what it could not hold.
    pub reserve: bool,
}

/// Where guest RAM comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemorySource {
    /// No file.
    Anonymous,
    /// A file without a name, in memory.
    Memfd {
        /// Of which pages it is made.
        pages: Pages,
        /// Nobody can change its size.
        seal: bool,
    },
    /// A file with this name, or one without a name in this folder.
    File(PathBuf),
}

/// The pages of a file in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// The host's usual ones.
    Usual,
    /// The host's default huge ones.
    Huge,
    /// Huge ones of so many bytes, a power of two.
    HugeOf(u64),
}

impl Default for Backend {
    /// What `-m` alone gives: nothing is reserved, so that a guest may have more than the host
    /// has free; the rest as in QEMU.
    fn default() -> Self {
        Self {
            option: "-m".into(),
            source: MemorySource::Anonymous,
            share: false,
            prealloc: false,
            merge: true,
            dump: true,
            huge: true,
            reserve: false,
        }
    }
}

/// Where a console leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chardev {
    /// Nowhere.
    Null,
    /// Standard input and output.
    Stdio {
        /// Ctrl-C ends the process; if not, it goes to the guest.
        signals: bool,
        /// Ctrl-A is an escape.
        escapes: bool,
    },
    /// A file.
    File {
        /// Its name.
        path: PathBuf,
        /// What it has is kept.
        append: bool,
    },
    /// A pty.
    Pty {
        /// What the line that tells its name calls this device.
        label: String,
    },
    /// A pair of FIFOs, by their name without `.in` and `.out`, or one for both directions.
    Pipe(PathBuf),
    /// A UNIX socket that is made here.
    Server {
        /// Where it is.
        path: PathBuf,
        /// The machine starts when a client comes.
        wait: bool,
    },
    /// A UNIX socket that somebody else listens at.
    Client {
        /// Where it is.
        path: PathBuf,
        /// It is tried again after so many seconds when nobody is there.
        reconnect_s: Option<u64>,
    },
}

impl Chardev {
    /// `stdio`: Ctrl-C ends the process.
    pub const STDIO: Self = Self::Stdio { signals: true, escapes: false };
    /// `mon:stdio`: every key but Ctrl-A goes to the guest.
    pub const MON_STDIO: Self = Self::Stdio { signals: false, escapes: true };

    /// Whether it is standard input and output.
    pub fn is_stdio(&self) -> bool {
        matches!(self, Self::Stdio { .. })
    }
}

/// Whether a bzImage is unpacked on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelCache {
    /// Its guests unpack it.
    Off,
    /// If that can be done; nothing is said of it.
    Auto,
    /// It must be.
    On,
}

/// Who has the interrupt chips beside the local APICs, which are KVM's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Irqchip {
    /// This program has an I/O APIC; there is no 8259.
    Split,
    /// KVM has an I/O APIC and 8259s.
    Kernel,
}

impl Config {
    /// Whether standard output has a user.
    pub fn uses_stdout(&self) -> bool {
        self.serial.is_stdio()
            || self.ports().any(|port| port.chardev.is_stdio())
            || self.qmp.contains(&Qmp::Stdio)
    }

    /// The ports of the virtio serial bus.
    pub fn ports(&self) -> impl Iterator<Item = &Port> {
        self.virtio.iter().flat_map(|device| match device {
            Virtio::Serial(ports) => ports.as_slice(),
            _ => &[],
        })
    }

    /// Whose interrupt chips there are. KVM's spare a kernel half of its exits to this program at
    /// its start; what either costs is in docs/microvm.md.
    pub fn irqchip(&self) -> Irqchip {
        self.irqchip.unwrap_or(Irqchip::Kernel)
    }
}

/// What is done about what the guest does to itself (QEMU's `-action`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Actions {
    /// A reset.
    pub reboot: RebootAction,
    /// Power off.
    pub shutdown: ShutdownAction,
    /// A panic.
    pub panic: PanicAction,
}

/// What a reset does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RebootAction {
    /// It starts the machine anew.
    #[default]
    Reset,
    /// It ends the process, with status 0.
    Shutdown,
}

/// What power off does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShutdownAction {
    /// It ends the process, with status 0.
    #[default]
    Poweroff,
    /// The machine stays for QMP to look at.
    Pause,
}

/// What a panic that the guest tells of does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PanicAction {
    /// It ends the process, with status 1. QEMU's default is `shutdown`, which no script can
    /// tell from power off.
    #[default]
    ExitFailure,
    /// It ends the process, with status 0.
    Shutdown,
    /// The machine stays for QMP to look at.
    Pause,
    /// Nothing.
    None,
}

impl PanicAction {
    /// What QMP's event says is done (QEMU, qapi/run-state.json, GuestPanicAction).
    pub const fn event(self) -> &'static str {
        match self {
            Self::ExitFailure | Self::Shutdown => "poweroff",
            Self::Pause => "pause",
            Self::None => "run",
        }
    }
}

/// The pvpanic device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PvPanic {
    /// Its port.
    pub ioport: u16,
    /// The events that it takes.
    pub events: u8,
}

/// Where QMP is spoken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Qmp {
    /// On standard input and output.
    Stdio,
    /// On a UNIX socket.
    Unix {
        /// Where it is.
        path: PathBuf,
        /// It is made there; if not, somebody listens already.
        server: bool,
        /// The machine starts when a client comes.
        wait: bool,
    },
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
            backend: Backend::default(),
            cpus: 1,
            cpu: Cpu::default(),
            serial: Chardev::Null,
            acpi: true,
            irqchip: None,
            kernel_cache: KernelCache::Off,
            isa_serial: true,
            actions: Actions::default(),
            start_stopped: false,
            async_teardown: true,
            debug_exit: None,
            pvpanic: None,
            virtio: Vec::new(),
            auto_kernel_cmdline: true,
            qmp: Vec::new(),
            name: None,
            process_name: None,
            pidfile: None,
            log: None,
            fw_cfg: Vec::new(),
            boot_trace: None,
        }
    }
}

impl Default for Cpu {
    /// What QEMU's `-cpu host` is.
    fn default() -> Self {
        Self {
            features: Vec::new(),
            kvm: true,
            rates: true,
            counters: true,
            migratable: true,
            missing: OnMissing::Warn,
        }
    }
}
