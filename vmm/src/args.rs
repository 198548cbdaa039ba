//! The command line, in QEMU's spelling.
//!
//! Every option is honoured, taken as a no-op that is harmless here, or refused in one line that
//! names it and says what to do. Both `-x` and `--x` are understood.

mod chardev;
mod cpu;
mod device;
mod drive;
mod help;
mod keyval;
mod life;
mod machine;
mod memory;
mod monitor;
mod netdev;
mod port;
mod size;
mod vhost_user;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use crate::config::{Chardev, Config, Contents, FwCfgFile, RebootAction, ShutdownAction};
pub use keyval::Properties;
pub use machine::CPUS_MAX;

/// What a command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// A virtual machine.
    Run(Box<Config>),
    /// A text for standard output.
    Print(String),
    /// What this host's /dev/kvm is.
    DescribeKvm,
}

/// One line: the option, and what to do.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{option}: {problem}")]
pub struct Error {
    option: String,
    problem: String,
}

type Result<T> = std::result::Result<T, Error>;

/// What was seen so far: the configuration, and what decides its defaults.
#[derive(Default)]
struct Seen {
    config: Config,
    memory: memory::Wishes,
    serial: Option<Chardev>,
    nographic: bool,
    nodefaults: bool,
    chardevs: Vec<chardev::Named>,
    // The chardevs of monitors, and of COM1.
    monitors: Vec<String>,
    serial_chardev: Option<String>,
    // Entropy devices by their number and their backend's id, and such backends' files.
    rngs: Vec<(usize, Option<String>)>,
    rng_objects: BTreeMap<String, PathBuf>,
    // Disks by their number and their drive's id, and the drives.
    disks: Vec<(usize, String)>,
    drives: Vec<drive::Drive>,
    // Devices that other processes serve, by their number, and their chardev's id.
    sockets: Vec<(usize, String)>,
    // The chardevs of the ports of the serial bus, in their order.
    ports: Vec<String>,
    // Network cards by their number and their netdev's id, and the netdevs.
    cards: Vec<(usize, String)>,
    netdevs: Vec<netdev::Netdev>,
    // Where BIOS images are looked for.
    data_dirs: Vec<PathBuf>,
    print: Option<Request>,
}

/// The kinds of devices that can be added.
pub fn device_types() -> Vec<&'static str> {
    device::KINDS.iter().map(|kind| kind.name).collect()
}

/// The properties of such a kind: name and type.
pub fn device_properties(kind: &str) -> Option<&'static [(&'static str, &'static str)]> {
    let kind = device::KINDS.iter().find(|known| known.name == kind)?;
    Some(kind.properties)
}

/// Reads a command line, without the program's name.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Request> {
    let mut seen = Seen::default();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let option = Opt::new(&argument)?;
        if !take_flag(&mut seen, &option) {
            take_option(&mut seen, &option, &mut || option.value(arguments.next()))?;
        }
        if let Some(request) = seen.print.take() {
            return Ok(request);
        }
    }
    finish(seen)
}

fn finish(mut seen: Seen) -> Result<Request> {
    monitor::connect(&mut seen)?;
    chardev::connect_serial(&mut seen)?;
    device::connect(&mut seen)?;
    chardev::check_use(&seen)?;
    // As in QEMU: -nographic puts the first serial port on the terminal, unless there are to be
    // no defaults.
    let by_default =
        if seen.nographic && !seen.nodefaults { Chardev::MON_STDIO } else { Chardev::Null };
    seen.config.serial = seen.serial.take().unwrap_or(by_default);
    monitor::check_stdio(&seen)?;
    let mut config = seen.config;
    seen.memory.settle(&mut config)?;
    vhost_user::share_memory(&mut config)?;
    config.bios = config.bios.map(|bios| find_bios(bios, &seen.data_dirs));
    check_kernel(&config)?;
    Ok(Request::Run(Box::new(config)))
}

/// An image that is not where it is said to be is looked for in the folders of `-L`.
fn find_bios(bios: PathBuf, folders: &[PathBuf]) -> PathBuf {
    if bios.exists() {
        return bios;
    }
    folders.iter().map(|folder| folder.join(&bios)).find(|path| path.exists()).unwrap_or(bios)
}

fn check_kernel(config: &Config) -> Result<()> {
    if config.bios.is_none() && config.kernel.is_none() {
        return Err(
            option("-kernel").error("nothing to boot: give -kernel FILE, -bios FILE or both")
        );
    }
    if config.kernel.is_none() {
        let without = |name| option(name).error("needs a kernel: add -kernel FILE");
        if config.initrd.is_some() {
            return Err(without("-initrd"));
        }
        if !config.append.is_empty() {
            return Err(without("-append"));
        }
    }
    Ok(())
}

fn option(name: &str) -> Opt {
    Opt { name: name.into() }
}

const NOT_TEXT: &str = "the value is not UTF-8";

/// An option's name with a single dash.
struct Opt {
    name: String,
}

impl Opt {
    fn new(argument: &OsString) -> Result<Self> {
        let text = argument.to_string_lossy();
        match text.strip_prefix("--").or_else(|| text.strip_prefix('-')) {
            Some(name) if !name.is_empty() => Ok(Self { name: format!("-{name}") }),
            _ => Err(Error {
                option: text.into_owned(),
                problem: "options begin with a dash; a kernel is given by -kernel FILE".into(),
            }),
        }
    }

    fn error(&self, problem: impl Into<String>) -> Error {
        Error { option: self.name.clone(), problem: problem.into() }
    }

    fn value(&self, next: Option<OsString>) -> Result<OsString> {
        next.ok_or_else(|| self.error("a value must follow"))
    }

    fn text(&self, value: OsString) -> Result<String> {
        value.into_string().map_err(|_| self.error(NOT_TEXT))
    }

    fn path(&self, value: OsString) -> Result<PathBuf> {
        if value.is_empty() {
            return Err(self.error("a file name must follow"));
        }
        Ok(value.into())
    }

    fn properties(&self, value: OsString) -> Result<Properties> {
        match value.into_string() {
            Ok(text) if text.starts_with('{') => Properties::from_json(&self.name, &text),
            Ok(text) => Ok(Properties::new(&self.name, &text)),
            Err(bytes) => {
                let properties = Properties::of_bytes(&self.name, bytes);
                properties.ok_or_else(|| self.error(NOT_TEXT))
            }
        }
    }
}

/// Options without a value; whether `option` is one.
fn take_flag(seen: &mut Seen, option: &Opt) -> bool {
    match option.name.as_str() {
        "-enable-kvm" | "-no-user-config" | "-no-hpet" | "-no-fd-bootchk" => {}
        "-nodefaults" => seen.nodefaults = true,
        "-nographic" => seen.nographic = true,
        "-no-reboot" => seen.config.actions.reboot = RebootAction::Shutdown,
        "-no-shutdown" => seen.config.actions.shutdown = ShutdownAction::Pause,
        "-no-acpi" => seen.config.acpi = false,
        "-S" => seen.config.start_stopped = true,
        // As QEMU 7.2 has it.
        "-async-teardown" => seen.config.async_teardown = true,
        "-mem-prealloc" => seen.memory.prealloc = true,
        "-h" | "-help" => seen.print = Some(Request::Print(help::usage())),
        "-version" => seen.print = Some(Request::Print(help::version())),
        _ => return false,
    }
    true
}

fn take_option(
    seen: &mut Seen,
    option: &Opt,
    value: &mut dyn FnMut() -> Result<OsString>,
) -> Result<()> {
    let config = &mut seen.config;
    match option.name.as_str() {
        "-M" | "-machine" => machine::take_machine(seen, option, value()?)?,
        "-accel" => machine::take_accel(seen, option, value()?)?,
        "-cpu" => cpu::take(seen, option, value()?)?,
        "-m" => seen.memory.take_size(option, value()?)?,
        "-object" => match value()? {
            object if object.to_string_lossy().starts_with("rng-") => {
                device::take_rng_object(seen, option, object)?;
            }
            object => memory::take_object(seen, option, object)?,
        },
        "-numa" => seen.memory.take_numa(option, value()?)?,
        "-mem-path" => seen.memory.path = Some(option.path(value()?)?),
        "-smp" => config.cpus = machine::cpus(option, value()?)?,
        "-bios" => config.bios = Some(option.path(value()?)?),
        "-kernel" => config.kernel = Some(option.path(value()?)?),
        "-initrd" => config.initrd = Some(option.path(value()?)?),
        "-append" => config.append = command_line(option, value()?)?,
        "-serial" => chardev::take_serial(seen, option, value()?)?,
        "-display" | "-monitor" | "-parallel" | "-vga" | "-net" | "-nic" => {
            let value = option.text(value()?)?;
            if value != "none" {
                return Err(option.error(format!("'{value}' is not here: only 'none' is")));
            }
        }
        "-device" => device::take(seen, option, value()?)?,
        "-drive" => drive::take_drive(seen, option, value()?)?,
        "-blockdev" => drive::take_blockdev(seen, option, value()?)?,
        "-netdev" => netdev::take(seen, option, value()?)?,
        "-fw_cfg" => config.fw_cfg.push(fw_cfg_file(option, value()?)?),
        "-boot-trace" => config.boot_trace = Some(option.path(value()?)?),
        _ => return take_process_option(seen, option, value),
    }
    Ok(())
}

/// Options about the process rather than the machine.
fn take_process_option(
    seen: &mut Seen,
    option: &Opt,
    value: &mut dyn FnMut() -> Result<OsString>,
) -> Result<()> {
    match option.name.as_str() {
        "-qmp" => monitor::take_qmp(seen, option, value()?)?,
        "-mon" => monitor::take_mon(seen, option, value()?)?,
        "-chardev" => chardev::take(seen, option, value()?)?,
        "-action" => life::take_action(seen, option, value()?)?,
        "-run-with" => life::take_run_with(seen, option, value()?)?,
        "-name" => life::take_name(seen, option, value()?)?,
        "-global" => life::take_global(seen, option, value()?)?,
        "-pidfile" => seen.config.pidfile = Some(option.path(value()?)?),
        "-D" => seen.config.log = Some(option.path(value()?)?),
        "-d" => life::take_log_items(option, value()?)?,
        "-L" => seen.data_dirs.push(option.path(value()?)?),
        // There is no watchdog.
        "-watchdog-action" => drop(option.text(value()?)?),
        // Without a clock chip, a guest's time is the host's.
        "-rtc" => {
            let allowed = [("base", "utc"), ("clock", "host"), ("driftfix", "none")];
            life::take_fixed(option, value()?, &allowed)?;
        }
        "-overcommit" => {
            let allowed = [("mem-lock", "off"), ("cpu-pm", "off")];
            life::take_fixed(option, value()?, &allowed)?;
        }
        "-sandbox" => {
            if option.text(value()?)? != "off" {
                let problem = "there is no filter of system calls yet: systemd-run -p \
                               SystemCallFilter=@system-service puts one around it";
                return Err(option.error(problem));
            }
        }
        _ => return Err(option.error(help::refusal(&option.name))),
    }
    Ok(())
}

fn command_line(option: &Opt, value: OsString) -> Result<String> {
    let text = option.text(value)?;
    if text.contains('\0') {
        return Err(option.error("a command line has no NUL in it"));
    }
    Ok(text)
}

fn fw_cfg_file(option: &Opt, value: OsString) -> Result<FwCfgFile> {
    let mut properties = option.properties(value)?;
    let name = match properties.take("name") {
        Some(name) => name,
        None => properties.positional("name")?,
    };
    let contents = match (properties.take("string"), properties.take("file")) {
        (Some(text), None) => Contents::Text(text),
        (None, Some(path)) if !path.is_empty() => Contents::File(path.into()),
        _ => return Err(option.error(format!("{name}: give either string=TEXT or file=FILE"))),
    };
    properties.finish()?;
    if !name.starts_with("opt/") {
        let problem = format!("{name}: names of your own begin with opt/, as in opt/org.example/x");
        return Err(option.error(problem));
    }
    if abi::fw_cfg::File::new(&name, 0, 0).is_none() {
        return Err(option.error(format!("{name}: a name has at most 55 bytes")));
    }
    Ok(FwCfgFile { name, contents })
}

#[cfg(test)]
mod tests;
