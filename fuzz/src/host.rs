//! A hostile host for the firmware: it says what the fuzzer likes, and watches.

use std::fmt::{self, Write as _};

use abi::e820::{Entry, kind};
use abi::fw_cfg::{DMA_SIGNATURE, File, ID_DMA, ID_TRADITIONAL, Record, SIGNATURE, dma, file, key};
use abi::range::Range;
use abi::{bytes, layout, ports};
use firmware::machine::{Machine, Msr};
use pci::{Address, ConfigSpace};

use crate::config::Config;
use crate::heap;
use crate::ram::{self, Ram};

/// How the host has fw_cfg (docs/firmware.md, "Hosts").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// As QEMU specifies it.
    Qemu,
    /// DMA without its signature, otherwise right.
    Silent,
    /// DMA without its signature, and a SELECT that is ignored.
    NoSelect,
    /// Selector and data ports only.
    Ports,
    /// Nothing at port 0x510.
    Absent,
}

/// A place that the firmware had something loaded to, or wrote itself.
#[derive(Clone, Copy, Debug)]
pub struct Area {
    /// Where.
    pub range: Range,
    /// The item that was loaded; none when the firmware wrote by itself.
    pub item: Option<u16>,
}

/// The host.
pub struct Host {
    /// How it has fw_cfg.
    pub flavour: Flavour,
    /// The transfer, counted from 1, that it fails; 0 for none.
    pub fail_at: u32,
    /// Bytes of the firmware's heap.
    pub heap: usize,
    /// What `start.S` would find.
    pub host_bridge: u32,
    /// The rate of the time-stamp counter, which starts near its end.
    pub tsc_khz: Option<u32>,
    /// PCI, when there is a host bridge.
    pub config: Config,
    /// Whether CPUs have memory type range registers.
    pub has_mtrrs: bool,
    /// CPUs that cannot be started; `None` when the first one refuses a register's value.
    pub silent_cpus: Option<u32>,
    /// What was loaded and written, in order.
    pub areas: Vec<Area>,
    /// What the firmware wrote to items: item, offset, bytes.
    pub writes: Vec<(u16, usize, Vec<u8>)>,
    items: Vec<(u16, Vec<u8>)>,
    files: Vec<File>,
    ram: Option<Ram>,
    /// Whether items are given beforehand, so that nobody can tell what is loaded.
    pub prefetches: bool,
    claims: Vec<(u64, u64, u32)>,
    config_address: u32,
    tsc: u64,
    selected: u16,
    /// Where the selected item is in `items`.
    index: Option<usize>,
    offset: usize,
    transfers: u32,
    port_reads: u32,
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(ram) = self.ram.take() {
            ram.give_back();
        }
    }
}

impl Default for Host {
    fn default() -> Self {
        let mut host = Self {
            flavour: Flavour::Qemu,
            fail_at: 0,
            heap: layout::FIRMWARE_HEAP.len() as usize,
            host_bridge: 0,
            tsc_khz: None,
            has_mtrrs: true,
            silent_cpus: Some(0),
            config: Config::default(),
            areas: Vec::with_capacity(1024),
            writes: Vec::new(),
            items: Vec::with_capacity(32),
            files: Vec::new(),
            ram: Some(Ram::take()),
            prefetches: false,
            claims: Vec::new(),
            config_address: 0,
            tsc: u64::MAX - 1500,
            selected: 0,
            index: None,
            offset: 0,
            transfers: 0,
            port_reads: 0,
        };
        host.item(key::SIGNATURE, SIGNATURE);
        host
    }
}

impl Host {
    /// Far more than one for each file that a directory can have.
    const TRANSFERS_MAX: u32 = 10_000;
    /// The same for hosts that are read byte by byte: as many bytes as they have RAM, and files.
    const PORT_READS_MAX: u32 = 2 << 20;
    /// The end of RAM below 1 GiB on hosts that are read byte by byte, where much takes long.
    const PORTS_RAM: u64 = layout::HIGH_RAM_START + 0x2_0000;

    /// Sets an item.
    pub fn item(&mut self, key: u16, bytes: impl Into<Vec<u8>>) {
        match self.items.iter_mut().find(|(other, _)| *other == key) {
            Some((_, old)) => *old = bytes.into(),
            None => self.items.push((key, bytes.into())),
        }
    }

    /// Sets an item that is a number.
    pub fn number(&mut self, key: u16, value: u32) {
        self.item(key, value.to_le_bytes());
    }

    /// An item's bytes; none when it is absent.
    pub fn contents(&self, key: u16) -> &[u8] {
        self.items.iter().find(|(other, _)| *other == key).map_or(&[], |(_, bytes)| bytes)
    }

    /// Adds a file whose directory entry claims `size` bytes.
    pub fn file(&mut self, name: &str, bytes: impl Into<Vec<u8>>, size: u32) {
        let selector = key::FILE_FIRST + self.files.len() as u16;
        let entry = File::new(name, selector, size).expect("a name of ours");
        self.files.push(entry);
        self.item(selector, bytes);
    }

    /// Adds a directory entry for an item that is there or is not.
    pub fn entry(&mut self, entry: File) {
        self.files.push(entry);
    }

    /// Writes the directory, with a count that is off by so much.
    pub fn directory(&mut self, off: u32) {
        let count = (self.files.len() as u32).wrapping_add(off);
        let mut bytes = Vec::with_capacity(4 + self.files.len() * File::SIZE);
        bytes.extend(count.to_be_bytes());
        self.files.iter().for_each(|f| bytes.extend(f.encode()));
        self.item(key::FILE_DIR, bytes);
    }

    /// The files as the firmware sees them: as many as the count says.
    pub fn listed(&self) -> impl Iterator<Item = File> + '_ {
        let directory = self.contents(key::FILE_DIR);
        let count = u32::from_be_bytes(bytes::array(directory, 0).unwrap_or_default());
        let entries = directory.get(4..).unwrap_or_default().chunks(File::SIZE);
        entries.take(count as usize).map(|entry| {
            // Past an item's end are zeroes.
            let mut padded = [0; File::SIZE];
            padded[..entry.len()].copy_from_slice(entry);
            File::decode(&padded)
        })
    }

    /// A file of which the last one counts when there are several.
    pub fn known(&self, name: &str) -> Option<File> {
        self.listed().filter(|file| file.is_named(name)).last()
    }

    /// Boots, and checks what must hold whatever the host said.
    pub fn boot(mut self) {
        let features = if self.flavour == Flavour::Ports { 0 } else { ID_DMA };
        self.number(key::ID, ID_TRADITIONAL | features);
        if self.settle_map().is_none() {
            return;
        }
        let outcome = heap::with_limit(self.heap, || firmware::boot::boot(&mut self));
        crate::check::outcome(&self, outcome);
    }

    /// Keeps the memory map to RAM that there is, and remembers what it promises. `None` when the
    /// map is read from an item that says other things too.
    fn settle_map(&mut self) -> Option<()> {
        self.prefetches = self.known(file::PREFETCH).is_some();
        let Some(file) = self.known(file::E820) else { return Some(()) };
        let (size, heap) = (file.size as usize, layout::FIRMWARE_HEAP.len() as u32);
        if file.size > heap {
            return Some(());
        }
        let ram = if self.flavour == Flavour::Ports { Self::PORTS_RAM } else { ram::SIZE };
        let prefetch = self.known(file::PREFETCH).filter(|prefetch| prefetch.size <= heap);
        let prefetch_item = prefetch.map(|prefetch| prefetch.selector);
        let shared = [Some(key::FILE_DIR), prefetch_item].contains(&Some(file.selector));
        let others = self.listed().filter(|other| other.selector == file.selector).count();
        if shared || others > 1 {
            return None;
        }
        let record = prefetch.and_then(|prefetch| self.record(prefetch, file.selector));
        let (item, at) = match (prefetch_item, record) {
            (Some(item), Some((at, length))) if length >= size => (item, at),
            _ => (file.selector, 0),
        };
        let (_, bytes) = self.items.iter_mut().find(|(key, _)| *key == item)?;
        bytes.resize(bytes.len().max(at + size), 0);
        for entry in bytes[at..at + size].chunks_exact_mut(Entry::SIZE) {
            self.claims.push(settle(entry, ram)?);
        }
        Some(())
    }

    /// Where an item's record is in the file of prefetched ones, and how many bytes it has.
    fn record(&mut self, prefetch: File, item: u16) -> Option<(usize, usize)> {
        let size = prefetch.size as usize;
        let (_, bytes) = self.items.iter_mut().find(|(key, _)| *key == prefetch.selector)?;
        // Past its end are zeroes.
        bytes.resize(bytes.len().max(size), 0);
        let mut rest = &bytes[..size];
        loop {
            let record = Record::take(&mut rest)?;
            if record.selector == item {
                let length = record.bytes.len();
                return Some((size - rest.len() - length, length));
            }
        }
    }

    /// Whether the host promised all of it to be RAM.
    pub fn is_promised(&self, range: Range) -> bool {
        let mut claims = self.claims.iter().filter(|(start, end, _)| start < end);
        if claims.any(|(start, end, kind)| {
            *kind != kind::RAM && *start < range.end() && range.start() < *end
        }) {
            return false;
        }
        let mut at = range.start();
        while at < range.end() {
            let ram =
                self.claims.iter().filter(|(start, _, kind)| *kind == kind::RAM && *start <= at);
            match ram.map(|(_, end, _)| *end).max() {
                Some(end) if end > at => at = end,
                _ => return false,
            }
        }
        true
    }

    /// What a range of RAM holds.
    pub fn memory_at(&self, range: Range) -> &[u8] {
        self.ram.as_ref().expect("RAM until it is dropped").get(range)
    }

    /// Notes that the firmware reaches for a range, which nothing else may be in.
    fn reach(&mut self, range: Range, item: Option<u16>) {
        if range.is_empty() || self.areas.iter().any(|area| area.range.contains(range)) {
            return;
        }
        // The image itself is there, in RAM of the chipset's.
        let is_image = layout::SMBIOS_ANCHOR.contains(range);
        assert!(is_image || self.is_promised(range), "no RAM: {range:x?}");
        for used in [layout::FIRMWARE_DATA, layout::FIRMWARE_HEAP, layout::BIOS_LOW] {
            assert!(is_image || !used.overlaps(range), "the firmware is there: {range:x?}");
        }
        let overlapping = self.areas.iter().find(|area| area.range.overlaps(range));
        assert!(overlapping.is_none(), "{range:x?} reaches into {overlapping:x?}");
        // A load in pieces is one.
        match self.areas.last_mut() {
            Some(last) if last.item == item && last.range.end() == range.start() => {
                last.range = Range::between(last.range.start(), range.end());
            }
            _ => heap::lifted(|| self.areas.push(Area { range, item })),
        }
    }

    fn select(&mut self, item: u16) {
        (self.selected, self.offset) = (item, 0);
        self.index = self.items.iter().position(|(key, _)| *key == item);
    }

    /// Starts a transfer: whether it is to succeed.
    fn start(&mut self, control: u32) -> bool {
        self.transfers += 1;
        assert!(self.transfers < Self::TRANSFERS_MAX, "asks without end");
        if self.transfers == self.fail_at {
            return false;
        }
        if control & dma::SELECT != 0 && self.flavour != Flavour::NoSelect {
            self.select((control >> 16) as u16);
        }
        true
    }

    /// What is left of the selected item.
    fn rest(&self) -> &[u8] {
        let item = self.index.map_or(&[][..], |index| &self.items[index].1);
        item.get(self.offset..).unwrap_or_default()
    }
}

impl Machine for Host {
    fn in8(&mut self, port: u16) -> u8 {
        assert_eq!(port, ports::FW_CFG_DATA);
        self.port_reads += 1;
        assert!(self.port_reads < Self::PORT_READS_MAX, "reads without end");
        if self.flavour == Flavour::Absent {
            return 0xff;
        }
        let byte = self.rest().first().copied();
        self.offset += 1;
        byte.unwrap_or(0)
    }

    fn in32(&mut self, port: u16) -> u32 {
        if port == ports::PCI_DATA && self.host_bridge != 0 {
            let [offset, low, high, _] = self.config_address.to_le_bytes();
            return self.config.read(Address(u16::from_le_bytes([low, high])), offset);
        }
        assert_eq!(port, ports::FW_CFG_DMA_HIGH);
        let [q, e, m, u, ..] = DMA_SIGNATURE;
        match self.flavour {
            Flavour::Qemu => u32::from_le_bytes([q, e, m, u]),
            Flavour::Silent | Flavour::NoSelect => 0,
            Flavour::Ports | Flavour::Absent => u32::MAX,
        }
    }

    fn out8(&mut self, port: u16, _: u8) {
        let pics = [ports::PIC_PRIMARY, ports::PIC_SECONDARY, ports::ELCR_SECONDARY];
        let is_chipset = self.host_bridge != 0 && pics.iter().any(|pic| port & !1 == *pic & !1);
        assert!(port == ports::POST || is_chipset, "write of port {port:#x}");
    }

    fn out16(&mut self, port: u16, value: u16) {
        assert_eq!(port, ports::FW_CFG_SELECTOR);
        self.select(value);
    }

    fn out32(&mut self, port: u16, value: u32) {
        assert_ne!(self.host_bridge, 0, "a microVM has no port {port:#x}");
        if port == ports::PCI_ADDRESS {
            self.config_address = value;
            return;
        }
        assert_eq!(port, ports::PCI_DATA);
        let [offset, low, high, _] = self.config_address.to_le_bytes();
        self.config.write(Address(u16::from_le_bytes([low, high])), offset, value);
    }

    fn tsc(&mut self) -> u64 {
        self.tsc = self.tsc.wrapping_add(1000);
        self.tsc
    }

    fn tsc_khz(&mut self) -> Option<u32> {
        self.tsc_khz
    }

    fn has_mtrrs(&mut self) -> bool {
        self.has_mtrrs
    }

    fn set_msrs(&mut self, list: &[Msr; 3], others: u32) -> Option<u32> {
        assert_eq!(list.last(), Some(&Msr::END), "or the CPU reads on");
        // So many CPUs are silent, or this one refuses.
        Some(others.saturating_sub(self.silent_cpus?))
    }

    fn print(&mut self, line: fmt::Arguments<'_>) {
        Line(0).write_fmt(line).expect("a line");
    }

    fn host_bridge(&self) -> u32 {
        self.host_bridge
    }

    fn dma(&mut self, control: u32, buffer: &mut [u8]) -> u32 {
        if !self.start(control) {
            return dma::ERROR;
        }
        if control & dma::READ != 0 {
            let rest = self.rest();
            let known = rest.len().min(buffer.len());
            buffer[..known].copy_from_slice(&rest[..known]);
            buffer[known..].fill(0);
        } else if control & dma::WRITE != 0 {
            if buffer.len() > self.rest().len() {
                return dma::ERROR;
            }
            let write = (self.selected, self.offset);
            heap::lifted(|| self.writes.push((write.0, write.1, buffer.to_vec())));
        }
        self.offset += buffer.len();
        0
    }

    fn dma_at(&mut self, control: u32, range: Range) -> u32 {
        assert!(range.len() <= u32::MAX.into(), "one transfer has 32 bits of length");
        if !self.start(control) {
            return dma::ERROR;
        }
        if control & dma::READ != 0 {
            self.reach(range, Some(self.selected));
            // What lies above real RAM is as good as any, but nobody looks at it again.
            let part = Ram::part(range);
            let ram = self.ram.as_mut().expect("RAM until it is dropped");
            let item = self.index.map_or(&[][..], |index| &self.items[index].1);
            let rest = item.get(self.offset..).unwrap_or_default();
            let known = rest.len().min(part.len() as usize);
            // Above 1 MiB, where loads may be large, untouched RAM is zero anyway.
            let low = part.end() <= layout::HIGH_RAM_START;
            let end = if low { part.end() } else { part.start() + known as u64 };
            let target = ram.get_mut(Range::between(part.start(), end));
            target[..known].copy_from_slice(&rest[..known]);
            target[known..].fill(0);
        }
        self.offset += range.len() as usize;
        0
    }

    fn memory(&mut self, range: Range) -> &mut [u8] {
        assert!(range.end() <= layout::IDENTITY_MAPPED, "memory that is not mapped");
        // Who has no DMA loads by itself.
        let by_port = self.flavour == Flavour::Ports && !self.prefetches;
        let item = by_port.then_some(self.selected);
        self.reach(range, item);
        self.ram.as_mut().expect("RAM until it is dropped").get_mut(range)
    }
}

/// A line as it is printed: how much of it there was.
struct Line(usize);

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 += text.len();
        assert!(self.0 < 200 && !text.contains(['\n', '\r']), "more than a line");
        Ok(())
    }
}

/// Moves RAM of an entry that there is not to where nobody but the host's DMA reaches it; what the
/// entry claims then.
fn settle(entry: &mut [u8], ram: u64) -> Option<(u64, u64, u32)> {
    let (mut start, mut len) = (bytes::get_u64(entry, 0)?, bytes::get_u64(entry, 8)?);
    let kind = bytes::get_u32(entry, 16)?;
    if kind == kind::RAM && start < ram {
        len = len.min(ram - start);
    } else if kind == kind::RAM && start < layout::IDENTITY_MAPPED {
        start |= layout::IDENTITY_MAPPED;
    }
    entry[..8].copy_from_slice(&start.to_le_bytes());
    entry[8..16].copy_from_slice(&len.to_le_bytes());
    Some((start, start.saturating_add(len), kind))
}
