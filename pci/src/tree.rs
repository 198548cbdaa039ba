//! Finds all functions, numbers the buses, gives out what `bars` planned.
//!
//! What functions say of themselves is bounded: 256 buses, `FUNCTIONS_MAX` functions,
//! `REQUESTS_MAX` windows; what is beyond stays off. Expansion ROMs stay off too: there is nobody
//! to run them.
//!
//! Sources: PCI Local Bus 3.0, 6.2.5.1; PCI-to-PCI Bridge Architecture 1.2, chapter 3.

use alloc::vec::Vec;

use abi::pci::{self, bar, bridge, class, command, header};
use abi::range::Range;

use crate::bars::{Bus, Plan, Request, Space};
use crate::{Address, ConfigSpace, OutOfMemory};

/// Functions at the most: twice what one bus can have.
const FUNCTIONS_MAX: usize = 512;
/// Base address registers at the most.
const REQUESTS_MAX: usize = 2048;
/// The vendor's bits of [`pci::ID`], all set where there is no function.
const VENDOR: u32 = 0xffff;

/// A function that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// Where it is.
    pub address: Address,
    /// Vendor and device, as [`pci::ID`] has them.
    pub id: u32,
    /// Its interrupt pin: 1 to 4 for INTA to INTD, 0 for none.
    pub pin: u8,
    /// The bus behind it; 0 when it is no bridge.
    behind: u8,
    /// It is the first function of its device, and there are no others.
    alone: bool,
    /// What it decodes once its base address registers are set: bits of [`command`].
    decodes: u32,
}

/// All functions, and what they ask for.
pub struct Tree {
    /// In the order in which they were found: a bridge before what is behind it.
    pub functions: Vec<Function>,
    /// The buses; the index of each is its number.
    pub buses: Vec<Bus>,
    /// What the base address registers ask for.
    pub requests: Vec<Request>,
}

impl Tree {
    /// Finds everything; numbers the buses and turns off what functions decode.
    #[inline(never)]
    pub fn find(config: &mut dyn ConfigSpace) -> Result<Self, OutOfMemory> {
        let mut tree = Self { functions: Vec::new(), buses: Vec::new(), requests: Vec::new() };
        push(&mut tree.buses, Bus { parent: 0, io: true, prefetchable: true })?;
        let mut bus = 0;
        let mut next = Some(Address::first_on(bus));
        // Every round moves on on a bus, leaves one, or uses up a bus number: this ends.
        loop {
            if let Some(address) = next.filter(|_| tree.functions.len() < FUNCTIONS_MAX) {
                next = match tree.add(config, address)? {
                    None => address.next(address.function() == 0),
                    Some(Function { behind: 0, alone, .. }) => address.next(*alone),
                    // From here on everything is behind this bridge, until its bus is left.
                    Some(bridge) => {
                        bus = bridge.behind;
                        Some(Address::first_on(bus))
                    }
                };
            } else {
                let Some(bridge) = tree.bridge(bus) else { return Ok(tree) };
                let last = tree.buses.len().to_le_bytes()[0].wrapping_sub(1);
                let above = bridge.address.bus();
                config.write(bridge.address, bridge::BUSES, numbers(above, bus, last));
                bus = above;
                next = bridge.address.next(bridge.alone);
            }
        }
    }

    /// Sets base address registers and bridge windows, and turns on what is complete.
    #[inline(never)]
    pub fn set(&mut self, config: &mut dyn ConfigSpace, plan: &Plan) {
        for (request, place) in self.requests.iter().zip(&plan.places) {
            let Some(function) = self.functions.get_mut(request.function) else { continue };
            match place {
                Some(place) => {
                    let [low, high] = halves(*place);
                    config.write(function.address, request.register, low);
                    if high != 0 {
                        config.write(function.address, request.register + 4, high);
                    }
                }
                // Without a place it does not decode this kind of address.
                None => function.decodes &= !decodes(request.space),
            }
        }
        for function in &self.functions {
            let address = function.address;
            let windows = plan.windows.get(usize::from(function.behind));
            if let Some(windows) = windows.filter(|_| function.behind != 0) {
                set_windows(config, address, windows);
            }
            if function.decodes != 0 {
                config.write(address, pci::COMMAND, function.decodes);
            }
        }
    }

    /// The device and pin on the first bus that the function's interrupt comes out at: each bridge
    /// turns the pins by the number of the device behind it (PCI-to-PCI Bridge 1.2, 9.1).
    pub fn root_pin(&self, function: &Function) -> Option<(u8, u8)> {
        let mut pin = function.pin.checked_sub(1).filter(|pin| *pin < 4)?;
        let mut at = function.address;
        while at.bus() != 0 {
            pin = (pin + at.device()) & 3;
            // It is on a bus that was numbered before.
            at = self.bridge(at.bus())?.address;
        }
        Some((at.device(), pin))
    }

    /// The function that is the bridge to a bus; the first bus has none.
    fn bridge(&self, bus: u8) -> Option<Function> {
        self.functions.iter().find(|function| bus != 0 && function.behind == bus).copied()
    }

    /// Takes in the function at `address`, if there is one, and the bus behind it.
    fn add(
        &mut self,
        config: &mut dyn ConfigSpace,
        address: Address,
    ) -> Result<Option<&Function>, OutOfMemory> {
        let id = config.read(address, pci::ID);
        if id & VENDOR == VENDOR || id == 0 {
            return Ok(None);
        }
        let head = config.read(address, pci::HEADER);
        let class = config.read(address, pci::CLASS) >> 16;
        let [_, pin, ..] = config.read(address, pci::INTERRUPT).to_le_bytes();
        let alone = address.function() == 0 && head & header::MULTI_FUNCTION == 0;
        let mut function = Function { address, id, pin, behind: 0, alone, decodes: 0 };
        let registers = match head & header::LAYOUT {
            // The chipset's own bridges decode what they decode.
            _ if class == class::HOST_BRIDGE || class == class::ISA_BRIDGE => 0,
            header::DEVICE => 6,
            header::BRIDGE => {
                self.add_bus(config, &mut function)?;
                2
            }
            _ => 0,
        };
        if class == class::VGA {
            // It also decodes what VGA always had.
            function.decodes = command::IO | command::MEMORY;
        }
        if registers > 0 {
            config.write(address, pci::COMMAND, 0);
            self.add_requests(config, &mut function, registers)?;
        }
        push(&mut self.functions, function)?;
        Ok(self.functions.last())
    }

    /// Numbers the bus behind a bridge, if there is a number left.
    fn add_bus(
        &mut self,
        config: &mut dyn ConfigSpace,
        function: &mut Function,
    ) -> Result<(), OutOfMemory> {
        let Ok(behind) = u8::try_from(self.buses.len()) else { return Ok(()) };
        let address = function.address;
        let io = config.probe(address, bridge::IO) & bridge::IO_BASE != 0;
        let prefetchable = config.probe(address, bridge::PREFETCHABLE);
        let bus = Bus {
            parent: address.bus().into(),
            io,
            prefetchable: prefetchable & bridge::MEMORY_BASE != 0
                && prefetchable & bridge::IS_64_BIT != 0,
        };
        push(&mut self.buses, bus)?;
        config.write(address, bridge::BUSES, numbers(address.bus(), behind, u8::MAX));
        function.behind = behind;
        function.decodes = command::IO | command::MEMORY | command::MASTER;
        Ok(())
    }

    /// Asks each base address register for its size. A function with one that cannot be understood
    /// does not decode addresses of its kind.
    fn add_requests(
        &mut self,
        config: &mut dyn ConfigSpace,
        function: &mut Function,
        registers: u8,
    ) -> Result<(), OutOfMemory> {
        let mut unknown = 0;
        let mut register = pci::BAR;
        let end = pci::BAR + 4 * registers;
        while register < end {
            let kept = config.probe(function.address, register);
            let is_64_bit = kept & bar::IO == 0 && kept & bar::WIDTH == bar::WIDTH_64;
            let high = match () {
                () if !is_64_bit => None,
                () if register + 4 < end => Some(config.probe(function.address, register + 4)),
                // The upper half would be another register.
                () => Some(0),
            };
            let space = space(kept);
            match size(kept, high).filter(|_| self.requests.len() < REQUESTS_MAX) {
                Some(size) => {
                    let bus = function.address.bus().into();
                    let function_index = self.functions.len();
                    let request = Request { bus, space, size, function: function_index, register };
                    push(&mut self.requests, request)?;
                    function.decodes |= decodes(space);
                }
                None if kept != 0 => unknown |= decodes(space),
                None => {}
            }
            register += if is_64_bit { 8 } else { 4 };
        }
        function.decodes &= !unknown;
        Ok(())
    }
}

/// The command bit for a kind of address.
fn decodes(space: Space) -> u32 {
    if space == Space::Io { command::IO } else { command::MEMORY }
}

fn space(mask: u32) -> Space {
    let wide = mask & bar::WIDTH == bar::WIDTH_64;
    match () {
        () if mask & bar::IO != 0 => Space::Io,
        () if wide && mask & bar::PREFETCHABLE != 0 => Space::Prefetchable,
        () => Space::Memory,
    }
}

/// The size that a base address register asks for by the bits it keeps; `None` when it keeps none,
/// or others than those above its size.
fn size(low: u32, high: Option<u32>) -> Option<u64> {
    let kept = match () {
        // Ports have 16 bits, and some functions keep no more.
        () if low & bar::IO != 0 => low & bar::IO_ADDRESS,
        () if matches!(low & bar::WIDTH, bar::WIDTH_32 | bar::WIDTH_64) => {
            low & bar::MEMORY_ADDRESS
        }
        () => return None,
    };
    if kept == 0 && high.is_none() {
        return None;
    }
    let above = if low & bar::IO != 0 { 0xffff_0000 } else { 0 };
    let kept = u64::from(high.unwrap_or(u32::MAX)) << 32 | above | u64::from(kept);
    let size = kept & kept.wrapping_neg();
    (size != 0 && kept == size.wrapping_neg()).then_some(size)
}

/// A bridge's bus register.
fn numbers(primary: u8, secondary: u8, subordinate: u8) -> u32 {
    u32::from_le_bytes([primary, secondary, subordinate, 0])
}

/// A bridge passes what lies from base to limit; with the limit below the base it passes nothing.
fn set_windows(config: &mut dyn ConfigSpace, address: Address, windows: &[Option<Range>; 3]) {
    let ends = |space: Space| {
        let window = windows.get(space as usize).copied().flatten();
        let (base, limit) = window.map_or((0xfff0_f000, 0), |w| (w.start(), w.end() - 1));
        (halves(base), halves(limit))
    };
    let ([base, _], [limit, _]) = ends(Space::Io);
    config.write(address, bridge::IO, base >> 8 & bridge::IO_BASE | limit & 0xf000);
    config.write(address, bridge::IO_HIGH, 0);
    let memory = |base: u32, limit: u32| base >> 16 & bridge::MEMORY_BASE | limit & 0xfff0_0000;
    let ([base, _], [limit, _]) = ends(Space::Memory);
    config.write(address, bridge::MEMORY, memory(base, limit));
    let ([base, base_high], [limit, limit_high]) = ends(Space::Prefetchable);
    config.write(address, bridge::PREFETCHABLE, memory(base, limit));
    config.write(address, bridge::PREFETCHABLE_BASE_HIGH, base_high);
    config.write(address, bridge::PREFETCHABLE_LIMIT_HIGH, limit_high);
}

/// The low and the high half.
fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

fn push<T>(all: &mut Vec<T>, item: T) -> Result<(), OutOfMemory> {
    all.try_reserve(1).map_err(|_| OutOfMemory(size_of::<T>()))?;
    all.push(item);
    Ok(())
}
