//! The socket device, served by another process: vhost-device-vsock.
//!
//! For hosts whose kernel has no vhost-vsock, or whose users may not use it. The guest's ports are
//! there behind one UNIX socket of that process.
//!
//! When the process is gone, the driver is told that all connections are (section 5.10.6.7), and
//! goes on as soon as the process is there again.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::epoll::EventFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;

use super::QUEUE_SIZE;
use crate::console;
use crate::virtio::vhost_user::{Daemon, Error, Happened, Program, Wires};
use crate::virtio::{Broken, Device, Interrupt, Ring, Server, Wake, Work};

/// Who serves sockets.
const PROGRAM: Program = Program {
    name: "vhost-device-vsock",
    option: "--socket",
    protocol: VhostUserProtocolFeatures::CONFIG,
};
/// What the guest receives and what it sends is the process's; events are ours.
const DAEMON_QUEUES: usize = 2;
const QUEUES: [usize; 3] = [0, 1, 2];
/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`, a `struct virtio_vsock_event`.
const TRANSPORT_RESET: [u8; 4] = 0_u32.to_le_bytes();
/// How often a process that is gone is looked for.
const AGAIN: Duration = Duration::from_secs(1);

/// The device.
pub struct UserVsock {
    lacks: u64,
    shared: Arc<Shared>,
}

/// What outlives a driver.
struct Shared {
    socket: PathBuf,
    peer: Mutex<Peer>,
}

/// The process, and the guest's context identifier, which it knows.
struct Peer {
    daemon: Option<Daemon>,
    cid: [u8; 8],
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Peer> {
        self.peer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peer {
    fn connect(socket: &Path) -> Result<Self, Error> {
        let mut daemon = Daemon::connect(&PROGRAM, socket)?;
        let cid = daemon.config()?;
        Ok(Self { daemon: Some(daemon), cid })
    }
}

impl UserVsock {
    /// A device whose process is at `socket`. The guest's memory must be shared.
    pub fn new(socket: &Path) -> Result<Self, Error> {
        let peer = Peer::connect(socket)?;
        let lacks = peer.daemon.as_ref().map_or(0, Daemon::lacks);
        let shared = Shared { socket: socket.into(), peer: Mutex::new(peer) };
        Ok(Self { lacks, shared: Arc::new(shared) })
    }
}

impl Device for UserVsock {
    fn name(&self) -> &'static str {
        "vhost-user-vsock"
    }

    fn id(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn lacks(&self) -> u64 {
        self.lacks
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; QUEUES.len()]
    }

    fn config(&self) -> Vec<u8> {
        self.shared.lock().cid.into()
    }

    fn start(&self, features: u64, interrupt: &Arc<Interrupt>) -> io::Result<Vec<Work>> {
        let bridge = Bridge {
            shared: self.shared.clone(),
            features,
            interrupt: interrupt.clone(),
            wires: Wires::new()?,
            state: State::New,
        };
        Ok(vec![Work { queues: QUEUES.into(), server: Box::new(bridge) }])
    }
}

/// Who serves the queues.
enum State {
    /// Nobody yet.
    New,
    /// The process.
    Daemon,
    /// Nobody, until the process is found again; the timer says when to look. What was told last.
    Gone { _timer: OwnedFd, told: String },
}

/// Passes the process's interrupts on, and looks for another one when it is gone.
struct Bridge {
    shared: Arc<Shared>,
    features: u64,
    interrupt: Arc<Interrupt>,
    wires: Wires,
    state: State,
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
        match self.state {
            State::New => match self.hand_over(rings, wake) {
                Ok(()) => self.show_identifier(),
                Err(problem) => self.lose(rings, wake, &problem.to_string())?,
            },
            State::Daemon => {
                if called {
                    self.interrupt.used();
                }
                if hung_up {
                    let socket = self.shared.socket.display();
                    let problem = format!("{} at '{socket}' is gone", PROGRAM.name);
                    self.lose(rings, wake, &problem)?;
                }
            }
            State::Gone { .. } => self.look_again(rings, wake)?,
        }
        Ok(())
    }
}

impl Bridge {
    /// Has the process work.
    fn hand_over(&mut self, rings: &[Ring], wake: &Wake<'_>) -> Result<(), Error> {
        let shared = self.shared.clone();
        let mut peer = shared.lock();
        if peer.daemon.as_ref().is_none_or(Daemon::is_gone) {
            *peer = Peer::connect(&shared.socket)?;
        }
        let Some(daemon) = &mut peer.daemon else { return Ok(()) };
        let rings = rings.get(..DAEMON_QUEUES).unwrap_or_default();
        let run = daemon.run(self.features, rings, self.wires.call(), wake.ram);
        if let Err(error) = run.and_then(|()| self.wires.watch(daemon)) {
            // One that was not told all is another one the next time.
            peer.daemon = None;
            return Err(error);
        }
        self.state = State::Daemon;
        // What the driver said before is lost on a process that did not run yet.
        rings.iter().for_each(|ring| ring.kick().happen());
        Ok(())
    }

    /// The process may not be the one of the start.
    fn show_identifier(&self) {
        self.interrupt.show_config(|| self.shared.lock().cid.into());
    }

    /// The process is gone, and all connections with it.
    fn lose(&mut self, rings: &mut [Ring], wake: &Wake<'_>, problem: &str) -> Result<(), Broken> {
        console::say(&format!(
            "vhost-user-vsock-device: {problem}; the guest's connections are closed until it is \
             started again"
        ));
        if let Some(daemon) = self.shared.lock().daemon.take() {
            self.wires.forget(&daemon);
        }
        let timer = self.timer().map_err(Broken::Thread)?;
        self.state = State::Gone { _timer: timer, told: problem.into() };
        // What it used last, it may not have told.
        self.interrupt.used();
        reset_transport(rings, wake)
    }

    /// A timer that wakes this server again and again.
    fn timer(&self) -> io::Result<OwnedFd> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let period = Timespec::try_from(AGAIN).map_err(io::Error::other)?;
        let times = Itimerspec { it_interval: period, it_value: period };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &times)?;
        self.wires.add(timer.as_fd())?;
        Ok(timer)
    }

    /// Goes on if the process is there: with the buffers that the last one did not use, as it
    /// takes them in their order.
    fn look_again(&mut self, rings: &mut [Ring], wake: &Wake<'_>) -> Result<(), Broken> {
        for ring in rings.iter_mut().take(DAEMON_QUEUES) {
            let used = ring.used_index(wake.memory())?;
            ring.seek(used, used);
        }
        match (self.hand_over(rings, wake), &mut self.state) {
            (Err(Error::Connect { .. }), _) => return Ok(()),
            (Err(error), State::Gone { told, .. }) => {
                let problem = error.to_string();
                if *told != problem {
                    console::say(&format!("vhost-user-vsock-device: {problem}"));
                    *told = problem;
                }
                return Ok(());
            }
            _ => console::say("vhost-user-vsock-device: it is served again"),
        }
        // It may have another identifier for the guest.
        self.show_identifier();
        reset_transport(rings, wake)
    }
}

/// Tells the driver that all connections are lost, and to read its identifier anew.
fn reset_transport(rings: &mut [Ring], wake: &Wake<'_>) -> Result<(), Broken> {
    let Some(events) = rings.get_mut(DAEMON_QUEUES) else { return Ok(()) };
    // A driver that has no buffer for it has no connections either, or asked for it.
    let Some(chain) = events.next(wake.memory())? else { return Ok(()) };
    let written = chain.writable.copy_from(&TRANSPORT_RESET);
    events.give_back(wake.memory(), chain.head, written)?;
    events.tell(wake.memory())
}

impl Drop for Bridge {
    /// The process lets go of the queues; a guest's restart finds it ready.
    fn drop(&mut self) {
        if matches!(self.state, State::Daemon)
            && let Some(daemon) = &mut self.shared.lock().daemon
        {
            daemon.stop(DAEMON_QUEUES);
        }
    }
}

#[cfg(test)]
mod tests;
