//! The file system device (section 5.11), served by another process: virtiofsd.
//!
//! This program gives that process the guest's memory, where the queues are, and an event
//! descriptor for each direction (QEMU, docs/interop/vhost-user.rst); requests never come by here.
//! While it lives, we look after which of them it has not answered. When it is gone, they are
//! answered here, all with an I/O error, so that nobody in the guest waits for ever.

mod daemon;
mod pending;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;

use self::daemon::Daemon;
pub use self::daemon::Error;
use self::pending::Pending;
use super::{Broken, Device, Event, Interrupt, Ring, Server, Wake, Work};
use crate::config;
use crate::console;

/// Bytes of the tag in the configuration, which the number of request queues follows.
const TAG_SIZE: usize = 36;
/// The high-priority queue, and one for requests.
const QUEUES: [usize; 2] = [0, 1];

/// The device.
pub struct Fs {
    config: [u8; TAG_SIZE + 4],
    queue_size: u16,
    shared: Arc<Shared>,
}

/// What outlives a driver.
struct Shared {
    name: String,
    daemon: Mutex<Option<Daemon>>,
    source: config::Fs,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Option<Daemon>> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fs {
    /// A device whose daemon is there. The guest's memory must be shared.
    pub fn new(source: &config::Fs) -> Result<Self, Error> {
        let mut config = [0; TAG_SIZE + 4];
        let (tag, queues) = config.split_at_mut(TAG_SIZE);
        tag.iter_mut().zip(source.tag.bytes()).for_each(|(to, from)| *to = from);
        queues.copy_from_slice(&1_u32.to_le_bytes());
        let daemon = Mutex::new(Some(Daemon::connect(&source.socket)?));
        let name = format!("vhost-user-fs-device '{}'", source.tag);
        let shared = Shared { name, daemon, source: source.clone() };
        Ok(Self { config, queue_size: source.queue_size, shared: Arc::new(shared) })
    }
}

impl Device for Fs {
    fn name(&self) -> &'static str {
        "vhost-user-fs"
    }

    fn id(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn queues(&self) -> Vec<u16> {
        vec![self.queue_size; QUEUES.len()]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let found = self.config.get(from..).unwrap_or_default();
        data.iter_mut().zip(found).for_each(|(to, from)| *to = *from);
    }

    fn start(&self, features: u64, interrupt: &Arc<Interrupt>) -> io::Result<Vec<Work>> {
        let bridge = Bridge {
            shared: self.shared.clone(),
            features,
            call: Event::new()?,
            interrupt: interrupt.clone(),
            sources: epoll::create(CreateFlags::CLOEXEC)?,
            state: State::New,
        };
        epoll::add(&bridge.sources, bridge.call.as_fd(), EventData::new_u64(CALL), EDGE)?;
        Ok(vec![Work { queues: QUEUES.into(), server: Box::new(bridge) }])
    }
}

const CALL: u64 = 0;
const HANG_UP: u64 = 1;
const KICK: u64 = 2;
const EDGE: EventFlags = EventFlags::IN.union(EventFlags::ET);

/// Who serves the queues.
enum State {
    /// Nobody yet.
    New,
    /// The daemon, with what it has not answered, by queue.
    Daemon(Vec<Pending>),
    /// Nobody any more: we do, with errors.
    Gone,
}

/// Passes the daemon's interrupts on, and takes its place when it is gone.
struct Bridge {
    shared: Arc<Shared>,
    features: u64,
    call: Event,
    interrupt: Arc<Interrupt>,
    // The call, the daemon's connection, and later the kicks: a server has one source.
    sources: OwnedFd,
    state: State,
}

impl Server for Bridge {
    fn source(&self) -> Option<(BorrowedFd<'_>, EventFlags)> {
        Some((self.sources.as_fd(), EDGE))
    }

    fn takes_notifications(&self) -> bool {
        false
    }

    fn serve(&mut self, rings: &mut [Ring], wake: &Wake<'_>) -> Result<(), Broken> {
        let (called, hung_up) = self.what_happened().map_err(|e| Broken::Host(e.to_string()))?;
        match &mut self.state {
            State::New => return self.begin(rings, wake),
            State::Daemon(pending) => {
                for (pending, ring) in pending.iter_mut().zip(&*rings) {
                    pending
                        .look(ring, wake.memory())
                        .map_err(|source| ring.out_of_reach(source))?;
                }
                if called {
                    self.interrupt.used();
                }
                if hung_up {
                    self.take_over(rings, wake)?;
                }
            }
            State::Gone => {}
        }
        match self.state {
            State::Gone => rings.iter_mut().try_for_each(|ring| pending::refuse_all(ring, wake)),
            _ => Ok(()),
        }
    }
}

impl Bridge {
    /// Whether the daemon used buffers, and whether it is gone.
    fn what_happened(&self) -> rustix::io::Result<(bool, bool)> {
        let mut events = Vec::with_capacity(4);
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        epoll::wait(&self.sources, spare_capacity(&mut events), Some(&at_once))?;
        let has = |what| events.iter().any(|event: &epoll::Event| event.data.u64() == what);
        Ok((has(CALL), has(HANG_UP)))
    }

    /// Has the daemon work. One that is gone since may have been started anew.
    fn begin(&mut self, rings: &mut [Ring], wake: &Wake<'_>) -> Result<(), Broken> {
        let shared = self.shared.clone();
        let mut slot = shared.lock();
        let begun = self.hand_over(&mut slot, rings, wake);
        if begun.is_err() {
            *slot = None;
        }
        drop(slot);
        let Err(problem) = begun else { return Ok(()) };
        let name = &self.shared.name;
        console::say(&format!(
            "{name}: {problem}; the guest gets I/O errors until it is mounted anew"
        ));
        self.refuse_from_now_on(rings)?;
        rings.iter_mut().try_for_each(|ring| pending::refuse_all(ring, wake))
    }

    fn hand_over(
        &mut self,
        slot: &mut Option<Daemon>,
        rings: &[Ring],
        wake: &Wake<'_>,
    ) -> Result<(), Error> {
        if slot.as_ref().is_none_or(Daemon::is_gone) {
            *slot = Some(Daemon::connect(&self.shared.source.socket)?);
        }
        let Some(daemon) = slot else { return Ok(()) };
        daemon.run(self.features, rings, &self.call, wake.ram)?;
        let connection = (daemon.connection(), EventData::new_u64(HANG_UP));
        epoll::add(&self.sources, connection.0, connection.1, EventFlags::RDHUP)
            .map_err(|errno| Error::Talk(self.shared.source.socket.clone(), errno.to_string()))?;
        self.state = State::Daemon(rings.iter().map(|_| Pending::default()).collect());
        // What the driver said before is lost on a daemon that did not run yet.
        rings.iter().for_each(|ring| ring.kick().happen());
        Ok(())
    }

    /// The daemon is gone.
    fn take_over(&mut self, rings: &mut [Ring], wake: &Wake<'_>) -> Result<(), Broken> {
        let Shared { name, source, .. } = &*self.shared;
        console::say(&format!(
            "{name}: virtiofsd at '{}' is gone; the guest gets I/O errors. Start it again, and \
             mount anew in the guest",
            source.socket.display()
        ));
        if let Some(daemon) = self.shared.lock().take() {
            let _ = epoll::delete(&self.sources, daemon.connection());
        }
        // What it used last, it may not have told.
        self.interrupt.used();
        if let State::Daemon(pending) = std::mem::replace(&mut self.state, State::Gone) {
            for (pending, ring) in pending.into_iter().zip(&mut *rings) {
                pending.refuse(ring, wake)?;
            }
        }
        self.refuse_from_now_on(rings)
    }

    fn refuse_from_now_on(&mut self, rings: &[Ring]) -> Result<(), Broken> {
        self.state = State::Gone;
        for ring in rings {
            epoll::add(&self.sources, ring.kick().as_fd(), EventData::new_u64(KICK), EDGE)
                .map_err(|errno| Broken::Thread(errno.into()))?;
        }
        Ok(())
    }
}

impl Drop for Bridge {
    /// The daemon lets go of the queues; a guest's restart finds it ready.
    fn drop(&mut self) {
        if matches!(self.state, State::Daemon(_))
            && let Some(daemon) = &mut *self.shared.lock()
        {
            daemon.stop(QUEUES.len());
        }
    }
}
