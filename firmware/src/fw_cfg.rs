//! The fw_cfg client: reads the host's items by the cheapest way that works.
//!
//! A read is one port write, that is one exit to the VMM, with QEMU's DMA interface. Hosts that
//! decode the select bit of a DMA wrongly get the selector by port, hosts without DMA everything.
//! A host that offers `etc/microvm/prefetch` gives all small items in one transfer, and says which
//! of the others it has put into memory already.

use alloc::vec::Vec;

use abi::bytes::array;
use abi::fw_cfg::{
    DMA_SIGNATURE, File, ID_DMA, Placed, Record, SIGNATURE, dma, file, key, select_and,
};
use abi::range::Range;
use abi::{layout, ports};

use crate::directory::{COUNT_SIZE, Directory, Known, Place};
use crate::error::Error;
use crate::machine::Machine;

/// How items are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// Selector and transfer in one DMA.
    Dma,
    /// The selector by port, then a DMA.
    PortSelect,
    /// Byte by byte.
    Ports,
}

/// Files in the directory at the most: far above any host's, and it fits the heap.
const FILES_MAX: u32 = 4096;
/// Files in the first read of the directory. Reading past its end gives zeroes, so that one
/// transfer serves every usual host.
const FIRST_READ: usize = 24;
/// Bytes at the most that are written to the host at once.
const WRITE_MAX: usize = 32;

/// The client: owns the access to the device, knows its directory.
pub struct FwCfg<'m, M> {
    machine: &'m mut M,
    access: Access,
    directory: Directory,
    /// [`Record`]s, as the host gave them.
    prefetched: Vec<u8>,
    verbose: bool,
}

impl<'m, M: Machine> FwCfg<'m, M> {
    /// Finds the device and reads its directory.
    // Called once more when the firmware fails: not worth a copy.
    #[inline(never)]
    pub fn probe(machine: &'m mut M) -> Result<Self, Error> {
        let [q, e, m, u, ..] = DMA_SIGNATURE;
        let access = if machine.in32(ports::FW_CFG_DMA_HIGH) == u32::from_le_bytes([q, e, m, u]) {
            Access::Dma
        } else {
            probe_by_port(machine)?
        };
        let directory = Directory::default();
        let mut fw_cfg =
            Self { machine, access, directory, prefetched: Vec::new(), verbose: false };
        fw_cfg.read_directory()?;
        if let Some(file) = fw_cfg.known().prefetch {
            fw_cfg.prefetched = fw_cfg.read_file(file)?;
        }
        if let Some(file) = fw_cfg.known().verbose {
            fw_cfg.verbose = fw_cfg.read_file(file)?.trim_ascii_end() != b"off";
        }
        Ok(fw_cfg)
    }

    /// The machine, for what is not fw_cfg.
    pub fn machine(&mut self) -> &mut M {
        self.machine
    }

    /// How items are read, for people.
    pub fn access(&self) -> &'static str {
        match self.access {
            Access::Dma => "DMA",
            Access::PortSelect => "DMA, with the selector by port",
            Access::Ports => "ports",
        }
    }

    /// Copies the item's first bytes into `buffer`; zeroes past its end.
    #[inline(never)]
    pub fn read(&mut self, item: u16, buffer: &mut [u8]) -> Result<(), Error> {
        if !self.prefetched.is_empty() && self.read_prefetched(item, buffer) {
            return Ok(());
        }
        if self.access == Access::Ports {
            self.machine.out16(ports::FW_CFG_SELECTOR, item);
            self.read_by_port(buffer);
            return Ok(());
        }
        let control = self.select(item) | dma::READ;
        check(self.machine.dma(control, buffer), item)
    }

    /// Copies the item's first bytes straight to guest-physical `range`.
    pub fn load(&mut self, item: u16, range: Range) -> Result<(), Error> {
        // The planner chose the place; the host only guessed it, in time to save the transfer.
        if self.is_placed(item, range) {
            return Ok(());
        }
        // Like ports, copies reach only what the firmware itself can reach.
        if !self.prefetched.is_empty() && range.end() <= layout::IDENTITY_MAPPED {
            let bytes = find_record(&self.prefetched, item, range.len());
            if let Some(bytes) = bytes {
                self.machine.memory(range).copy_from_slice(bytes);
                return Ok(());
            }
        }
        if self.access == Access::Ports {
            // Byte by byte, the firmware must reach the place itself.
            if range.end() > layout::IDENTITY_MAPPED {
                return Err(Error::NeedsDma(item));
            }
            self.machine.out16(ports::FW_CFG_SELECTOR, item);
            return self.load_by_port(range);
        }
        let mut control = self.select(item) | dma::READ;
        // The length of one transfer is 32 bits; what is left continues at the item's offset.
        let mut at = range.start();
        while at < range.end() {
            let length = (range.end() - at).min(u64::from(u32::MAX) & !0xfff);
            let part = Range::new(at, length).ok_or(Error::Dma(item))?;
            check(self.machine.dma_at(control, part), item)?;
            control = dma::READ;
            at += length;
        }
        Ok(())
    }

    /// Writes `bytes` to `offset` in the item, which the host must have made writable.
    pub fn write(&mut self, item: u16, offset: u32, bytes: &[u8]) -> Result<(), Error> {
        let mut buffer = [0; WRITE_MAX];
        let buffer = buffer.get_mut(..bytes.len()).ok_or(Error::Dma(item))?;
        buffer.copy_from_slice(bytes);
        if self.access == Access::Ports {
            // Writing needs DMA: the data register of today's hosts is read-only.
            return Err(Error::Dma(item));
        }
        let mut select = self.select(item);
        if offset != 0 {
            let skipped = Range::new(0, offset.into()).ok_or(Error::Dma(item))?;
            check(self.machine.dma_at(select | dma::SKIP, skipped), item)?;
            select = 0;
        }
        check(self.machine.dma(select | dma::WRITE, buffer), item)
    }

    /// An item that is a 32-bit integer; 0 when it is absent.
    pub fn read_u32(&mut self, item: u16) -> Result<u32, Error> {
        let mut bytes = [0; 4];
        self.read(item, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// The files that every boot asks for.
    pub fn known(&self) -> &Known {
        &self.directory.known
    }

    /// The file `name`, if there is one: for the few that [`Self::known`] has not.
    pub fn find(&self, name: &str) -> Option<Place> {
        self.files().find(|file| file.is_named(name)).map(Place::from)
    }

    /// All files.
    pub fn files(&self) -> impl Iterator<Item = File> + '_ {
        self.directory.files()
    }

    /// The port of the pvpanic device, if there is one.
    pub fn pvpanic_port(&mut self) -> Option<u16> {
        let file = self.find(file::PVPANIC_PORT)?;
        let mut port = [0; 2];
        self.read(file.selector, &mut port).ok()?;
        Some(u16::from_le_bytes(port))
    }

    /// Whether the user wants to be told what happens.
    pub fn is_verbose(&self) -> bool {
        self.verbose
    }

    /// The whole of `file`, on the heap.
    pub fn read_file(&mut self, file: Place) -> Result<Vec<u8>, Error> {
        let mut bytes = zeroed(file.size as usize)?;
        self.read(file.selector, &mut bytes)?;
        Ok(bytes)
    }

    fn read_directory(&mut self) -> Result<(), Error> {
        let mut directory = zeroed(COUNT_SIZE + FIRST_READ * File::SIZE)?;
        self.read(key::FILE_DIR, &mut directory)?;
        let count = u32::from_be_bytes(array(&directory, 0).unwrap_or_default());
        if count > FILES_MAX {
            return Err(Error::Directory(count));
        }
        let size = COUNT_SIZE + count as usize * File::SIZE;
        let known = directory.len();
        if size > known {
            directory.try_reserve_exact(size - known).map_err(|_| Error::HeapFull(size))?;
        }
        directory.resize(size, 0);
        if let Some(rest) = directory.get_mut(known..) {
            self.continue_reading(rest)?;
        }
        self.directory = Directory::new(directory);
        Ok(())
    }

    /// Reads on in the item of the last read.
    fn continue_reading(&mut self, buffer: &mut [u8]) -> Result<(), Error> {
        if buffer.is_empty() {
            return Ok(());
        }
        match self.access {
            Access::Ports => {
                self.read_by_port(buffer);
                Ok(())
            }
            _ => check(self.machine.dma(dma::READ, buffer), key::FILE_DIR),
        }
    }

    /// The control word of a DMA at the start of `item`, still without its operation.
    fn select(&mut self, item: u16) -> u32 {
        if self.access == Access::Dma {
            return select_and(item, 0);
        }
        self.machine.out16(ports::FW_CFG_SELECTOR, item);
        0
    }

    /// Whether the host has put the item's first bytes exactly there.
    fn is_placed(&self, item: u16, range: Range) -> bool {
        let wanted = Placed { selector: item, range }.encode();
        let records = &mut self.prefetched.as_slice();
        let placed = core::iter::from_fn(|| Record::take(records))
            .find(|record| record.selector == Placed::RECORD);
        placed.is_some_and(|record| record.bytes.as_chunks().0.contains(&wanted))
    }

    /// Copies the item's first bytes into `buffer` if the host gave them beforehand.
    #[inline(never)]
    fn read_prefetched(&self, item: u16, buffer: &mut [u8]) -> bool {
        let bytes = find_record(&self.prefetched, item, buffer.len() as u64);
        bytes.is_some_and(|bytes| {
            buffer.copy_from_slice(bytes);
            true
        })
    }

    #[cold]
    #[inline(never)]
    fn read_by_port(&mut self, buffer: &mut [u8]) {
        for byte in buffer {
            *byte = self.machine.in8(ports::FW_CFG_DATA);
        }
    }

    #[cold]
    #[inline(never)]
    fn load_by_port(&mut self, range: Range) -> Result<(), Error> {
        // Through the stack, because the machine lends either its ports or its memory.
        let mut piece = [0; 512];
        let mut at = range.start();
        while at < range.end() {
            let length = (range.end() - at).min(512);
            let part = Range::new(at, length).ok_or(Error::NoFwCfg)?;
            self.read_by_port(&mut piece);
            let target = self.machine.memory(part);
            target.copy_from_slice(&piece[..target.len()]);
            at += length;
        }
        Ok(())
    }
}

/// The device has no DMA signature: ask it by its older registers what it can do.
#[cold]
#[inline(never)]
fn probe_by_port<M: Machine>(machine: &mut M) -> Result<Access, Error> {
    if read_word_by_port(machine, key::SIGNATURE) != SIGNATURE {
        return Err(Error::NoFwCfg);
    }
    let features = u32::from_le_bytes(read_word_by_port(machine, key::ID));
    if features & ID_DMA == 0 {
        return Ok(Access::Ports);
    }
    let mut seen = [0; 4];
    let status = machine.dma(select_and(key::SIGNATURE, dma::READ), &mut seen);
    Ok(if status == 0 && seen == SIGNATURE { Access::Dma } else { Access::PortSelect })
}

fn read_word_by_port<M: Machine>(machine: &mut M, item: u16) -> [u8; 4] {
    machine.out16(ports::FW_CFG_SELECTOR, item);
    [0; 4].map(|_: u8| machine.in8(ports::FW_CFG_DATA))
}

/// The first `length` bytes of `item`, if they are in the records.
#[inline(never)]
fn find_record(mut records: &[u8], item: u16, length: u64) -> Option<&[u8]> {
    while let Some(record) = Record::take(&mut records) {
        if record.selector == item {
            return record.bytes.get(..usize::try_from(length).ok()?);
        }
    }
    None
}

fn check(control: u32, item: u16) -> Result<(), Error> {
    if control & dma::ERROR == 0 { Ok(()) } else { Err(Error::Dma(item)) }
}

/// `size` zero bytes on the heap, or an error when it is full.
fn zeroed(size: usize) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(size).map_err(|_| Error::HeapFull(size))?;
    bytes.resize(size, 0);
    Ok(bytes)
}
