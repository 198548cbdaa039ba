//! COM1: vm-superio's 16550, an input queue, an output that outlives resets.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use vm_superio::Trigger;
use vm_superio::serial::{Serial, SerialEvents};

use crate::bus::{Action, Device};
use crate::console::Output;
use crate::control::Line;

/// Input that waits for the guest, at the most, before its source is made to wait.
const QUEUE_MAX: usize = 64 << 10;

struct LineTrigger(Option<Line>);

impl Trigger for LineTrigger {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        if let Some(line) = &self.0 {
            line();
        }
        Ok(())
    }
}

/// Notes that the guest has read all that the UART's FIFO held.
#[derive(Clone, Default)]
struct Drained(Arc<AtomicBool>);

impl SerialEvents for Drained {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// COM1. It stays when the machine is reset: input that the guest has not read yet is kept.
pub struct Com1 {
    state: Mutex<State>,
    room: Condvar,
}

struct State {
    uart: Option<Serial<LineTrigger, Drained, Output>>,
    drained: Drained,
    queue: VecDeque<u8>,
}

impl Com1 {
    /// A UART that writes to `output`, not yet on any machine.
    pub fn new(output: Output) -> Self {
        let state = State {
            uart: Some(Serial::with_events(LineTrigger(None), Drained::default(), output)),
            drained: Drained::default(),
            queue: VecDeque::new(),
        };
        Self { state: Mutex::new(state), room: Condvar::new() }
    }

    /// Resets the UART and connects it to a machine's interrupt line.
    pub fn connect(&self, line: Line) {
        let mut state = self.lock();
        let drained = Drained::default();
        let output = state.uart.take().map(Serial::into_writer);
        let trigger = LineTrigger(Some(line));
        state.uart = output.map(|output| Serial::with_events(trigger, drained.clone(), output));
        state.drained = drained;
        state.refill();
    }

    /// Hands `input` to the guest, as it takes it; waits when a lot of it is waiting already.
    pub fn send(&self, input: &[u8]) {
        let mut state = self.lock();
        while state.queue.len() >= QUEUE_MAX {
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.queue.extend(input);
        state.refill();
    }

    /// Whether the guest has written anything.
    pub fn is_written(&self) -> bool {
        self.lock().uart.as_ref().is_some_and(|uart| uart.writer().is_written())
    }

    /// The last line that the guest wrote.
    pub fn last_line(&self) -> String {
        self.lock().uart.as_ref().map_or_else(String::new, |uart| uart.writer().last_line())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Moves input from the queue to the UART, as much as it takes.
    fn refill(&mut self) {
        let Some(uart) = &mut self.uart else { return };
        let count = uart.fifo_capacity().min(self.queue.len());
        if count == 0 {
            return;
        }
        let bytes: Vec<u8> = self.queue.iter().take(count).copied().collect();
        // In loop mode it takes nothing; later then.
        let taken = uart.enqueue_raw_bytes(&bytes).unwrap_or(0);
        self.queue.drain(..taken.min(count));
    }

    /// After each access of the guest: the FIFO may have room now, or loop mode be over.
    fn after_access(&mut self, wrote: bool) -> bool {
        let drained = self.drained.0.swap(false, Ordering::Relaxed);
        if self.queue.is_empty() || !(drained || wrote) {
            return false;
        }
        self.refill();
        self.queue.len() < QUEUE_MAX
    }
}

impl Device for Com1 {
    fn name(&self) -> &'static str {
        "COM1"
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut state = self.lock();
        let (Ok(offset), Some(first)) = (u8::try_from(offset), data.first_mut()) else { return };
        if let Some(uart) = &mut state.uart {
            *first = uart.read(offset);
        }
        if state.after_access(false) {
            self.room.notify_one();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        let mut state = self.lock();
        if let (Ok(offset), Some(first)) = (u8::try_from(offset), data.first())
            && let Some(uart) = &mut state.uart
        {
            // The output says itself, and once, when it is gone; the guest goes on.
            let _ = uart.write(offset, *first);
        }
        if state.after_access(true) {
            self.room.notify_one();
        }
        Action::None
    }
}

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek};
    use std::sync::atomic::AtomicUsize;

    const DATA: u64 = 0;
    const IER: u64 = 1;
    const IIR: u64 = 2;
    const MCR: u64 = 4;
    const LSR: u64 = 5;

    fn com1() -> (Com1, Arc<AtomicUsize>) {
        let com1 = Com1::new(Output::null());
        let interrupts = Arc::new(AtomicUsize::new(0));
        let seen = interrupts.clone();
        com1.connect(Arc::new(move || {
            seen.fetch_add(1, Ordering::Relaxed);
        }));
        (com1, interrupts)
    }

    fn read(com1: &Com1, offset: u64) -> u8 {
        let mut data = [0xff];
        com1.read(offset, &mut data);
        data[0]
    }

    fn drain(com1: &Com1) -> Vec<u8> {
        let ready = || read(com1, LSR) & 1 != 0;
        std::iter::from_fn(|| ready().then(|| read(com1, DATA))).collect()
    }

    #[test]
    fn output_goes_out() {
        let file = tempfile::tempfile().unwrap();
        let com1 = Com1::new(Output::file(file.try_clone().unwrap()));
        for byte in b"hello" {
            com1.write(DATA, &[*byte]);
        }
        let mut file = file;
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn no_input_is_lost_when_the_fifo_is_full() {
        let (com1, interrupts) = com1();
        com1.write(IER, &[1]);
        let input: Vec<u8> = (0..=255).cycle().take(1000).collect();
        com1.send(&input);
        assert_eq!(interrupts.load(Ordering::Relaxed), 1);
        assert_eq!(read(&com1, IIR) & 0xf, 4);
        assert_eq!(drain(&com1), input);
        assert!(interrupts.load(Ordering::Relaxed) > 1, "each refill interrupts again");
    }

    #[test]
    fn input_waits_while_the_uart_is_in_loop_mode_and_over_a_reset() {
        let (com1, _) = com1();
        com1.write(MCR, &[0x10]);
        com1.send(b"abc");
        assert_eq!(drain(&com1), b"");
        com1.write(MCR, &[0]);
        assert_eq!(drain(&com1), b"abc");
        com1.send(&[b'x'; 100]);
        com1.connect(Arc::new(|| {}));
        assert_eq!(drain(&com1).len(), 36, "what was in the FIFO is gone, as on hardware");
    }

    #[test]
    fn a_flood_makes_its_source_wait() {
        let (com1, _) = com1();
        com1.send(&vec![1; QUEUE_MAX + 64]);
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| com1.send(&[2]));
            let mut bytes = Vec::new();
            while bytes.last() != Some(&2) {
                bytes.extend(drain(&com1));
                std::thread::yield_now();
            }
            sender.join().unwrap();
            assert_eq!(bytes.len(), QUEUE_MAX + 65);
        });
    }

    #[test]
    fn strange_accesses_are_harmless() {
        let (com1, _) = com1();
        com1.write(u64::MAX, &[1]);
        com1.write(0, &[]);
        com1.read(0, &mut []);
        assert_eq!(read(&com1, 300), 0xff);
    }
}
