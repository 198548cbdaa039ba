//! What the machine is told from outside while it runs, and what it tells.
//!
//! The CPUs' threads, the one that takes signals and the one that speaks QMP meet here. A CPU comes
//! to [`Control::checkpoint`] before it enters the guest; whoever wants something of it writes that
//! down first and then wakes it, so that nothing is missed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::signals;

/// What the machine is doing, as QMP's `RunState` has it (QEMU, qapi/run-state.json).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RunState {
    /// Not yet started, by `-S`.
    Prelaunch,
    /// It runs.
    #[default]
    Running,
    /// Stopped by `stop`.
    Paused,
    /// Powered off, with `-action shutdown=pause`.
    Shutdown,
    /// The guest's kernel gave up, with `-action panic=pause`.
    GuestPanicked,
}

impl RunState {
    /// Its name in QMP.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Prelaunch => "prelaunch",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Shutdown => "shutdown",
            Self::GuestPanicked => "guest-panicked",
        }
    }
}

/// What ends a run of the machine from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// A reset.
    Reset,
    /// The end, asked for at the console.
    QuitByUser,
    /// The end, asked for by QMP.
    QuitByQmp,
    /// The end, by this signal.
    Signal(i32),
}

/// What listeners hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The CPUs have stopped.
    Stop,
    /// They run again.
    Resume,
    /// The machine is reset; QMP's name of the reason.
    Reset(&'static str),
    /// The machine ends; QMP's name of the reason.
    Shutdown(&'static str),
    /// The power button was pressed.
    Powerdown,
    /// The guest's kernel gave up; what is done about it.
    GuestPanicked(&'static str),
    /// The guest's kernel gave up, and saves what it knows.
    GuestCrashLoaded,
    /// The guest has so many bytes of memory now.
    BalloonChange(u64),
}

/// Whether a CPU may enter the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Go,
    /// It may, but first somebody wants to know where it is.
    Report,
    /// It may not: the run is over.
    Leave,
    /// It may not, because of this.
    Obey(Request),
}

/// A call that takes no argument, from any thread.
pub type Line = Arc<dyn Fn() + Send + Sync>;
/// Somebody who wants to hear of events. It must not wait.
pub type Listener = Box<dyn Fn(Event) + Send + Sync>;

/// The run state and what changes it.
#[derive(Default)]
pub struct Control {
    has_power_button: bool,
    // Set while a CPU must look at `state` before it enters the guest.
    attention: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
    listeners: Mutex<Vec<Listener>>,
}

#[derive(Default)]
struct State {
    run_state: RunState,
    request: Option<Request>,
    over: bool,
    // CPUs that have yet to say where they are.
    reports: Vec<signals::Thread>,
    // Who runs a CPU now, and how many of them wait.
    cpus: Vec<Runner>,
    parked: usize,
    power_button: Option<Line>,
    // Pressed while no machine was there to feel it: between two runs.
    pressed: bool,
    // Who wants the machine not to start yet.
    holds: usize,
}

/// A thread that runs a CPU.
struct Runner {
    cpu: u8,
    thread: signals::Thread,
    number: i32,
}

impl State {
    fn may_run(&self) -> bool {
        self.run_state == RunState::Running
    }
}

impl Control {
    /// Of a machine that begins in `run_state`.
    pub fn new(run_state: RunState, has_power_button: bool) -> Self {
        // What is not to start by itself is held by the user, who lets go by `cont`.
        let holds = usize::from(run_state == RunState::Prelaunch);
        let state = State { run_state, holds, ..State::default() };
        Self { has_power_button, state: Mutex::new(state), ..Self::default() }
    }

    /// What the machine is doing.
    pub fn run_state(&self) -> RunState {
        self.lock().run_state
    }

    /// Calls `listener` for every event from now on.
    pub fn listen(&self, listener: Listener) {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(listener);
    }

    /// Tells the listeners.
    pub fn tell(&self, event: Event) {
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.iter().for_each(|listener| listener(event));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has every CPU come to its checkpoint.
    fn call(&self, state: &State) {
        self.attention.store(true, Ordering::SeqCst);
        state.cpus.iter().for_each(|runner| signals::wake(runner.thread));
        self.changed.notify_all();
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

/// For the machine.
impl Control {
    /// A run begins, of a machine with this power button.
    pub fn begin(&self, power_button: Option<Line>) {
        let mut state = self.lock();
        state.over = false;
        state.reports.clear();
        if let (Some(press), true) = (&power_button, std::mem::take(&mut state.pressed)) {
            press();
        }
        state.power_button = power_button;
        // The machine may be stopped, or asked for something, already.
        self.attention.store(true, Ordering::SeqCst);
    }

    /// The run is over: every CPU leaves.
    pub fn end(&self) {
        let mut state = self.lock();
        state.over = true;
        state.power_button = None;
        self.call(&state);
    }

    /// The machine stays, stopped, as `run_state`.
    pub fn rest(&self, run_state: RunState) {
        self.lock().run_state = run_state;
        self.tell(Event::Stop);
    }

    /// The machine is reset: what rested for good runs again.
    pub fn revive(&self) {
        let mut state = self.lock();
        if matches!(state.run_state, RunState::Shutdown | RunState::GuestPanicked) {
            state.run_state = RunState::Running;
        }
    }
}

/// For a CPU's thread.
impl Control {
    /// This thread runs CPU number `cpu` from now on.
    pub fn join(&self, cpu: u8) {
        let (thread, number) =
            (signals::this_thread(), rustix::thread::gettid().as_raw_nonzero().get());
        self.lock().cpus.push(Runner { cpu, thread, number });
    }

    /// It no longer does.
    pub fn leave(&self) {
        self.lock().cpus.retain(|runner| runner.thread != signals::this_thread());
        self.changed.notify_all();
    }

    /// Whether the CPU may enter the guest; waits while the machine is stopped.
    pub fn checkpoint(&self) -> Verdict {
        if !self.attention.load(Ordering::SeqCst) {
            return Verdict::Go;
        }
        let mut state = self.lock();
        state.parked += 1;
        self.changed.notify_all();
        while !state.may_run() && !state.over && state.request.is_none() {
            state = self.wait(state);
        }
        state.parked -= 1;
        if state.over {
            return Verdict::Leave;
        }
        if let Some(request) = state.request.take() {
            return Verdict::Obey(request);
        }
        let me = signals::this_thread();
        if let Some(at) = state.reports.iter().position(|thread| *thread == me) {
            state.reports.swap_remove(at);
            return Verdict::Report;
        }
        if state.reports.is_empty() {
            self.attention.store(false, Ordering::SeqCst);
        }
        Verdict::Go
    }
}

/// For whoever is outside.
impl Control {
    /// The CPUs that run, and their threads' numbers, as the system has them.
    pub fn cpus(&self) -> Vec<(u8, i32)> {
        let state = self.lock();
        let mut cpus: Vec<_> =
            state.cpus.iter().map(|runner| (runner.cpu, runner.number)).collect();
        cpus.sort_unstable();
        cpus
    }

    /// A machine that has not started yet does not until who calls this has called
    /// [`Control::release`], or somebody says so.
    pub fn hold(&self) {
        let mut state = self.lock();
        state.run_state = RunState::Prelaunch;
        state.holds += 1;
    }

    /// Lets go of a machine; the last one who does so starts it.
    pub fn release(&self) {
        let mut state = self.lock();
        state.holds = state.holds.saturating_sub(1);
        let starts = state.holds == 0 && state.run_state == RunState::Prelaunch;
        drop(state);
        if starts {
            self.resume();
        }
    }

    /// Stops the CPUs; they have stopped when this returns.
    pub fn stop(&self) {
        let mut state = self.lock();
        if !state.may_run() {
            return;
        }
        state.run_state = RunState::Paused;
        self.call(&state);
        while state.parked < state.cpus.len() && !state.over {
            state = self.wait(state);
        }
        drop(state);
        self.tell(Event::Stop);
    }

    /// Starts them again. False when only a reset can.
    pub fn resume(&self) -> bool {
        let mut state = self.lock();
        match state.run_state {
            RunState::Running => return true,
            RunState::Shutdown => return false,
            RunState::Prelaunch | RunState::Paused | RunState::GuestPanicked => {}
        }
        state.run_state = RunState::Running;
        drop(state);
        self.tell(Event::Resume);
        self.changed.notify_all();
        true
    }

    /// Ends the run because of `request`; a request to end counts more than one to reset.
    pub fn request(&self, request: Request) {
        let mut state = self.lock();
        if state.request.is_none_or(|earlier| earlier == Request::Reset) {
            state.request = Some(request);
        }
        if request != Request::Reset {
            crate::console::let_go();
        }
        self.call(&state);
    }

    /// Presses the power button. False when the machine has none.
    pub fn press_power_button(&self) -> bool {
        if !self.has_power_button {
            return false;
        }
        let mut state = self.lock();
        match &state.power_button {
            Some(press) => press(),
            None => state.pressed = true,
        }
        drop(state);
        self.tell(Event::Powerdown);
        true
    }

    /// Has every CPU say where it is.
    pub fn ask_for_reports(&self) {
        let mut state = self.lock();
        state.reports = state.cpus.iter().map(|runner| runner.thread).collect();
        self.call(&state);
    }
}

#[cfg(test)]
mod tests;
