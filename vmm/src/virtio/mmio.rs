//! The transport: a device's registers, version 2 (section 4.2).
//!
//! What a driver reads of them is memory ([`Registers`]); what it writes comes here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_DEVICE_FEATURES, VIRTIO_MMIO_DEVICE_FEATURES_SEL,
    VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_MMIO_DRIVER_FEATURES_SEL,
    VIRTIO_MMIO_INT_VRING, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
    VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH, VIRTIO_MMIO_QUEUE_DESC_LOW,
    VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_NUM_MAX,
    VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH,
    VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_STATUS, VIRTIO_MMIO_VENDOR_ID,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};

use super::registers::Registers;
use super::worker::Workers;
use super::{Broken, Device, Doorbells, Event, Interrupt, Ring, Work};
use crate::bus::{self, Action};
use crate::control::Line;
use crate::memory::GuestRam;

/// What the transport has of itself.
pub const FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;
/// The registers of a shared memory region: its length and base, low and high halves.
const SHM: [u32; 4] = [0xb0, 0xb4, 0xb8, 0xbc];
/// QEMU's: Linux shows it, no driver minds.
const VENDOR: u32 = u32::from_le_bytes(*b"QEMU");
const CONFIG: u64 = VIRTIO_MMIO_CONFIG as u64;

/// What a driver may set in the status, in the order in which it does.
const STEPS: [u32; 4] = [
    VIRTIO_CONFIG_S_ACKNOWLEDGE,
    VIRTIO_CONFIG_S_DRIVER,
    VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_DRIVER_OK,
];

/// A device's registers.
pub struct Transport {
    name: &'static str,
    device: Arc<dyn Device>,
    /// The guest's address of the registers.
    address: u64,
    ram: Arc<GuestRam>,
    registers: Arc<Registers>,
    interrupt: Arc<Interrupt>,
    doorbells: Arc<dyn Doorbells>,
    state: Mutex<State>,
}

struct State {
    queues: Vec<Queue>,
    running: Option<Running>,
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    // Whether a driver has ever acknowledged the device.
    driven: bool,
}

/// What there is from the driver's readiness to its reset.
struct Running {
    // For each queue that is served.
    kicks: BTreeMap<usize, Event>,
    _workers: Workers,
}

impl Transport {
    /// The `registers`, which are at an address, of `device`, whose interrupts go to `line`, and
    /// whose notifications come by `doorbells`.
    pub fn new(
        device: Arc<dyn Device>,
        (address, registers): (u64, Registers),
        ram: Arc<GuestRam>,
        line: Line,
        doorbells: Arc<dyn Doorbells>,
    ) -> Self {
        let name = device.name();
        let state = State {
            queues: power_on(&*device),
            running: None,
            status: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            driven: false,
        };
        let registers = Arc::new(registers);
        let interrupt = Arc::new(Interrupt::new(name, line, registers.clone()));
        let state = Mutex::new(state);
        let transport = Self { name, device, address, ram, registers, interrupt, doorbells, state };
        transport.power_on();
        transport
    }

    /// Shows what it is, and its state after power on.
    fn power_on(&self) {
        self.registers.set(VIRTIO_MMIO_DEVICE_ID, self.device.id());
        self.registers.set(VIRTIO_MMIO_VENDOR_ID, VENDOR);
        // There are no shared memory regions, which is told by these values (4.2.2).
        SHM.iter().for_each(|register| self.registers.set(*register, u32::MAX));
        self.show_config();
        self.show(&mut self.lock());
    }

    /// Whether a driver has ever taken the device.
    pub fn is_driven(&self) -> bool {
        self.lock().driven
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn features(&self) -> u64 {
        self.device.features() | FEATURES & !self.device.lacks()
    }

    /// Shows what depends on what the driver has selected, and how far it has come.
    fn show(&self, state: &mut State) {
        let registers = &self.registers;
        let features = half(self.features(), state.device_features_select);
        registers.set(VIRTIO_MMIO_DEVICE_FEATURES, features);
        let [size, ready] = state
            .queue()
            .map_or([0, 0], |queue| [queue.max_size().into(), u32::from(queue.ready())]);
        registers.set(VIRTIO_MMIO_QUEUE_NUM_MAX, size);
        registers.set(VIRTIO_MMIO_QUEUE_READY, ready);
        // Bits come one after the other, and go by a reset. One of them is the workers'.
        registers.add(VIRTIO_MMIO_STATUS, state.status);
    }

    fn show_config(&self) {
        self.registers.set_config(|| self.device.config());
    }

    fn write_register(&self, register: u32, value: u32) {
        match register {
            VIRTIO_MMIO_QUEUE_NOTIFY => self.notify(value),
            VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            VIRTIO_MMIO_STATUS if value == 0 => self.reset(),
            VIRTIO_MMIO_STATUS => self.take_status(value),
            _ => {
                let mut state = self.lock();
                state.write(register, value, &self.interrupt);
                self.show(&mut state);
            }
        }
    }

    /// The driver says that a queue has something for the device, and KVM did not take it.
    fn notify(&self, number: u32) {
        let state = self.lock();
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        let Some(running) = state.running.as_ref().filter(|_| number < state.queues.len()) else {
            return;
        };
        // A queue that nobody serves is for what never happens here.
        let is_ready = state.queues.get(number).is_some_and(Queue::ready);
        match running.kicks.get(&number) {
            Some(kick) => kick.happen(),
            None if is_ready || self.interrupt.is_broken() => {}
            None => self.interrupt.fail(&Broken::NotReady(number)),
        }
    }

    /// A driver goes step by step, and never back but by a reset (section 3.1.1).
    fn take_status(&self, value: u32) {
        let mut state = self.lock();
        let ready = state.status & VIRTIO_CONFIG_S_DRIVER_OK != 0;
        state.take_status(value, self.features());
        if !ready && state.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.start(&mut state);
            // How it works may depend on the features.
            self.show_config();
        }
        self.show(&mut state);
    }

    /// The driver is ready: the device's work begins.
    fn start(&self, state: &mut State) {
        match self.try_start(state) {
            Ok(running) => state.running = Some(running),
            Err(problem) => {
                // It may have begun.
                self.device.stop();
                self.interrupt.fail(&problem);
            }
        }
    }

    fn try_start(&self, state: &State) -> Result<Running, Broken> {
        let memory = self.ram.regions();
        let wild = |queue: &Queue| queue.ready() && !queue.is_valid(memory);
        if let Some(number) = state.queues.iter().position(wild) {
            return Err(Broken::NotReady(number));
        }
        let features = state.driver_features;
        let mut workers = Workers::new(self.interrupt.clone()).map_err(Broken::Thread)?;
        let mut kicks = BTreeMap::new();
        for Work { queues, server } in
            self.device.start(features, &self.interrupt).map_err(Broken::Thread)?
        {
            let mut rings = Vec::new();
            for number in queues {
                let Some(queue) = state.queues.get(number).and_then(|q| copy(q, features)) else {
                    continue;
                };
                let kick = Event::new().map_err(Broken::Thread)?;
                if queue.ready() {
                    kicks.insert(number, kick.clone());
                }
                rings.push(Ring::new(number, queue, kick, self.interrupt.clone()));
            }
            workers.start(server, rings, self.ram.clone()).map_err(Broken::Thread)?;
        }
        self.attach(&kicks);
        Ok(Running { kicks, _workers: workers })
    }

    /// Has KVM take the notifications, as the last step of a start, after which nothing fails: who
    /// is attached is detached by a reset. What comes before, and what KVM does not take, leaves
    /// the guest and comes by `notify`.
    fn attach(&self, kicks: &BTreeMap<usize, Event>) {
        for (number, kick) in kicks {
            let _ = self.doorbells.attach(self.doorbell(), wide(*number), kick);
        }
        if let Some(event) = self.interrupt.acknowledgement() {
            let _ = self.doorbells.attach(self.acknowledgement(), VIRTIO_MMIO_INT_VRING, event);
        }
    }

    fn detach(&self, kicks: &BTreeMap<usize, Event>) {
        for (number, kick) in kicks {
            self.doorbells.detach(self.doorbell(), wide(*number), kick);
        }
        if let Some(event) = self.interrupt.acknowledgement() {
            self.doorbells.detach(self.acknowledgement(), VIRTIO_MMIO_INT_VRING, event);
        }
    }

    /// Where drivers write their notifications.
    fn doorbell(&self) -> u64 {
        self.address + u64::from(VIRTIO_MMIO_QUEUE_NOTIFY)
    }

    /// Where they write what they have seen.
    fn acknowledgement(&self) -> u64 {
        self.address + u64::from(VIRTIO_MMIO_INTERRUPT_ACK)
    }

    /// As after power on (section 2.1.2), when all that is being done is done.
    fn reset(&self) {
        let mut state = self.lock();
        if let Some(running) = state.running.take() {
            self.detach(&running.kicks);
            drop(running);
            self.device.stop();
        }
        state.queues = power_on(&*self.device);
        state.status = 0;
        (state.device_features_select, state.driver_features_select) = (0, 0);
        (state.driver_features, state.queue_select) = (0, 0);
        self.interrupt.reset();
        self.registers.set(VIRTIO_MMIO_STATUS, 0);
        self.show(&mut state);
    }
}

/// A device's queues as after power on.
fn power_on(device: &dyn Device) -> Vec<Queue> {
    device.queues().into_iter().filter_map(|size| Queue::new(size).ok()).collect()
}

/// A queue's number as a register has it.
fn wide(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// A queue as the driver has set it up, for who serves it.
fn copy(queue: &Queue, features: u64) -> Option<Queue> {
    let mut copy = Queue::try_from(queue.state()).ok()?;
    copy.set_event_idx(features >> VIRTIO_RING_F_EVENT_IDX & 1 == 1);
    Some(copy)
}

impl State {
    fn queue(&mut self) -> Option<&mut Queue> {
        self.queues.get_mut(usize::try_from(self.queue_select).ok()?)
    }

    fn write(&mut self, register: u32, value: u32, interrupt: &Interrupt) {
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES => self.take_features(value),
            VIRTIO_MMIO_QUEUE_SEL => self.queue_select = value,
            VIRTIO_MMIO_QUEUE_READY if self.running.is_some() => {
                self.take_away(value, interrupt);
            }
            _ => self.set_up_queue(register, value),
        }
    }

    /// A queue that is being worked on is given back by a reset, and by nothing else.
    fn take_away(&mut self, value: u32, interrupt: &Interrupt) {
        let number = usize::try_from(self.queue_select).unwrap_or(usize::MAX);
        if value == 0 && self.queue().is_some_and(|queue| queue.ready()) {
            interrupt.fail(&Broken::TakenAway(number));
        }
    }

    /// Features can be taken until they are agreed on.
    fn take_features(&mut self, value: u32) {
        if self.status & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            return;
        }
        let value = u64::from(value);
        match self.driver_features_select {
            0 => self.driver_features = self.driver_features & !0xffff_ffff | value,
            1 => self.driver_features = self.driver_features & 0xffff_ffff | value << 32,
            _ => {}
        }
    }

    fn take_status(&mut self, value: u32, features: u64) {
        self.driven |= value & VIRTIO_CONFIG_S_DRIVER != 0;
        self.status |= value & VIRTIO_CONFIG_S_FAILED;
        for (done, step) in STEPS.iter().enumerate() {
            let before: u32 = STEPS[..done].iter().sum();
            if value & step == 0 || self.status & before != before {
                return;
            }
            let agreed = self.driver_features & !features == 0
                && self.driver_features >> VIRTIO_F_VERSION_1 & 1 == 1;
            // Features that cannot be had are refused by not showing this bit.
            if *step != VIRTIO_CONFIG_S_FEATURES_OK || agreed {
                self.status |= step;
            }
        }
    }

    /// A queue is set up after the features, and before it is ready.
    fn set_up_queue(&mut self, register: u32, value: u32) {
        if self.status & VIRTIO_CONFIG_S_FEATURES_OK == 0 {
            return;
        }
        let Some(queue) = self.queue() else { return };
        if register == VIRTIO_MMIO_QUEUE_READY {
            return queue.set_ready(value == 1);
        }
        if queue.ready() {
            return;
        }
        match register {
            // What is no power of two, or too large, is not taken.
            VIRTIO_MMIO_QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(0)),
            VIRTIO_MMIO_QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.set_avail_ring_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.set_avail_ring_address(None, Some(value)),
            VIRTIO_MMIO_QUEUE_USED_LOW => queue.set_used_ring_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_USED_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }
}

/// The half of `features` that `select` names; there are two.
fn half(features: u64, select: u32) -> u32 {
    let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
    match select {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

impl bus::Device for Transport {
    fn name(&self) -> &'static str {
        self.name
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        self.registers.read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.device.write_config(offset, data);
            self.show_config();
        } else if let (Ok(register), Ok(bytes)) = (u32::try_from(offset), <[u8; 4]>::try_from(data))
        {
            self.write_register(register, u32::from_le_bytes(bytes));
        }
        Action::None
    }
}

#[cfg(test)]
mod tests;
