//! `-qmp`, `-mon`: where QMP is spoken.

use std::ffi::OsString;

use super::{Opt, Properties, Result, Seen, chardev};
use crate::config::{Chardev, Qmp};

/// `-qmp unix:PATH[,server=on][,wait=off]`, `-qmp stdio`, `-qmp chardev:ID`.
pub(super) fn take_qmp(seen: &mut Seen, option: &Opt, value: OsString) -> Result<()> {
    let text = option.text(value)?;
    if let Some(id) = text.strip_prefix("chardev:") {
        seen.monitors.push(id.into());
        return Ok(());
    }
    let chardev = match (text.as_str(), text.strip_prefix("unix:")) {
        ("stdio", _) => Chardev::STDIO,
        ("none", _) => return Ok(()),
        (_, Some(rest)) => {
            let mut properties = Properties::new(&option.name, rest);
            let path = properties.positional("path")?;
            let chardev = chardev::socket(path.into(), &mut properties)?;
            properties.finish()?;
            chardev
        }
        _ => return Err(option.error(format!("'{text}' is none of unix:PATH, stdio, chardev:ID"))),
    };
    seen.config.qmp.extend(qmp(chardev));
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

/// Gives monitors the character devices that they name, wherever those come.
pub(super) fn connect(seen: &mut Seen) -> Result<()> {
    let option = super::option("-mon");
    for id in std::mem::take(&mut seen.monitors) {
        let chardev = chardev::find(seen, &option, &id)?;
        let Some(qmp) = qmp(chardev) else {
            let problem = format!("chardev {id}: QMP is spoken on socket or stdio");
            return Err(option.error(problem));
        };
        seen.config.qmp.push(qmp);
    }
    Ok(())
}

/// QMP there, if it can be.
fn qmp(chardev: Chardev) -> Option<Qmp> {
    match chardev {
        Chardev::Stdio { .. } => Some(Qmp::Stdio),
        Chardev::Server { path, wait } => Some(Qmp::Unix { path, server: true, wait }),
        Chardev::Client { path, .. } => Some(Qmp::Unix { path, server: false, wait: false }),
        Chardev::Null | Chardev::File { .. } | Chardev::Pty { .. } | Chardev::Pipe(_) => None,
    }
}

/// Standard input and output can be given away once.
pub(super) fn check_stdio(seen: &Seen) -> Result<()> {
    let monitors = seen.config.qmp.iter().filter(|qmp| **qmp == Qmp::Stdio).count();
    let serial = seen.config.serial.is_stdio();
    let console = seen.config.ports().any(|port| port.chardev.is_stdio());
    if serial && console {
        let problem = "standard input and output are COM1's: say -serial null, or another chardev";
        return Err(super::option("-device").error(format!("virtconsole: {problem}")));
    }
    if monitors + usize::from(serial || console) > 1 {
        let problem = "standard input and output are a console's or another monitor's: use \
                       unix:PATH";
        return Err(super::option("-qmp").error(problem));
    }
    Ok(())
}
