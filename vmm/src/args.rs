//! The command line, in QEMU's spelling.
//!
//! Every option is honoured, taken as a no-op that is harmless here, or refused in one line that
//! names it and says what to do. Both `-x` and `--x` are understood.

mod help;
mod keyval;
mod machine;

use std::ffi::OsString;
use std::path::PathBuf;

use crate::config::{Config, Contents, DebugExit, FwCfgFile, Serial};
pub use keyval::Properties;

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
    serial: Option<Serial>,
    nographic: bool,
    nodefaults: bool,
    print: Option<Request>,
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

fn finish(seen: Seen) -> Result<Request> {
    let mut config = seen.config;
    // As in QEMU: -nographic puts the first serial port on the terminal, unless there are to be
    // no defaults.
    let by_default =
        if seen.nographic && !seen.nodefaults { Serial::MonStdio } else { Serial::Null };
    config.serial = seen.serial.unwrap_or(by_default);
    let option = |name: &'static str| Opt { name: name.into() };
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
    Ok(Request::Run(Box::new(config)))
}

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
        value.into_string().map_err(|_| self.error("the value is not UTF-8"))
    }

    fn path(&self, value: OsString) -> Result<PathBuf> {
        if value.is_empty() {
            return Err(self.error("a file name must follow"));
        }
        Ok(value.into())
    }

    fn properties(&self, value: OsString) -> Result<Properties> {
        Ok(Properties::new(&self.name, &self.text(value)?))
    }
}

/// Options without a value; whether `option` is one.
fn take_flag(seen: &mut Seen, option: &Opt) -> bool {
    match option.name.as_str() {
        "-enable-kvm" | "-no-user-config" | "-no-hpet" => {}
        "-nodefaults" => seen.nodefaults = true,
        "-nographic" => seen.nographic = true,
        "-no-reboot" => seen.config.no_reboot = true,
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
        "-cpu" => machine::take_cpu(seen, option, value()?)?,
        "-m" => config.memory = machine::memory(option, value()?)?,
        "-smp" => config.cpus = machine::cpus(option, value()?)?,
        "-bios" => config.bios = Some(option.path(value()?)?),
        "-kernel" => config.kernel = Some(option.path(value()?)?),
        "-initrd" => config.initrd = Some(option.path(value()?)?),
        "-append" => config.append = command_line(option, value()?)?,
        "-serial" => take_serial(seen, option, value()?)?,
        "-display" | "-monitor" | "-parallel" | "-vga" | "-net" | "-nic" => {
            let value = option.text(value()?)?;
            if value != "none" {
                return Err(option.error(format!("'{value}' is not here: only 'none' is")));
            }
        }
        "-device" => take_device(seen, option, value()?)?,
        "-fw_cfg" => config.fw_cfg.push(fw_cfg_file(option, value()?)?),
        "-boot-trace" => config.boot_trace = Some(option.path(value()?)?),
        "-name" => drop(option.text(value()?)?),
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

fn take_serial(seen: &mut Seen, option: &Opt, value: OsString) -> Result<()> {
    let text = option.text(value)?;
    let serial = match text.as_str() {
        "stdio" => Serial::Stdio,
        "mon:stdio" => Serial::MonStdio,
        "null" | "none" => Serial::Null,
        other => match other.strip_prefix("file:") {
            Some(path) if !path.is_empty() => Serial::File(path.into()),
            _ => {
                let problem = format!("'{text}' is none of stdio, mon:stdio, null, file:FILE");
                return Err(option.error(problem));
            }
        },
    };
    if seen.serial.replace(serial).is_some() {
        return Err(option.error("the machine has one serial port: give it once"));
    }
    Ok(())
}

fn take_device(seen: &mut Seen, option: &Opt, value: OsString) -> Result<()> {
    let mut properties = option.properties(value)?;
    let driver = properties.positional("driver")?;
    match driver.as_str() {
        // QEMU's defaults for the two numbers.
        "isa-debug-exit" => {
            let iobase = properties.number("iobase", u64::from(u16::MAX))?.unwrap_or(0x501);
            let iosize = properties.number("iosize", 4)?.unwrap_or(2);
            let port = |n| u16::try_from(n).unwrap_or(u16::MAX);
            if iosize == 0 {
                return Err(option.error("isa-debug-exit: iosize must be 1 to 4"));
            }
            let device = DebugExit { iobase: port(iobase), iosize: port(iosize) };
            if seen.config.debug_exit.replace(device).is_some() {
                return Err(option.error("isa-debug-exit: give it once"));
            }
        }
        // Its reset line is there anyway.
        "i8042" => {}
        "help" => seen.print = Some(Request::Print(help::devices())),
        other => {
            let problem = format!("'{other}' is not here; -device help lists what is");
            return Err(option.error(problem));
        }
    }
    properties.finish()
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
