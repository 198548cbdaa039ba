//! Events that a monitor has yet to pass on.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rustix::event::EventfdFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::control::Event;

/// Letters that wait at the most: a client that never reads costs no more memory than this.
const LETTERS_MAX: usize = 4096;

/// Events in the order in which they happened. Who puts one in does not wait.
pub struct Mailbox {
    letters: Mutex<Letters>,
    bell: OwnedFd,
}

#[derive(Default)]
struct Letters {
    events: VecDeque<(Event, SystemTime)>,
    closed: bool,
}

impl Mailbox {
    /// An empty one.
    pub fn new() -> io::Result<Self> {
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { letters: Mutex::default(), bell })
    }

    /// What is readable when there is something to take.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Puts an event in.
    pub fn put(&self, event: Event) {
        let mut letters = self.lock();
        if letters.events.len() == LETTERS_MAX {
            letters.events.pop_front();
        }
        letters.events.push_back((event, SystemTime::now()));
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

    /// All that is in it.
    pub fn take(&self) -> VecDeque<(Event, SystemTime)> {
        let mut letters = self.lock();
        // It fails when the bell has not rung, which is as good.
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        std::mem::take(&mut letters.events)
    }

    fn ring(&self) {
        // It fails when it has rung 2^64 times unheard: it rings then.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    fn lock(&self) -> MutexGuard<'_, Letters> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
