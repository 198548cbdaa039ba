//! The CPUs of a running machine: a thread each, until one of them ends the run.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use abi::{ports, post};

use crate::board::Board;
use crate::bus::Action;
use crate::config::PanicAction;
use crate::control::{Control, Event, Verdict};
use crate::devices::ioapic::Messages;
use crate::memory::GuestRam;
use crate::signals;
use crate::trace::{Event as Stage, Exit, Trace};
use crate::vcpu::{End, Error, Vcpu};

/// What the CPUs share while they run.
pub struct Crew<'a, M> {
    /// The devices.
    pub board: &'a Board<M>,
    /// Guest memory.
    pub ram: &'a GuestRam,
    /// What is asked of the machine from outside.
    pub control: &'a Control,
    trace: Option<Mutex<&'a mut Trace>>,
    progress: Mutex<Progress>,
    /// What a trace knows already: the guest has run, and written to COM1.
    has_run: AtomicBool,
    has_spoken: AtomicBool,
    on_panic: PanicAction,
    /// How it ended: what the first CPU that left had to say.
    end: Mutex<Option<Result<End, Error>>>,
}

/// How far start-up has come, by its POST codes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// The last code.
    pub last: Option<u8>,
    /// The kernel runs.
    pub in_kernel: bool,
}

impl<'a, M: Messages + 'static> Crew<'a, M> {
    /// A crew; of a `direct` boot, in the kernel from the start.
    pub fn new(
        (board, ram): (&'a Board<M>, &'a GuestRam),
        control: &'a Control,
        trace: Option<&'a mut Trace>,
        direct: bool,
        on_panic: PanicAction,
    ) -> Self {
        Self {
            board,
            ram,
            control,
            trace: trace.map(Mutex::new),
            progress: Mutex::new(Progress { last: None, in_kernel: direct }),
            has_run: AtomicBool::new(false),
            has_spoken: AtomicBool::new(false),
            on_panic,
            end: Mutex::default(),
        }
    }

    /// Runs all CPUs, the first on this thread, to the end of the run.
    pub fn run(self, cpus: &mut [Vcpu]) -> Result<End, Error> {
        let Some((first, others)) = cpus.split_first_mut() else { return Ok(End::PowerOff) };
        self.control.begin(self.board.power_button());
        thread::scope(|scope| {
            let crew = &self;
            for (cpu, number) in others.iter_mut().zip(1..) {
                let name = format!("CPU {number}");
                if let Err(error) = signals::spawn_cpu(scope, name, move || crew.run_cpu(cpu)) {
                    return crew.finish(Err(Error::Thread(error)));
                }
            }
            self.run_cpu(first);
        });
        let end = self.end.into_inner().unwrap_or_else(PoisonError::into_inner);
        // Every CPU leaves because of an end that somebody wrote here before.
        end.unwrap_or(Ok(End::PowerOff))
    }

    fn run_cpu(&self, cpu: &mut Vcpu) {
        self.control.join(cpu.id());
        let end = cpu.run(self);
        self.control.leave();
        if let Some(end) = end.transpose() {
            self.finish(end);
        }
    }

    /// Ends the run, if nobody did before, and has every CPU leave the guest.
    fn finish(&self, end: Result<End, Error>) {
        lock(&self.end).get_or_insert(end);
        self.control.end();
    }

    /// Counts an exit; `device` is what it was about.
    pub fn count(&self, exit: Exit, device: impl FnOnce() -> &'static str) {
        if let Some(trace) = &self.trace {
            lock(trace).count(exit, device());
        }
    }

    /// The guest showed how far it has come, perhaps not for the first time.
    pub fn mark_first(&self, stage: Stage) {
        if let Some(trace) = &self.trace {
            lock(trace).mark_first(stage);
        }
    }

    /// The guest wrote to a port: perhaps its first byte on COM1.
    pub fn mark_output(&self, port: u16) {
        let is_news = port == ports::COM1 && self.trace.is_some();
        if is_news && !self.has_spoken.load(Ordering::Relaxed) && self.board.com1.is_written() {
            self.has_spoken.store(true, Ordering::Relaxed);
            self.mark_first(Stage::Console);
        }
    }

    /// What a device's action means for the run.
    pub fn act(&self, action: Action) -> Option<End> {
        match action {
            Action::None => None,
            Action::Reset(by) => Some(End::Reset(by)),
            Action::PowerOff => Some(End::PowerOff),
            Action::Exit(status) => Some(End::Exit(status)),
            Action::Post(code) => self.take_post_code(code),
            Action::Panicked => self.take_panic(),
            Action::CrashLoaded => {
                self.control.tell(Event::GuestCrashLoaded);
                None
            }
        }
    }

    fn take_panic(&self) -> Option<End> {
        self.control.tell(Event::GuestPanicked(self.on_panic.event()));
        (self.on_panic != PanicAction::None).then_some(End::Panicked)
    }

    /// Linux writes the port too, as a delay: once it runs, only its init's code counts.
    fn take_post_code(&self, code: u8) -> Option<End> {
        let mut progress = lock(&self.progress);
        if progress.in_kernel && code != post::GUEST_INIT {
            return None;
        }
        // A foreign BIOS may write anything.
        let failed = code == post::FIRMWARE_FAILED && progress.last.is_some_and(is_ours);
        progress.last = Some(code);
        progress.in_kernel |= code == post::KERNEL_ENTRY;
        if let Some(trace) = &self.trace {
            lock(trace).mark(Stage::Post(code));
        }
        failed.then_some(End::FirmwareFailed)
    }

    /// Whether a CPU may enter the guest.
    pub fn checkpoint(&self) -> Verdict {
        let verdict = self.control.checkpoint();
        // The machine may have waited for `cont` until now.
        if let (Some(trace), Verdict::Go) = (&self.trace, verdict)
            && !self.has_run.swap(true, Ordering::Relaxed)
        {
            lock(trace).first_run();
        }
        verdict
    }

    /// How far start-up has come.
    pub fn progress(&self) -> Progress {
        *lock(&self.progress)
    }
}

/// Whether a code is one that our firmware writes before it may fail.
fn is_ours(code: u8) -> bool {
    matches!(code, post::FIRMWARE_START | post::LOAD_KERNEL)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
