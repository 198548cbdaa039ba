//! The console device (section 5.3) with one port, hvc0 under Linux.
//!
//! It is a character device without the exits of a UART.
//!
//! Output that the reader does not take stays in the guest's buffers, and input that the guest does
//! not take stays with its sender: neither is lost, and nobody but the console waits.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use rustix::event::epoll::EventFlags;
use rustix::fd::{AsFd, BorrowedFd};
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use vm_memory::GuestMemoryMmap;

use super::{Broken, Device, Event, Interrupt, Ring, Server, Wake, Work};
use crate::chardev::Output;

/// Entries of each queue, as in QEMU.
const QUEUE_SIZE: u16 = 128;
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// A driver can put a byte out without any queue, early or late in its life.
const EMERGENCY_WRITE: u32 = 2;
/// Where it writes it.
const EMERGENCY: u64 = 8;
/// Input that waits for the guest, at the most, before its sender is made to wait.
const INPUT_MAX: usize = 64 << 10;
/// Bytes that are put out at a time.
const BATCH: usize = 4096;

/// The device.
pub struct Console(Arc<Port>);

struct Port {
    output: Output,
    input: Mutex<VecDeque<u8>>,
    /// The guest has taken input.
    room: Condvar,
    /// There is input, or room for output.
    stir: Event,
}

impl Console {
    /// A console whose output goes to `output`.
    pub fn new(output: Output) -> io::Result<Self> {
        let stir = Event::new()?;
        let wake = stir.clone();
        output.on_room(Arc::new(move || wake.happen()));
        let (input, room) = (Mutex::default(), Condvar::new());
        Ok(Self(Arc::new(Port { output, input, room, stir })))
    }

    /// Hands `bytes` to the guest, as it takes them; waits while a lot is waiting already.
    pub fn send(&self, bytes: &[u8]) {
        let mut input = self.0.input.lock().unwrap_or_else(PoisonError::into_inner);
        while input.len() >= INPUT_MAX {
            input = self.0.room.wait(input).unwrap_or_else(PoisonError::into_inner);
        }
        input.extend(bytes);
        self.0.stir.happen();
    }

    /// Whether the guest has put anything out.
    pub fn is_written(&self) -> bool {
        self.0.output.is_written()
    }
}

impl Device for Console {
    fn name(&self) -> &'static str {
        "virtio-console"
    }

    fn id(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn features(&self) -> u64 {
        1 << EMERGENCY_WRITE
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        // As much as fits: whoever is in an emergency does not wait.
        if let (EMERGENCY, [byte, ..]) = (offset, data)
            && !self.0.output.is_full()
        {
            self.0.output.put(&[*byte]);
        }
    }

    fn start(&self, _: u64, _: &Arc<Interrupt>) -> io::Result<Vec<Work>> {
        let server = Box::new(Clerk { port: self.0.clone(), put: 0 });
        Ok(vec![Work { queues: vec![RECEIVE, TRANSMIT], server }])
    }
}

/// Who moves the bytes, both ways.
struct Clerk {
    port: Arc<Port>,
    /// Bytes of the next chain that were put out already.
    put: usize,
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
            while !self.port.output.is_full() {
                let Some(chain) = ring.next(memory)? else { break };
                let Some((_, mut rest)) = chain.readable.split_at(self.put) else {
                    return Err(ring.broken("a chain that changes while it is worked on"));
                };
                let mut bytes = [0; BATCH];
                while !rest.is_empty() && !self.port.output.is_full() {
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
            if self.port.output.is_full() || !ring.listen(memory)? {
                return Ok(());
            }
        }
    }
}

impl Port {
    fn hand_in(&self, ring: &mut Ring, memory: &GuestMemoryMmap) -> Result<(), Broken> {
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        while !input.is_empty() {
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read as _;
    use std::os::fd::OwnedFd;

    use super::*;
    use crate::virtio::driver::{BUFFER, Driver, WRITE};

    fn console() -> (Arc<Console>, io::PipeReader) {
        let (reader, writer) = io::pipe().unwrap();
        let output = Output::file(File::from(OwnedFd::from(writer)));
        (Arc::new(Console::new(output).unwrap()), reader)
    }

    #[test]
    fn input_waits_for_buffers_and_fills_them_in_order() {
        let (console, _reader) = console();
        let driver = Driver::ready(console.clone(), 0);
        console.send(b"hello");
        driver.descriptor_of(0, 0, BUFFER, 3, WRITE, 0);
        driver.descriptor_of(0, 1, BUFFER + 3, 3, WRITE, 0);
        driver.offer_next(0, 0);
        assert_eq!(driver.used(0, 1), 3);
        driver.offer_next(0, 1);
        assert_eq!(driver.used(0, 2), 2);
        let mut bytes = [0; 5];
        driver.ram.read(BUFFER, &mut bytes).unwrap();
        assert_eq!(&bytes, b"hello");
    }

    #[test]
    fn output_stays_with_the_guest_while_nobody_reads_and_is_not_lost() {
        const CHAIN: u32 = 0x1_0000;
        let (console, mut reader) = console();
        let driver = Driver::ready(console, 0);
        let sent: Vec<u8> = (0..8 * CHAIN).map(|n| (n / 251).to_le_bytes()[0]).collect();
        driver.ram.write(BUFFER, &sent).unwrap();
        for chain in 0..8 {
            let at = BUFFER + u64::from(CHAIN * chain);
            driver.descriptor_of(1, chain.into(), at, CHAIN, 0, 0);
            driver.offer_next(1, u16::try_from(chain).unwrap());
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
        // A pipe and what is kept hold some; the rest is the guest's.
        assert!(driver.used_index(1) < 4, "{}", driver.used_index(1));
        let mut got = vec![0; sent.len()];
        reader.read_exact(&mut got).unwrap();
        assert!(got == sent);
        driver.used(1, 8);
        // A byte in an emergency.
        crate::bus::Device::write(&driver.transport, 0x108, &[b'!', 0, 0, 0]);
        let mut byte = [0];
        reader.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"!");
    }
}
