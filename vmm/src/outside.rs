//! The world outside the machine: signals, and patience with a silent guest.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{Chardev, Config};
use crate::console;
use crate::control::{Control, Request};
use crate::devices::serial::Com1;
use crate::signals;
use crate::workload::{Heed, Session};

/// How long a guest may run without a word before somebody wonders.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a guest may take until its command runs.
const PATIENCE_WITH_INIT: Duration = Duration::from_secs(60);
const NOT_BEGUN: &str = "the guest has not started the command after 60 s: its kernel may hang; \
                         --kernel-log FILE keeps what it says, Ctrl-C ends it";

/// Starts the thread that takes the signals: the first SIGTERM presses the power button, the second
/// and all others end the machine. A command that is run may want them first. From here on no other
/// thread takes them.
pub fn watch(
    config: &Config,
    control: &Arc<Control>,
    com1: &Arc<Com1>,
    session: Option<Arc<Session>>,
) -> io::Result<()> {
    signals::block();
    let (control, com1) = (control.clone(), com1.clone());
    if let Some(session) = &session {
        session.attach(control.clone());
    }
    let advice = advice(config);
    let watch = move || {
        let mut button_pressed = false;
        // What runs a command has other ears for its guest than COM1.
        let mut patience = match &session {
            Some(_) => Some(PATIENCE_WITH_INIT),
            None => advice.is_some().then_some(PATIENCE),
        };
        loop {
            let signal = signals::wait(patience);
            let heed =
                |signal| session.as_ref().map_or(Heed::Usual, |session| session.heed(signal));
            match (signal, signal.map_or(Heed::Usual, heed)) {
                (None, _) => {
                    patience = None;
                    if let Some(session) = &session {
                        if !session.has_begun() {
                            console::say(NOT_BEGUN);
                        }
                    } else if let (Some(advice), false) = (&advice, com1.is_written()) {
                        console::say(advice);
                        control.ask_for_reports();
                    }
                }
                (Some(libc::SIGWINCH), _) | (_, Heed::Done) => {}
                (Some(libc::SIGTSTP), _) => console::lend(signals::stop_process),
                (Some(libc::SIGCONT), _) => console::resume(),
                (Some(libc::SIGTERM), Heed::Usual)
                    if !button_pressed && control.press_power_button() =>
                {
                    button_pressed = true;
                    console::say("SIGTERM: the power button is pressed; a second one ends the VM");
                }
                (Some(signal), _) => control.request(Request::Signal(signal)),
            }
        }
    };
    signals::spawn("signals", watch).map(drop)
}

/// What to say when nothing came out of COM1; nothing where nobody looks.
fn advice(config: &Config) -> Option<String> {
    let seconds = PATIENCE.as_secs();
    let why = match (&config.serial, &config.kernel) {
        (Chardev::Null, _) | (_, None) => return None,
        _ if !config.isa_serial => return None,
        _ if has_console(&config.append) => "the kernel may lack a driver for COM1, or hang",
        _ => "-append has no console=ttyS0, so a Linux kernel says nothing",
    };
    Some(format!("no output on COM1 for {seconds} s: {why}"))
}

fn has_console(append: &str) -> bool {
    append.split_ascii_whitespace().any(|word| {
        ["console=ttyS0", "earlyprintk=ttyS0", "earlyprintk=serial", "earlycon"]
            .iter()
            .any(|known| word.starts_with(known))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(append: &str, serial: Chardev, expected: Option<&str>) {
        let config =
            Config { append: append.into(), serial, kernel: Some("k".into()), ..Config::default() };
        let advice = advice(&config);
        match expected {
            None => assert_eq!(advice, None, "{append}"),
            Some(word) => assert!(advice.is_some_and(|text| text.contains(word)), "{append}"),
        }
    }

    #[test]
    fn the_advice_names_what_is_missing() {
        check("quiet", Chardev::STDIO, Some("no console=ttyS0"));
        check("console=hvc0 xconsole=ttyS0", Chardev::MON_STDIO, Some("no console=ttyS0"));
        check("quiet console=ttyS0,115200n8", Chardev::STDIO, Some("lack a driver"));
        check("", Chardev::Null, None);
    }
}
