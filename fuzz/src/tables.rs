//! The table-loader script once more, plainly: RAM must hold what comes out.

use abi::boot_trace;
use abi::bytes::{self, sum8};
use abi::fw_cfg::{File, file, name_matches, same_name};
use abi::range::Range;
use abi::table_loader::{COMMAND_SIZE, Command, Name};

use crate::host::Host;

/// More than this takes too long to be done twice.
const BYTES_MAX: usize = 1 << 20;

/// A file as it should be.
struct Expected {
    name: Name,
    at: Range,
    bytes: Vec<u8>,
}

/// Checks all loaded files and all that was written back, after a script that was carried out.
pub fn check(host: &Host) {
    let Some(script) = host.known(file::TABLE_LOADER) else { return };
    let mut commands = host.contents(script.selector).to_vec();
    if commands.len().max(script.size as usize) > BYTES_MAX {
        return;
    }
    commands.resize(script.size as usize, 0);
    let mut replay = Replay { host, files: Vec::new(), next_area: 0, next_write: 0, bytes: 0 };
    for command in commands.chunks(COMMAND_SIZE) {
        let command = Command::decode(command).expect("it was carried out");
        if replay.execute(&command).is_none() {
            return;
        }
    }
    for file in &replay.files {
        let bytes = host.memory_at(file.at);
        let is_rsdp = name_matches(&file.name, file::ACPI_RSDP) && file.bytes.len() >= 20;
        if is_rsdp && bytes != file.bytes {
            check_new_root(host, file, bytes);
        } else {
            assert!(bytes == file.bytes, "{:x?} differs", file.at);
        }
    }
    let rest = &host.writes[replay.next_write..];
    let trace = host.known(file::BOOT_TRACE).map(|f| f.selector);
    match rest {
        [] => assert_eq!(trace, None, "no boot trace"),
        [(item, 0, bytes)] => assert!(Some(*item) == trace && bytes.len() == boot_trace::SIZE),
        more => panic!("written back more than was asked: {more:x?}"),
    }
}

/// An RSDP that is not as the script left it must name a root table with one more entry, which is
/// an FPDT that names the times.
fn check_new_root(host: &Host, old: &Expected, new: &[u8]) {
    assert!(host.tsc_khz.is_some(), "changed without need");
    let is_new = new[15] >= 2 && new.len() >= 32 && new[24..32] != old.bytes[24..32];
    let (at, size) = if is_new { (24, 8) } else { (16, 4) };
    for (index, (new, old)) in new.iter().zip(&old.bytes).enumerate() {
        let may_change = (at..at + size).contains(&index) || index == 8 || index == 32;
        assert!(may_change || new == old, "the RSDP differs at {index}");
    }
    assert_eq!(sum8(&new[..20]), 0, "the RSDP's checksum");
    assert!(new[15] < 2 || new.len() < 36 || sum8(&new[..36]) == 0, "its other checksum");
    let root = table(host, address(&new[at..at + size]));
    let entry = root.len() - size;
    let fpdt = table(host, address(&root[entry..]));
    assert!(fpdt.starts_with(b"FPDT") && fpdt.len() == 52, "the last entry is the FPDT");
    let times = Range::new(address(&fpdt[44..52]), 56).expect("times that end");
    let times = host.memory_at(times);
    assert!(times.starts_with(b"FBPT") && bytes::get_u32(times, 4) == Some(56));
}

/// A table with its length and its checksum in order.
fn table(host: &Host, address: u64) -> &[u8] {
    let header = host.memory_at(Range::new(address, 36).expect("a header that ends"));
    let length = bytes::get_u32(header, 4).expect("in the header");
    let table = host.memory_at(Range::new(address, length.into()).expect("a table that ends"));
    assert_eq!(sum8(table), 0, "the checksum of the table at {address:#x}");
    table
}

fn address(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |address, byte| address << 8 | u64::from(*byte))
}

struct Replay<'a> {
    host: &'a Host,
    files: Vec<Expected>,
    next_area: usize,
    next_write: usize,
    bytes: usize,
}

impl Replay<'_> {
    /// Carries out a command; `None` when the check is given up.
    fn execute(&mut self, command: &Command) -> Option<()> {
        match command {
            Command::Allocate { file, alignment, .. } => self.load(file, *alignment)?,
            Command::AddPointer { destination, source, offset, size } => {
                let address = self.find(source).at.start();
                let (at, size) = (*offset as usize, usize::from(*size));
                let field = &mut self.find(destination).bytes[at..at + size];
                let mut value = [0; 8];
                value[..size].copy_from_slice(field);
                let sum = u64::from_le_bytes(value).wrapping_add(address).to_le_bytes();
                field.copy_from_slice(&sum[..size]);
            }
            Command::AddChecksum { file, offset, start, length } => {
                let bytes = &mut self.find(file).bytes;
                let (start, length) = (*start as usize, *length as usize);
                let summed = bytes[start..start + length].iter();
                let sum = summed.fold(0, |sum: u8, byte| sum.wrapping_add(*byte));
                let checksum = &mut bytes[*offset as usize];
                *checksum = checksum.wrapping_sub(sum);
            }
            Command::WritePointer { destination, source, offset, source_offset, size } => {
                let address = self.find(source).at.start() + u64::from(*source_offset);
                let item = self.entry(destination)?.selector;
                let bytes = address.to_le_bytes()[..usize::from(*size)].to_vec();
                let write = (item, *offset as usize, bytes);
                assert_eq!(self.host.writes.get(self.next_write), Some(&write));
                self.next_write += 1;
            }
            Command::Unknown(_) => {}
        }
        Some(())
    }

    fn entry(&self, name: &Name) -> Option<File> {
        self.host.listed().find(|f| same_name(&f.name, name))
    }

    fn load(&mut self, name: &Name, alignment: u32) -> Option<()> {
        let entry = self.entry(name)?;
        self.bytes += entry.size as usize;
        // An empty file is nowhere to be seen.
        if entry.size == 0 || self.bytes > BYTES_MAX {
            return None;
        }
        let areas = self.host.areas.iter().enumerate().skip(self.next_area);
        let size = u64::from(entry.size);
        let mut areas = areas.filter(|(_, area)| area.item == Some(entry.selector));
        let (index, area) = areas.find(|(_, area)| area.range.len() == size)?;
        assert_eq!(area.range.start() % u64::from(alignment), 0, "aligned as asked");
        self.next_area = index + 1;
        let contents = self.host.contents(entry.selector);
        let mut bytes = contents[..contents.len().min(entry.size as usize)].to_vec();
        bytes.resize(entry.size as usize, 0);
        self.files.push(Expected { name: *name, at: area.range, bytes });
        Some(())
    }

    fn find(&mut self, name: &Name) -> &mut Expected {
        self.files.iter_mut().find(|f| same_name(&f.name, name)).expect("it was allocated")
    }
}

/// A file name as scripts have it.
pub fn name(text: &str) -> Name {
    bytes::array(&File::new(text, 0, 0).expect("a name of ours").encode(), 8).expect("a constant")
}
