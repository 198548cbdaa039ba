//! The fw_cfg device, with QEMU's semantics to the letter.
//!
//! Source: QEMU, docs/specs/fw_cfg.rst and what its device does where that is silent. Big items
//! stay in their files and are read from there straight into guest memory.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use abi::fw_cfg::{DMA_SIGNATURE, DmaAccess, File, Placed, Record, dma, file, key};
use abi::linux::HEADER_END;

use crate::bus::{Action, Device};
use crate::image::Image;
use crate::memory::GuestRam;

/// The obsolete write channel bit of a selector, which QEMU ignores.
const WRITE_CHANNEL: u16 = 0x4000;
/// Offset of the DMA address register from the selector register.
const DMA_OFFSET: u64 = 4;
/// Bytes that the data register reads ahead from a file.
const WINDOW: usize = 4096;
/// The longest item that is worth a copy to save its reader an exit.
const PREFETCH_MAX: u64 = 4096;
/// The files that our firmware reads, but for the writable one.
const PREFETCHED_FILES: [&str; 7] = [
    file::ACPI_RSDP,
    file::ACPI_TABLES,
    file::E820,
    file::ENTRY,
    file::FEATURE_CONTROL,
    file::TABLE_LOADER,
    file::VERBOSE,
];

/// Contents of an item.
#[derive(Clone, Debug)]
pub enum Item {
    /// Bytes of this program.
    Bytes(Vec<u8>),
    /// Part of a file.
    Part {
        /// The file.
        image: Arc<Image>,
        /// Where the part begins.
        offset: u64,
    },
    /// Bytes that the guest may write, and whoever shares them may read.
    Writable(Arc<Mutex<Vec<u8>>>),
}

impl Item {
    /// A whole file.
    pub fn whole(image: Arc<Image>) -> Self {
        Self::Part { image, offset: 0 }
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Part { image, offset } => image.size().saturating_sub(*offset),
            Self::Writable(bytes) => lock(bytes).len() as u64,
        }
    }

    /// No bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies what there is from `at` on; the rest of `to` is left.
    fn read(&self, at: u64, to: &mut [u8]) -> Option<usize> {
        match self {
            Self::Bytes(bytes) => copy_from(bytes, at, to),
            Self::Writable(bytes) => copy_from(&lock(bytes), at, to),
            Self::Part { image, offset } => image.read_at(to, offset.checked_add(at)?).ok(),
        }
    }

    /// Copies `length` bytes from `at` on, which are there, to guest memory.
    fn copy(&self, at: u64, ram: &GuestRam, address: u64, length: u64) -> Option<()> {
        match self {
            Self::Bytes(bytes) => ram.write(address, bytes.get(span(at, length)?)?).ok(),
            Self::Writable(bytes) => ram.write(address, lock(bytes).get(span(at, length)?)?).ok(),
            Self::Part { image, offset } => {
                ram.load(address, image.file(), offset.checked_add(at)?, length).ok()
            }
        }
    }

    /// Copies `length` bytes of guest memory over those from `at` on, if the guest may write them
    /// and there are so many.
    fn write(&self, at: u64, ram: &GuestRam, address: u64, length: u64) -> Option<()> {
        let Self::Writable(bytes) = self else { return None };
        ram.read(address, lock(bytes).get_mut(span(at, length)?)?).ok()
    }
}

fn lock(bytes: &Mutex<Vec<u8>>) -> MutexGuard<'_, Vec<u8>> {
    bytes.lock().unwrap_or_else(PoisonError::into_inner)
}

fn span(at: u64, length: u64) -> Option<Range<usize>> {
    let start = usize::try_from(at).ok()?;
    Some(start..start.checked_add(usize::try_from(length).ok()?)?)
}

fn copy_from(bytes: &[u8], at: u64, to: &mut [u8]) -> Option<usize> {
    let from = bytes.get(usize::try_from(at).ok()?..)?;
    let count = from.len().min(to.len());
    to.get_mut(..count)?.copy_from_slice(from.get(..count)?);
    Some(count)
}

/// The items of a device that is being made.
#[derive(Debug)]
pub struct Items {
    keyed: Vec<(u16, Item)>,
    files: Vec<(String, Item)>,
    placed: Vec<Placed>,
}

impl Default for Items {
    /// The signature and the interface's features.
    fn default() -> Self {
        let mut items = Self { keyed: Vec::new(), files: Vec::new(), placed: Vec::new() };
        items.set(key::SIGNATURE, abi::fw_cfg::SIGNATURE);
        items.set_u32(key::ID, abi::fw_cfg::ID_TRADITIONAL | abi::fw_cfg::ID_DMA);
        items
    }
}

impl Items {
    /// Sets an item to bytes.
    pub fn set(&mut self, key: u16, bytes: impl Into<Vec<u8>>) {
        self.keyed.push((key, Item::Bytes(bytes.into())));
    }

    /// Sets an item to a number.
    pub fn set_u16(&mut self, key: u16, value: u16) {
        self.set(key, value.to_le_bytes());
    }

    /// Sets an item to a number.
    pub fn set_u32(&mut self, key: u16, value: u32) {
        self.set(key, value.to_le_bytes());
    }

    /// Sets an item to part of a file.
    pub fn set_item(&mut self, key: u16, item: Item) {
        self.keyed.push((key, item));
    }

    /// Adds a file; a later one of the same name takes its place.
    pub fn add_file(&mut self, name: &str, item: Item) {
        self.files.retain(|(other, _)| other != name);
        self.files.push((name.into(), item));
    }

    /// Says that an item's first bytes are at `range` of guest memory already.
    pub fn tell_placed(&mut self, key: u16, range: abi::range::Range) {
        self.placed.push(Placed { selector: key, range });
    }

    /// The names of the files, and their contents.
    pub fn files(&self) -> &[(String, Item)] {
        &self.files
    }

    /// The contents of an item, if there is one.
    pub fn bytes(&self, key: u16) -> Option<Vec<u8>> {
        let (_, item) = self.keyed.iter().find(|(other, _)| *other == key)?;
        let mut bytes = vec![0; usize::try_from(item.len()).ok()?];
        item.read(0, &mut bytes)?;
        Some(bytes)
    }

    /// Numbers the files in the order of their names, and makes the directory of them and the file
    /// with which our firmware reads all small items at once.
    fn finish(mut self) -> Vec<(u16, Item)> {
        self.add_file(file::PREFETCH, Item::Bytes(Vec::new()));
        self.files.sort_by(|a, b| a.0.cmp(&b.0));
        let records = self.prefetch();
        if let Some((_, item)) = self.files.iter_mut().find(|(name, _)| name == file::PREFETCH) {
            *item = Item::Bytes(records);
        }
        let entries = self.files.iter().zip(key::FILE_FIRST..).filter_map(|((name, item), key)| {
            // The directory has 32 bits for a size; files and names were checked when opened.
            File::new(name, key, u32::try_from(item.len()).ok()?)
        });
        let mut directory = vec![0; 4];
        let mut count = 0u32;
        for entry in entries {
            directory.extend(entry.encode());
            count += 1;
        }
        directory[..4].copy_from_slice(&count.to_be_bytes());
        self.set(key::FILE_DIR, directory);
        let files = self.files.into_iter().map(|(_, item)| item);
        self.keyed.extend((key::FILE_FIRST..).zip(files));
        self.keyed.sort_by_key(|(key, _)| *key);
        self.keyed
    }
}

impl Items {
    /// A [`Record`] of each small item that our firmware may read.
    fn prefetch(&self) -> Vec<u8> {
        let keyed = self.keyed.iter().map(|(key, item)| (*key, item));
        let files = self.files.iter().zip(key::FILE_FIRST..);
        let files = files.map(|((name, item), key)| (name.as_str(), key, item));
        let files = files.filter(|(name, ..)| PREFETCHED_FILES.contains(name));
        let mut records = Vec::new();
        let placed: Vec<_> = self.placed.iter().flat_map(Placed::encode).collect();
        if let Some(header) = Record::header(Placed::RECORD, placed.len()) {
            records.extend(header);
            records.extend(placed);
        }
        for (key, item) in keyed.chain(files.map(|(_, key, item)| (key, item))) {
            let limit = match key {
                key::SETUP_DATA => HEADER_END,
                _ if item.len() > PREFETCH_MAX => continue,
                _ => usize::from(u16::MAX),
            };
            let mut bytes = vec![0; limit.min(usize::try_from(item.len()).unwrap_or(limit))];
            // What cannot be read now is left to the transfer that asks for it.
            let read = item.read(0, &mut bytes).filter(|count| *count == bytes.len());
            let header = Record::header(key, bytes.len());
            if let (Some(_), Some(header)) = (read, header) {
                records.extend(header);
                records.extend(bytes);
            }
        }
        records
    }
}

/// The device at ports 0x510 to 0x51b.
pub struct FwCfg {
    ram: Arc<GuestRam>,
    items: Vec<(u16, Item)>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    selected: u16,
    offset: u64,
    dma_high: u32,
    window: Vec<u8>,
    window_at: u64,
}

impl State {
    fn select(&mut self, key: u16) {
        self.selected = key & !WRITE_CHANNEL;
        self.offset = 0;
        self.window.clear();
    }
}

impl FwCfg {
    /// Ports.
    pub const PORTS: u64 = 12;

    /// A device that serves `items` and reaches into `ram`.
    pub fn new(items: Items, ram: Arc<GuestRam>) -> Self {
        Self { ram, items: items.finish(), state: Mutex::default() }
    }

    fn item(&self, key: u16) -> Option<&Item> {
        let at = self.items.binary_search_by_key(&key, |(key, _)| *key).ok()?;
        self.items.get(at).map(|(_, item)| item)
    }

    fn read_data(&self, state: &mut State) -> u8 {
        let Some(item) = self.item(state.selected) else { return 0 };
        let inside = |state: &State| {
            let at = usize::try_from(state.offset.checked_sub(state.window_at)?).ok()?;
            state.window.get(at).copied()
        };
        let byte = inside(state).or_else(|| {
            state.window.resize(WINDOW, 0);
            let count = item.read(state.offset, &mut state.window).unwrap_or(0);
            state.window.truncate(count);
            state.window_at = state.offset;
            inside(state)
        });
        if byte.is_some() {
            state.offset += 1;
        }
        byte.unwrap_or(0)
    }

    /// Does what the descriptor at `address` says, and puts the outcome into it.
    fn start_dma(&self, state: &mut State, address: u64) {
        let mut bytes = [0; DmaAccess::SIZE];
        let outcome = match self.ram.read(address, &mut bytes) {
            Ok(()) => self.transfer(state, DmaAccess::decode(bytes)),
            Err(_) => None,
        };
        let control = if outcome.is_some() { 0 } else { dma::ERROR };
        // A descriptor that is nowhere gets no answer.
        let _ = self.ram.write(address, &control.to_be_bytes());
    }

    fn transfer(&self, state: &mut State, access: DmaAccess) -> Option<()> {
        if let Some(key) = access.selector() {
            state.select(key);
        }
        let length = u64::from(access.length);
        let item = self.item(state.selected);
        let left = item.map_or(0, |item| item.len().saturating_sub(state.offset));
        let there = length.min(left);
        if access.control & dma::READ != 0 {
            if !self.ram.contains(access.address, length) {
                return None;
            }
            if let Some(item) = item {
                item.copy(state.offset, &self.ram, access.address, there)?;
            }
            self.ram.zero(access.address + there, length - there).ok()?;
        } else if access.control & dma::WRITE != 0 && length > 0 {
            if length > left {
                return None;
            }
            item?.write(state.offset, &self.ram, access.address, length)?;
        } else if access.control & dma::SKIP == 0 {
            return Some(());
        }
        state.offset += there;
        Some(())
    }
}

impl Device for FwCfg {
    fn name(&self) -> &'static str {
        "fw_cfg"
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        if offset < DMA_OFFSET {
            // Both ports of the combined register read data, a byte at a time.
            if let (0 | 1, [byte]) = (offset, data) {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                *byte = self.read_data(&mut state);
            }
            return;
        }
        let signature = usize::try_from(offset - DMA_OFFSET).ok();
        let signature = signature.and_then(|at| DMA_SIGNATURE.get(at..)).unwrap_or(&[]);
        for (to, from) in data.iter_mut().zip(signature) {
            *to = *from;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match (offset, data) {
            (0, &[low, high]) => state.select(u16::from_le_bytes([low, high])),
            (DMA_OFFSET, &[a, b, c, d]) => state.dma_high = u32::from_be_bytes([a, b, c, d]),
            (8, &[a, b, c, d]) => {
                let low = u32::from_be_bytes([a, b, c, d]);
                let high = std::mem::take(&mut state.dma_high);
                self.start_dma(&mut state, u64::from(high) << 32 | u64::from(low));
            }
            // Writes to the data register did something before QEMU 2.4.
            _ => {}
        }
        Action::None
    }
}

#[cfg(test)]
mod tests;
