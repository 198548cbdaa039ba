//! The board: which devices there are, and where.

use std::sync::Arc;

use abi::{layout, ports};

use crate::bus::{Bus, Overlap};
use crate::config::Config;
use crate::devices::debug_exit::DebugExit;
use crate::devices::ged;
use crate::devices::i8042::I8042;
use crate::devices::ioapic::{IoApic, Messages};
use crate::devices::post::Post;
use crate::devices::serial::Com1;
use crate::fw_cfg::FwCfg;

/// Ports of COM1.
const COM1_PORTS: u64 = 8;

/// The buses of a machine with their devices.
pub struct Board<M> {
    /// I/O ports.
    pub ports: Bus,
    /// Memory-mapped I/O.
    pub mmio: Bus,
    /// The I/O APIC, which hears of interrupts' ends.
    pub ioapic: Arc<IoApic<M>>,
}

impl<M: Messages + 'static> Board<M> {
    /// A board whose interrupts go to `messages`. The fw_cfg device is there for a BIOS.
    pub fn new(
        config: &Config,
        fw_cfg: Option<FwCfg>,
        com1: &Arc<Com1>,
        messages: M,
    ) -> Result<Self, Overlap> {
        let ioapic = Arc::new(IoApic::new(messages));
        let line = ioapic.clone();
        com1.connect(Arc::new(move || line.pulse(ports::COM1_IRQ)));

        let mut io = Bus::default();
        io.insert(ports::COM1.into(), COM1_PORTS, com1.clone())?;
        io.insert(ports::POST.into(), 1, Arc::new(Post))?;
        io.insert(ports::I8042_DATA.into(), I8042::PORTS, Arc::new(I8042))?;
        if let Some(fw_cfg) = fw_cfg {
            io.insert(ports::FW_CFG_SELECTOR.into(), FwCfg::PORTS, Arc::new(fw_cfg))?;
        }
        if let Some(device) = config.debug_exit {
            io.insert(device.iobase.into(), device.iosize.into(), Arc::new(DebugExit))?;
        }

        let mut mmio = Bus::default();
        mmio.insert(layout::IOAPIC, layout::IOAPIC_SIZE, ioapic.clone())?;
        mmio.insert(layout::GED, layout::GED_SIZE, Arc::new(ged::Selector::default()))?;
        let registers = Arc::new(ged::Registers);
        mmio.insert(layout::GED_REGISTERS, layout::GED_REGISTERS_SIZE, registers)?;
        Ok(Self { ports: io, mmio, ioapic })
    }
}
