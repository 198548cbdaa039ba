//! `-qmp`, `-mon`, `-chardev`: where QMP is spoken.

use std::ffi::OsString;

use super::{Opt, Properties, Result, Seen};
use crate::config::{Qmp, Serial};

/// A character device, until something uses it.
pub(super) struct Chardev {
    id: String,
    kind: Kind,
    used: bool,
}

enum Kind {
    Stdio { mux: bool },
    Null,
    File(std::path::PathBuf),
    Socket(Qmp),
}

/// `-qmp unix:PATH[,server=on][,wait=off]`, `-qmp stdio`, `-qmp chardev:ID`.
pub(super) fn take_qmp(seen: &mut Seen, option: &Opt, value: OsString) -> Result<()> {
    let text = option.text(value)?;
    if let Some(id) = text.strip_prefix("chardev:") {
        seen.monitors.push(id.into());
        return Ok(());
    }
    let qmp = match (text.as_str(), text.strip_prefix("unix:")) {
        ("stdio", _) => Qmp::Stdio,
        ("none", _) => return Ok(()),
        (_, Some(rest)) => {
            let mut properties = Properties::new(&option.name, rest);
            let path = properties.positional("path")?;
            let qmp = socket(path, &mut properties)?;
            properties.finish()?;
            qmp
        }
        _ => return Err(option.error(format!("'{text}' is none of unix:PATH, stdio, chardev:ID"))),
    };
    seen.config.qmp.push(qmp);
    Ok(())
}

/// `-mon [chardev=]ID,mode=control`.
pub(super) fn take_mon(seen: &mut Seen, option: &Opt, value: OsString) -> Result<()> {
    let mut properties = option.properties(value)?;
    let id = match properties.take("chardev") {
        Some(id) => id,
        None => properties.positional("chardev")?,
    };
    properties.take("pretty");
    let mode = properties.take("mode").unwrap_or_else(|| "readline".into());
    if mode != "control" {
        return Err(option.error(format!("mode={mode} is not here: only mode=control, QMP, is")));
    }
    seen.monitors.push(id);
    properties.finish()
}

/// `-chardev BACKEND,id=ID,..`.
pub(super) fn take_chardev(seen: &mut Seen, option: &Opt, value: OsString) -> Result<()> {
    let mut properties = option.properties(value)?;
    let backend = properties.positional("backend")?;
    let Some(id) = properties.take("id") else {
        return Err(option.error(format!("{backend}: give it an id=")));
    };
    if seen.chardevs.iter().any(|chardev| chardev.id == id) {
        return Err(option.error(format!("id={id} is there already")));
    }
    let path = |properties: &mut Properties| {
        let missing = || option.error(format!("{backend}: give its path="));
        properties.take("path").filter(|path| !path.is_empty()).ok_or_else(missing)
    };
    let kind = match backend.as_str() {
        "stdio" => {
            // Ctrl-C ends the process, unless the escape Ctrl-A is taken.
            properties.switch("signal")?;
            Kind::Stdio { mux: properties.switch("mux")?.unwrap_or(false) }
        }
        "null" => Kind::Null,
        "file" => Kind::File(path(&mut properties)?.into()),
        "socket" => Kind::Socket(socket(path(&mut properties)?, &mut properties)?),
        other => {
            let problem = format!("'{other}' is not here: use stdio, null, file or socket");
            return Err(option.error(problem));
        }
    };
    properties.finish()?;
    seen.chardevs.push(Chardev { id, kind, used: false });
    Ok(())
}

fn socket(path: String, properties: &mut Properties) -> Result<Qmp> {
    let server = properties.switch("server")?.unwrap_or(false);
    // The older spelling of wait=off.
    let nowait = properties.switch("nowait")?.unwrap_or(false);
    let wait = properties.switch("wait")?.unwrap_or(!nowait);
    properties.take("reconnect");
    Ok(Qmp::Unix { path: path.into(), server, wait })
}

/// Gives the character devices to who named them, in whatever order they came.
pub(super) fn connect(seen: &mut Seen) -> Result<()> {
    let (mon, chardev) = (super::option("-mon"), super::option("-chardev"));
    for id in std::mem::take(&mut seen.monitors) {
        let qmp = match &find(seen, &mon, &id)?.kind {
            Kind::Socket(qmp) => qmp.clone(),
            Kind::Stdio { .. } => Qmp::Stdio,
            _ => return Err(mon.error(format!("chardev {id}: QMP is spoken on socket or stdio"))),
        };
        seen.config.qmp.push(qmp);
    }
    if let Some(id) = seen.serial_chardev.take() {
        let serial = super::option("-serial");
        let kind = match &find(seen, &serial, &id)?.kind {
            Kind::Stdio { mux: false } => Serial::Stdio,
            Kind::Stdio { mux: true } => Serial::MonStdio,
            Kind::Null => Serial::Null,
            Kind::File(path) => Serial::File(path.clone()),
            Kind::Socket(_) => {
                return Err(serial.error(format!("chardev {id}: COM1 goes to no socket yet")));
            }
        };
        super::set_serial(seen, &serial, kind)?;
    }
    match seen.chardevs.iter().find(|chardev| !chardev.used) {
        Some(unused) => Err(chardev.error(format!("nothing here uses {}: remove it", unused.id))),
        None => Ok(()),
    }
}

fn find<'a>(seen: &'a mut Seen, option: &Opt, id: &str) -> Result<&'a Chardev> {
    let chardev = seen.chardevs.iter_mut().find(|chardev| chardev.id == id);
    let chardev = chardev.ok_or_else(|| option.error(format!("there is no -chardev id={id}")))?;
    if std::mem::replace(&mut chardev.used, true) {
        return Err(option.error(format!("chardev {id} has a user already")));
    }
    Ok(chardev)
}

/// Standard input and output can be given away once.
pub(super) fn check_stdio(seen: &Seen) -> Result<()> {
    let monitors = seen.config.qmp.iter().filter(|qmp| **qmp == Qmp::Stdio).count();
    let serial = matches!(seen.config.serial, Serial::Stdio | Serial::MonStdio);
    if monitors + usize::from(serial) > 1 {
        let problem = "standard input and output are COM1's or another monitor's: use unix:PATH";
        return Err(super::option("-qmp").error(problem));
    }
    Ok(())
}
