//! Does a lab still advance?
//!
//! Its clock must, if that counts instructions; if not, QEMU must work. And a command of which it
//! is known how often it prints must do so.
//!
//! QEMU's emulator delivers an interrupt to a guest of its KVM twice when its count runs out just
//! after the first time. A kernel that meets the second one in its interrupt handler may wait for
//! itself for good, by PAUSE instructions: the emulator does few of these a second, so no deadline
//! in the lab's own time ever comes (docs/lab.md). With the host's clock, a lab may halt with no
//! timer left that would wake it.

use std::fmt;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::io::FdFlags;
use serde_json::{Value, json};

/// How much processor time the clock may take for [`LEAST_S`], and how long QEMU for
/// [`LEAST_TICKS`].
const PATIENCE: Duration = Duration::from_secs(60);
/// Seconds that a lab that works counts in [`PATIENCE`] on a slow machine: on two cores of a cloud
/// they are ten when it works, and one when it waits.
const LEAST_S: u64 = 3;
/// How long the clock may take for a second, whoever has the processors.
const PATIENCE_IN_ALL: Duration = Duration::from_secs(300);
/// Ticks of a processor, 100 a second (proc(5), `utime`), that an idle lab uses in [`PATIENCE`],
/// and several times over.
const LEAST_TICKS: u64 = 10;
/// QEMU answers at once, or has more to do than is good.
const ANSWER: Duration = Duration::from_secs(10);

/// Why a lab was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The emulator no longer got on: another try, where not all is the same, is likely to work.
    StoodStill,
    /// The command printed nothing for this long. Tests have deadlines of their own, so it is the
    /// lab again that hangs.
    Silent(Duration),
    /// All its time is over.
    Late(Duration),
    /// Its Linux ended before the command did.
    Stopped,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StoodStill => write!(f, "the lab stood still for {} s", PATIENCE.as_secs())?,
            Self::Silent(time) => write!(f, "nothing came out of the lab in {} s", time.as_secs())?,
            Self::Late(time) => return write!(f, "the lab took more than {} s", time.as_secs()),
            Self::Stopped => {
                return f.write_str("the lab's Linux stopped before the command ended");
            }
        }
        f.write_str(" (docs/lab.md says why)")
    }
}

/// Watches a machine's clock by QMP.
pub struct Watch {
    qmp: BufReader<UnixStream>,
    start: Instant,
    progress: Progress,
    progress_in_all: Progress,
}

impl Watch {
    /// A watch, and QEMU's end of its connection, which a child can use by its number.
    pub fn new() -> Result<(Self, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair().context("making a pair of sockets")?;
        rustix::io::fcntl_setfd(&theirs, FdFlags::empty()).context("letting QEMU have a socket")?;
        ours.set_read_timeout(Some(ANSWER)).context("setting a limit to QEMU's answers")?;
        // QMP serves who has asked for its capabilities; the answer is one of those passed over.
        writeln!(&ours, r#"{{"execute": "qmp_capabilities"}}"#).context("writing to a socket")?;
        let start = Instant::now();
        let [progress, progress_in_all] = [(); 2].map(|()| Progress::new());
        let watch = Self { qmp: BufReader::new(ours), start, progress, progress_in_all };
        Ok((watch, theirs.into()))
    }

    /// Whether a clock that counts instructions has stood still for too long, also because QEMU,
    /// which is process `pid`, does not say. Its processor time counts: where others have the
    /// processors, it has little of a minute.
    pub fn is_still(&mut self, pid: u32) -> bool {
        let seconds = self.seconds().ok();
        let now = Instant::now();
        let worked = ticks(pid).map(|ticks| self.start + TICK.saturating_mul(ticks));
        self.progress.is_still(seconds, LEAST_S, PATIENCE, worked.unwrap_or(now))
            || self.progress_in_all.is_still(seconds, 1, PATIENCE_IN_ALL, now)
    }

    /// Whether QEMU, which is process `pid`, has done nothing for too long.
    pub fn is_idle(&mut self, pid: u32) -> bool {
        let ticks = ticks(pid).map(u64::from);
        self.progress.is_still(ticks, LEAST_TICKS, PATIENCE, Instant::now())
    }

    /// Where the machine's processor is: QEMU's line of its instruction pointer and flags, `HLT=1`
    /// among them when it waits for an interrupt.
    pub fn place(&mut self) -> Option<String> {
        let question = json!({
            "execute": "human-monitor-command",
            "arguments": {"command-line": "info registers"},
        });
        self.ask(&question, place_of_answer).ok()
    }

    fn seconds(&mut self) -> io::Result<u64> {
        let question = json!({
            "execute": "qom-get",
            "arguments": {"path": "/machine", "property": "rtc-time"},
        });
        self.ask(&question, seconds_of_answer)
    }

    /// What `find` finds in QEMU's next messages.
    fn ask<T>(&mut self, question: &Value, find: fn(&Value) -> Option<T>) -> io::Result<T> {
        self.qmp.get_ref().write_all(format!("{question}\n").as_bytes())?;
        let mut line = String::new();
        while self.qmp.read_line(&mut line)? > 0 {
            if let Some(found) = serde_json::from_str(&line).ok().and_then(|value| find(&value)) {
                return Ok(found);
            }
            line.clear();
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

/// Seconds within the month that an answer names; `None` in all other messages.
fn seconds_of_answer(answer: &Value) -> Option<u64> {
    let field = |name: &str| answer["return"][name].as_u64();
    let hours = field("tm_mday")? * 24 + field("tm_hour")?;
    Some((hours * 60 + field("tm_min")?) * 60 + field("tm_sec")?)
}

/// The line of the instruction pointer; `None` in all other messages.
fn place_of_answer(answer: &Value) -> Option<String> {
    let line = answer["return"].as_str()?.lines().find(|line| line.starts_with("RIP="))?;
    Some(line.trim_end().to_owned())
}

/// A hundredth of a second, whatever the kernel's own ticks are (proc(5)).
const TICK: Duration = Duration::from_millis(10);

/// The processor time of a process, in ticks.
fn ticks(pid: u32) -> Option<u32> {
    ticks_of(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The processor time of a process and its kernel's work for it (proc(5), fields 14 and 15). The
/// second field, a name in parentheses, may have spaces.
fn ticks_of(stat: &str) -> Option<u32> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u32>().ok();
    next()?.checked_add(next()?)
}

/// When something that counts up was last seen to advance.
pub struct Progress {
    seen: u64,
    since: Instant,
}

impl Progress {
    /// Nothing was seen until now.
    pub fn new() -> Self {
        Self { seen: 0, since: Instant::now() }
    }

    /// Whether what counts up has not advanced by `least` for longer than `patience`.
    pub fn is_still(
        &mut self,
        seen: Option<u64>,
        least: u64,
        patience: Duration,
        now: Instant,
    ) -> bool {
        match seen {
            Some(seen) if seen >= self.seen + least => {
                *self = Self { seen, since: now };
                false
            }
            _ => now - self.since > patience,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_has_seconds() {
        let answer = json!({"return": {"tm_year": 126, "tm_sec": 7, "tm_hour": 2, "tm_min": 3,
            "tm_mon": 0, "tm_mday": 1}});
        assert_eq!(seconds_of_answer(&answer), Some(((24 + 2) * 60 + 3) * 60 + 7));
        for other in [json!({"return": {}}), json!({"QMP": {}}), json!({"event": "STOP"})] {
            assert_eq!(seconds_of_answer(&other), None, "{other}");
        }
    }

    #[test]
    fn only_registers_have_a_place() {
        let answer = json!({"return": "CPU#0\r\nRAX=0\r\nRIP=ff81 RFL=246 HLT=1\r\nES =0\r\n"});
        assert_eq!(place_of_answer(&answer).as_deref(), Some("RIP=ff81 RFL=246 HLT=1"));
        assert_eq!(place_of_answer(&json!({"return": {}})), None);
    }

    #[test]
    fn a_clock_that_creeps_stands_still() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut progress = Progress { seen: 86_400, since: start };
        let mut is_still =
            |seen, time| progress.is_still(seen, 5, Duration::from_secs(120), after(time));
        assert!(!is_still(Some(86_405), 100));
        assert!(!is_still(Some(86_403), 200), "a hundred seconds are no standstill");
        assert!(!is_still(None, 219));
        assert!(is_still(Some(86_409), 221));
        assert!(is_still(None, 221));
        assert!(!is_still(Some(86_410), 221), "five seconds are progress");
    }

    #[test]
    fn a_process_s_time_is_what_it_and_the_kernel_did() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194560 1 2 3 4 765 72 8 9 20 0 1 0 5";
        assert_eq!(ticks_of(stat), Some(837));
        assert_eq!(ticks_of("7 (a) S 1"), None);
    }
}
