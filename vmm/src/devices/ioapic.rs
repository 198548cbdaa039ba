//! The I/O APIC: pins in, interrupt messages out.
//!
//! Sources: Intel 82093AA data sheet; for what that leaves open (edges on a masked pin, the EOI
//! register), QEMU's hw/intc/ioapic.c.

use std::sync::{Mutex, MutexGuard, PoisonError};

use abi::layout::IOAPIC_PINS;

use crate::bus::{Action, Device};

const PINS: usize = IOAPIC_PINS as usize;

/// An interrupt message, as a device writes it to the local APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Where it is written.
    pub address: u32,
    /// What is written.
    pub data: u32,
}

/// Where messages go.
pub trait Messages: Send + Sync {
    /// Delivers one.
    fn send(&self, message: Message);
    /// Which pins are level-triggered and may fire, with their messages: the end of such an
    /// interrupt must come back by [`IoApic::end_of_interrupt`].
    fn watch(&self, levels: &[(u32, Message)]);
    /// An edge on a pin of KVM's own chips, where those stand in for ours.
    fn pulse(&self, pin: u32);
}

/// Register window: select, data, and (since version 0x20) end of interrupt.
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const EOI: u64 = 0x40;

/// Registers behind the window.
const ID: u8 = 0x00;
const VERSION: u8 = 0x01;
const ARBITRATION: u8 = 0x02;
const REDIRECTION: u8 = 0x10;

/// The version with an EOI register, and the number of the last pin.
const VERSION_VALUE: u32 = 0x20 | (IOAPIC_PINS - 1) << 16;

/// Fields of a redirection entry.
const VECTOR: u64 = 0xff;
const DELIVERY_MODE: u64 = 7 << 8;
const LOGICAL: u64 = 1 << 11;
const DELIVERY_STATUS: u64 = 1 << 12;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const DESTINATION_SHIFT: u32 = 56;
/// What a guest cannot write.
const READ_ONLY: u64 = DELIVERY_STATUS | REMOTE_IRR;

/// Fields of a message (Intel SDM volume 3, 11.11).
const MESSAGE_BASE: u32 = 0xfee0_0000;
const MESSAGE_DESTINATION_SHIFT: u32 = 12;
const MESSAGE_LOGICAL: u32 = 1 << 2;
const MESSAGE_ASSERT: u32 = 1 << 14;
const MESSAGE_LEVEL: u32 = 1 << 15;

/// An I/O APIC of 24 pins.
pub struct IoApic<M> {
    messages: M,
    state: Mutex<State>,
}

struct State {
    id: u8,
    select: u8,
    entries: [u64; PINS],
    // Pins that are high (level) or had an edge that was not yet delivered.
    requests: u32,
    // What `Messages::watch` was told last.
    watched: Vec<(u32, Message)>,
}

impl<M: Messages> IoApic<M> {
    /// After reset: every pin masked.
    pub fn new(messages: M) -> Self {
        let state =
            State { id: 0, select: 0, entries: [MASKED; PINS], requests: 0, watched: Vec::new() };
        Self { messages, state: Mutex::new(state) }
    }

    /// An edge on `pin`: up and down again.
    pub fn pulse(&self, pin: u32) {
        let mut state = self.lock();
        let Some(entry) = state.entry(pin) else { return };
        state.requests |= 1 << pin;
        state.service(pin, &self.messages);
        if entry & LEVEL != 0 {
            state.requests &= !(1 << pin);
        }
    }

    /// The level of `pin`. On an edge-triggered pin, going up is an edge.
    pub fn set_level(&self, pin: u32, high: bool) {
        let mut state = self.lock();
        let Some(entry) = state.entry(pin) else { return };
        match (high, entry & LEVEL != 0) {
            (true, _) => state.requests |= 1 << pin,
            (false, true) => state.requests &= !(1 << pin),
            (false, false) => return,
        }
        state.service(pin, &self.messages);
    }

    /// A CPU is done with `vector`: level-triggered pins that are still high fire again.
    pub fn end_of_interrupt(&self, vector: u8) {
        let mut state = self.lock();
        for pin in 0..IOAPIC_PINS {
            let Some(entry) = state.entry_mut(pin) else { continue };
            if *entry & VECTOR == u64::from(vector) && *entry & REMOTE_IRR != 0 {
                *entry &= !REMOTE_IRR;
                state.service(pin, &self.messages);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn entry(&self, pin: u32) -> Option<u64> {
        self.entries.get(usize::try_from(pin).ok()?).copied()
    }

    fn entry_mut(&mut self, pin: u32) -> Option<&mut u64> {
        self.entries.get_mut(usize::try_from(pin).ok()?)
    }

    /// Sends the message of `pin` if it has a request that may go out.
    fn service(&mut self, pin: u32, messages: &dyn Messages) {
        let bit = 1 << pin;
        let requested = self.requests & bit != 0;
        let Some(entry) = self.entry_mut(pin) else { return };
        if !requested || *entry & MASKED != 0 {
            return;
        }
        if *entry & LEVEL != 0 {
            if *entry & REMOTE_IRR != 0 {
                return;
            }
            *entry |= REMOTE_IRR;
        }
        let entry = *entry;
        if entry & LEVEL == 0 {
            self.requests &= !bit;
        }
        messages.send(message(entry));
    }

    fn read_register(&self) -> u32 {
        match self.select {
            ID | ARBITRATION => u32::from(self.id) << 24,
            VERSION => VERSION_VALUE,
            register => {
                let Some((pin, high)) = pin_of(register) else { return 0 };
                let entry = self.entry(pin).unwrap_or(0);
                if high { upper(entry) } else { lower(entry) }
            }
        }
    }

    fn write_register(&mut self, value: u32, messages: &dyn Messages) {
        if self.select == ID {
            self.id = value.to_be_bytes()[0] & 0xf;
            return;
        }
        let Some((pin, high)) = pin_of(self.select) else { return };
        let Some(entry) = self.entry_mut(pin) else { return };
        let old = *entry;
        *entry = if high {
            u64::from(lower(old)) | u64::from(value) << 32
        } else {
            let kept = old & READ_ONLY;
            old & !0xffff_ffff | u64::from(value) & !READ_ONLY | kept
        };
        // An edge-triggered pin has no remote IRR: switching over clears it. (Linux relies on
        // this to end a stuck interrupt.)
        if *entry & LEVEL == 0 {
            *entry &= !REMOTE_IRR;
        }
        self.watch(messages);
        self.service(pin, messages);
    }

    /// Tells which level-triggered pins may fire, when that has changed.
    fn watch(&mut self, messages: &dyn Messages) {
        let levels: Vec<_> = (0..IOAPIC_PINS)
            .zip(self.entries)
            .filter(|(_, entry)| entry & LEVEL != 0 && entry & MASKED == 0)
            .map(|(pin, entry)| (pin, message(entry)))
            .collect();
        if levels != self.watched {
            messages.watch(&levels);
            self.watched = levels;
        }
    }
}

fn pin_of(register: u8) -> Option<(u32, bool)> {
    let index = register.checked_sub(REDIRECTION)?;
    let pin = u32::from(index / 2);
    (pin < IOAPIC_PINS).then_some((pin, index % 2 == 1))
}

fn lower(entry: u64) -> u32 {
    let [a, b, c, d, ..] = entry.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

fn upper(entry: u64) -> u32 {
    lower(entry >> 32)
}

fn message(entry: u64) -> Message {
    let mut address = MESSAGE_BASE | lower(entry >> DESTINATION_SHIFT) << MESSAGE_DESTINATION_SHIFT;
    if entry & LOGICAL != 0 {
        address |= MESSAGE_LOGICAL;
    }
    let mut data = lower(entry & (VECTOR | DELIVERY_MODE));
    if entry & LEVEL != 0 {
        data |= MESSAGE_LEVEL | MESSAGE_ASSERT;
    }
    Message { address, data }
}

impl<M: Messages> Device for IoApic<M> {
    fn name(&self) -> &'static str {
        "I/O APIC"
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        let state = self.lock();
        let value = match offset {
            SELECT => u32::from(state.select),
            WINDOW => state.read_register(),
            _ => 0,
        };
        data.fill(0);
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        let mut bytes = [0; 4];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        match offset {
            SELECT => self.lock().select = bytes[0],
            // The registers are 32 bits wide, and only whole writes count.
            WINDOW if data.len() == 4 => {
                self.lock().write_register(u32::from_le_bytes(bytes), &self.messages);
            }
            EOI => self.end_of_interrupt(bytes[0]),
            _ => {}
        }
        Action::None
    }
}

#[cfg(test)]
mod tests;
