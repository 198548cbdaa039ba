//! The CPUs of a running machine: a thread each, until one of them ends the run.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use abi::post;

use crate::board::Board;
use crate::bus::Action;
use crate::devices::ioapic::Messages;
use crate::memory::GuestRam;
use crate::signals;
use crate::trace::{Exit, Trace};
use crate::vcpu::{End, Error, Vcpu};

/// What the CPUs share while they run.
pub struct Crew<'a, M> {
    /// The devices.
    pub board: &'a Board<M>,
    /// Guest memory.
    pub ram: &'a GuestRam,
    trace: Option<Mutex<&'a mut Trace>>,
    progress: Mutex<Progress>,
    over: AtomicBool,
    /// How it ended: what the first CPU that left had to say.
    end: Mutex<Option<Result<End, Error>>>,
    /// The threads that run a CPU now.
    threads: Mutex<Vec<signals::Thread>>,
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
        board: &'a Board<M>,
        ram: &'a GuestRam,
        trace: Option<&'a mut Trace>,
        direct: bool,
    ) -> Self {
        Self {
            board,
            ram,
            trace: trace.map(Mutex::new),
            progress: Mutex::new(Progress { last: None, in_kernel: direct }),
            over: AtomicBool::new(false),
            end: Mutex::default(),
            threads: Mutex::default(),
        }
    }

    /// Runs all CPUs, the first on this thread, to the end of the run.
    pub fn run(self, cpus: &mut [Vcpu]) -> Result<End, Error> {
        let Some((first, others)) = cpus.split_first_mut() else { return Ok(End::PowerOff) };
        thread::scope(|scope| {
            let crew = &self;
            for (cpu, number) in others.iter_mut().zip(1..) {
                let name = format!("CPU {number}");
                if let Err(error) = signals::spawn_cpu(scope, name, move || crew.run_cpu(cpu)) {
                    return crew.finish(Err(Error::Thread(error)));
                }
            }
            if let Some(trace) = &self.trace {
                lock(trace).first_run();
            }
            self.run_cpu(first);
        });
        let end = self.end.into_inner().unwrap_or_else(PoisonError::into_inner);
        // Every CPU leaves because of an end that somebody wrote here before.
        end.unwrap_or(Ok(End::PowerOff))
    }

    fn run_cpu(&self, cpu: &mut Vcpu) {
        lock(&self.threads).push(signals::this_thread());
        let end = cpu.run(self);
        lock(&self.threads).retain(|thread| *thread != signals::this_thread());
        if let Some(end) = end.transpose() {
            self.finish(end);
        }
    }

    /// Ends the run, if nobody did before, and has every CPU leave the guest.
    fn finish(&self, end: Result<End, Error>) {
        lock(&self.end).get_or_insert(end);
        self.over.store(true, Ordering::SeqCst);
        lock(&self.threads).iter().for_each(|thread| signals::wake(*thread));
    }

    /// Whether the run has ended.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Counts an exit; `device` is what it was about.
    pub fn count(&self, exit: Exit, device: impl FnOnce() -> &'static str) {
        if let Some(trace) = &self.trace {
            lock(trace).count(exit, device());
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
        }
    }

    /// Linux writes the port too, as a delay: once it runs, only its init's code counts.
    fn take_post_code(&self, code: u8) -> Option<End> {
        let mut progress = lock(&self.progress);
        if progress.in_kernel && code != post::GUEST_INIT {
            return None;
        }
        progress.last = Some(code);
        progress.in_kernel |= code == post::KERNEL_ENTRY;
        if let Some(trace) = &self.trace {
            lock(trace).mark(code);
        }
        (code == post::FIRMWARE_FAILED).then_some(End::FirmwareFailed)
    }

    /// How far start-up has come.
    pub fn progress(&self) -> Progress {
        *lock(&self.progress)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
