//! PCI on pc and q35: finds functions, plans their addresses, gives them out.
//!
//! A crate of its own, because it is built for size: the firmware is built for the few
//! instructions that microVMs need, and has 64 KiB for both. What it calls is `inline(never)`, or
//! it would be built like the caller. Read `tree` (what is there, and setting it up), then `bars`
//! (where its windows go, a pure function) and `chipset` (interrupts and power management).
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod bars;
pub mod chipset;
pub mod tree;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

/// Access to configuration space.
pub trait ConfigSpace {
    /// Reads the register at `offset`, a multiple of 4.
    fn read(&mut self, address: Address, offset: u8) -> u32;
    /// Writes the register at `offset`, a multiple of 4.
    fn write(&mut self, address: Address, offset: u8, value: u32);

    /// What the register keeps of all-ones. It is 0 afterwards.
    fn probe(&mut self, address: Address, offset: u8) -> u32 {
        self.write(address, offset, u32::MAX);
        let kept = self.read(address, offset);
        self.write(address, offset, 0);
        kept
    }
}

/// The heap has not this many bytes left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory(pub usize);

/// A function's address: the bus in bits 15 to 8, the device, the function in bits 2 to 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address(pub u16);

impl Address {
    /// The first function of a bus.
    pub const fn first_on(bus: u8) -> Self {
        Self(u16::from_le_bytes([0, bus]))
    }

    /// The bus's number.
    pub const fn bus(self) -> u8 {
        self.0.to_le_bytes()[1]
    }

    /// The device on its bus, 0 to 31.
    pub const fn device(self) -> u8 {
        self.0.to_le_bytes()[0] >> 3
    }

    /// The function of the device, 0 to 7.
    pub const fn function(self) -> u8 {
        self.0.to_le_bytes()[0] & 7
    }

    /// The next function on the bus: of the next device, when this one is `alone` on its own.
    fn next(self, alone: bool) -> Option<Self> {
        let [place, bus] = self.0.to_le_bytes();
        let last = if alone { place | 7 } else { place };
        Some(Self(u16::from_le_bytes([last.checked_add(1)?, bus])))
    }
}
