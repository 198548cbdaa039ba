//! What pc and q35 have and microVMs have not: PCI, 8259s, SMBIOS.
//!
//! On microVMs nothing of this runs: `start.S` met no chipset on its way to RAM, and no port is
//! touched to ask again.

use abi::bytes::get_u64;
use abi::e820::{Map, kind};
use abi::fw_cfg::file;
use abi::range::Range;
use abi::{layout, ports};
use pci::bars::{Windows, plan};
use pci::chipset::{Chipset, set_up_mmconfig};
use pci::tree::Tree;
use pci::{Address, ConfigSpace, OutOfMemory};

use crate::error::Error;
use crate::fw_cfg::FwCfg;
use crate::machine::Machine;
use crate::smbios::load_smbios;

/// Sets up the chipset if there is one, and places the SMBIOS tables. To be done before ACPI tables
/// are read: the host builds them by what it finds set up.
pub fn set_up_chipset<M: Machine>(fw_cfg: &mut FwCfg<'_, M>, map: &mut Map) -> Result<(), Error> {
    match Chipset::of(fw_cfg.machine().host_bridge()) {
        Some(chipset) => set_up(fw_cfg, map, chipset),
        None => Ok(()),
    }
}

// Cold: it stays out of the way of what microVMs run through.
#[cold]
#[inline(never)]
fn set_up<M: Machine>(
    fw_cfg: &mut FwCfg<'_, M>,
    map: &mut Map,
    chipset: Chipset,
) -> Result<(), Error> {
    let high = above_ram(fw_cfg, map)?;
    let config = &mut Mechanism1(fw_cfg.machine());
    let memory = match chipset {
        Chipset::I440fx => layout::PCI_MEMORY,
        Chipset::Q35 => {
            if map.entries().iter().all(|entry| !entry.range.overlaps(layout::Q35_MMCONFIG)) {
                set_up_mmconfig(config);
                // Kernels use it only where the memory map says that it is taken.
                map.set(layout::Q35_MMCONFIG, kind::RESERVED)?;
            }
            layout::Q35_PCI_MEMORY
        }
    };
    let windows = Windows {
        io: layout::PCI_IO,
        io_large: layout::PCI_IO_LARGE,
        memory: free(map, memory),
        high,
    };
    let mut tree = Tree::find(config)?;
    let plan = plan(&tree.buses, &tree.requests, &windows)?;
    tree.set(config, &plan);
    chipset.set_up(config, &tree);
    set_up_pics(fw_cfg.machine());
    load_smbios(fw_cfg, map)
}

/// Configuration space by two ports (PCI Local Bus 3.0, 3.2.2.3.2).
struct Mechanism1<'a, M>(&'a mut M);

impl<M: Machine> Mechanism1<'_, M> {
    fn select(&mut self, address: Address, offset: u8) {
        const ENABLE: u32 = 1 << 31;
        let selector = ENABLE | u32::from(address.0) << 8 | u32::from(offset);
        self.0.out32(ports::PCI_ADDRESS, selector);
    }
}

impl<M: Machine> ConfigSpace for Mechanism1<'_, M> {
    fn read(&mut self, address: Address, offset: u8) -> u32 {
        self.select(address, offset);
        self.0.in32(ports::PCI_DATA)
    }

    fn write(&mut self, address: Address, offset: u8, value: u32) {
        self.select(address, offset);
        self.0.out32(ports::PCI_DATA, value);
    }

    // The address need be selected only once.
    fn probe(&mut self, address: Address, offset: u8) -> u32 {
        self.write(address, offset, u32::MAX);
        let kept = self.0.in32(ports::PCI_DATA);
        self.0.out32(ports::PCI_DATA, 0);
        kept
    }
}

/// The part of `bounds` where the memory map has nothing, the largest if there are several.
#[inline(never)]
fn free(map: &Map, bounds: Range) -> Range {
    let mut best = Range::between(0, 0);
    let mut at = bounds.start();
    let ends = map.entries().iter().map(|entry| (entry.range.start(), entry.range.end()));
    for (start, end) in ends.chain([(bounds.end(), bounds.end())]) {
        let len = start.min(bounds.end()).saturating_sub(at);
        best = Range::new(at, len).filter(|gap| gap.len() > best.len()).unwrap_or(best);
        at = at.max(end);
    }
    best
}

/// Where the map has nothing above 4 GiB, and no memory will be plugged in later.
fn above_ram<M: Machine>(fw_cfg: &mut FwCfg<'_, M>, map: &Map) -> Result<Range, Error> {
    let bounds = layout::PCI_MEMORY_HIGH;
    let mut start = bounds.start();
    if let Some(file) = fw_cfg.find(file::RESERVED_MEMORY_END) {
        let mut end = [0; 8];
        fw_cfg.read(file.selector, &mut end)?;
        start = start.max(get_u64(&end, 0).unwrap_or(0)).min(bounds.end());
    }
    Ok(free(map, Range::new(start, bounds.end() - start).unwrap_or(bounds)))
}

/// Both 8259s at their PC vectors with every interrupt masked (8259A datasheet, 231468).
fn set_up_pics<M: Machine>(machine: &mut M) {
    /// ICW1: edges, cascaded, ICW4 follows.
    const ICW1: u8 = 0x11;
    /// ICW2: the vectors of IRQ 0 and IRQ 8.
    const ICW2: [u8; 2] = [0x08, 0x70];
    /// ICW3: where the second hangs on the first, as a bit and as a number.
    const ICW3: [u8; 2] = [1 << 2, 2];
    /// ICW4: 8086 mode.
    const ICW4: u8 = 1;
    const MASK_ALL: u8 = 0xff;
    /// The IRQs of `PIRQ_IRQS` are levels.
    const LEVELS: u8 = 1 << (10 - 8) | 1 << (11 - 8);
    let pics = [ports::PIC_PRIMARY, ports::PIC_SECONDARY];
    for ((port, vector), cascade) in pics.into_iter().zip(ICW2).zip(ICW3) {
        machine.out8(port, ICW1);
        for value in [vector, cascade, ICW4, MASK_ALL] {
            machine.out8(port + 1, value);
        }
    }
    machine.out8(ports::ELCR_SECONDARY, LEVELS);
}

impl From<OutOfMemory> for Error {
    fn from(OutOfMemory(size): OutOfMemory) -> Self {
        Self::HeapFull(size)
    }
}
