//! The board: which devices there are, and where.

use std::sync::Arc;

use abi::{layout, ports};

use crate::bus::{self, Bus, Overlap};
use crate::config::{Config, Irqchip};
use crate::control::Line;
use crate::devices::debug_exit::DebugExit;
use crate::devices::ged;
use crate::devices::i8042::I8042;
use crate::devices::ioapic::{IoApic, Messages};
use crate::devices::post::Post;
use crate::devices::pvpanic::PvPanic;
use crate::devices::serial::Com1;
use crate::fw_cfg::FwCfg;
use crate::memory::GuestRam;
use crate::virtio::mmio::Transport;
use crate::virtio::{self, registers, slots};

/// Ports of COM1.
const COM1_PORTS: u64 = 8;

/// Where devices' interrupts go.
enum Chips<M> {
    /// To an I/O APIC of ours; the local APICs are KVM's.
    Split(Arc<IoApic<M>>),
    /// To KVM's I/O APIC and 8259s.
    Kernel(Arc<M>),
}

impl<M: Messages + 'static> Chips<M> {
    /// What makes an edge on `pin`.
    fn line(&self, pin: u32) -> Line {
        match self {
            Self::Split(ioapic) => {
                let ioapic = ioapic.clone();
                Arc::new(move || ioapic.pulse(pin))
            }
            Self::Kernel(messages) => {
                let messages = messages.clone();
                Arc::new(move || messages.pulse(pin))
            }
        }
    }
}

/// What outlives resets, to be plugged in.
pub struct Plugs<'a> {
    /// COM1.
    pub com1: &'a Arc<Com1>,
    /// Virtio devices, in the order of the command line.
    pub virtio: &'a [Arc<dyn virtio::Device>],
    /// What their drivers read.
    pub registers: &'a Arc<registers::Page>,
    /// How their drivers call them.
    pub doorbells: Arc<dyn virtio::Doorbells>,
}

/// The buses of a machine with their devices.
pub struct Board<M> {
    /// I/O ports.
    pub ports: Bus,
    /// Memory-mapped I/O.
    pub mmio: Bus,
    chips: Chips<M>,
    /// COM1, which knows what the guest said last.
    pub com1: Arc<Com1>,
    events: Option<Arc<ged::Selector>>,
    virtio: Vec<Arc<Transport>>,
}

impl<M: Messages + 'static> Board<M> {
    /// A board whose interrupts go to `messages`. The fw_cfg device is there for a BIOS.
    pub fn new(
        config: &Config,
        fw_cfg: Option<FwCfg>,
        plugs: Plugs<'_>,
        ram: &Arc<GuestRam>,
        messages: M,
    ) -> Result<Self, Overlap> {
        let com1 = plugs.com1;
        let mut mmio = Bus::default();
        let chips = match config.irqchip() {
            Irqchip::Split => {
                let ioapic = Arc::new(IoApic::new(messages));
                mmio.insert(layout::IOAPIC, layout::IOAPIC_SIZE, ioapic.clone())?;
                Chips::Split(ioapic)
            }
            Irqchip::Kernel => Chips::Kernel(Arc::new(messages)),
        };
        com1.connect(chips.line(ports::COM1_IRQ));
        let ports = plug_ports(config, fw_cfg, com1)?;
        let virtio = plug_virtio(config, &plugs, ram, &chips, &mut mmio)?;
        let events = config.acpi.then(|| Arc::new(ged::Selector::default()));
        if let Some(events) = &events {
            mmio.insert(layout::GED, layout::GED_SIZE, events.clone())?;
            let registers = Arc::new(ged::Registers);
            mmio.insert(layout::GED_REGISTERS, layout::GED_REGISTERS_SIZE, registers)?;
        }
        Ok(Self { ports, mmio, chips, com1: com1.clone(), events, virtio })
    }

    /// What presses the power button, if there is one.
    pub fn power_button(&self) -> Option<Line> {
        let (events, line) = (self.events.clone()?, self.chips.line(layout::GED_IRQ));
        Some(Arc::new(move || {
            events.note(ged::POWER_BUTTON);
            line();
        }))
    }

    /// The virtio devices that no driver has taken.
    pub fn undriven(&self) -> impl Iterator<Item = &'static str> + '_ {
        let idle = self.virtio.iter().filter(|transport| !transport.is_driven());
        idle.map(|transport| bus::Device::name(&**transport))
    }

    /// A CPU is done with a level-triggered interrupt of this vector.
    pub fn end_of_interrupt(&self, vector: u8) {
        // KVM's own chips hear of it without us.
        if let Chips::Split(ioapic) = &self.chips {
            ioapic.end_of_interrupt(vector);
        }
    }
}

/// Puts the devices into their slots. The others are memory that says that they are empty; without
/// any device it is not worth a memory slot of KVM's at every start, and who looks is told here.
fn plug_virtio<M: Messages + 'static>(
    config: &Config,
    plugs: &Plugs<'_>,
    ram: &Arc<GuestRam>,
    chips: &Chips<M>,
    bus: &mut Bus,
) -> Result<Vec<Arc<Transport>>, Overlap> {
    let mut transports = Vec::new();
    if plugs.virtio.is_empty() {
        bus.insert(layout::VIRTIO_MMIO, layout::PAGE, plugs.registers.clone())?;
    }
    for (slot, device) in slots::in_order(config.acpi).zip(plugs.virtio) {
        let place = (slot.address, plugs.registers.slot(slot.number));
        let (line, doorbells) = (chips.line(slot.gsi), plugs.doorbells.clone());
        let transport = Transport::new(device.clone(), place, ram.clone(), line, doorbells);
        let transport = Arc::new(transport);
        bus.insert(slot.address, layout::VIRTIO_MMIO_STRIDE, transport.clone())?;
        transports.push(transport);
    }
    Ok(transports)
}

fn plug_ports(config: &Config, fw_cfg: Option<FwCfg>, com1: &Arc<Com1>) -> Result<Bus, Overlap> {
    let mut bus = Bus::default();
    bus.insert(ports::POST.into(), 1, Arc::new(Post))?;
    bus.insert(ports::I8042_DATA.into(), I8042::PORTS, Arc::new(I8042))?;
    if config.isa_serial {
        bus.insert(ports::COM1.into(), COM1_PORTS, com1.clone())?;
    }
    if let Some(fw_cfg) = fw_cfg {
        bus.insert(ports::FW_CFG_SELECTOR.into(), FwCfg::PORTS, Arc::new(fw_cfg))?;
    }
    if let Some(device) = config.debug_exit {
        bus.insert(device.iobase.into(), device.iosize.into(), Arc::new(DebugExit))?;
    }
    if let Some(device) = config.pvpanic {
        bus.insert(device.ioport.into(), 1, Arc::new(PvPanic(device.events)))?;
    }
    Ok(bus)
}
