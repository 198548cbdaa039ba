//! FPDT: tells the kernel how long the firmware took.
//!
//! `systemd-analyze` prints it. A host that has such a table of its own keeps it; one that does not
//! gets one more entry in its root table, which therefore moves.

use alloc::vec::Vec;

use abi::boot_trace::BootTrace;
use abi::fpdt::{
    HEADER, Root, SIGNATURE, TIMES, TIMES_SIZE, entries, extend, extra_size, table_size,
};
use abi::range::Range;

use crate::machine::Machine;
use crate::tables::Linker;

/// Where the times go, and the rate of the clock that they are taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Performance {
    times: Range,
    tsc_khz: u32,
}

impl<M: Machine> Linker<'_, '_, M> {
    /// Adds the table. `None` when nobody knows the clock's rate, when the host has the table, and
    /// when its tables make no sense: nothing that a kernel needs to run.
    #[cold]
    #[inline(never)]
    pub(crate) fn add_fpdt(&mut self) -> Option<Performance> {
        let tsc_khz = self.machine().tsc_khz()?;
        let rsdp = self.rsdp()?;
        let root = Root::of(self.machine().memory(rsdp))?;
        let size = table_size(self.at(root.address, HEADER as u64)?)?;
        let table = self.at(root.address, size).filter(|table| table.len() >= HEADER)?;

        let mut new = Vec::new();
        let new_size = table.len() + extra_size(root.entry_size);
        new.try_reserve_exact(new_size).ok()?;
        new.extend_from_slice(table);
        let is_there = |address| self.at(address, 4).is_some_and(|bytes| *bytes == SIGNATURE);
        if entries(&new, root.entry_size).any(is_there) {
            return None;
        }
        new.resize(new_size, 0);
        let range = self.allocate_low(new_size as u64, 16)?;
        let times = range.start() + extend(&mut new, root.entry_size, range.start())? as u64;
        self.machine().memory(range).copy_from_slice(&new);
        root.replace(self.machine().memory(rsdp), range.start())?;
        Some(Performance { times: Range::new(times, TIMES_SIZE as u64)?, tsc_khz })
    }
}

impl Performance {
    /// Writes the times, in nanoseconds: the firmware is what ends when the kernel is loaded, the
    /// loader what ends at its entry. The last two are 0 without UEFI, by the letter; then nobody
    /// reads the rest.
    pub fn write<M: Machine>(&self, machine: &mut M, trace: &BootTrace) {
        let BootTrace { start, load_kernel, kernel_entry } = *trace;
        let stamps = [start, load_kernel, load_kernel, kernel_entry, kernel_entry];
        let times = machine.memory(self.times).get_mut(TIMES..).unwrap_or_default();
        for (time, stamp) in times.as_chunks_mut().0.iter_mut().zip(stamps) {
            *time = self.nanoseconds(stamp).to_le_bytes();
        }
    }

    /// In two steps, as the product alone may pass 64 bits within hours.
    fn nanoseconds(&self, stamp: u64) -> u64 {
        const PER_MILLISECOND: u64 = 1_000_000;
        let khz = u64::from(self.tsc_khz).max(1);
        let whole = (stamp / khz).wrapping_mul(PER_MILLISECOND);
        whole.wrapping_add(stamp % khz * PER_MILLISECOND / khz)
    }
}
