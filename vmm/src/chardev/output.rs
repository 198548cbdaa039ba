//! The output side: it never waits for a reader, and loses nothing it could get.
//!
//! When nothing is pending, bytes are written at once by whoever brings them, if the reader takes
//! them. Else they are kept, and a thread that is started when it is first needed passes them on.
//! Above [`HIGH`] a guest is told to wait ([`Output::is_full`]); one that writes on nevertheless,
//! as Linux' printk does, waits from [`MOST`] on ([`Output::is_heaped`]).

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::tail::Tail;
use super::target::Target;
use crate::control::Line;
use crate::{console, signals};

/// Pending bytes above which it is full, and below which it no longer is.
const HIGH: usize = 64 << 10;
const LOW: usize = 16 << 10;
/// Pending bytes above which a CPU waits, and below which those who do are told of it.
const MOST: usize = 16 << 20;
const LESS: usize = MOST - HIGH;
/// Bytes that are passed on at a time.
const BATCH: usize = 4096;
/// How often a CPU that waits looks whether it is called.
const GLANCE: Duration = Duration::from_millis(10);
/// How long a reader may take nothing when the process ends.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where output goes; all clones go to the same place.
#[derive(Clone)]
pub struct Output(Arc<Shared>);

struct Shared {
    user: &'static str,
    state: Mutex<State>,
    // There is something to do for the thread that passes it on.
    work: Condvar,
    // It has done something.
    progress: Condvar,
    full: AtomicBool,
    heaped: AtomicBool,
}

struct State {
    target: Option<Arc<Target>>,
    // Who is at the other end comes and goes; how often somebody has come.
    visits: Option<u64>,
    pending: VecDeque<u8>,
    tail: Tail,
    // The target took nothing, and was complained of.
    fails: bool,
    // The thread that passes on what is pending was started.
    has_thread: bool,
    // Is called when it is no longer full or heaped, and when somebody has come or gone.
    on_change: Option<Line>,
}

impl Output {
    /// To `target`, if somebody is there already; `user` is who messages name.
    pub(super) fn new(user: &'static str, target: Option<Arc<Target>>) -> Self {
        let state = State {
            target,
            visits: None,
            pending: VecDeque::new(),
            tail: Tail::default(),
            fails: false,
            has_thread: false,
            on_change: None,
        };
        Self(Arc::new(Shared {
            user,
            state: Mutex::new(state),
            work: Condvar::new(),
            progress: Condvar::new(),
            full: AtomicBool::new(false),
            heaped: AtomicBool::new(false),
        }))
    }

    /// To a socket, at the other end of which `target` is already, or nobody.
    pub(super) fn socket(user: &'static str, target: Option<Arc<Target>>) -> Self {
        let output = Self::new(user, target);
        output.0.lock().visits = Some(0);
        output
    }

    /// Nowhere.
    pub fn null() -> Self {
        Self::new("null", None)
    }

    /// To a file.
    pub fn file(file: File) -> Self {
        Self::new("file", Some(Target::owned(file)))
    }

    /// Puts out all of `bytes`, at once or later; it does not wait. When that is no longer
    /// possible, says so once and forgets about output: a guest does not stop because nobody
    /// listens.
    pub fn put(&self, bytes: &[u8]) {
        let mut state = self.0.lock();
        state.tail.push(bytes);
        let rest = if state.pending.is_empty() { self.offer(&mut state, bytes) } else { bytes };
        if rest.is_empty() || state.target.is_none() {
            return;
        }
        state.pending.extend(rest);
        if state.pending.len() > HIGH {
            self.0.full.store(true, Ordering::SeqCst);
        }
        if state.pending.len() > MOST {
            self.0.heaped.store(true, Ordering::SeqCst);
        }
        self.pass_on_later(&mut state);
    }

    /// Writes what is taken at once; the rest.
    fn offer<'a>(&self, state: &mut State, mut bytes: &'a [u8]) -> &'a [u8] {
        while let (Some(target), false) = (&state.target, bytes.is_empty()) {
            match target.offer(bytes) {
                Ok(0) => break,
                Ok(count) => {
                    bytes = bytes.get(count..).unwrap_or(&[]);
                    state.fails = false;
                }
                Err(error) => {
                    self.0.lose(state, error);
                    return &[];
                }
            }
        }
        bytes
    }

    fn pass_on_later(&self, state: &mut State) {
        if !state.has_thread {
            let shared = self.0.clone();
            if let Err(error) = signals::spawn("output", move || shared.pass_on()) {
                let user = self.0.user;
                console::say(&format!("{user}: output: no thread: {error}; it is dropped"));
                state.target = None;
                self.0.forget(state);
                self.0.full.store(false, Ordering::SeqCst);
                self.0.heaped.store(false, Ordering::SeqCst);
                return;
            }
            state.has_thread = true;
        }
        self.0.work.notify_one();
    }

    /// Whether so much is pending that a guest should wait. Who heard of it hears also when that
    /// is over, by [`Output::on_change`].
    pub fn is_full(&self) -> bool {
        self.0.full.load(Ordering::SeqCst)
    }

    /// Whether far too much is pending: also who cannot be told to wait has to. Who heard of it
    /// hears also when that is over.
    pub fn is_heaped(&self) -> bool {
        self.0.heaped.load(Ordering::SeqCst)
    }

    /// Has `call` be called, by a thread that holds no lock, whenever it is no longer full or
    /// heaped, and when somebody has come to the other end or gone.
    pub fn on_change(&self, call: Line) {
        self.0.lock().on_change = Some(call);
    }

    /// Who is at the other end: a number that each visitor of a socket has for itself. Whatever
    /// else it goes to is always there, if only to lose it.
    pub fn visitor(&self) -> Option<u64> {
        let state = self.0.lock();
        match state.visits {
            Some(visits) => state.target.as_ref().map(|_| visits),
            None => Some(0),
        }
    }

    /// Waits while far too much is pending, unless somebody calls this thread's CPU, or the
    /// process is to end. Its caller holds no lock that anybody needs.
    pub fn wait_for_room(&self) {
        if self.is_full() {
            self.wait_unless(|| signals::is_called() || console::is_let_go());
        }
    }

    pub(super) fn wait_unless(&self, is_called: impl Fn() -> bool) {
        let mut state = self.0.lock();
        while state.pending.len() > MOST && !is_called() {
            let waited = self.0.progress.wait_timeout(state, GLANCE);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether anything was put out.
    pub fn is_written(&self) -> bool {
        self.0.lock().tail.is_written()
    }

    /// The last line of it.
    pub fn last_line(&self) -> String {
        self.0.lock().tail.last_line()
    }

    /// From now on it goes to `target`, who may have been there from the start.
    pub(super) fn connect(&self, target: Arc<Target>) {
        let mut state = self.0.lock();
        if state.target.as_ref().is_some_and(|now| Arc::ptr_eq(now, &target)) {
            return;
        }
        state.target = Some(target);
        state.visits = state.visits.map(|visits| visits + 1);
        let call = state.on_change.clone();
        drop(state);
        call.iter().for_each(|call| call());
    }

    /// Who was there has gone; what was meant for them is dropped.
    pub(super) fn disconnect(&self, target: &Arc<Target>) {
        let mut state = self.0.lock();
        let call = self.0.part(&mut state, target);
        drop(state);
        call.iter().for_each(|call| call());
    }

    /// Waits until all has been passed on, as long as somebody takes it and nobody asks again for
    /// the process's end.
    pub(super) fn finish(&self) {
        let asked = console::requests();
        self.finish_unless(|| console::requests() != asked);
    }

    pub(super) fn finish_unless(&self, is_asked: impl Fn() -> bool) {
        let mut state = self.0.lock();
        let (mut left, mut since) = (state.pending.len(), Instant::now());
        while left > 0 && since.elapsed() < PATIENCE && !is_asked() {
            let waited = self.0.progress.wait_timeout(state, GLANCE);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if state.pending.len() != left {
                (left, since) = (state.pending.len(), Instant::now());
            }
        }
        if left > 0 {
            let user = self.0.user;
            console::say(&format!("{user}: {left} bytes of output that nobody took are dropped"));
            self.0.forget(&mut state);
        }
        // Who goes from now on is not missed.
        state.target = None;
    }
}

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread: passes on what is pending, for good.
    fn pass_on(&self) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let target = self.wait_for_work(&mut batch);
            let result = target.deliver(&batch);
            if let Some(call) = self.note(&target, result) {
                call();
            }
        }
    }

    /// Copies the next bytes to `batch`; for whom they are.
    fn wait_for_work(&self, batch: &mut Vec<u8>) -> Arc<Target> {
        let mut state = self.lock();
        loop {
            if let (Some(target), false) = (&state.target, state.pending.is_empty()) {
                batch.clear();
                batch.extend(state.pending.iter().take(BATCH));
                return target.clone();
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes note of what became of a batch; whom to call.
    fn note(&self, target: &Arc<Target>, result: Result<usize, Errno>) -> Option<Line> {
        let mut state = self.lock();
        if !state.target.as_ref().is_some_and(|now| Arc::ptr_eq(now, target)) {
            // Who was written to has gone, and what is pending is for another.
            return None;
        }
        match result {
            Ok(count) => {
                state.fails &= count == 0;
                let count = count.min(state.pending.len());
                state.pending.drain(..count);
                if state.pending.is_empty() {
                    // It may have been a lot.
                    state.pending.shrink_to(HIGH);
                }
                self.progress.notify_all();
                self.tell_of_room(&state)
            }
            Err(error) => {
                self.lose(&mut state, error);
                self.tell_of_change(&state)
            }
        }
    }

    /// Whom to call when it is no longer full or heaped.
    fn tell_of_room(&self, state: &State) -> Option<Line> {
        let is_over = |flag: &AtomicBool, limit: usize| {
            state.pending.len() < limit && flag.swap(false, Ordering::SeqCst)
        };
        // Both, whatever the first one says.
        let over = is_over(&self.full, LOW) | is_over(&self.heaped, LESS);
        state.on_change.clone().filter(|_| over)
    }

    /// Whom to call when somebody has gone, with what was meant for them.
    fn tell_of_change(&self, state: &State) -> Option<Line> {
        // Once is enough.
        let _ = self.tell_of_room(state);
        state.on_change.clone()
    }

    /// Nobody is there any more, or a file takes nothing now.
    fn lose(&self, state: &mut State, error: Errno) {
        let Some(target) = state.target.take() else { return };
        let (user, error) = (self.user, io::Error::from(error));
        if target.may_recover() {
            if !std::mem::replace(&mut state.fails, true) {
                console::say(&format!("{user}: output: {error}; it is lost until there is room"));
            }
            state.target = Some(target);
        } else if !target.may_leave {
            console::say(&format!("{user}: output: {error}; the guest goes on without"));
        }
        self.forget(state);
    }

    /// Takes `target` away, if it is there; whom to call.
    fn part(&self, state: &mut State, target: &Arc<Target>) -> Option<Line> {
        match &state.target {
            Some(now) if Arc::ptr_eq(now, target) => {}
            Some(_) => return None,
            // Who wrote found it gone first, under locks, and could call nobody.
            None => return self.tell_of_change(state),
        }
        state.target = None;
        if !target.may_leave {
            let user = self.user;
            console::say(&format!("{user}: the other end has gone; the guest goes on without"));
        }
        self.forget(state);
        self.tell_of_change(state)
    }

    fn forget(&self, state: &mut State) {
        state.pending = VecDeque::new();
        self.progress.notify_all();
    }
}
