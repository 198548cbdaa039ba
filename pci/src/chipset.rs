//! The two chipsets: what their parts want besides addresses.
//!
//! Sources: the datasheets that [`abi::pci`] names; the routes and addresses are those that QEMU's
//! ACPI tables tell (hw/i386/acpi-build.c), which is what kernels go by.

use abi::{layout, pci};

use crate::tree::{Function, Tree};
use crate::{Address, ConfigSpace};

/// The ISA interrupts of PIRQ A to D, and of E to H.
pub const PIRQ_IRQS: [u8; 4] = [10, 10, 11, 11];
/// The ISA interrupt of ACPI events, which no register chooses.
const SCI: u8 = 9;

/// A chipset with all that belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chipset {
    /// QEMU's pc: 82441FX, PIIX3, PIIX4's power management.
    I440fx,
    /// QEMU's q35: 82G33, ICH9.
    Q35,
}

impl Chipset {
    /// The chipset with this host bridge.
    pub const fn of(host_bridge: u32) -> Option<Self> {
        match host_bridge {
            pci::I440FX => Some(Self::I440fx),
            pci::Q35 => Some(Self::Q35),
            _ => None,
        }
    }

    /// Routes the interrupts of all functions, and sets up those that are the chipset's own.
    #[inline(never)]
    pub fn set_up(self, config: &mut dyn ConfigSpace, tree: &Tree) {
        for function in &tree.functions {
            if let Some((device, pin)) = tree.root_pin(function) {
                set_interrupt(config, function, self.irq(device, pin));
            }
            set_up_function(config, function);
        }
    }

    /// Where an interrupt of a device on the first bus goes; pin 0 is INTA.
    fn irq(self, device: u8, pin: u8) -> u8 {
        let pirq = match self {
            // Device 1 is the PIIX3, whose INTA is PIRQ A.
            Self::I440fx => device.wrapping_sub(1).wrapping_add(pin),
            // The ICH9's own devices, from 25 up, are not turned.
            Self::Q35 if device >= 25 => pin,
            Self::Q35 => device.wrapping_add(pin),
        };
        let [a, b, c, d] = PIRQ_IRQS;
        match pirq & 3 {
            0 => a,
            1 => b,
            2 => c,
            _ => d,
        }
    }
}

/// Turns on q35's configuration space as memory, at [`layout::Q35_MMCONFIG`].
pub fn set_up_mmconfig(config: &mut dyn ConfigSpace) {
    let bridge = Address::first_on(0);
    config.write(bridge, pci::Q35_PCIEXBAR_HIGH, 0);
    config.write(bridge, pci::Q35_PCIEXBAR, MMCONFIG | pci::Q35_PCIEXBAR_ON);
}

fn set_interrupt(config: &mut dyn ConfigSpace, function: &Function, irq: u8) {
    // The other bytes cannot be written.
    let line = u32::from(irq) | u32::from(function.pin) << 8;
    config.write(function.address, pci::INTERRUPT, line);
}

fn set_up_function(config: &mut dyn ConfigSpace, function: &Function) {
    let address = function.address;
    let routes = u32::from_le_bytes(PIRQ_IRQS);
    let pm_base = u32::from(layout::PM_BASE) | pci::PM_BASE_IO;
    let registers: &[(u8, u32)] = match function.id {
        pci::PIIX3_ISA => &[(pci::PIIX3_PIRQ, routes)],
        pci::PIIX3_IDE => &[(pci::PIIX3_IDE_TIMING, pci::PIIX3_IDE_ON)],
        pci::PIIX4_PM => {
            set_interrupt(config, function, SCI);
            &[(pci::PIIX4_PM_BASE, pm_base), (pci::PIIX4_PM_MISC, pci::PIIX4_PM_ON)]
        }
        pci::ICH9_LPC => &[
            (pci::ICH9_PIRQ_A, routes),
            (pci::ICH9_PIRQ_E, routes),
            (pci::ICH9_PM_BASE, pm_base),
            (pci::ICH9_ACPI_CONTROL, pci::ICH9_ACPI_ON),
            (pci::ICH9_RCBA, RCBA | pci::ICH9_RCBA_ON),
        ],
        _ => &[],
    };
    for (offset, value) in registers {
        config.write(address, *offset, *value);
    }
}

#[expect(clippy::cast_possible_truncation, reason = "below 4 GiB, by the assertion")]
const MMCONFIG: u32 = layout::Q35_MMCONFIG.start() as u32;
#[expect(clippy::cast_possible_truncation, reason = "below 4 GiB, by the assertion")]
const RCBA: u32 = layout::Q35_RCBA as u32;
const _: () =
    assert!(layout::Q35_MMCONFIG.end() <= layout::FOUR_GIB && layout::Q35_RCBA < layout::FOUR_GIB);
