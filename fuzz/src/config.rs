//! A hostile PCI configuration space: functions that say what the fuzzer likes.

use std::cell::Cell;

use abi::pci::{self as registers, header};
use pci::{Address, ConfigSpace};

use crate::input::Input;

thread_local! {
    /// An index of nothing, made once.
    static SPARE: Cell<Vec<u16>> = const { Cell::new(Vec::new()) };
}

/// A function's registers. Each keeps what its mask lets it.
#[derive(Clone)]
struct Function {
    address: u16,
    values: [u32; 64],
    masks: [u32; 64],
}

/// The functions of all buses.
#[derive(Default)]
pub struct Config {
    functions: Vec<Function>,
    /// By address, where the function is in `functions`, counted from 1. Empty without functions.
    index: Vec<u16>,
    /// What functions that nobody described say of themselves: nothing, mostly.
    elsewhere: Option<[u32; 4]>,
    /// The first bus where nobody is that nobody described.
    buses: u16,
    /// Reads and writes so far.
    pub accesses: u64,
}

impl Drop for Config {
    fn drop(&mut self) {
        for function in &self.functions {
            self.index[usize::from(function.address)] = 0;
        }
        if !self.index.is_empty() {
            SPARE.set(std::mem::take(&mut self.index));
        }
    }
}

impl Config {
    /// More than a walk over 256 buses, each with as many functions as there can be, takes.
    const ACCESSES_MAX: u64 = 400_000;

    /// Functions, `most` of them, until the input ends or says that it is enough.
    pub fn new(input: &mut Input<'_>, most: usize) -> Self {
        let mut config = Self::default();
        config.index = SPARE.take();
        config.index.resize(1 << 16, 0);
        let echo: u8 = input.take();
        if echo % 8 == 7 {
            // On few buses mostly: a walk over all of them takes long, and shows no more.
            config.buses = if echo == 0xff { 256 } else { u16::from(echo >> 3) };
            config.elsewhere = Some(input.take());
        }
        let mut address = 0u16;
        while !input.is_empty() && config.functions.len() < most {
            let [step, kind] = input.take::<[u8; 2]>();
            match kind {
                0xff => return config,
                // A jump to any bus, for functions that answer where no bridge is.
                0xfe => address = input.take(),
                _ => address = address.wrapping_add(step.into()),
            }
            config.add(address, kind, input);
        }
        config
    }

    /// The same, where nobody is that nobody described.
    pub fn without_echo(mut self) -> Self {
        self.elsewhere = None;
        self
    }

    fn add(&mut self, address: u16, kind: u8, input: &mut Input<'_>) {
        let ids = [
            0x1111_1af4,
            registers::PIIX3_ISA,
            registers::PIIX3_IDE,
            registers::PIIX4_PM,
            registers::ICH9_LPC,
        ];
        let is_bridge = kind & 1 != 0;
        let layout = if is_bridge { header::BRIDGE } else { header::DEVICE };
        let multi = if kind & 2 != 0 { header::MULTI_FUNCTION } else { 0 };
        let class = [0x0604, 0x0200, 0x0300, 0x0600, 0x0601][usize::from(kind >> 2 & 7) % 5];
        for (offset, value, mask) in [
            (registers::ID, ids[usize::from(kind >> 5) % 5], 0),
            (registers::COMMAND, 0, 7),
            (registers::CLASS, class << 16, 0),
            (registers::HEADER, layout | multi, 0),
            (registers::INTERRUPT, u32::from(kind) << 8 & 0x700, 0xff),
        ] {
            self.set(address, offset, value, mask);
        }
        let [count, shape] = input.take::<[u8; 2]>();
        for register in 0..count % 8 {
            let [flags, shift] = input.take::<[u8; 2]>();
            // A size that is a power of two, with its flags; or bits that are none.
            let mask = u32::MAX << (shift % 32).max(2);
            let (flags, mask) = if shift & 0x80 != 0 {
                (input.take::<u32>(), input.take::<u32>())
            } else {
                (flags.into(), mask)
            };
            self.set(address, registers::BAR + 4 * register, flags, mask);
        }
        if is_bridge {
            let wide = u32::from(shape & 1) * 0x0001_0001;
            let prefetchable = if shape & 2 == 0 { 0xfff0_fff0 } else { 0 };
            let io = if shape & 4 == 0 { 0xf0f0 } else { 0 };
            for (offset, value, mask) in [
                (registers::bridge::BUSES, 0, 0xff_ffff),
                (registers::bridge::IO, 0, io),
                (registers::bridge::MEMORY, 0, 0xfff0_fff0),
                (registers::bridge::PREFETCHABLE, wide, prefetchable),
                (registers::bridge::PREFETCHABLE_BASE_HIGH, 0, u32::MAX),
                (registers::bridge::PREFETCHABLE_LIMIT_HIGH, 0, u32::MAX),
            ] {
                self.set(address, offset, value, mask);
            }
        }
        // Any register of this function otherwise.
        for _ in 0..shape >> 6 {
            let (offset, value, mask) = (input.take::<u8>() & !3, input.take(), input.take());
            self.set(address, offset, value, mask);
        }
    }

    fn set(&mut self, address: u16, offset: u8, value: u32, mask: u32) {
        let slot = &mut self.index[usize::from(address)];
        if *slot == 0 {
            self.functions.push(Function { address, values: [0; 64], masks: [0; 64] });
            *slot = self.functions.len() as u16;
        }
        let function = &mut self.functions[usize::from(*slot) - 1];
        function.values[usize::from(offset / 4)] = value;
        function.masks[usize::from(offset / 4)] = mask;
    }

    fn find(&self, address: Address) -> Option<usize> {
        usize::from(*self.index.get(usize::from(address.0))?).checked_sub(1)
    }

    /// What a register holds.
    pub fn register(&self, address: Address, offset: u8) -> u32 {
        match self.find(address) {
            Some(index) => self.functions[index].values[usize::from(offset / 4)],
            None if u16::from(address.bus()) >= self.buses => u32::MAX,
            None => self.elsewhere.map_or(u32::MAX, |all| all[usize::from(offset / 4 % 4)]),
        }
    }

    /// The bits of a register that can be written.
    pub fn mask(&self, address: Address, offset: u8) -> u32 {
        self.find(address).map_or(0, |index| self.functions[index].masks[usize::from(offset / 4)])
    }

    fn access(&mut self) {
        self.accesses += 1;
        assert!(self.accesses < Self::ACCESSES_MAX, "walks without end");
    }
}

impl ConfigSpace for Config {
    fn read(&mut self, address: Address, offset: u8) -> u32 {
        assert_eq!(offset % 4, 0);
        self.access();
        self.register(address, offset)
    }

    fn write(&mut self, address: Address, offset: u8, value: u32) {
        assert_eq!(offset % 4, 0);
        self.access();
        if let Some(index) = self.find(address) {
            let function = &mut self.functions[index];
            let register = usize::from(offset / 4);
            let mask = function.masks[register];
            function.values[register] = function.values[register] & !mask | value & mask;
        }
    }
}
