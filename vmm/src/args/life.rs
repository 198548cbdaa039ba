//! `-action` and its kin: how the machine begins and ends.

use std::ffi::OsString;

use super::{Opt, Result, Seen};
use crate::config::{PanicAction, RebootAction, ShutdownAction};

/// `-action EVENT=ACTION[,..]`.
pub(super) fn take_action(seen: &mut Seen, option: &Opt, value: OsString) -> Result<()> {
    let mut properties = option.properties(value)?;
    let actions = &mut seen.config.actions;
    while let Some((event, action)) = properties.take_first() {
        let action = action.unwrap_or_default();
        match (event.as_str(), action.as_str()) {
            ("reboot", "reset") => actions.reboot = RebootAction::Reset,
            ("reboot", "shutdown") => actions.reboot = RebootAction::Shutdown,
            ("shutdown", "poweroff") => actions.shutdown = ShutdownAction::Poweroff,
            ("shutdown", "pause") => actions.shutdown = ShutdownAction::Pause,
            ("panic", "exit-failure") => actions.panic = PanicAction::ExitFailure,
            ("panic", "shutdown") => actions.panic = PanicAction::Shutdown,
            ("panic", "pause") => actions.panic = PanicAction::Pause,
            ("panic", "none") => actions.panic = PanicAction::None,
            // There is no watchdog that could do any of it.
            ("watchdog", _) => {}
            _ => {
                let problem = format!(
                    "{event}={action} is not here: only reboot=reset|shutdown, \
                     shutdown=poweroff|pause, panic=exit-failure|shutdown|pause|none"
                );
                return Err(option.error(problem));
            }
        }
    }
    Ok(())
}

/// `-run-with async-teardown=on|off`: what another process does for QEMU, the kernel does here.
pub(super) fn take_run_with(seen: &mut Seen, option: &Opt, value: OsString) -> Result<()> {
    let mut properties = option.properties(value)?;
    if let Some(on) = properties.switch("async-teardown")? {
        seen.config.async_teardown = on;
    }
    properties.finish()
}

/// `-name [guest=]NAME[,process=NAME][,debug-threads=on]`.
pub(super) fn take_name(seen: &mut Seen, option: &Opt, value: OsString) -> Result<()> {
    let mut properties = option.properties(value)?;
    while let Some((key, value)) = properties.take_first() {
        match (key.as_str(), value) {
            ("guest", Some(name)) => seen.config.name = Some(name),
            ("process", Some(name)) => seen.config.process_name = Some(name),
            // The threads have names anyway.
            ("debug-threads", Some(_)) => {}
            (_, None) => seen.config.name = Some(key),
            _ => return Err(option.error(format!("'{key}' is not a property that is here"))),
        }
    }
    Ok(())
}

/// `-d ITEM[,..]`: what QEMU logs of guests that err is always said here.
pub(super) fn take_log_items(option: &Opt, value: OsString) -> Result<()> {
    let text = option.text(value)?;
    match text.split(',').find(|item| !["guest_errors", "unimp"].contains(item)) {
        Some(item) => Err(option.error(format!(
            "'{item}' is not here: perf kvm and -boot-trace show what the guest does"
        ))),
        None => Ok(()),
    }
}

/// `-global DRIVER.PROPERTY=VALUE`.
pub(super) fn take_global(seen: &mut Seen, option: &Opt, value: OsString) -> Result<()> {
    let text = option.text(value)?;
    let parts = text.split_once('=').and_then(|(name, value)| Some((name.split_once('.')?, value)));
    let Some(((driver, property), value)) = parts else {
        return Err(option.error(format!("'{text}' is not DRIVER.PROPERTY=VALUE")));
    };
    match (driver, property, value) {
        ("virtio-mmio", "force-legacy", "false" | "off" | "no" | "n") => Ok(()),
        ("virtio-mmio", "force-legacy", _) => Err(option.error(
            "virtio-mmio.force-legacy=true is not here: the transport is version 2 (virtio 1.0); \
             Linux has a driver for it since 3.18",
        )),
        ("microvm" | "microvm-machine", property, value) => {
            super::machine::take_property(seen, option, property, value)
        }
        _ => Err(option.error(format!("{driver}.{property} is not here: remove it"))),
    }
}

/// Whether QEMU's `-overcommit` and `-rtc` say what is true here.
pub(super) fn take_fixed(option: &Opt, value: OsString, allowed: &[(&str, &str)]) -> Result<()> {
    let mut properties = option.properties(value)?;
    while let Some((key, value)) = properties.take_first() {
        let value = value.unwrap_or_else(|| "on".into());
        if !allowed.contains(&(key.as_str(), value.as_str())) {
            return Err(option.error(format!("{key}={value} is not here: remove it")));
        }
    }
    Ok(())
}
