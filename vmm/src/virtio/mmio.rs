//! The transport: a device's registers in guest memory, version 2 (section 4.2).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES,
    VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING,
    VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_MAGIC_VALUE,
    VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH,
    VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM,
    VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL,
    VIRTIO_MMIO_QUEUE_USED_HIGH, VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_STATUS,
    VIRTIO_MMIO_VENDOR_ID, VIRTIO_MMIO_VERSION,
};
use virtio_queue::{Queue, QueueT};

use super::{Broken, Device};
use crate::bus::{self, Action};
use crate::console;
use crate::control::Line;
use crate::memory::GuestRam;

/// "virt".
const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
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

/// A slot without a device: it says so.
pub struct EmptySlot;

impl bus::Device for EmptySlot {
    fn name(&self) -> &'static str {
        "an empty virtio slot"
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        let register = u32::try_from(offset).unwrap_or(u32::MAX);
        let value = match register {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            // Among others, the device's id.
            _ => 0,
        };
        answer(data, value);
    }

    fn write(&self, _: u64, _: &[u8]) -> Action {
        Action::None
    }
}

/// A device's registers.
pub struct Transport {
    name: &'static str,
    ram: Arc<GuestRam>,
    line: Line,
    state: Mutex<State>,
}

struct State {
    device: Box<dyn Device>,
    queues: Vec<Queue>,
    status: u32,
    interrupt: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    // Whether a driver has ever acknowledged the device.
    driven: bool,
}

impl Transport {
    /// Registers of `device`, whose interrupts go to `line`.
    pub fn new(device: Box<dyn Device>, ram: Arc<GuestRam>, line: Line) -> Self {
        let name = device.name();
        let mut state = State {
            device,
            queues: Vec::new(),
            status: 0,
            interrupt: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            driven: false,
        };
        state.reset();
        Self { name, ram, line, state: Mutex::new(state) }
    }

    /// Whether a driver has ever taken the device.
    pub fn is_driven(&self) -> bool {
        self.lock().driven
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The driver says that a queue has something for the device.
    fn notify(&self, number: u32) {
        let mut state = self.lock();
        if state.status & VIRTIO_CONFIG_S_DRIVER_OK == 0
            || state.status & VIRTIO_CONFIG_S_NEEDS_RESET != 0
        {
            return;
        }
        let State { device, queues, .. } = &mut *state;
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        let Some(queue) = queues.get_mut(number) else { return };
        let memory = self.ram.regions();
        let outcome = match queue.ready() && queue.is_valid(memory) {
            true => device.process(number, queue, memory),
            false => Err(Broken::NotReady(number)),
        };
        match outcome {
            Ok(false) => return,
            Ok(true) => state.interrupt |= VIRTIO_MMIO_INT_VRING,
            Err(problem) => {
                console::say(&format!(
                    "{}: {problem}: it does nothing until the guest resets it",
                    self.name
                ));
                state.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
                state.interrupt |= VIRTIO_MMIO_INT_CONFIG;
            }
        }
        // An edge: the driver asks the interrupt status what it was, and acknowledges that, before
        // it looks at the rings.
        (self.line)();
    }
}

impl State {
    /// As after power on (section 2.1.2).
    fn reset(&mut self) {
        let queue = |size: &u16| Queue::new(*size).ok();
        self.queues = self.device.queues().iter().filter_map(queue).collect();
        (self.status, self.interrupt) = (0, 0);
        (self.device_features_select, self.driver_features_select) = (0, 0);
        (self.driver_features, self.queue_select) = (0, 0);
    }

    fn features(&self) -> u64 {
        self.device.features() | 1 << VIRTIO_F_VERSION_1
    }

    fn queue(&mut self) -> Option<&mut Queue> {
        self.queues.get_mut(usize::try_from(self.queue_select).ok()?)
    }

    fn read(&mut self, register: u32) -> u32 {
        match register {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device.id(),
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => half(self.features(), self.device_features_select),
            VIRTIO_MMIO_QUEUE_NUM_MAX => self.queue().map_or(0, |queue| queue.max_size().into()),
            VIRTIO_MMIO_QUEUE_READY => self.queue().map_or(0, |queue| queue.ready().into()),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt,
            VIRTIO_MMIO_STATUS => self.status,
            // No device here changes its configuration by itself.
            VIRTIO_MMIO_CONFIG_GENERATION => 0,
            _ => 0,
        }
    }

    fn write(&mut self, register: u32, value: u32) {
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES => self.take_features(value),
            VIRTIO_MMIO_QUEUE_SEL => self.queue_select = value,
            VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt &= !value,
            VIRTIO_MMIO_STATUS if value == 0 => self.reset(),
            VIRTIO_MMIO_STATUS => self.take_status(value),
            _ => self.set_up_queue(register, value),
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

    /// A driver goes step by step, and never back but by a reset (section 3.1.1).
    fn take_status(&mut self, value: u32) {
        self.driven |= value & VIRTIO_CONFIG_S_DRIVER != 0;
        self.status |= value & VIRTIO_CONFIG_S_FAILED;
        for (done, step) in STEPS.iter().enumerate() {
            let before: u32 = STEPS[..done].iter().sum();
            if value & step == 0 || self.status & before != before {
                return;
            }
            let agreed = self.driver_features & !self.features() == 0
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

/// Registers are read whole; another width reads zeroes.
fn answer(data: &mut [u8], value: u32) {
    match <&mut [u8; 4]>::try_from(&mut *data) {
        Ok(data) => *data = value.to_le_bytes(),
        Err(_) => data.fill(0),
    }
}

impl bus::Device for Transport {
    fn name(&self) -> &'static str {
        self.name
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut state = self.lock();
        match offset.checked_sub(CONFIG) {
            Some(offset) => {
                data.fill(0);
                state.device.read_config(offset, data);
            }
            None => answer(data, state.read(u32::try_from(offset).unwrap_or(u32::MAX))),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.lock().device.write_config(offset, data);
        } else if let (Ok(register), Ok(bytes)) = (u32::try_from(offset), <[u8; 4]>::try_from(data))
        {
            let value = u32::from_le_bytes(bytes);
            match register {
                VIRTIO_MMIO_QUEUE_NOTIFY => self.notify(value),
                _ => self.lock().write(register, value),
            }
        }
        Action::None
    }
}

#[cfg(test)]
mod tests;
