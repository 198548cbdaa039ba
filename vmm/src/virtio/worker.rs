//! The threads of a device that a driver uses: from its readiness to its reset.
//!
//! A driver's notification makes an event descriptor readable, by KVM itself and without an exit
//! to this program. It is waited for by its edge, so that it need not be read: one system call for
//! each wake-up.
#![expect(unsafe_code, reason = "an eventfd changes its type")]

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING, VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_STATUS,
};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::registers::Registers;
use super::{Broken, Ring, Server};
use crate::console;
use crate::control::Line;
use crate::memory::GuestRam;
use crate::signals;

/// Part of a device's work.
pub struct Work {
    /// The queues, by their numbers, in the order in which the server gets them.
    pub queues: Vec<usize>,
    /// Who does it.
    pub server: Box<dyn Server>,
}

/// How a device tells its driver that something happened.
///
/// Interrupts are edges: the driver reads their status, acknowledges that, and then looks at the
/// rings, so nothing that came before is missed. Neither is an exit to this program: the status is
/// memory, and KVM takes the acknowledgement of used buffers as an event. Nobody waits for that
/// event, as it follows every interrupt: it is taken into account at the next one, or, if none
/// comes, after [`SETTLE`]. Until then the status has a reason that was acknowledged, and a driver
/// that reads it again looks at its rings once more.
pub struct Interrupt {
    name: &'static str,
    line: Line,
    registers: Arc<Registers>,
    // Whoever changes the status.
    status: Mutex<()>,
    acknowledged: Option<Event>,
    stopped: AtomicBool,
    // It is told once.
    told: AtomicBool,
}

impl Interrupt {
    /// Interrupts of the device `name`, by `line`; their reasons are shown in `registers`.
    pub fn new(name: &'static str, line: Line, registers: Arc<Registers>) -> Self {
        Self {
            name,
            line,
            registers,
            status: Mutex::new(()),
            // Without one, an acknowledgement is an exit.
            acknowledged: Event::new().ok(),
            stopped: AtomicBool::new(false),
            told: AtomicBool::new(false),
        }
    }

    /// As after power on.
    pub(super) fn reset(&self) {
        self.change_status(|_| 0);
        self.stopped.store(false, Ordering::SeqCst);
    }

    /// Buffers were used.
    pub fn used(&self) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    /// The configuration is another one.
    pub fn configuration_changed(&self, config: impl FnOnce() -> Vec<u8>) {
        self.show_config(config);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    /// The configuration is another one, which the driver hears in another way.
    pub(super) fn show_config(&self, config: impl FnOnce() -> Vec<u8>) {
        self.registers.set_config(config);
    }

    fn raise(&self, reason: u32) {
        self.change_status(|status| status | reason);
        (self.line)();
    }

    /// Changes the status, after what was acknowledged until now; the new one. An acknowledgement
    /// that is found here came after the last change: the driver had not looked at its rings yet
    /// when that was shown.
    fn change_status(&self, change: impl FnOnce(u32) -> u32) -> u32 {
        let _changes = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        let mut status = self.registers.get(VIRTIO_MMIO_INTERRUPT_STATUS);
        if self.acknowledged.as_ref().is_some_and(Event::take) {
            status &= !VIRTIO_MMIO_INT_VRING;
        }
        let status = change(status);
        self.registers.set(VIRTIO_MMIO_INTERRUPT_STATUS, status);
        status
    }

    /// Takes acknowledgements into account; whether the driver has some left to make.
    fn settle(&self) -> bool {
        self.change_status(|status| status) & VIRTIO_MMIO_INT_VRING != 0
    }

    /// Whether used buffers may have been acknowledged, or may yet be.
    fn is_unsettled(&self) -> bool {
        self.registers.get(VIRTIO_MMIO_INTERRUPT_STATUS) & VIRTIO_MMIO_INT_VRING != 0
    }

    /// What happens when the driver acknowledges used buffers, and nothing else.
    pub(super) fn acknowledgement(&self) -> Option<&Event> {
        self.acknowledged.as_ref()
    }

    /// The device does nothing more until it is reset.
    pub(super) fn fail(&self, problem: &Broken) {
        if !self.told.swap(true, Ordering::SeqCst) {
            let name = self.name;
            console::say(&format!("{name}: {problem}: it does nothing until the guest resets it"));
        }
        self.registers.add(VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_NEEDS_RESET);
        self.stopped.store(true, Ordering::SeqCst);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    pub(super) fn is_broken(&self) -> bool {
        self.registers.get(VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET != 0
    }

    /// Whether no more is to be taken from the rings.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// The driver acknowledges these, and KVM did not take it.
    pub(super) fn acknowledge(&self, reasons: u32) {
        self.change_status(|status| status & !reasons);
    }
}

/// Why a server was woken.
pub struct Wake<'m> {
    /// The guest's memory.
    pub ram: &'m GuestRam,
    /// Its source has something.
    pub source: bool,
}

impl<'m> Wake<'m> {
    /// Where the rings and buffers are.
    pub fn memory(&self) -> &'m GuestMemoryMmap {
        self.ram.regions()
    }
}

/// Something that happens again and again: a driver's notification of one queue, say. It is the
/// same one in all clones.
#[derive(Clone)]
pub struct Event(Arc<OwnedFd>);

impl Event {
    /// One that has not happened.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?)))
    }

    /// It happens.
    pub fn happen(&self) {
        // A full counter refuses, and is seen all the same.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Whether it has happened since the last call.
    fn take(&self) -> bool {
        rustix::io::read(&self.0, &mut [0; 8]).is_ok()
    }

    /// The same event in the type that interfaces of the kernel want.
    pub fn to_event_fd(&self) -> io::Result<EventFd> {
        let fd = self.0.try_clone()?;
        // SAFETY: the descriptor was just made, of an eventfd, and nobody else has it.
        Ok(unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) })
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The running threads of a device.
pub(super) struct Workers {
    interrupt: Arc<Interrupt>,
    stop: Event,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    pub fn new(interrupt: Arc<Interrupt>) -> io::Result<Self> {
        Ok(Self { interrupt, stop: Event::new()?, threads: Vec::new() })
    }

    /// Starts `server` on its rings.
    pub fn start(
        &mut self,
        mut server: Box<dyn Server>,
        mut rings: Vec<Ring>,
        ram: Arc<GuestRam>,
    ) -> io::Result<()> {
        let stop = self.stop.clone();
        let interrupt = self.interrupt.clone();
        let work = move || {
            let outcome = work(&mut *server, &mut rings, &stop, &interrupt, &ram);
            // The server may have the kernel work in the guest's memory: it goes first.
            drop(server);
            if let Err(problem) = outcome {
                interrupt.fail(&problem);
            }
        };
        self.threads.push(signals::spawn(self.interrupt.name, work)?);
        Ok(())
    }
}

impl Drop for Workers {
    /// Waits until what is being done is done.
    fn drop(&mut self) {
        self.interrupt.stopped.store(true, Ordering::SeqCst);
        self.stop.happen();
        for thread in self.threads.drain(..) {
            // A server that panics ends the process before this.
            let _ = thread.join();
        }
    }
}

/// How long it takes, at the least, until an acknowledgement is taken into account that no
/// interrupt follows: longer than a busy device waits for its next request.
const SETTLE: Duration = Duration::from_millis(1);

const STOP: u64 = 0;
const KICK: u64 = 1;
const SOURCE: u64 = 2;

fn work(
    server: &mut dyn Server,
    rings: &mut [Ring],
    stop: &Event,
    interrupt: &Interrupt,
    ram: &GuestRam,
) -> Result<(), Broken> {
    let thread_error = |errno: Errno| Broken::Thread(errno.into());
    let kicks = if server.takes_notifications() { &*rings } else { &[] };
    let mut waiter = Waiter::new(stop, kicks).map_err(thread_error)?;
    if let Some((source, events)) = server.source() {
        waiter.add(source, SOURCE, events).map_err(thread_error)?;
    }
    // What was made available before there was a thread to hear of it.
    let mut source = true;
    while !interrupt.is_stopped() {
        server.serve(rings, &Wake { ram, source })?;
        source = wait(&mut waiter, interrupt).map_err(thread_error)?;
    }
    Ok(())
}

/// Waits for the next event; whether it is the source's. The longer a driver acknowledges nothing,
/// the more seldom it is looked for.
fn wait(waiter: &mut Waiter, interrupt: &Interrupt) -> Result<bool, Errno> {
    let mut patience = interrupt.is_unsettled().then_some(SETTLE);
    loop {
        match waiter.wait(patience)? {
            Some(source) => return Ok(source),
            None => {
                patience =
                    patience.filter(|_| interrupt.settle()).map(|time| time.saturating_mul(2))
            }
        }
    }
}

struct Waiter {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Waiter {
    fn new(stop: &Event, rings: &[Ring]) -> Result<Self, Errno> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let waiter = Self { epoll, events: Vec::with_capacity(rings.len() + 2) };
        waiter.add(stop.as_fd(), STOP, EventFlags::IN)?;
        for ring in rings {
            waiter.add(ring.kick().as_fd(), KICK, EventFlags::IN | EventFlags::ET)?;
        }
        Ok(waiter)
    }

    fn add(&self, fd: BorrowedFd<'_>, what: u64, events: EventFlags) -> Result<(), Errno> {
        epoll::add(&self.epoll, fd, EventData::new_u64(what), events)
    }

    /// Waits for the next event; whether it is the source's. Nothing when the time is over.
    fn wait(&mut self, time: Option<Duration>) -> Result<Option<bool>, Errno> {
        self.events.clear();
        // A time that is none is none.
        let time = time.and_then(|time| Timespec::try_from(time).ok());
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), time.as_ref()) {
            Ok(0) => return Ok(None),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        Ok(Some(self.events.iter().any(|event| event.data.u64() == SOURCE)))
    }
}

#[cfg(test)]
mod tests;
