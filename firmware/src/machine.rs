//! What the boot logic needs of the machine, and nothing else.
//!
//! `hardware.rs` implements it with port I/O and memory; the tests implement it with a model of
//! the host, or with the VMM's own fw_cfg device.

use core::fmt::Arguments;

use abi::range::Range;

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
}
