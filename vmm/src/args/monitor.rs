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
    seen.config.qmp.push(qmp(chardev).map_err(|problem| option.error(problem))?);
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
        let qmp = qmp(chardev);
        let qmp = qmp.map_err(|problem| option.error(format!("chardev {id}: {problem}")))?;
        seen.config.qmp.push(qmp);
    }
    Ok(())
}

/// QMP there, or why not.
fn qmp(chardev: Chardev) -> std::result::Result<Qmp, &'static str> {
    match chardev {
        Chardev::Stdio { .. } => Ok(Qmp::Stdio),
        Chardev::Server { path, wait } => Ok(Qmp::Unix { path, server: true, wait }),
        Chardev::Client { path, reconnect_s: None } => {
            Ok(Qmp::Unix { path, server: false, wait: false })
        }
        Chardev::Client { .. } => Err("QMP's client connects once: leave reconnect= out"),
        Chardev::Null | Chardev::File { .. } | Chardev::Pty { .. } | Chardev::Pipe(_) => {
            Err("QMP is spoken on socket or stdio")
        }
    }
}

/// Standard input and output can be given away once.
pub(super) fn check_stdio(seen: &Seen) -> Result<()> {
    let monitors = seen.config.qmp.iter().filter(|qmp| **qmp == Qmp::Stdio).count();
    let serial = seen.config.serial.is_stdio();
    let consoles = seen.config.ports().filter(|port| port.chardev.is_stdio()).count();
    if consoles > 1 {
        let problem = "virtconsole: standard input and output are another port's: use pty, or \
                       unix:PATH";
        return Err(super::option("-device").error(problem));
    }
    let console = consoles > 0;
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
