//! Telling a driver of the ports (section 5.3.6.2), and hearing which are open.

use std::collections::VecDeque;
use std::sync::Arc;

use rustix::event::epoll::EventFlags;
use rustix::fd::{AsFd, BorrowedFd};
use vm_memory::GuestMemoryMmap;

use super::Port;
use crate::virtio::{Broken, Event, Ring, Server, Wake};

/// Bytes of `struct virtio_console_control`: the port's number, an event, a value.
const HEADER: usize = 8;
/// Messages that wait for the driver, at the most, before it is not listened to.
const WAITING_MAX: usize = 256;

/// The driver is there.
const DEVICE_READY: u16 = 0;
/// There is a port.
const PORT_ADD: u16 = 1;
/// The driver has made a port ready.
const PORT_READY: u16 = 3;
/// The port is a console.
const CONSOLE_PORT: u16 = 4;
/// The other side has the port open.
const PORT_OPEN: u16 = 6;
/// What the port is called; the name follows.
const PORT_NAME: u16 = 7;

/// Serves the two control queues.
pub(super) struct Controller {
    ports: Vec<Known>,
    waiting: VecDeque<Vec<u8>>,
    /// Somebody may have come to the other end of a port, or gone.
    news: Event,
}

/// A port, and what the driver knows of it.
struct Known {
    port: Arc<Port>,
    /// The driver has made it ready.
    is_ready: bool,
    /// Who it was told is at the other end. From the start it takes nobody to be there.
    visitor: Option<u64>,
}

impl Controller {
    pub(super) fn new(ports: Vec<Arc<Port>>, news: Event) -> Self {
        let known = |port| Known { port, is_ready: false, visitor: None };
        Self { ports: ports.into_iter().map(known).collect(), waiting: VecDeque::new(), news }
    }

    /// Takes a message of the driver's. What makes no sense is ignored: there is no answer for it.
    fn hear(&mut self, message: [u8; HEADER]) {
        let [i0, i1, i2, i3, e0, e1, v0, v1] = message;
        let number = u32::from_le_bytes([i0, i1, i2, i3]);
        let value = u16::from_le_bytes([v0, v1]);
        let known = self.ports.iter_mut().find(|known| u32::from(known.port.number) == number);
        match (u16::from_le_bytes([e0, e1]), known) {
            (DEVICE_READY, _) if value == 1 => {
                for Known { port, .. } in &self.ports {
                    self.waiting.push_back(message_of(port, PORT_ADD, 1, ""));
                }
            }
            (PORT_READY, Some(known)) if value == 1 => {
                let port = &known.port;
                if port.is_console {
                    self.waiting.push_back(message_of(port, CONSOLE_PORT, 1, ""));
                }
                if !port.name.is_empty() {
                    self.waiting.push_back(message_of(port, PORT_NAME, 1, &port.name));
                }
                (known.is_ready, known.visitor) = (true, None);
            }
            (PORT_OPEN, Some(known)) => known.port.set_open(value == 1),
            _ => {}
        }
    }

    /// Says of each port whether somebody has come to its other end, or gone: a program in the
    /// guest waits for the one and hears of the other, as under QEMU. What does not fit waits, and
    /// nothing of it but the last.
    fn announce(&mut self) {
        for known in self.ports.iter_mut().filter(|known| known.is_ready) {
            let (before, now) = (known.visitor, known.port.visitor());
            if before == now || self.waiting.len() >= WAITING_MAX {
                continue;
            }
            if before.is_some() {
                self.waiting.push_back(message_of(&known.port, PORT_OPEN, 0, ""));
            }
            if now.is_some() {
                self.waiting.push_back(message_of(&known.port, PORT_OPEN, 1, ""));
            }
            known.visitor = now;
        }
    }

    fn listen(&mut self, ring: &mut Ring, memory: &GuestMemoryMmap) -> Result<(), Broken> {
        loop {
            while self.waiting.len() < WAITING_MAX {
                let Some(chain) = ring.next(memory)? else { break };
                let message = chain.readable.read::<HEADER>();
                self.hear(message.ok_or_else(|| ring.broken("a control message of few bytes"))?);
                ring.give_back(memory, chain.head, 0)?;
            }
            ring.tell(memory)?;
            if self.waiting.len() >= WAITING_MAX || !ring.listen(memory)? {
                return Ok(());
            }
        }
    }

    fn tell(&mut self, ring: &mut Ring, memory: &GuestMemoryMmap) -> Result<(), Broken> {
        while let Some(message) = self.waiting.front() {
            let Some(chain) = ring.next(memory)? else {
                if ring.listen(memory)? {
                    continue;
                }
                break;
            };
            // A name that does not fit is cut off: the driver decides how much it takes.
            let count = chain.writable.copy_from(message);
            self.waiting.pop_front();
            ring.give_back(memory, chain.head, count)?;
        }
        ring.tell(memory)
    }
}

impl Server for Controller {
    fn source(&self) -> Option<(BorrowedFd<'_>, EventFlags)> {
        Some((self.news.as_fd(), EventFlags::IN | EventFlags::ET))
    }

    fn serve(&mut self, rings: &mut [Ring], wake: &Wake<'_>) -> Result<(), Broken> {
        let [receive, transmit] = rings else { return Ok(()) };
        let memory = wake.memory();
        loop {
            self.listen(transmit, memory)?;
            self.announce();
            let full = self.waiting.len() >= WAITING_MAX;
            self.tell(receive, memory)?;
            // What was not listened to has room now, unless the driver takes nothing either.
            if !full || self.waiting.len() >= WAITING_MAX {
                return Ok(());
            }
        }
    }
}

fn message_of(port: &Port, event: u16, value: u16, text: &str) -> Vec<u8> {
    let header = [event.to_le_bytes(), value.to_le_bytes()].concat();
    [&u32::from(port.number).to_le_bytes(), header.as_slice(), text.as_bytes()].concat()
}
