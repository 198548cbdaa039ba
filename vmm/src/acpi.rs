//! The ACPI tables: one builder for both ways to boot.
//!
//! The bytes are built as if they lay at address 0, with a script of table-loader commands that
//! tells where the addresses are. The firmware gets bytes and script through fw_cfg; for a
//! direct boot, [`Tables::place`] runs the same script here.

use abi::fw_cfg::file;
use abi::range::align_up;
use abi::table_loader::{Command, Name, Zone};
use abi::{layout, ports};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};

use crate::config::{Config, Irqchip};
use crate::devices::ged;
use crate::virtio::slots::{self, Slot};

const OEM_ID: [u8; 6] = *b"MICROV";
const OEM_TABLE_ID: [u8; 8] = *b"MICROVM ";
const OEM_REVISION: u32 = 1;
/// The I/O APIC's id, as its own register has it after reset.
const IOAPIC_ID: u8 = 0;

/// FADT boot flags (ACPI 6.5, table 5.11): no VGA, no CMOS clock; nor an 8042 with a keyboard.
const BOOT_FLAGS: u16 = 1 << 2 | 1 << 5;

/// Alignment of the tables, and of the RSDP.
const TABLES_ALIGNMENT: u32 = 64;
const RSDP_ALIGNMENT: u32 = 16;

/// Offsets of a table's length and checksum, which all tables but the RSDP share.
const LENGTH: usize = 4;
const CHECKSUM: usize = 9;
/// Offsets of addresses in the FADT.
const FADT_DSDT: usize = 40;
const FADT_X_DSDT: usize = 140;
/// Bytes of a table's header: the XSDT's entries follow.
const HEADER: usize = 36;
/// Offsets and sizes in the RSDP.
const RSDP_CHECKSUM: usize = 8;
const RSDP_V1_SIZE: usize = 20;
const RSDP_XSDT: usize = 24;
const RSDP_X_CHECKSUM: usize = 32;
const RSDP_SIZE: usize = 36;

/// The tables, not yet placed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    /// All tables but the RSDP: `etc/acpi/tables`.
    pub tables: Vec<u8>,
    /// The RSDP: `etc/acpi/rsdp`.
    pub rsdp: Vec<u8>,
    /// How to link them: `etc/table-loader`.
    pub script: Vec<Command>,
}

/// Tables with their addresses filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The bytes, from [`layout::ACPI_TABLES`] on.
    pub bytes: Vec<u8>,
    /// Where the RSDP is.
    pub rsdp: u64,
}

impl Tables {
    /// Tables for the machine of `config`.
    pub fn new(config: &Config) -> Self {
        let mut builder = Builder::default();
        let dsdt = builder.append(&bytes_of(&Bytes(dsdt(config))));
        let fadt = builder.append(&bytes_of(&fadt()));
        for at in [(FADT_DSDT, 4), (FADT_X_DSDT, 8)] {
            builder.point(fadt + at.0, at.1, dsdt);
        }
        builder.sum(fadt);
        let madt = builder.append(&bytes_of(&madt(config)));
        let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
        let listed = [fadt, madt];
        listed.iter().for_each(|_| xsdt.add_entry(0));
        let xsdt = builder.append(&bytes_of(&xsdt));
        for (index, table) in listed.into_iter().enumerate() {
            builder.point(xsdt + HEADER + 8 * index, 8, table);
        }
        builder.sum(xsdt);
        builder.finish(xsdt)
    }

    /// `etc/table-loader`.
    pub fn script_bytes(&self) -> Vec<u8> {
        self.script.iter().flat_map(Command::encode).collect()
    }

    /// Runs the script with the tables at the start of [`layout::ACPI_TABLES`] and the RSDP
    /// behind them, where the firmware puts them too; `None` if they do not fit.
    pub fn place(&self) -> Option<Placed> {
        let start = layout::ACPI_TABLES.start();
        let tables_size = self.tables.len() as u64;
        let rsdp_at = align_up(tables_size, u64::from(RSDP_ALIGNMENT))?;
        if rsdp_at + self.rsdp.len() as u64 > layout::ACPI_TABLES.len() {
            return None;
        }
        let mut bytes = self.tables.clone();
        bytes.resize(usize::try_from(rsdp_at).ok()?, 0);
        bytes.extend(&self.rsdp);
        let base = |name: &Name| {
            Some(if *name == tables_name() { 0 } else { usize::try_from(rsdp_at).ok()? })
        };
        for command in &self.script {
            match command {
                Command::AddPointer { destination, source, offset, size } => {
                    let at = base(destination)? + *offset as usize;
                    let address = start + base(source)? as u64;
                    add(bytes.get_mut(at..at + usize::from(*size))?, address);
                }
                Command::AddChecksum { file, offset, start, length } => {
                    let from = base(file)? + *start as usize;
                    let summed = bytes.get(from..from + *length as usize)?;
                    let sum = summed.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
                    let checksum = bytes.get_mut(base(file)? + *offset as usize)?;
                    *checksum = checksum.wrapping_sub(sum);
                }
                Command::Allocate { .. } | Command::WritePointer { .. } | Command::Unknown(_) => {}
            }
        }
        Some(Placed { bytes, rsdp: start + rsdp_at })
    }
}

/// Adds to a little-endian integer.
fn add(integer: &mut [u8], address: u64) {
    let mut value = [0; 8];
    value[..integer.len()].copy_from_slice(integer);
    let sum = u64::from_le_bytes(value).wrapping_add(address).to_le_bytes();
    integer.copy_from_slice(&sum[..integer.len()]);
}

fn name(name: &str) -> Name {
    let mut padded = [0; abi::fw_cfg::FILE_NAME_SIZE];
    padded[..name.len()].copy_from_slice(name.as_bytes());
    padded
}

fn tables_name() -> Name {
    name(file::ACPI_TABLES)
}

/// The tables file as it grows, and the script for it.
#[derive(Default)]
struct Builder {
    tables: Vec<u8>,
    script: Vec<Command>,
}

impl Builder {
    fn append(&mut self, table: &[u8]) -> usize {
        self.tables.resize(self.tables.len().next_multiple_of(8), 0);
        let at = self.tables.len();
        self.tables.extend(table);
        at
    }

    /// Makes `size` bytes at `at` point to the table at `to`.
    fn point(&mut self, at: usize, size: u8, to: usize) {
        let offset = u64::try_from(to).unwrap_or(0).to_le_bytes();
        self.tables[at..at + usize::from(size)].copy_from_slice(&offset[..usize::from(size)]);
        self.script.push(Command::AddPointer {
            destination: tables_name(),
            source: tables_name(),
            offset: word(at),
            size,
        });
    }

    /// Sums up the table at `at`, which is complete.
    fn sum(&mut self, at: usize) {
        let length = abi::bytes::get_u32(&self.tables, at + LENGTH).unwrap_or(0);
        self.script.push(Command::AddChecksum {
            file: tables_name(),
            offset: word(at + CHECKSUM),
            start: word(at),
            length,
        });
    }

    fn finish(self, xsdt: usize) -> Tables {
        let rsdp_name = name(file::ACPI_RSDP);
        let allocate = |file, alignment, zone| Command::Allocate { file, alignment, zone };
        let mut script = vec![
            allocate(tables_name(), TABLES_ALIGNMENT, Zone::High),
            allocate(rsdp_name, RSDP_ALIGNMENT, Zone::FSegment),
        ];
        script.extend(self.script);
        script.push(Command::AddPointer {
            destination: rsdp_name,
            source: tables_name(),
            offset: word(RSDP_XSDT),
            size: 8,
        });
        for (offset, length) in [(RSDP_CHECKSUM, RSDP_V1_SIZE), (RSDP_X_CHECKSUM, RSDP_SIZE)] {
            let (offset, length) = (word(offset), word(length));
            script.push(Command::AddChecksum { file: rsdp_name, offset, start: 0, length });
        }
        Tables { tables: self.tables, rsdp: bytes_of(&Rsdp::new(OEM_ID, xsdt as u64)), script }
    }
}

/// An offset of the script. The tables are a few KiB.
fn word(offset: usize) -> u32 {
    u32::try_from(offset).unwrap_or(u32::MAX)
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// A finished table among others.
struct Bytes(Vec<u8>);

impl Aml for Bytes {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

fn fadt() -> impl Aml {
    let register = |offset| {
        let address = layout::GED_REGISTERS + offset;
        GAS::new(AddressSpace::SystemMemory, 8, 0, AccessSize::ByteAccess, address)
    };
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup);
    fadt.iapc_boot_arch = BOOT_FLAGS.into();
    fadt.reset_reg = register(layout::GED_RESET);
    fadt.reset_value = layout::GED_RESET_VALUE;
    fadt.sleep_control_reg = register(layout::GED_SLEEP_CONTROL);
    fadt.sleep_status_reg = register(layout::GED_SLEEP_STATUS);
    fadt.finalize()
}

/// A Local APIC NMI structure (ACPI 6.5, 5.2.12.7): type, length, all CPUs, the bus's own polarity
/// and trigger, LINT1; as on every PC.
const NMI_OF_ALL: [u8; 6] = [4, 6, 0xff, 0, 0, 1];

fn madt(config: &Config) -> impl Aml {
    // PCAT_COMPAT: there are 8259s.
    let flags = u32::from(config.irqchip() == Irqchip::Kernel);
    let mut body = [low(layout::LOCAL_APIC), flags].map(u32::to_le_bytes).concat();
    for id in 0..config.cpus {
        body.extend(bytes_of(&ProcessorLocalApic::new(id, id, EnabledStatus::Enabled)));
    }
    body.extend(bytes_of(&IoApic::new(IOAPIC_ID, low(layout::IOAPIC), 0)));
    body.extend(NMI_OF_ALL);
    let mut madt = Sdt::new(*b"APIC", 36, 1, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    madt.append_slice(&body);
    madt
}

/// An address of the layout below 4 GiB.
const fn low(address: u64) -> u32 {
    let [a, b, c, d, 0, 0, 0, 0] = address.to_le_bytes() else { panic!("above 4 GiB") };
    u32::from_le_bytes([a, b, c, d])
}

fn dsdt(config: &Config) -> Vec<u8> {
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let mut body = system_bus(config);
    // The first number is what goes into the sleep control register.
    let sleep_type = ged::SLEEP_TYPE_OFF;
    let package = aml::Package::new(vec![&sleep_type, &aml::ZERO, &aml::ZERO, &aml::ZERO]);
    body.extend(bytes_of(&aml::Name::new("_S5_".into(), &package)));
    dsdt.append_slice(&body);
    dsdt.as_slice().to_vec()
}

fn system_bus(config: &Config) -> Vec<u8> {
    let mut parts = vec![fw_cfg(), power_button(), event_device()];
    parts.extend(config.isa_serial.then(serial));
    parts.extend(config.pvpanic.map(|device| pvpanic(device.ioport)));
    parts.extend(slots::in_order(true).take(config.virtio.len()).map(virtio));
    let parts: Vec<_> = parts.into_iter().map(Bytes).collect();
    let children = parts.iter().map(|part| part as &dyn Aml).collect();
    bytes_of(&aml::Scope::new("_SB_".into(), children))
}

fn serial() -> Vec<u8> {
    device(
        "COM1",
        vec![
            name_is("_HID", &aml::EISAName::new("PNP0501")),
            name_is("_UID", &1u8),
            name_is("_STA", &0xfu8),
        ],
        vec![
            &aml::IO::new(ports::COM1, ports::COM1, 1, 8),
            &aml::Interrupt::new(true, true, false, false, ports::COM1_IRQ),
        ],
    )
}

/// A virtio transport: its registers, and its interrupt. QEMU has a level here; an edge means the
/// same to a driver, which asks the interrupt status, and spares the exit at its end.
fn virtio(slot: Slot) -> Vec<u8> {
    let Slot { number, address, gsi } = slot;
    device(
        &format!("VR{number:02}"),
        vec![name_is("_HID", &"LNRO0005"), name_is("_UID", &number), name_is("_CCA", &aml::ONE)],
        vec![
            &aml::Memory32Fixed::new(true, low(address), low(layout::VIRTIO_MMIO_STRIDE)),
            &aml::Interrupt::new(true, true, false, false, gsi),
        ],
    )
}

fn fw_cfg() -> Vec<u8> {
    // Present and working, but nothing to show to a user.
    let hidden = 0xbu8;
    device(
        "FWCF",
        vec![name_is("_HID", &"QEMU0002"), name_is("_STA", &hidden)],
        vec![&aml::IO::new(ports::FW_CFG_SELECTOR, ports::FW_CFG_SELECTOR, 1, 12)],
    )
}

/// pvpanic, with the methods RDPT and WRPT that read and write its port (QEMU,
/// docs/specs/pvpanic.rst).
fn pvpanic(port: u16) -> Vec<u8> {
    let space = aml::OpRegionSpace::SystemIO;
    let region = aml::OpRegion::new("PEOR".into(), space, &port, &aml::ONE);
    let field = aml::Field::new(
        "PEOR".into(),
        aml::FieldAccessType::Byte,
        aml::FieldLockRule::NoLock,
        aml::FieldUpdateRule::Preserve,
        vec![aml::FieldEntry::Named(*b"PEPT", 8)],
    );
    let (register, value) = (aml::Path::new("PEPT"), aml::Local(0));
    let (load, give) = (aml::Store::new(&value, &register), aml::Return::new(&value));
    let read = aml::Method::new("RDPT".into(), 0, false, vec![&load, &give]);
    let store = aml::Store::new(&register, &aml::Arg(0));
    let write = aml::Method::new("WRPT".into(), 1, false, vec![&store]);
    let mut parts = vec![name_is("_HID", &"QEMU0001"), name_is("_STA", &0xfu8)];
    parts.extend([bytes_of(&region), bytes_of(&field), bytes_of(&read), bytes_of(&write)]);
    device("PEVT", parts, vec![&aml::IO::new(port, port, 1, 1)])
}

fn power_button() -> Vec<u8> {
    let hid = name_is("_HID", &aml::EISAName::new("PNP0C0C"));
    device("PWRB", vec![hid, name_is("_UID", &aml::ZERO)], vec![])
}

/// The generic event device: on its interrupt, it reads what happened and tells it on.
fn event_device() -> Vec<u8> {
    let (address, size) = (low(layout::GED), layout::GED_SIZE);
    let space = aml::OpRegionSpace::SystemMemory;
    let region = aml::OpRegion::new("EREG".into(), space, &address, &size);
    let field = aml::Field::new(
        "EREG".into(),
        aml::FieldAccessType::DWord,
        aml::FieldLockRule::NoLock,
        aml::FieldUpdateRule::WriteAsZeroes,
        vec![aml::FieldEntry::Named(*b"ESEL", 32)],
    );
    let (events, selector) = (aml::Local(0), aml::Path::new("ESEL"));
    let remember = aml::Store::new(&events, &selector);
    // Stored nowhere: a null name is encoded as the number 0 is (ACPI 6.5, 20.2.2).
    let (nowhere, mask) = (aml::ZERO, ged::POWER_BUTTON);
    let pressed = aml::And::new(&nowhere, &events, &mask);
    let is_pressed = aml::Equal::new(&pressed, &mask);
    let (button, push) = (aml::Path::new("PWRB"), 0x80u8);
    let notify = aml::Notify::new(&button, &push);
    let branch = aml::If::new(&is_pressed, vec![&notify]);
    let method = aml::Method::new("_EVT".into(), 1, true, vec![&remember, &branch]);
    device(
        "GED_",
        vec![
            name_is("_HID", &"ACPI0013"),
            name_is("_UID", &"GED"),
            bytes_of(&region),
            bytes_of(&field),
            bytes_of(&method),
        ],
        vec![&aml::Interrupt::new(true, true, false, false, layout::GED_IRQ)],
    )
}

fn name_is(name: &str, value: &dyn Aml) -> Vec<u8> {
    bytes_of(&aml::Name::new(name.into(), value))
}

fn device(name: &str, parts: Vec<Vec<u8>>, resources: Vec<&dyn Aml>) -> Vec<u8> {
    let mut parts: Vec<_> = parts.into_iter().map(Bytes).collect();
    if !resources.is_empty() {
        parts.push(Bytes(name_is("_CRS", &aml::ResourceTemplate::new(resources))));
    }
    let children = parts.iter().map(|part| part as &dyn Aml).collect();
    bytes_of(&aml::Device::new(name.into(), children))
}

#[cfg(test)]
mod tests;
