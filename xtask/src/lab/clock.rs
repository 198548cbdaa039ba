//! The clock of a lab that counts instructions: does it still advance?
//!
//! QEMU's emulator delivers an interrupt to a guest of its KVM twice when its count runs out just
//! after the first time. A kernel that meets the second one in its interrupt handler may wait for
//! itself for good, by PAUSE instructions: the emulator does few of these a second, so no deadline
//! in the lab's own time ever comes (docs/lab.md).

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::io::FdFlags;
use serde_json::{Value, json};

/// How long the clock may take for [`LEAST_S`].
const PATIENCE: Duration = Duration::from_secs(120);
/// Seconds that a lab that works counts in [`PATIENCE`] on a slow machine that has other work: on
/// two cores of a cloud they are twenty when it works, and two when it waits.
const LEAST_S: u64 = 5;
/// QEMU answers at once, or has more to do than is good.
const ANSWER: Duration = Duration::from_secs(10);

/// Why a lab was given up: another try, where not all is the same, is likely to work.
#[derive(Debug, PartialEq, Eq)]
pub struct Standstill;

impl std::error::Error for Standstill {}

impl std::fmt::Display for Standstill {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = PATIENCE.as_secs();
        write!(f, "the lab's clock stood still for {seconds} s (docs/lab.md says why)")
    }
}

/// Watches a machine's clock by QMP.
pub struct Watch {
    qmp: BufReader<UnixStream>,
    progress: Progress,
}

impl Watch {
    /// A watch, and QEMU's end of its connection, which a child can use by its number.
    pub fn new() -> Result<(Self, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair().context("making a pair of sockets")?;
        rustix::io::fcntl_setfd(&theirs, FdFlags::empty()).context("letting QEMU have a socket")?;
        ours.set_read_timeout(Some(ANSWER)).context("setting a limit to QEMU's answers")?;
        // QMP serves who has asked for its capabilities; the answer is one of those passed over.
        writeln!(&ours, r#"{{"execute": "qmp_capabilities"}}"#).context("writing to a socket")?;
        let progress = Progress { seconds: 0, since: Instant::now() };
        Ok((Self { qmp: BufReader::new(ours), progress }, theirs.into()))
    }

    /// Whether the clock has stood still for too long, also because QEMU does not say.
    pub fn is_still(&mut self) -> bool {
        let seconds = self.seconds().ok();
        self.progress.is_still(seconds, Instant::now())
    }

    fn seconds(&mut self) -> io::Result<u64> {
        let question = json!({
            "execute": "qom-get",
            "arguments": {"path": "/machine", "property": "rtc-time"},
        });
        self.qmp.get_ref().write_all(format!("{question}\n").as_bytes())?;
        let mut line = String::new();
        while self.qmp.read_line(&mut line)? > 0 {
            if let Some(seconds) = seconds_of_answer(&line) {
                return Ok(seconds);
            }
            line.clear();
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

/// Seconds within the month that an answer names; `None` in all other messages.
fn seconds_of_answer(line: &str) -> Option<u64> {
    let answer: Value = serde_json::from_str(line).ok()?;
    let field = |name: &str| answer["return"][name].as_u64();
    let hours = field("tm_mday")? * 24 + field("tm_hour")?;
    Some((hours * 60 + field("tm_min")?) * 60 + field("tm_sec")?)
}

/// When the clock was last seen to advance.
struct Progress {
    seconds: u64,
    since: Instant,
}

impl Progress {
    fn is_still(&mut self, seconds: Option<u64>, now: Instant) -> bool {
        match seconds {
            Some(seconds) if seconds >= self.seconds + LEAST_S => {
                *self = Self { seconds, since: now };
                false
            }
            _ => now - self.since > PATIENCE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_has_seconds() {
        let answer = r#"{"return": {"tm_year": 126, "tm_sec": 7, "tm_hour": 2, "tm_min": 3,
            "tm_mon": 0, "tm_mday": 1}}"#;
        assert_eq!(seconds_of_answer(answer), Some(((24 + 2) * 60 + 3) * 60 + 7));
        for other in [r#"{"return": {}}"#, r#"{"QMP": {"version": {}}}"#, r#"{"event": "STOP"}"#] {
            assert_eq!(seconds_of_answer(other), None, "{other}");
        }
    }

    #[test]
    fn a_clock_that_creeps_stands_still() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut progress = Progress { seconds: 86_400, since: start };
        assert!(!progress.is_still(Some(86_405), after(100)));
        assert!(
            !progress.is_still(Some(86_403), after(200)),
            "a hundred seconds are no standstill"
        );
        assert!(!progress.is_still(None, after(219)));
        assert!(progress.is_still(Some(86_409), after(221)));
        assert!(progress.is_still(None, after(221)));
        assert!(!progress.is_still(Some(86_410), after(221)), "five seconds are progress");
    }
}
