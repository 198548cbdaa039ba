//! A model of configuration space for tests: registers keep what they can.

use std::collections::BTreeMap;

use abi::pci::{self, bridge, header};

use crate::{Address, ConfigSpace};

/// A function, or a bridge with what is behind it.
#[derive(Clone, Debug, Default)]
pub struct Device {
    registers: BTreeMap<u8, u32>,
    writable: BTreeMap<u8, u32>,
    /// By device and function.
    pub behind: BTreeMap<u8, Device>,
}

impl Device {
    /// A function of this class with these base address registers: what each keeps of all-ones, by
    /// its offset, and the flags that are always set.
    pub fn new(class: u32, bars: &[(u8, u32, u32)]) -> Self {
        let mut device = Self::default();
        device.registers.insert(pci::ID, 0x1111_1af4);
        device.registers.insert(pci::CLASS, class << 16);
        device.registers.insert(pci::INTERRUPT, 0x0100);
        device.writable.insert(pci::COMMAND, 7);
        device.writable.insert(pci::INTERRUPT, 0xff);
        for (offset, mask, flags) in bars {
            device.writable.insert(*offset, *mask);
            device.registers.insert(*offset, *flags);
        }
        device
    }

    /// A bridge with all windows.
    pub fn bridge(behind: impl IntoIterator<Item = (u8, Self)>) -> Self {
        let mut device = Self::new(0x0604, &[]);
        device.registers.insert(pci::HEADER, pci::header::BRIDGE);
        device.registers.insert(bridge::PREFETCHABLE, 0x0001_0001);
        for (offset, mask) in [
            (bridge::BUSES, 0xff_ffff),
            (bridge::IO, 0xf0f0),
            (bridge::MEMORY, 0xfff0_fff0),
            (bridge::PREFETCHABLE, 0xfff0_fff0),
            (bridge::PREFETCHABLE_BASE_HIGH, u32::MAX),
            (bridge::PREFETCHABLE_LIMIT_HIGH, u32::MAX),
        ] {
            device.writable.insert(offset, mask);
        }
        device.behind.extend(behind);
        device
    }

    /// The same with this register.
    pub fn with(mut self, offset: u8, value: u32) -> Self {
        self.registers.insert(offset, value);
        self
    }

    /// What a register holds.
    pub fn register(&self, offset: u8) -> u32 {
        self.registers.get(&offset).copied().unwrap_or(0)
    }

    /// The bits of a register that can be written.
    pub fn mask(&self, offset: u8) -> u32 {
        self.writable.get(&offset).copied().unwrap_or(0)
    }

    fn write(&mut self, offset: u8, value: u32) {
        let mask = self.mask(offset);
        let kept = self.register(offset) & !mask | value & mask;
        self.registers.insert(offset, kept);
    }

    /// The first and the last bus behind a bridge; 0 of a function that is none.
    fn buses(&self) -> [u8; 2] {
        let is_bridge = self.register(pci::HEADER) & header::LAYOUT == header::BRIDGE;
        let buses = if is_bridge { self.register(bridge::BUSES) } else { 0 };
        let [_, secondary, subordinate, _] = buses.to_le_bytes();
        [secondary, subordinate]
    }
}

/// Bus 0.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// By device and function.
    pub root: BTreeMap<u8, Device>,
    /// Reads and writes so far.
    pub accesses: usize,
}

impl Model {
    /// A machine with these functions, by device and function.
    pub fn new(root: impl IntoIterator<Item = (u8, Device)>) -> Self {
        Self { root: root.into_iter().collect(), accesses: 0 }
    }

    fn find(&mut self, address: Address) -> Option<&mut Device> {
        let [place, number] = address.0.to_le_bytes();
        let mut devices = &mut self.root;
        let mut bus = 0;
        // Down through the bridges, as the cycle is passed on.
        while bus != number {
            let bridge = devices.values_mut().find(|device| {
                let [secondary, subordinate] = device.buses();
                secondary > bus && (secondary..=subordinate).contains(&number)
            })?;
            [bus, _] = bridge.buses();
            devices = &mut bridge.behind;
        }
        devices.get_mut(&place)
    }
}

impl ConfigSpace for Model {
    fn read(&mut self, address: Address, offset: u8) -> u32 {
        self.accesses += 1;
        self.find(address).map_or(u32::MAX, |device| device.register(offset))
    }

    fn write(&mut self, address: Address, offset: u8, value: u32) {
        self.accesses += 1;
        if let Some(device) = self.find(address) {
            device.write(offset, value);
        }
    }
}
