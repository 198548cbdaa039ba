//! COM1: vm-superio's 16550, an input queue, an output that outlives resets.
//!
//! vm-superio's transmitter is always empty. While the output is full, this one's is not: the line
//! status says so, and the interrupt that tells of an empty one is off, whatever the guest has
//! written to the interrupt enable register. It comes when there is room again.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use vm_superio::Trigger;
use vm_superio::serial::{Serial, SerialEvents};

use crate::bus::{Action, Device};
use crate::chardev::Output;
use crate::control::Line;

/// Input that waits for the guest, at the most, before its source is made to wait.
const QUEUE_MAX: usize = 64 << 10;

/// Registers by their offsets (16550, table II); the second and third while DLAB is off.
mod register {
    pub const THR: u8 = 0;
    pub const IER: u8 = 1;
    pub const IIR: u8 = 2;
    pub const LCR: u8 = 3;
    pub const LSR: u8 = 5;
}
const LCR_DLAB: u8 = 1 << 7;
/// The interrupt of an empty transmitter: enabled, told of; and that there is none to tell of.
const IER_THR_EMPTY: u8 = 1 << 1;
const IIR_THR_EMPTY: u8 = 1 << 1;
const IIR_KIND: u8 = 0xf;
const IIR_NONE: u8 = 1;
const IER_VALID: u8 = 0xf;
/// The holding register is empty, and the shift register too.
const LSR_EMPTY: u8 = 1 << 5 | 1 << 6;

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
    output: Output,
}

struct State {
    uart: Option<Uart>,
    drained: Drained,
    queue: VecDeque<u8>,
    // The output is full: the transmitter is not empty.
    is_held: bool,
    // What the guest has written to the interrupt enable register.
    enabled: u8,
}

impl Com1 {
    /// A UART that writes to `output`, not yet on any machine.
    pub fn new(output: Output) -> Arc<Self> {
        let uart = Serial::with_events(LineTrigger(None), Drained::default(), output.clone());
        let state = State {
            uart: Some(uart),
            drained: Drained::default(),
            queue: VecDeque::new(),
            is_held: false,
            enabled: 0,
        };
        let com1 = Self { state: Mutex::new(state), room: Condvar::new(), output };
        Arc::new_cyclic(|this: &Weak<Self>| {
            let this = this.clone();
            com1.output.on_change(Arc::new(move || {
                if let Some(com1) = this.upgrade() {
                    com1.let_go();
                }
            }));
            com1
        })
    }

    /// The output has room again.
    fn let_go(&self) {
        let mut state = self.lock();
        // It may be full once more by now.
        if state.is_held && !self.output.is_full() {
            state.is_held = false;
            state.tell_of_room();
        }
    }

    /// Resets the UART and connects it to a machine's interrupt line.
    pub fn connect(&self, line: Line) {
        let mut state = self.lock();
        let drained = Drained::default();
        let output = state.uart.take().map(Serial::into_writer);
        let trigger = LineTrigger(Some(line));
        state.uart = output.map(|output| Serial::with_events(trigger, drained.clone(), output));
        state.drained = drained;
        state.enabled = 0;
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
        self.output.is_written()
    }

    /// The last line that the guest wrote.
    pub fn last_line(&self) -> String {
        self.output.last_line()
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

    fn read(&mut self, offset: u8) -> u8 {
        let is_held = self.is_held;
        let Some(uart) = &mut self.uart else { return 0xff };
        let value = uart.read(offset);
        match offset {
            register::LSR if is_held => value & !LSR_EMPTY,
            register::IIR if is_held && value & IIR_KIND == IIR_THR_EMPTY => {
                value & !IIR_KIND | IIR_NONE
            }
            register::IIR if is_held => value & !IIR_THR_EMPTY,
            register::IER if !has_divisor(uart) => self.enabled,
            _ => value,
        }
    }

    fn write(&mut self, offset: u8, mut value: u8, output: &Output) {
        let Some(uart) = &mut self.uart else { return };
        if offset == register::IER && !has_divisor(uart) {
            self.enabled = value & IER_VALID;
            if self.is_held {
                value &= !IER_THR_EMPTY;
            }
        }
        // The output says itself, and once, when it is gone; the guest goes on.
        let _ = uart.write(offset, value);
        if offset == register::THR && !self.is_held && output.is_full() {
            self.is_held = true;
            set_enabled(uart, self.enabled & !IER_THR_EMPTY);
        }
    }

    /// The transmitter is empty again. What was told of interrupts before counts as read, so that
    /// what is true now is told anew.
    fn tell_of_room(&mut self) {
        let enabled = self.enabled;
        let Some(uart) = &mut self.uart else { return };
        if enabled & IER_THR_EMPTY != 0 {
            uart.read(register::IIR);
        }
        set_enabled(uart, enabled);
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
        *first = state.read(offset);
        if state.after_access(false) {
            self.room.notify_one();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        let mut state = self.lock();
        if let (Ok(offset), Some(first)) = (u8::try_from(offset), data.first()) {
            state.write(offset, *first, &self.output);
        }
        if state.after_access(true) {
            self.room.notify_one();
        }
        drop(state);
        // A guest that does not look whether the transmitter is empty waits here, if it must:
        // without the lock, which who makes room needs.
        self.output.wait_for_room();
        Action::None
    }
}

type Uart = Serial<LineTrigger, Drained, Output>;

/// Whether the first two registers are the divisor's.
fn has_divisor(uart: &mut Uart) -> bool {
    uart.read(register::LCR) & LCR_DLAB != 0
}

/// Writes the interrupt enable register, wherever it is hidden.
fn set_enabled(uart: &mut Uart, enabled: u8) {
    let control = uart.read(register::LCR);
    // No interrupt line fails.
    let _ = uart.write(register::LCR, control & !LCR_DLAB);
    let _ = uart.write(register::IER, enabled);
    let _ = uart.write(register::LCR, control);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{self, Read, Seek};
    use std::sync::atomic::AtomicUsize;

    const DATA: u64 = 0;
    const IER: u64 = 1;
    const IIR: u64 = 2;
    const LCR: u64 = 3;
    const MCR: u64 = 4;
    const LSR: u64 = 5;

    fn com1() -> (Arc<Com1>, Arc<AtomicUsize>) {
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

    /// A COM1 whose reader stands still, and which has been told to wait.
    fn stuck() -> (Arc<Com1>, Arc<AtomicUsize>, io::PipeReader, usize) {
        let (reader, writer) = io::pipe().unwrap();
        let output = Output::file(std::fs::File::from(std::os::fd::OwnedFd::from(writer)));
        let com1 = Com1::new(output);
        let interrupts = Arc::new(AtomicUsize::new(0));
        let seen = interrupts.clone();
        com1.connect(Arc::new(move || {
            seen.fetch_add(1, Ordering::Relaxed);
        }));
        com1.write(IER, &[2]);
        let mut written = 0;
        while read(&com1, LSR) & 0x60 == 0x60 {
            com1.write(DATA, b"x");
            written += 1;
            assert!(written < 1 << 20, "a guest is never told to wait");
        }
        (com1, interrupts, reader, written)
    }

    #[test]
    fn a_full_output_shows_in_the_line_status_and_its_end_interrupts() {
        let (com1, interrupts, mut reader, mut written) = stuck();
        assert_eq!(read(&com1, LSR) & 0x60, 0);
        assert_eq!(read(&com1, IIR) & 0xf, 1, "no interrupt is pending");
        let before = interrupts.load(Ordering::Relaxed);
        // A guest that asks for the interrupt again has to wait for it, and one that loses its
        // patience loses no bytes.
        com1.write(IER, &[0]);
        com1.write(IER, &[2]);
        assert_eq!(read(&com1, IER), 2);
        for _ in 0..1000 {
            com1.write(DATA, b"x");
            written += 1;
        }
        assert_eq!(read(&com1, LSR) & 0x60, 0);
        assert_eq!(interrupts.load(Ordering::Relaxed), before);
        // Input comes meanwhile.
        com1.write(IER, &[3]);
        com1.send(b"k");
        assert_eq!(interrupts.load(Ordering::Relaxed), before + 1);
        assert_eq!(read(&com1, IIR) & 0xf, 4);
        assert_eq!(drain(&com1), b"k");

        reader.read_exact(&mut vec![0; written]).unwrap();
        while read(&com1, LSR) & 0x60 != 0x60 {
            std::thread::yield_now();
        }
        assert_eq!(interrupts.load(Ordering::Relaxed), before + 2);
        assert_eq!(read(&com1, IIR) & 0xf, 2, "the transmitter is empty");
    }

    #[test]
    fn a_guest_that_waits_for_its_reader_stops_nobody_else() {
        let (com1, _, mut reader, written) = stuck();
        let flood = vec![b'x'; 17 << 20];
        com1.output.put(&flood);
        std::thread::scope(|scope| {
            let cpu = scope.spawn(|| com1.write(DATA, b"y"));
            while !com1.last_line().ends_with('y') {
                std::thread::yield_now();
            }
            assert_eq!(read(&com1, LSR) & 0x60, 0);
            com1.send(b"k");
            assert!(com1.is_written());
            let mut bytes = vec![0; written + flood.len() + 1];
            reader.read_exact(&mut bytes).unwrap();
            assert_eq!(bytes.last(), Some(&b'y'));
            cpu.join().unwrap();
        });
    }

    #[test]
    fn a_full_output_stays_full_over_a_reset() {
        let (com1, _, mut reader, written) = stuck();
        com1.connect(Arc::new(|| {}));
        assert_eq!(read(&com1, LSR) & 0x60, 0);
        assert_eq!(read(&com1, IER), 0);
        // The divisor is written where the interrupt enable register was.
        com1.write(LCR, &[0x83]);
        com1.write(IER, &[0x55]);
        reader.read_exact(&mut vec![0; written]).unwrap();
        while read(&com1, LSR) & 0x60 != 0x60 {
            std::thread::yield_now();
        }
        assert_eq!(read(&com1, IER), 0x55);
        com1.write(LCR, &[3]);
        assert_eq!(read(&com1, IER), 0);
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
