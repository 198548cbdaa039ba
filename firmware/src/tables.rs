//! ACPI: carries out the host's table-loader script.
//!
//! The host builds the tables without knowing where they will lie; its script says which files
//! to load and which pointers and checksums to patch. Everything in it is checked against the
//! files that were really loaded, in 64-bit arithmetic.

use alloc::vec::Vec;

use abi::bytes::sum8;
use abi::e820::{Map, kind};
use abi::fw_cfg::{file, name_matches, same_name};
use abi::layout;
use abi::placement::plan_tables;
use abi::range::{Range, align_up};
use abi::table_loader::{COMMAND_SIZE, Command, Name, Zone};

use crate::error::{Error, TableError};
use crate::fpdt::Performance;
use crate::fw_cfg::FwCfg;
use crate::machine::Machine;

/// Bytes of the shortest RSDP (ACPI 6.5, 5.2.5.3).
const RSDP_SIZE: u64 = 20;

/// A file that the script had loaded.
struct Loaded {
    name: Name,
    range: Range,
}

/// The ACPI tables in memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tables {
    /// The RSDP's address; 0 when the host has no tables.
    pub rsdp: u64,
    /// Where the kernel is told of the firmware's times.
    pub performance: Option<Performance>,
}

/// Loads and links the ACPI tables, and takes what they use above 1 MiB out of `map`.
pub fn load_tables<M: Machine>(fw_cfg: &mut FwCfg<'_, M>, map: &mut Map) -> Result<Tables, Error> {
    let Some(script) = fw_cfg.known().table_loader else { return Ok(Tables::default()) };
    let script = fw_cfg.read_file(script)?;
    let mut linker = Linker { fw_cfg, map, loaded: Vec::new(), low: layout::ACPI_TABLES };
    for (index, command) in script.chunks(COMMAND_SIZE).enumerate() {
        let command = Command::decode(command).map_err(TableError::Command);
        command
            .map_err(Failure::Table)
            .and_then(|command| linker.execute(&command))
            .map_err(|failure| failure.at(index))?;
    }
    let rsdp = linker.rsdp().map_or(0, Range::start);
    Ok(Tables { rsdp, performance: linker.add_fpdt() })
}

/// A failure within one command.
enum Failure {
    Table(TableError),
    Other(Error),
}

impl Failure {
    fn at(self, index: usize) -> Error {
        match self {
            Self::Table(error) => Error::TableLoader(index, error),
            Self::Other(error) => error,
        }
    }
}

impl From<TableError> for Failure {
    fn from(error: TableError) -> Self {
        Self::Table(error)
    }
}

pub(crate) struct Linker<'a, 'm, M> {
    fw_cfg: &'a mut FwCfg<'m, M>,
    map: &'a mut Map,
    loaded: Vec<Loaded>,
    /// What is left of the area for tables below 1 MiB.
    low: Range,
}

impl<M: Machine> Linker<'_, '_, M> {
    fn execute(&mut self, command: &Command) -> Result<(), Failure> {
        match *command {
            Command::Allocate { file, alignment, zone } => self.allocate(file, alignment, zone),
            Command::AddPointer { destination, source, offset, size } => {
                let address = self.find(&source)?.start();
                let field = self.field(&destination, offset, size.into())?;
                add_little_endian(field, address);
                Ok(())
            }
            Command::AddChecksum { file, offset, start, length } => {
                let sum = sum8(self.field(&file, start, length)?);
                let checksum = self.field(&file, offset, 1)?;
                checksum[0] = checksum[0].wrapping_sub(sum);
                Ok(())
            }
            Command::WritePointer { destination, source, offset, source_offset, size } => {
                let source = self.find(&source)?;
                if u64::from(source_offset) >= source.len() {
                    return Err(TableError::OutOfBounds.into());
                }
                let address = (source.start() + u64::from(source_offset)).to_le_bytes();
                self.write_back(&destination, offset, &address[..size.into()])
            }
            Command::Unknown(_) => Ok(()),
        }
    }

    fn allocate(&mut self, name: Name, alignment: u32, zone: Zone) -> Result<(), Failure> {
        if self.loaded.iter().any(|l| same_name(&l.name, &name)) {
            return Err(TableError::AllocatedTwice.into());
        }
        let file =
            self.fw_cfg.files().find(|f| same_name(&f.name, &name)).ok_or(TableError::NoFile)?;
        // An RSDP is found on 16-byte boundaries only (ACPI 6.5, 5.2.5.1).
        let alignment = u64::from(alignment.max(16));
        let size = u64::from(file.size);
        let range = match self.allocate_low(size, alignment) {
            Some(range) => range,
            None if zone == Zone::High => self.allocate_high(size, alignment)?,
            None => return Err(TableError::NoRoom(file.size).into()),
        };
        self.fw_cfg.load(file.selector, range).map_err(Failure::Other)?;
        let full = |_| Failure::Other(Error::HeapFull(size_of::<Loaded>()));
        self.loaded.try_reserve(1).map_err(full)?;
        self.loaded.push(Loaded { name, range });
        Ok(())
    }

    /// Takes `size` bytes of the area below 1 MiB.
    pub(crate) fn allocate_low(&mut self, size: u64, alignment: u64) -> Option<Range> {
        let range = Range::new(align_up(self.low.start(), alignment)?, size)?;
        if !self.low.contains(range) {
            return None;
        }
        self.low = Range::between(range.end(), self.low.end());
        Some(range)
    }

    fn allocate_high(&mut self, size: u64, alignment: u64) -> Result<Range, Failure> {
        let no_room = TableError::NoRoom(u32::try_from(size).unwrap_or(u32::MAX));
        let pages = plan_tables(self.map, size, alignment).ok_or(no_room)?;
        self.map.set(pages, kind::ACPI).map_err(|e| Failure::Other(e.into()))?;
        Ok(Range::new(pages.start(), size).ok_or(no_room)?)
    }

    /// Writes `bytes` to `offset` in the host's file `name`, which need not be loaded.
    fn write_back(&mut self, name: &Name, offset: u32, bytes: &[u8]) -> Result<(), Failure> {
        let file =
            self.fw_cfg.files().find(|f| same_name(&f.name, name)).ok_or(TableError::NoFile)?;
        let end = u64::from(offset) + bytes.len() as u64;
        if end > u64::from(file.size) {
            return Err(TableError::OutOfBounds.into());
        }
        self.fw_cfg.write(file.selector, offset, bytes).map_err(Failure::Other)
    }

    fn find(&self, name: &Name) -> Result<Range, TableError> {
        self.loaded
            .iter()
            .find(|l| same_name(&l.name, name))
            .map(|l| l.range)
            .ok_or(TableError::NotAllocated)
    }

    /// `length` bytes at `offset` in the loaded file `name`.
    fn field(&mut self, name: &Name, offset: u32, length: u32) -> Result<&mut [u8], TableError> {
        let file = self.find(name)?;
        let start = file.start() + u64::from(offset);
        let range = Range::new(start, length.into()).ok_or(TableError::OutOfBounds)?;
        if !file.contains(range) {
            return Err(TableError::OutOfBounds);
        }
        Ok(self.fw_cfg.machine().memory(range))
    }

    /// The RSDP, if the script had one loaded.
    pub(crate) fn rsdp(&self) -> Option<Range> {
        let loaded = self.loaded.iter().find(|l| name_matches(&l.name, file::ACPI_RSDP))?;
        (loaded.range.len() >= RSDP_SIZE).then_some(loaded.range)
    }

    /// The `length` bytes at an address that a table names, if a file was loaded there.
    pub(crate) fn at(&mut self, address: u64, length: u64) -> Option<&mut [u8]> {
        let range = Range::new(address, length)?;
        let known = self.loaded.iter().any(|loaded| loaded.range.contains(range));
        known.then(|| self.fw_cfg.machine().memory(range))
    }

    /// The machine, for what is not fw_cfg.
    pub(crate) fn machine(&mut self) -> &mut M {
        self.fw_cfg.machine()
    }
}

/// Adds `value` to the little-endian integer that fills `field`, 8 bytes at most.
fn add_little_endian(field: &mut [u8], value: u64) {
    let mut bytes = [0; 8];
    bytes[..field.len()].copy_from_slice(field);
    let sum = u64::from_le_bytes(bytes).wrapping_add(value);
    field.copy_from_slice(&sum.to_le_bytes()[..field.len()]);
}
