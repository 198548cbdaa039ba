//! A port: where its bytes wait, and who moves them.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use rustix::event::epoll::EventFlags;
use rustix::fd::{AsFd, BorrowedFd};
use vm_memory::GuestMemoryMmap;

use crate::chardev::Output;
use crate::virtio::{Broken, Event, Ring, Server, Wake};

/// Input that waits for the guest, at the most, before its sender is made to wait.
const INPUT_MAX: usize = 64 << 10;
/// Bytes that are put out at a time.
const BATCH: usize = 4096;

/// A port of the device.
pub struct Port {
    /// Its number, which says which queues are its own.
    pub(super) number: u16,
    /// Its name, which is empty for most consoles.
    pub(super) name: String,
    /// Whether it is a console: one has somebody in the guest who takes its input from the start.
    pub(super) is_console: bool,
    output: Output,
    input: Mutex<VecDeque<u8>>,
    /// The guest has taken input.
    room: Condvar,
    /// There is input, or room for output.
    stir: Event,
    /// A program in the guest has it open.
    open: AtomicBool,
}

impl Port {
    /// A port whose output goes to `output`.
    pub fn new(number: u16, name: &str, is_console: bool, output: Output) -> io::Result<Self> {
        let stir = Event::new()?;
        let (input, room, open) = (Mutex::default(), Condvar::new(), AtomicBool::new(is_console));
        Ok(Self { number, name: name.into(), is_console, output, input, room, stir, open })
    }

    /// From now on `news` happens when somebody may have come to its other end or gone.
    pub(super) fn tell(&self, news: &Event) {
        let (stir, news) = (self.stir.clone(), news.clone());
        self.output.on_change(Arc::new(move || {
            stir.happen();
            news.happen();
        }));
    }

    /// Who is at its other end. For a console there is always somebody: it has no way to wait.
    pub(super) fn visitor(&self) -> Option<u64> {
        if self.is_console { Some(0) } else { self.output.visitor() }
    }

    /// Hands `bytes` to the guest, as it takes them; waits while a lot is waiting already.
    pub fn send(&self, bytes: &[u8]) {
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        while input.len() >= INPUT_MAX {
            input = self.room.wait(input).unwrap_or_else(PoisonError::into_inner);
        }
        input.extend(bytes);
        self.stir.happen();
    }

    /// Puts out one byte without any queue, if there is room: whoever is in an emergency does not
    /// wait.
    pub(super) fn put_out_now(&self, byte: u8) {
        if !self.is_full() {
            self.output.put(&[byte]);
        }
    }

    /// Whether the guest is to keep its output for now. A program that writes to a port sleeps
    /// then. Who writes to a console cannot: Linux' hvc driver spins, its interrupts off, until
    /// its buffer comes back. So what a console says is taken as long as that is possible, as
    /// COM1's is.
    fn is_full(&self) -> bool {
        if self.is_console { self.output.is_heaped() } else { self.output.is_full() }
    }

    /// A program in the guest opens or closes it. Linux drops what comes to a closed port, so
    /// that input waits here.
    pub(super) fn set_open(&self, open: bool) {
        self.open.store(open || self.is_console, Ordering::SeqCst);
        self.stir.happen();
    }
}

/// Who moves the bytes, both ways.
pub(super) struct Clerk {
    port: Arc<Port>,
    /// Bytes of the next chain that were put out already.
    put: usize,
}

impl Clerk {
    pub(super) fn new(port: &Arc<Port>) -> Self {
        Self { port: port.clone(), put: 0 }
    }
}

impl Server for Clerk {
    fn source(&self) -> Option<(BorrowedFd<'_>, EventFlags)> {
        Some((self.port.stir.as_fd(), EventFlags::IN | EventFlags::ET))
    }

    fn serve(&mut self, rings: &mut [Ring], wake: &Wake<'_>) -> Result<(), Broken> {
        let [receive, transmit] = rings else { return Ok(()) };
        self.put_out(transmit, wake.memory())?;
        self.port.hand_in(receive, wake.memory())
    }
}

impl Clerk {
    fn put_out(&mut self, ring: &mut Ring, memory: &GuestMemoryMmap) -> Result<(), Broken> {
        ring.ignore(memory)?;
        loop {
            while !self.port.is_full() {
                let Some(chain) = ring.next(memory)? else { break };
                let Some((_, mut rest)) = chain.readable.split_at(self.put) else {
                    return Err(ring.broken("a chain that changes while it is worked on"));
                };
                let mut bytes = [0; BATCH];
                // A chain may be long, and a reset is not to wait for all of it.
                while !rest.is_empty() && !self.port.is_full() && !ring.is_stopped() {
                    let count = rest.copy_to(&mut bytes);
                    self.port.output.put(bytes.get(..count).unwrap_or_default());
                    self.put += count;
                    rest = rest.split_at(count).unwrap_or_default().1;
                }
                if !rest.is_empty() {
                    ring.put_back();
                    break;
                }
                self.put = 0;
                ring.give_back(memory, chain.head, 0)?;
                ring.tell(memory)?;
            }
            // While it is full, the guest need not say that there is more.
            if self.port.is_full() || ring.is_stopped() || !ring.listen(memory)? {
                return Ok(());
            }
        }
    }
}

impl Port {
    fn hand_in(&self, ring: &mut Ring, memory: &GuestMemoryMmap) -> Result<(), Broken> {
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        while !input.is_empty() && self.open.load(Ordering::SeqCst) {
            let Some(chain) = ring.next(memory)? else {
                if ring.listen(memory)? {
                    continue;
                }
                break;
            };
            let count = chain.writable.len().min(input.len());
            let bytes: Vec<u8> = input.drain(..count).collect();
            chain.writable.copy_from(&bytes);
            ring.give_back(memory, chain.head, count)?;
            ring.tell(memory)?;
            self.room.notify_all();
        }
        Ok(())
    }
}
