//! What the boot logic needs of the machine, and nothing else.
//!
//! `hardware.rs` implements it with port I/O and memory; the tests implement it with a model of
//! the host, or with the VMM's own fw_cfg device.

use core::fmt::Arguments;

use abi::range::Range;

/// A model-specific register and what it is to hold, as `msrs.S` reads it. In a list of them
/// [`Msr::END`] ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Msr {
    /// Its number.
    pub number: u32,
    /// Bits 31 to 0 of the value.
    pub low: u32,
    /// Bits 63 to 32.
    pub high: u32,
}

impl Msr {
    /// No register.
    pub const END: Self = Self { number: 0, low: 0, high: 0 };
}

/// Port I/O, fw_cfg's DMA, guest RAM, a clock, and a console.
pub trait Machine {
    /// Reads a byte from `port`.
    fn in8(&mut self, port: u16) -> u8;
    /// Reads 32 bits from `port`.
    fn in32(&mut self, port: u16) -> u32;
    /// Writes a byte to `port`.
    fn out8(&mut self, port: u16, value: u8);
    /// Writes 16 bits to `port`.
    fn out16(&mut self, port: u16, value: u16);
    /// Writes 32 bits to `port`: PCI configuration, on machines that have it.
    fn out32(&mut self, port: u16, value: u32);
    /// The CPU's time-stamp counter.
    fn tsc(&mut self) -> u64;
    /// The rate of the counter in kHz, if the hypervisor says it.
    fn tsc_khz(&mut self) -> Option<u32>;
    /// Prints one line where people may see it: COM1 and the debug console.
    fn print(&mut self, line: Arguments<'_>);
    /// The id of the PCI host bridge, if `start.S` had to look for one to get RAM for the image;
    /// 0 on microVMs, where it had not.
    fn host_bridge(&self) -> u32;
    /// One fw_cfg DMA transfer with `control` (bits of [`abi::fw_cfg::dma`]) from or to `buffer`.
    /// Returns the control word that the device leaves: 0 when all went well.
    fn dma(&mut self, control: u32, buffer: &mut [u8]) -> u32;
    /// The same, straight from or to guest-physical memory.
    fn dma_at(&mut self, control: u32, range: Range) -> u32;
    /// Guest RAM. Only for ranges that are RAM in the host's memory map and that nothing else
    /// uses; the planner's results are.
    fn memory(&mut self, range: Range) -> &mut [u8];
    /// Whether the CPU has memory type range registers.
    fn has_mtrrs(&mut self) -> bool;
    /// Writes the registers of a list, whose last is [`Msr::END`], on this CPU and then on
    /// `others` more, which it starts. Returns how many of the others did it within seconds,
    /// `None` when this CPU refuses a value. To be called once.
    fn set_msrs(&mut self, list: &[Msr; 3], others: u32) -> Option<u32>;
}
