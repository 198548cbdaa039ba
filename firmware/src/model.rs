//! A model of the host for tests: fw_cfg as each kind of host has it, and RAM.

use std::collections::BTreeMap;

use abi::fw_cfg::{DMA_SIGNATURE, File, ID_DMA, ID_TRADITIONAL, SIGNATURE, dma, key};
use abi::ports;
use abi::range::Range;

use crate::machine::{Machine, Msr};

/// How a host implements the device (docs/firmware.md, "Hosts").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// As QEMU specifies it.
    Qemu,
    /// DMA without its signature, and a SELECT that is ignored, as Cloud Hypervisor has it.
    NoSelect,
    /// DMA without its signature, otherwise right.
    Silent,
    /// Selector and data ports only.
    Ports,
    /// Nothing at port 0x510.
    Absent,
}

/// The modelled machine.
pub struct Model {
    pub flavour: Flavour,
    /// Items by selector.
    pub items: BTreeMap<u16, Vec<u8>>,
    /// Items whose DMA fails.
    pub broken: Vec<u16>,
    files: Vec<File>,
    ram: Vec<u8>,
    selected: u16,
    offset: usize,
    /// Every port write and DMA: what would be exits.
    pub exits: usize,
    pub posts: Vec<u8>,
    /// What `start.S` says of it.
    pub host_bridge: u32,
    /// Registers of PCI configuration space, by what selects them.
    pub config: BTreeMap<u32, u32>,
    config_address: u32,
    /// Bytes written to the chipset's own ports.
    pub chipset_writes: Vec<(u16, u8)>,
    /// The time-stamp counter, which goes up by 1000 with each look at it.
    pub tsc: u64,
    /// Its rate, as the hypervisor says.
    pub tsc_khz: Option<u32>,
    /// Lines on the console.
    pub printed: Vec<String>,
    /// Model-specific registers of all CPUs, and for how many others they were written.
    pub msrs: Vec<(Msr, u32)>,
    /// What CPUs answer to a list of registers, if not that all is well.
    pub cpus_answer: Option<Option<u32>>,
}

impl Model {
    /// A machine with `ram` bytes of RAM and a memory map that says so.
    pub fn new(flavour: Flavour, ram: u64) -> Self {
        let mut model = Self {
            flavour,
            items: BTreeMap::new(),
            broken: Vec::new(),
            files: Vec::new(),
            ram: vec![0xa5; usize::try_from(ram).unwrap()],
            selected: 0,
            offset: 0,
            exits: 0,
            posts: Vec::new(),
            host_bridge: 0,
            config: BTreeMap::new(),
            config_address: 0,
            chipset_writes: Vec::new(),
            tsc: 0,
            tsc_khz: None,
            printed: Vec::new(),
            msrs: Vec::new(),
            cpus_answer: None,
        };
        model.items.insert(key::SIGNATURE, SIGNATURE.to_vec());
        let dma = if flavour == Flavour::Ports { 0 } else { ID_DMA };
        model.items.insert(key::ID, (ID_TRADITIONAL | dma).to_le_bytes().to_vec());
        model.e820(&[(0, ram, 1)]);
        model
    }

    /// Replaces the memory map.
    pub fn e820(&mut self, entries: &[(u64, u64, u32)]) {
        let mut bytes = Vec::new();
        for (start, len, kind) in entries {
            bytes.extend(start.to_le_bytes());
            bytes.extend(len.to_le_bytes());
            bytes.extend(kind.to_le_bytes());
        }
        self.file(abi::fw_cfg::file::E820, bytes);
    }

    /// Adds or replaces a file.
    pub fn file(&mut self, name: &str, bytes: Vec<u8>) {
        let size = u32::try_from(bytes.len()).unwrap();
        self.files.retain(|f| !f.is_named(name));
        let selector = u16::try_from(0x20 + self.items.len()).unwrap();
        self.files.push(File::new(name, selector, size).unwrap());
        self.items.insert(selector, bytes);
        self.directory(u32::try_from(self.files.len()).unwrap());
    }

    /// Writes the directory with a count of the test's choice.
    pub fn directory(&mut self, count: u32) {
        let mut bytes = count.to_be_bytes().to_vec();
        self.files.iter().for_each(|f| bytes.extend(f.encode()));
        self.items.insert(key::FILE_DIR, bytes);
    }

    /// The host's copy of the file `name`.
    pub fn contents(&self, name: &str) -> &[u8] {
        let file = self.files.iter().find(|f| f.is_named(name)).unwrap();
        &self.items[&file.selector]
    }

    /// The item of the file `name`.
    pub fn selector(&self, name: &str) -> u16 {
        self.files.iter().find(|f| f.is_named(name)).unwrap().selector
    }

    /// The bytes at a guest-physical range.
    pub fn ram(&self, range: Range) -> &[u8] {
        &self.ram[index(range)]
    }

    fn next(&mut self) -> u8 {
        let byte = self.items.get(&self.selected).and_then(|i| i.get(self.offset)).copied();
        self.offset += 1;
        byte.unwrap_or(0)
    }

    fn select(&mut self, item: u16) {
        (self.selected, self.offset) = (item, 0);
    }

    /// Does what the control word says with `buffer`; false for an error.
    fn transfer(&mut self, control: u32, buffer: &mut [u8]) -> bool {
        self.exits += 1;
        if control & dma::SELECT != 0 && self.flavour != Flavour::NoSelect {
            self.select(u16::try_from(control >> 16).unwrap());
        }
        if self.broken.contains(&self.selected) {
            return false;
        }
        if control & dma::READ != 0 {
            buffer.fill_with(|| self.next());
        } else if control & dma::WRITE != 0 {
            let item = self.items.get_mut(&self.selected).and_then(|i| i.get_mut(self.offset..));
            let Some(target) = item.and_then(|item| item.get_mut(..buffer.len())) else {
                return false;
            };
            target.copy_from_slice(buffer);
        } else if control & dma::SKIP != 0 {
            self.offset += buffer.len();
        }
        true
    }
}

impl Machine for Model {
    fn in8(&mut self, port: u16) -> u8 {
        self.exits += 1;
        match (port, self.flavour) {
            (ports::FW_CFG_DATA, Flavour::Absent) => 0xff,
            (ports::FW_CFG_DATA, _) => self.next(),
            _ => panic!("read of port {port:#x}"),
        }
    }

    fn in32(&mut self, port: u16) -> u32 {
        self.exits += 1;
        if port == ports::PCI_DATA {
            let selected = |offset| self.config.get(&(self.config_address & !0xff | offset));
            let value = selected(self.config_address & 0xff).copied();
            // Without an id there is no function; a register that is not there is 0.
            return value.unwrap_or(if selected(0).is_some() { 0 } else { u32::MAX });
        }
        assert_eq!(port, ports::FW_CFG_DMA_HIGH);
        let [q, e, m, u, ..] = DMA_SIGNATURE;
        match self.flavour {
            Flavour::Qemu => u32::from_le_bytes([q, e, m, u]),
            Flavour::NoSelect | Flavour::Silent => 0,
            Flavour::Ports | Flavour::Absent => u32::MAX,
        }
    }

    fn out8(&mut self, port: u16, value: u8) {
        self.exits += 1;
        match port {
            ports::POST => self.posts.push(value),
            _ if self.host_bridge != 0 => self.chipset_writes.push((port, value)),
            _ => panic!("write of port {port:#x}"),
        }
    }

    fn out16(&mut self, port: u16, value: u16) {
        self.exits += 1;
        assert_eq!(port, ports::FW_CFG_SELECTOR);
        self.select(value);
    }

    fn out32(&mut self, port: u16, value: u32) {
        self.exits += 1;
        assert_ne!(self.host_bridge, 0, "a microVM has no port {port:#x}");
        match port {
            ports::PCI_ADDRESS => self.config_address = value,
            ports::PCI_DATA => {
                if let Some(register) = self.config.get_mut(&self.config_address) {
                    *register = value;
                }
            }
            _ => panic!("write of port {port:#x}"),
        }
    }

    fn tsc(&mut self) -> u64 {
        self.tsc += 1000;
        self.tsc
    }

    fn tsc_khz(&mut self) -> Option<u32> {
        self.tsc_khz
    }

    fn print(&mut self, line: std::fmt::Arguments<'_>) {
        self.printed.push(line.to_string());
    }

    fn host_bridge(&self) -> u32 {
        self.host_bridge
    }

    fn dma(&mut self, control: u32, buffer: &mut [u8]) -> u32 {
        if self.transfer(control, buffer) { 0 } else { dma::ERROR }
    }

    fn dma_at(&mut self, control: u32, range: Range) -> u32 {
        let mut bytes = self.ram[index(range)].to_vec();
        let done = self.transfer(control, &mut bytes);
        self.ram[index(range)].copy_from_slice(&bytes);
        if done { 0 } else { dma::ERROR }
    }

    fn memory(&mut self, range: Range) -> &mut [u8] {
        &mut self.ram[index(range)]
    }

    fn has_mtrrs(&mut self) -> bool {
        true
    }

    fn set_msrs(&mut self, list: &[Msr; 3], others: u32) -> Option<u32> {
        assert_eq!(list.last(), Some(&Msr::END), "or the CPU reads on");
        self.msrs = list.iter().take_while(|msr| **msr != Msr::END).map(|m| (*m, others)).collect();
        self.cpus_answer.unwrap_or(Some(others))
    }
}

fn index(range: Range) -> core::ops::Range<usize> {
    usize::try_from(range.start()).unwrap()..usize::try_from(range.end()).unwrap()
}
