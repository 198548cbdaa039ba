//! The file system device (section 5.11), served by another process: virtiofsd.
//!
//! Requests go from the guest to that process and never come by here ([`vhost_user`]).
//! While it lives, we look after which of them it has not answered. When it is gone, they are
//! answered here, all with an I/O error, so that nobody in the guest waits for ever. A driver does
//! not reset its device for a new mount, but tells it: that is when the process is looked for
//! again, and served from that very request on if it is there.

mod pending;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::epoll::EventFlags;
use rustix::fd::{AsFd, BorrowedFd};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;

use self::pending::Pending;
use super::vhost_user::{Daemon, Error, Happened, Program, Wires};
use super::{Broken, Device, Interrupt, Ring, Server, Wake, Work};
use crate::config;
use crate::console;

/// Bytes of the tag in the configuration, which the number of request queues follows.
const TAG_SIZE: usize = 36;
/// The high-priority queue, and one for requests.
const QUEUES: [usize; 2] = [0, 1];

/// Who serves folders.
const VIRTIOFSD: Program = Program {
    name: "virtiofsd",
    option: "--socket-path",
    protocol: VhostUserProtocolFeatures::empty(),
};

/// The device.
pub struct Fs {
    config: [u8; TAG_SIZE + 4],
    queue_size: u16,
    lacks: u64,
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
        let daemon = Daemon::connect(&VIRTIOFSD, &source.socket)?;
        let lacks = daemon.lacks();
        let name = format!("vhost-user-fs-device '{}'", source.tag);
        let shared = Shared { name, daemon: Mutex::new(Some(daemon)), source: source.clone() };
        Ok(Self { config, queue_size: source.queue_size, lacks, shared: Arc::new(shared) })
    }
}

impl Device for Fs {
    fn name(&self) -> &'static str {
        "vhost-user-fs"
    }

    fn id(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn lacks(&self) -> u64 {
        self.lacks
    }

    fn queues(&self) -> Vec<u16> {
        vec![self.queue_size; QUEUES.len()]
    }

    fn config(&self) -> Vec<u8> {
        self.config.into()
    }

    fn start(&self, features: u64, interrupt: &Arc<Interrupt>) -> io::Result<Vec<Work>> {
        let bridge = Bridge {
            shared: self.shared.clone(),
            features,
            interrupt: interrupt.clone(),
            wires: Wires::new()?,
            state: State::New,
            told: String::new(),
        };
        Ok(vec![Work { queues: QUEUES.into(), server: Box::new(bridge) }])
    }
}

/// Who serves the queues.
enum State {
    /// Nobody yet.
    New,
    /// The daemon, with what it has not answered, by queue.
    Daemon(Vec<Pending>),
    /// Nobody until the guest mounts anew: we do, with errors.
    Gone,
}

/// Passes the daemon's interrupts on, and takes its place when it is gone.
struct Bridge {
    shared: Arc<Shared>,
    features: u64,
    interrupt: Arc<Interrupt>,
    wires: Wires,
    state: State,
    /// What was told last of a daemon that is not there.
    told: String,
}

impl Server for Bridge {
    fn source(&self) -> Option<(BorrowedFd<'_>, EventFlags)> {
        Some(self.wires.source())
    }

    fn takes_notifications(&self) -> bool {
        false
    }

    fn serve(&mut self, rings: &mut [Ring], wake: &Wake<'_>) -> Result<(), Broken> {
        let Happened { called, hung_up } = self.wires.happened()?;
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
            State::Gone => self.refuse(rings, wake),
            _ => Ok(()),
        }
    }
}

impl Bridge {
    /// Has the daemon work. One that is gone since may have been started anew.
    fn begin(&mut self, rings: &mut [Ring], wake: &Wake<'_>) -> Result<(), Broken> {
        if self.try_hand_over(rings, wake) {
            return Ok(());
        }
        self.refuse_from_now_on(rings)?;
        self.refuse(rings, wake)
    }

    /// Whether there is a daemon, which has the queues then; if not, why is told once.
    fn try_hand_over(&mut self, rings: &[Ring], wake: &Wake<'_>) -> bool {
        let shared = self.shared.clone();
        let mut slot = shared.lock();
        let Err(problem) = self.hand_over(&mut slot, rings, wake) else { return true };
        // One that was not told all is another one the next time.
        *slot = None;
        let problem = problem.to_string();
        if self.told != problem && self.may_return() {
            let name = &shared.name;
            console::say(&format!(
                "{name}: {problem}; the guest gets I/O errors until it is mounted anew"
            ));
        }
        self.told = problem;
        false
    }

    /// Whether somebody can start a daemon again: the folder of its socket is there.
    fn may_return(&self) -> bool {
        let folder = self.shared.source.socket.parent();
        folder.is_none_or(|folder| folder.as_os_str().is_empty() || folder.exists())
    }

    fn hand_over(
        &mut self,
        slot: &mut Option<Daemon>,
        rings: &[Ring],
        wake: &Wake<'_>,
    ) -> Result<(), Error> {
        if slot.as_ref().is_none_or(Daemon::is_gone) {
            *slot = Some(Daemon::connect(&VIRTIOFSD, &self.shared.source.socket)?);
        }
        let Some(daemon) = slot else { return Ok(()) };
        daemon.run(self.features, rings, self.wires.call(), wake.ram)?;
        self.wires.watch(daemon)?;
        self.state = State::Daemon(rings.iter().map(Pending::at).collect());
        // What the driver said before is lost on a daemon that did not run yet.
        rings.iter().for_each(|ring| ring.kick().happen());
        Ok(())
    }

    /// The daemon is gone.
    fn take_over(&mut self, rings: &mut [Ring], wake: &Wake<'_>) -> Result<(), Broken> {
        let Shared { name, source, .. } = &*self.shared;
        let advice = match self.may_return() {
            true => ". Start it again, and mount anew in the guest",
            false => "",
        };
        console::say(&format!(
            "{name}: virtiofsd at '{}' is gone; the guest gets I/O errors{advice}",
            source.socket.display()
        ));
        if let Some(daemon) = self.shared.lock().take() {
            self.wires.forget(&daemon);
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
            self.wires.add(ring.kick().as_fd()).map_err(Broken::Thread)?;
        }
        Ok(())
    }

    /// Answers with errors, until the guest mounts anew and there is a daemon again.
    fn refuse(&mut self, rings: &mut [Ring], wake: &Wake<'_>) -> Result<(), Broken> {
        loop {
            let mut is_mounted = false;
            for ring in rings.iter_mut() {
                is_mounted |= pending::refuse_until_mount(ring, wake)?;
            }
            if !is_mounted || self.come_back(rings, wake)? {
                return Ok(());
            }
            for ring in rings.iter_mut() {
                pending::refuse_next(ring, wake)?;
            }
        }
    }

    /// Hands over to a daemon that was started again, if it was.
    fn come_back(&mut self, rings: &mut [Ring], wake: &Wake<'_>) -> Result<bool, Broken> {
        // The driver is to notify of what follows, which a daemon takes for granted.
        for ring in rings.iter_mut() {
            ring.listen(wake.memory())?;
        }
        if !self.try_hand_over(rings, wake) {
            return Ok(false);
        }
        // The daemon hears of it.
        rings.iter().for_each(|ring| self.wires.remove(ring.kick().as_fd()));
        self.told.clear();
        console::say(&format!("{}: it is served again", self.shared.name));
        Ok(true)
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
