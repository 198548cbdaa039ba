//! Events that a monitor has yet to pass on.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::EventfdFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::control::Event;

/// Letters that wait at the most: a client that never reads costs no more memory than this.
const LETTERS_MAX: usize = 4096;
/// How long it takes, at the least, from one change of the balloon to the next, as in QEMU: a
/// guest makes many, and the last one counts.
const RARELY: Duration = Duration::from_secs(1);

/// Events in the order in which they happened. Who puts one in does not wait.
pub struct Mailbox {
    letters: Mutex<Letters>,
    bell: OwnedFd,
}

#[derive(Default)]
struct Letters {
    events: VecDeque<(Event, SystemTime)>,
    /// The last event of those that come rarely, until its time has come.
    held: Option<(Event, SystemTime)>,
    /// When the next one of those may come.
    next: Option<Instant>,
    closed: bool,
}

impl Letters {
    fn put(&mut self, event: Event, now: Instant) {
        let letter = (event, SystemTime::now());
        if !matches!(letter.0, Event::BalloonChange(_)) {
            return self.push(letter);
        }
        self.held = Some(letter);
        self.let_go(now);
    }

    fn push(&mut self, letter: (Event, SystemTime)) {
        if self.events.len() == LETTERS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(letter);
    }

    /// What was held may come now, if its time has come or the end.
    fn let_go(&mut self, now: Instant) {
        let may_come = self.closed || self.next.is_none_or(|next| next <= now);
        if may_come && let Some(letter) = self.held.take() {
            self.push(letter);
            self.next = Some(now + RARELY);
        }
    }

    fn take(&mut self, now: Instant) -> VecDeque<(Event, SystemTime)> {
        self.let_go(now);
        std::mem::take(&mut self.events)
    }

    /// How long what is held is held, if something is.
    fn patience(&self, now: Instant) -> Option<Duration> {
        let next = self.next.filter(|_| self.held.is_some());
        next.map(|next| next.saturating_duration_since(now))
    }
}

impl Mailbox {
    /// An empty one.
    pub fn new() -> io::Result<Self> {
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { letters: Mutex::default(), bell })
    }

    /// What is readable when there is something to take, or may soon be.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Puts an event in.
    pub fn put(&self, event: Event) {
        self.lock().put(event, Instant::now());
        self.ring();
    }

    /// Nothing more comes.
    pub fn close(&self) {
        self.lock().closed = true;
        self.ring();
    }

    /// Whether nothing more comes.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// How long until there may be something to take though the bell does not ring.
    pub fn patience(&self) -> Option<Duration> {
        self.lock().patience(Instant::now())
    }

    /// All that is in it.
    pub fn take(&self) -> VecDeque<(Event, SystemTime)> {
        let mut letters = self.lock();
        // It fails when the bell has not rung, which is as good.
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        letters.take(Instant::now())
    }

    fn ring(&self) {
        // It fails when it has rung 2^64 times unheard: it rings then.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    fn lock(&self) -> MutexGuard<'_, Letters> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_the_balloon_come_rarely_and_the_last_one_comes() {
        let mut letters = Letters::default();
        let start = Instant::now();
        let taken = |letters: &mut Letters, ms: u64| -> Vec<Event> {
            let events = letters.take(start + Duration::from_millis(ms));
            events.into_iter().map(|(event, _)| event).collect()
        };
        for actual in 1..=3 {
            letters.put(Event::BalloonChange(actual), start);
        }
        letters.put(Event::Stop, start);
        assert_eq!(taken(&mut letters, 0), [Event::BalloonChange(1), Event::Stop]);
        assert_eq!(letters.patience(start), Some(RARELY));
        assert_eq!(taken(&mut letters, 999), []);
        assert_eq!(taken(&mut letters, 1000), [Event::BalloonChange(3)]);
        assert_eq!(letters.patience(start), None);
        letters.put(Event::BalloonChange(4), start + Duration::from_millis(1999));
        assert_eq!(taken(&mut letters, 1999), []);
        letters.closed = true;
        assert_eq!(taken(&mut letters, 1999), [Event::BalloonChange(4)], "nothing is lost");
    }
}
