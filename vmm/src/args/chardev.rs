//! `-chardev`, `-serial`: where a console leads.

use std::ffi::OsString;
use std::path::PathBuf;

use super::{Opt, Properties, Result, Seen};
use crate::config::Chardev;

/// A character device, until something uses it.
pub(super) struct Named {
    id: String,
    chardev: Chardev,
    used: bool,
}

/// `-chardev BACKEND,id=ID,..`.
pub(super) fn take(seen: &mut Seen, option: &Opt, value: OsString) -> Result<()> {
    let mut properties = option.properties(value)?;
    let backend = properties.positional("backend")?;
    let Some(id) = properties.take("id") else {
        return Err(option.error(format!("{backend}: give it an id=")));
    };
    if seen.chardevs.iter().any(|chardev| chardev.id == id) {
        return Err(option.error(format!("id={id} is there already")));
    }
    let chardev = match backend.as_str() {
        "stdio" => {
            // Ctrl-C ends the process unless signal=off.
            let signals = properties.switch("signal")?.unwrap_or(true);
            let escapes = properties.switch("mux")?.unwrap_or(false);
            Chardev::Stdio { signals, escapes }
        }
        "null" => Chardev::Null,
        "file" => Chardev::File {
            path: path(option, &backend, &mut properties)?,
            append: properties.switch("append")?.unwrap_or(false),
        },
        "pty" => Chardev::Pty { label: id.clone() },
        "pipe" => Chardev::Pipe(path(option, &backend, &mut properties)?),
        "socket" if properties.has("host") || properties.has("port") => {
            return Err(option.error(format!("socket: {NO_NETWORK}")));
        }
        "socket" => {
            let path = path(option, &backend, &mut properties)?;
            socket(path, &mut properties)?
        }
        "udp" => return Err(option.error(format!("udp: {NO_NETWORK}"))),
        "serial" | "tty" | "parallel" | "parport" => {
            return Err(option.error(format!("{backend}: {NO_PORT}")));
        }
        "vc" => return Err(option.error(format!("vc: {NO_DISPLAY}"))),
        other => {
            let known = "stdio, null, file, pty, pipe or socket";
            return Err(option.error(format!("'{other}' is not here: use {known}")));
        }
    };
    if properties.switch("mux")? == Some(true) {
        return Err(option.error(format!("{backend}: mux=on is for stdio: leave it out")));
    }
    properties.finish()?;
    seen.chardevs.push(Named { id, chardev, used: false });
    Ok(())
}

const NO_NETWORK: &str = "there are no network sockets here: use unix:PATH \
                          (-chardev socket,path=PATH), and socat to lead it on";
const NO_DISPLAY: &str = "there is no display: use pty";
const NO_PORT: &str = "the host's serial ports are not here: use pty, and socat to lead it on";

fn path(option: &Opt, backend: &str, properties: &mut Properties) -> Result<PathBuf> {
    properties.take_path().ok_or_else(|| option.error(format!("{backend}: give its path=")))
}

/// A UNIX socket's properties, but its path.
pub(super) fn socket(path: PathBuf, properties: &mut Properties) -> Result<Chardev> {
    let is_server = properties.switch("server")?.unwrap_or(false);
    // The older spelling of wait=off.
    let nowait = properties.switch("nowait")?.unwrap_or(false);
    let wait = properties.switch("wait")?;
    if !is_server && (wait.is_some() || nowait) {
        return Err(properties.error("wait= is for a server: leave it out".into()));
    }
    let wait = wait.unwrap_or(!nowait);
    let reconnect = properties.number("reconnect", u32::MAX.into())?.filter(|s| *s > 0);
    match (is_server, reconnect) {
        (true, Some(_)) => Err(properties.error("reconnect= is for a client: leave it out".into())),
        (true, None) => Ok(Chardev::Server { path, wait }),
        (false, reconnect_s) => Ok(Chardev::Client { path, reconnect_s }),
    }
}

/// `-serial WHERE`.
pub(super) fn take_serial(seen: &mut Seen, option: &Opt, value: OsString) -> Result<()> {
    let text = option.text(value)?;
    let serial = match (text.as_str(), text.split_once(':')) {
        ("stdio", _) => Chardev::STDIO,
        ("mon:stdio", _) => Chardev::MON_STDIO,
        ("null" | "none", _) => Chardev::Null,
        ("pty", _) => Chardev::Pty { label: "serial0".into() },
        (_, Some(("file", path))) if !path.is_empty() => {
            Chardev::File { path: path.into(), append: false }
        }
        (_, Some(("pipe", path))) if !path.is_empty() => Chardev::Pipe(path.into()),
        (_, Some(("unix", rest))) => {
            let mut properties = Properties::new(&option.name, rest);
            let path = properties.positional("path")?;
            let chardev = socket(path.into(), &mut properties)?;
            properties.finish()?;
            chardev
        }
        (_, Some(("chardev", id))) => {
            if seen.serial_chardev.replace(id.into()).is_some() {
                return Err(option.error(SERIAL_TWICE));
            }
            return Ok(());
        }
        (_, Some(("tcp" | "udp" | "telnet" | "websocket", _))) => {
            return Err(option.error(format!("'{text}': {NO_NETWORK}")));
        }
        ("vc", _) | (_, Some(("vc", _))) => {
            return Err(option.error(format!("'{text}': {NO_DISPLAY}")));
        }
        (path, _) if path.starts_with("/dev/") => {
            return Err(option.error(format!("'{text}': {NO_PORT}")));
        }
        _ => {
            let known = "stdio, mon:stdio, null, file:FILE, pty, unix:PATH, pipe:PATH, chardev:ID";
            return Err(option.error(format!("'{text}' is none of {known}")));
        }
    };
    set_serial(seen, option, serial)
}

const SERIAL_TWICE: &str = "the machine has one serial port: give it once";

fn set_serial(seen: &mut Seen, option: &Opt, serial: Chardev) -> Result<()> {
    match seen.serial.replace(serial) {
        Some(_) => Err(option.error(SERIAL_TWICE)),
        None => Ok(()),
    }
}

/// Gives COM1 the character device that `-serial chardev:ID` names, wherever that comes.
pub(super) fn connect_serial(seen: &mut Seen) -> Result<()> {
    let Some(id) = seen.serial_chardev.take() else { return Ok(()) };
    let option = super::option("-serial");
    let chardev = find(seen, &option, &id)?;
    set_serial(seen, &option, chardev)
}

/// The character device `id`, for the one who uses it.
pub(super) fn find(seen: &mut Seen, option: &Opt, id: &str) -> Result<Chardev> {
    let named = seen.chardevs.iter_mut().find(|named| named.id == id);
    let named = named.ok_or_else(|| option.error(format!("there is no -chardev id={id}")))?;
    if std::mem::replace(&mut named.used, true) {
        return Err(option.error(format!("chardev {id} has a user already")));
    }
    Ok(named.chardev.clone())
}

/// Refuses those that nothing uses.
pub(super) fn check_use(seen: &Seen) -> Result<()> {
    match seen.chardevs.iter().find(|named| !named.used) {
        Some(unused) => {
            let problem = format!("nothing here uses {}: remove it", unused.id);
            Err(super::option("-chardev").error(problem))
        }
        None => Ok(()),
    }
}
