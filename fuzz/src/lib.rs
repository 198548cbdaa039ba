//! A hostile host for the firmware: every item is the fuzzer's, RAM is real.

use std::collections::BTreeMap;

use abi::e820::Map;
use abi::fw_cfg::{DMA_SIGNATURE, File, dma, file, key};
use abi::linux::Entry;
use abi::ports;
use abi::range::Range;
use firmware::kernel::Launch;
use firmware::machine::{Machine, Msr};

/// RAM of the machine. The memory map never promises more: then the host would be lying to
/// itself.
pub const RAM: u64 = 4 << 20;

/// The host.
pub struct Host {
    items: BTreeMap<u16, Vec<u8>>,
    files: Vec<File>,
    ram: Vec<u8>,
    selected: u16,
    offset: usize,
    /// Transfers; a firmware that asks without end is found by it.
    pub transfers: usize,
    /// Fails each transfer whose number has this bit pattern set, for hosts that report errors.
    pub fail_at: Option<usize>,
}

impl Default for Host {
    fn default() -> Self {
        let mut host = Self {
            items: BTreeMap::new(),
            files: Vec::new(),
            ram: vec![0xa5; RAM as usize],
            selected: 0,
            offset: 0,
            transfers: 0,
            fail_at: None,
        };
        host.e820(&[(0, RAM, 1)]);
        host
    }
}

impl Host {
    /// Sets an item.
    pub fn item(&mut self, key: u16, bytes: impl Into<Vec<u8>>) {
        self.items.insert(key, bytes.into());
    }

    /// Adds a file whose directory entry claims `size` bytes.
    pub fn file(&mut self, name: &str, bytes: impl Into<Vec<u8>>, size: u32) {
        let selector = key::FILE_FIRST + self.files.len() as u16;
        if let Some(entry) = File::new(name, selector, size) {
            self.files.push(entry);
            self.item(selector, bytes);
            self.directory(self.files.len() as u32);
        }
    }

    /// Writes the directory with a claimed count.
    pub fn directory(&mut self, count: u32) {
        let mut bytes = count.to_be_bytes().to_vec();
        self.files.iter().for_each(|f| bytes.extend(f.encode()));
        self.item(key::FILE_DIR, bytes);
    }

    /// Sets the memory map.
    pub fn e820(&mut self, entries: &[(u64, u64, u32)]) {
        let mut bytes = Vec::new();
        for (start, len, kind) in entries {
            bytes.extend(start.to_le_bytes());
            bytes.extend(len.to_le_bytes());
            bytes.extend(kind.to_le_bytes());
        }
        let size = bytes.len() as u32;
        self.file(file::E820, bytes, size);
    }

    /// Offers a kernel that is in order.
    pub fn kernel(&mut self) {
        let mut image = vec![0; 1024];
        for (at, bytes) in [
            (0x1f1, &b"\x01"[..]),
            (0x1fe, b"\x55\xaa\xeb\x66HdrS\x0c\x02"),
            (0x211, b"\x01"),
            (0x22c, &0x7fff_ffffu32.to_le_bytes()),
            (0x230, &0x1000u32.to_le_bytes()),
            (0x234, b"\x01\x0c\x01\x00"),
            (0x238, &2047u32.to_le_bytes()),
            (0x258, &0x10_0000u64.to_le_bytes()),
            (0x260, &0x8000u32.to_le_bytes()),
        ] {
            image[at..at + bytes.len()].copy_from_slice(bytes);
        }
        self.item(key::SETUP_DATA, image);
        self.item(key::KERNEL_SIZE, 0x4000u32.to_le_bytes());
        self.item(key::KERNEL_DATA, vec![0x90; 0x4000]);
        self.item(key::INITRD_SIZE, 0x777u32.to_le_bytes());
        self.item(key::INITRD_DATA, vec![0x33; 0x777]);
    }

    /// Boots, and checks what must hold whatever the host said.
    pub fn boot(&mut self) {
        let outcome = firmware::boot::boot(self);
        assert!(self.transfers < 10_000, "asks without end");
        match outcome {
            Ok(Launch::Linux { protocol, entry, .. }) => {
                let limit = if protocol == Entry::Bits16 { 1 << 20 } else { RAM };
                assert!(entry < limit);
            }
            Ok(Launch::Pvh { entry, .. }) => assert!(entry < RAM),
            Err(error) => assert!(error.code() > 1 && !error.to_string().contains('\n')),
        }
    }

    fn next(&mut self) -> u8 {
        let byte = self.items.get(&self.selected).and_then(|i| i.get(self.offset)).copied();
        self.offset += 1;
        byte.unwrap_or(0)
    }

    fn transfer(&mut self, control: u32, buffer: &mut [u8]) -> u32 {
        self.transfers += 1;
        if self.fail_at == Some(self.transfers) {
            return dma::ERROR;
        }
        if control & dma::SELECT != 0 {
            (self.selected, self.offset) = ((control >> 16) as u16, 0);
        }
        if control & dma::READ != 0 {
            buffer.fill_with(|| self.next());
        } else if control & dma::SKIP != 0 {
            self.offset += buffer.len();
        }
        0
    }
}

impl Machine for Host {
    fn in8(&mut self, _: u16) -> u8 {
        self.transfers += 1;
        self.next()
    }

    fn in32(&mut self, port: u16) -> u32 {
        let [q, e, m, u, ..] = DMA_SIGNATURE;
        if port == ports::FW_CFG_DMA_HIGH { u32::from_le_bytes([q, e, m, u]) } else { u32::MAX }
    }

    fn out8(&mut self, _: u16, _: u8) {}

    fn out16(&mut self, port: u16, value: u16) {
        assert_eq!(port, ports::FW_CFG_SELECTOR);
        (self.selected, self.offset) = (value, 0);
    }

    fn out32(&mut self, port: u16, _: u32) {
        panic!("a microVM has no port {port:#x}");
    }

    fn host_bridge(&self) -> u32 {
        0
    }

    fn has_mtrrs(&mut self) -> bool {
        true
    }

    fn set_msrs(&mut self, _: &[Msr; 3], others: u32) -> Option<u32> {
        Some(others)
    }

    fn dma(&mut self, control: u32, buffer: &mut [u8]) -> u32 {
        self.transfer(control, buffer)
    }

    fn dma_at(&mut self, control: u32, range: Range) -> u32 {
        if control & (dma::READ | dma::WRITE) == 0 {
            return self.transfer(control, &mut []);
        }
        // Out of range panics: the firmware reached past the RAM that it was promised.
        let at = range.start() as usize..range.end() as usize;
        let mut bytes = self.ram[at.clone()].to_vec();
        let status = self.transfer(control, &mut bytes);
        self.ram[at].copy_from_slice(&bytes);
        status
    }

    fn memory(&mut self, range: Range) -> &mut [u8] {
        &mut self.ram[range.start() as usize..range.end() as usize]
    }
}

/// A memory map out of a fuzzer's claims, in units of 64 KiB.
pub fn map(claims: &[(u16, u16, u8)]) -> Option<Map> {
    let mut bytes = Vec::new();
    for (start, len, kind) in claims {
        bytes.extend((u64::from(*start) << 16).to_le_bytes());
        bytes.extend((u64::from(*len) << 16).to_le_bytes());
        bytes.extend(u32::from(kind % 5).to_le_bytes());
    }
    let mut map = Map::parse(&bytes).ok()?;
    map.reserve_legacy().ok()?;
    Some(map)
}
