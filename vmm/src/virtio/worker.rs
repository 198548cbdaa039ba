//! The threads of a device that a driver uses: from its readiness to its reset.
//!
//! A driver's notification makes an event descriptor readable, by KVM itself and without an exit
//! to this program. It is waited for by its edge, so that it need not be read: one system call for
//! each wake-up.
#![expect(unsafe_code, reason = "an eventfd changes its type")]

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

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
/// rings, so nothing that came before is missed. KVM takes the acknowledgement without an exit to
/// this program, as an event: what it was about is what the driver had read.
pub struct Interrupt {
    name: &'static str,
    line: Line,
    status: Mutex<Status>,
    acknowledged: Option<Event>,
    generation: AtomicU32,
    stopped: AtomicBool,
    broken: AtomicBool,
    // It is told once.
    told: AtomicBool,
}

/// Reasons of interrupts (section 4.2.2, InterruptStatus).
#[derive(Clone, Copy, Default)]
struct Status {
    /// Those that the driver has not read.
    new: u32,
    /// Those that it has read, and not acknowledged.
    read: u32,
}

impl Interrupt {
    /// Interrupts of the device `name`, by `line`.
    pub fn new(name: &'static str, line: Line) -> Self {
        Self {
            name,
            line,
            status: Mutex::default(),
            // Without one, an acknowledgement is an exit.
            acknowledged: Event::new().ok(),
            generation: AtomicU32::new(0),
            stopped: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            told: AtomicBool::new(false),
        }
    }

    /// As after power on.
    pub(super) fn reset(&self) {
        *self.lock() = Status::default();
        self.take_acknowledgement();
        self.stopped.store(false, Ordering::SeqCst);
        self.broken.store(false, Ordering::SeqCst);
    }

    /// Buffers were used.
    pub fn used(&self) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    /// The configuration is another one.
    pub fn configuration_changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    fn raise(&self, reason: u32) {
        self.lock().new |= reason;
        (self.line)();
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What happens when the driver acknowledges what it has read.
    pub(super) fn acknowledgement(&self) -> Option<&Event> {
        self.acknowledged.as_ref()
    }

    /// Whether the driver has acknowledged since the last call.
    fn take_acknowledgement(&self) -> bool {
        self.acknowledged.as_ref().is_some_and(Event::take)
    }

    /// The device does nothing more until it is reset.
    pub(super) fn fail(&self, problem: &Broken) {
        if !self.told.swap(true, Ordering::SeqCst) {
            let name = self.name;
            console::say(&format!("{name}: {problem}: it does nothing until the guest resets it"));
        }
        self.broken.store(true, Ordering::SeqCst);
        self.stopped.store(true, Ordering::SeqCst);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::SeqCst)
    }

    /// Whether no more is to be taken from the rings.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// The driver reads why it was interrupted.
    pub(super) fn read_status(&self) -> u32 {
        let acknowledged = self.take_acknowledgement();
        let mut status = self.lock();
        if acknowledged {
            status.read = 0;
        }
        status.read |= std::mem::take(&mut status.new);
        status.read
    }

    /// The driver acknowledges these, and KVM did not take it.
    pub(super) fn acknowledge(&self, reasons: u32) {
        let mut status = self.lock();
        status.new &= !reasons;
        status.read &= !reasons;
    }

    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
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
        source = waiter.wait().map_err(thread_error)?;
    }
    Ok(())
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

    /// Waits for the next event; whether it is the source's.
    fn wait(&mut self) -> Result<bool, Errno> {
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        Ok(self.events.iter().any(|event| event.data.u64() == SOURCE))
    }
}
