//! Where the windows of functions go: a pure planner.
//!
//! What lies behind a bridge is one block of the bus above it, so blocks are sized from the leaves
//! up and placed from the root down. Within a bus the blocks with the largest alignment come first,
//! which leaves no gaps between powers of two. What does not fit gets no place; the largest goes
//! without first, so that it is one device that is lost and not all.
//!
//! Source: PCI-to-PCI Bridge Architecture 1.2, 3.2.5.6 and 3.2.5.8 to 3.2.5.11.

use alloc::vec::Vec;

use abi::pci::bridge::{IO_GRANULE, MEMORY_GRANULE};
use abi::range::{Range, align_up};

use crate::OutOfMemory;

/// The kinds of windows that a bridge has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Memory,
    /// Memory whose reads have no side effects and whose address has 64 bits.
    Prefetchable,
}

impl Space {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Io, Self::Memory, Self::Prefetchable];

    const fn granule(self) -> u64 {
        match self {
            Self::Io => IO_GRANULE,
            Self::Memory | Self::Prefetchable => MEMORY_GRANULE,
        }
    }
}

/// A bus: the first one is the root, each other one lies behind a bridge on a bus before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bus {
    /// The index of the bus that the bridge is on.
    pub parent: usize,
    /// Whether the bridge passes I/O.
    pub io: bool,
    /// Whether the bridge has a 64-bit prefetchable window.
    pub prefetchable: bool,
}

/// What a base address register asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The index of the bus.
    pub bus: usize,
    /// The kind. Prefetchable memory goes elsewhere when a bridge above has no window for it.
    pub space: Space,
    /// Bytes, a power of two, and the alignment.
    pub size: u64,
    /// For whoever asks: the index of the function, and its register.
    pub function: usize,
    /// See `function`.
    pub register: u8,
}

/// What the machine has for the root bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// I/O ports, if they suffice.
    pub io: Range,
    /// I/O ports, if those do not.
    pub io_large: Range,
    /// Memory below 4 GiB.
    pub memory: Range,
    /// Memory for 64-bit addresses, when that below 4 GiB does not suffice.
    pub high: Range,
}

/// Where everything goes, in the order in which it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The address of each request, `None` where there is no room.
    pub places: Vec<Option<u64>>,
    /// The windows of each bus, by [`Space`]; those of the root say nothing.
    pub windows: Vec<[Option<Range>; 3]>,
}

/// One thing to be placed: a request, or all that lies behind a bridge.
#[derive(Clone, Copy, Debug)]
struct Block {
    space: Space,
    size: u64,
    alignment: u64,
    what: What,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Request(usize),
    Bus(usize),
}

struct Planner<'a> {
    buses: &'a [Bus],
    requests: &'a [Request],
    windows: &'a Windows,
    /// What each bus but the root asks of its parent, by [`Space`].
    needs: Vec<[Option<Block>; 3]>,
    plan: Plan,
}

/// Places all that fits.
#[inline(never)]
pub fn plan(buses: &[Bus], requests: &[Request], windows: &Windows) -> Result<Plan, OutOfMemory> {
    let mut planner = Planner {
        buses,
        requests,
        windows,
        needs: filled([None; 3], buses.len())?,
        plan: Plan {
            places: filled(None, requests.len())?,
            windows: filled([None; 3], buses.len())?,
        },
    };
    for bus in (1..buses.len()).rev() {
        planner.size(bus)?;
    }
    planner.place_root()?;
    for bus in 1..buses.len() {
        planner.place_behind(bus)?;
    }
    Ok(planner.plan)
}

impl Planner<'_> {
    /// What a bus asks of the one above it: its blocks, one after the other.
    fn size(&mut self, bus: usize) -> Result<(), OutOfMemory> {
        for space in Space::ALL {
            let blocks = self.blocks(bus, space)?;
            let Some(first) = blocks.first() else { continue };
            let alignment = first.alignment.max(space.granule());
            let end = lay_out(&blocks, 0, u64::MAX);
            let size = end.and_then(|end| align_up(end, space.granule()));
            if let (Some(size), Some(needs)) = (size, self.needs.get_mut(bus)) {
                let what = What::Bus(bus);
                needs[space as usize] = Some(Block { space, size, alignment, what });
            }
        }
        Ok(())
    }

    fn place_root(&mut self) -> Result<(), OutOfMemory> {
        let Windows { io, io_large, memory, high } = *self.windows;
        let ports = self.blocks(0, Space::Io)?;
        let window = if fits(&ports, io) { io } else { io_large };
        self.place(&ports, window);

        let below = self.blocks(0, Space::Memory)?;
        let prefetchable = self.blocks(0, Space::Prefetchable)?;
        let mut all = self.blocks(0, Space::Memory)?;
        for block in &prefetchable {
            insert(&mut all, *block)?;
        }
        if fits(&all, memory) {
            self.place(&all, memory);
        } else {
            self.place(&below, memory);
            self.place(&prefetchable, high);
        }
        Ok(())
    }

    fn place_behind(&mut self, bus: usize) -> Result<(), OutOfMemory> {
        for space in Space::ALL {
            let window = self.plan.windows.get(bus).and_then(|windows| windows[space as usize]);
            if let Some(window) = window {
                let blocks = self.blocks(bus, space)?;
                self.place(&blocks, window);
            }
        }
        Ok(())
    }

    /// Puts the blocks into the window, without the largest ones when there is no room for all.
    fn place(&mut self, blocks: &[Block], window: Range) {
        let mut rests = (0..blocks.len()).filter_map(|lost| blocks.get(lost..));
        let placed = rests.find(|rest| fits(rest, window));
        let mut at = window.start();
        for block in placed.unwrap_or_default() {
            let Some(range) = next(&mut at, block) else { return };
            self.settle(block, range);
        }
    }

    fn settle(&mut self, block: &Block, range: Range) {
        match block.what {
            What::Request(index) => {
                if let Some(place) = self.plan.places.get_mut(index) {
                    *place = Some(range.start());
                }
            }
            What::Bus(bus) => {
                if let Some(windows) = self.plan.windows.get_mut(bus) {
                    windows[block.space as usize] = Some(range);
                }
            }
        }
    }

    /// What is to be placed on a bus in one space, the largest alignment first.
    fn blocks(&self, bus: usize, space: Space) -> Result<Vec<Block>, OutOfMemory> {
        let asked = self.requests.iter().enumerate().filter(|(_, request)| {
            request.bus == bus
                && self.space(request) == Some(space)
                && request.size.is_power_of_two()
                && request.size <= self.largest(space)
        });
        let asked = asked.map(|(index, request)| Block {
            space,
            size: request.size,
            alignment: request.size,
            what: What::Request(index),
        });
        let behind = self.buses.iter().zip(&self.needs).skip(1);
        let behind = behind
            .filter(|(other, _)| other.parent == bus)
            .filter_map(|(_, needs)| needs[space as usize]);
        let mut blocks = Vec::new();
        for block in asked {
            insert(&mut blocks, block)?;
        }
        for block in behind {
            insert(&mut blocks, block)?;
        }
        Ok(blocks)
    }

    /// No block larger than this can have a place, so none makes a bridge's window that large.
    fn largest(&self, space: Space) -> u64 {
        match space {
            Space::Io => self.windows.io.len().max(self.windows.io_large.len()),
            Space::Memory => self.windows.memory.len(),
            Space::Prefetchable => self.windows.memory.len().max(self.windows.high.len()),
        }
    }

    /// The space that the request can have, by the bridges above it.
    fn space(&self, request: &Request) -> Option<Space> {
        let mut space = request.space;
        let mut at = request.bus;
        while at != 0 {
            let bus = self.buses.get(at)?;
            match space {
                Space::Io if !bus.io => return None,
                Space::Prefetchable if !bus.prefetchable => space = Space::Memory,
                _ => {}
            }
            // A parent comes before its children: this ends.
            at = if bus.parent < at { bus.parent } else { return None };
        }
        Some(space)
    }
}

/// Adds a block where it belongs, the largest alignment first.
fn insert(blocks: &mut Vec<Block>, block: Block) -> Result<(), OutOfMemory> {
    let rank = |block: &Block| (block.alignment, block.size);
    let at = blocks.partition_point(|other| rank(other) >= rank(&block));
    blocks.try_reserve(1).map_err(|_| OutOfMemory(size_of::<Block>()))?;
    blocks.insert(at, block);
    Ok(())
}

fn fits(blocks: &[Block], window: Range) -> bool {
    lay_out(blocks, window.start(), window.end()).is_some()
}

/// The end of the blocks, one after the other from `start`; `None` when it is past `limit`.
fn lay_out(blocks: &[Block], start: u64, limit: u64) -> Option<u64> {
    let mut at = start;
    blocks.iter().try_for_each(|block| next(&mut at, block).map(drop))?;
    (at <= limit).then_some(at)
}

/// Where the next block goes; `at` moves to its end.
fn next(at: &mut u64, block: &Block) -> Option<Range> {
    let range = Range::new(align_up(*at, block.alignment)?, block.size)?;
    *at = range.end();
    Some(range)
}

fn filled<T: Clone>(value: T, count: usize) -> Result<Vec<T>, OutOfMemory> {
    let mut all = Vec::new();
    all.try_reserve_exact(count).map_err(|_| OutOfMemory(count * size_of::<T>()))?;
    all.resize(count, value);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;
    const ROOT: Bus = Bus { parent: 0, io: true, prefetchable: true };
    const WINDOWS: Windows = Windows {
        io: Range::between(0xc000, 0x1_0000),
        io_large: Range::between(0x1000, 0xa000),
        memory: Range::between(0xc000_0000, 0xfec0_0000),
        high: Range::between(0x1_4000_0000, 1 << 39),
    };

    fn request(bus: usize, space: Space, size: u64) -> Request {
        Request { bus, space, size, function: 0, register: 0 }
    }

    fn places(buses: &[Bus], requests: &[Request]) -> Vec<Option<u64>> {
        plan(buses, requests, &WINDOWS).unwrap().places
    }

    #[test]
    fn the_largest_comes_first_and_nothing_is_lost_between() {
        let requests = [
            request(0, Space::Io, 0x20),
            request(0, Space::Memory, 0x1000),
            request(0, Space::Prefetchable, 16 * MIB),
            request(0, Space::Io, 0x40),
            request(0, Space::Memory, 0x2_0000),
        ];
        let expected = [0xc040, 0xc102_0000, 0xc000_0000, 0xc000, 0xc100_0000];
        assert_eq!(places(&[ROOT], &requests), expected.map(Some));
    }

    #[test]
    fn what_lies_behind_a_bridge_lies_in_its_windows() {
        let bridge = Bus { parent: 0, ..ROOT };
        let requests = [
            request(1, Space::Memory, 0x1000),
            request(1, Space::Prefetchable, 0x4000),
            request(1, Space::Io, 0x80),
            request(0, Space::Memory, 0x1000),
        ];
        let plan = plan(&[ROOT, bridge], &requests, &WINDOWS).unwrap();
        assert_eq!(plan.places, [0xc000_0000, 0xc010_0000, 0xc000, 0xc020_0000].map(Some));
        let windows = plan.windows[1].map(|window| window.map(|w| (w.start(), w.len())));
        let expected = [(0xc000, 0x1000), (0xc000_0000, MIB), (0xc010_0000, MIB)];
        assert_eq!(windows, expected.map(Some));
    }

    #[test]
    fn a_bridge_without_a_window_passes_nothing_or_by_another() {
        let bridge = Bus { parent: 0, io: false, prefetchable: false };
        let requests = [request(1, Space::Io, 0x20), request(1, Space::Prefetchable, MIB)];
        assert_eq!(places(&[ROOT, bridge], &requests), [None, Some(0xc000_0000)]);
    }

    #[test]
    fn prefetchable_memory_that_does_not_fit_below_4_gib_goes_above() {
        let requests =
            [request(0, Space::Prefetchable, 1 << 32), request(0, Space::Memory, 0x1000)];
        assert_eq!(places(&[ROOT], &requests), [Some(0x2_0000_0000), Some(0xc000_0000)]);
    }

    #[test]
    fn the_largest_goes_without_when_there_is_no_room() {
        let requests = [
            request(0, Space::Memory, 512 * MIB),
            request(0, Space::Memory, 512 * MIB),
            request(0, Space::Memory, 0x1000),
            request(0, Space::Prefetchable, 1 << 40),
            request(0, Space::Prefetchable, 0x1000),
            request(0, Space::Io, 1 << 20),
            request(0, Space::Io, 0x4000),
            request(0, Space::Io, 0x100),
        ];
        let places = places(&[ROOT], &requests);
        assert_eq!(places[..2].iter().flatten().count(), 1);
        assert!(places[2].is_some() && places[4].is_some());
        assert_eq!(places[3], None);
        // All of the smaller window of I/O and more, so the larger one serves.
        assert_eq!(places[5..], [None, Some(0x4000), Some(0x8000)]);
    }

    fn any_size() -> impl Strategy<Value = u64> {
        prop_oneof![8 => 4u32..24, 1 => 0u32..64].prop_map(|shift| 1 << shift)
    }

    fn any_bus() -> impl Strategy<Value = Bus> {
        (0usize..40, any::<bool>(), any::<bool>()).prop_map(|(parent, io, prefetchable)| Bus {
            parent,
            io,
            prefetchable,
        })
    }

    fn any_request() -> impl Strategy<Value = Request> {
        (0usize..40, 0usize..3, any_size())
            .prop_map(|(bus, space, size)| request(bus, Space::ALL[space], size))
    }

    proptest! {
        #[test]
        fn what_is_placed_is_aligned_within_its_windows_and_never_overlaps(
            mut buses in prop::collection::vec(any_bus(), 1..40),
            mut requests in prop::collection::vec(any_request(), 0..60),
        ) {
            let count = buses.len();
            buses.iter_mut().enumerate().for_each(|(i, bus)| bus.parent %= i.max(1));
            requests.iter_mut().for_each(|request| request.bus %= count);
            let plan = plan(&buses, &requests, &WINDOWS).unwrap();
            let mut ports = Vec::new();
            let mut memory = Vec::new();
            for (request, place) in requests.iter().zip(&plan.places) {
                let Some(start) = *place else { continue };
                let range = Range::new(start, request.size).unwrap();
                prop_assert_eq!(start % request.size, 0);
                let all = match request.space {
                    Space::Io => &mut ports,
                    _ => &mut memory,
                };
                all.push(range);
                if request.space != Space::Prefetchable {
                    prop_assert!(range.end() <= 1 << 32);
                }
                if request.bus == 0 {
                    let Windows { io, io_large, memory, high } = WINDOWS;
                    let root: &[Range] = match request.space {
                        Space::Io => &[io, io_large],
                        Space::Memory => &[memory],
                        Space::Prefetchable => &[memory, high],
                    };
                    prop_assert!(root.iter().any(|window| window.contains(range)));
                }
                // Up to the root, each bridge passes it.
                let mut bus = request.bus;
                while bus != 0 {
                    let [io, memory, prefetchable] = plan.windows[bus];
                    let passes = |window: Option<Range>| window.is_some_and(|w| w.contains(range));
                    let passed = match request.space {
                        Space::Io => passes(io),
                        Space::Memory => passes(memory),
                        Space::Prefetchable => passes(prefetchable) || passes(memory),
                    };
                    prop_assert!(passed);
                    bus = buses[bus].parent;
                }
            }
            for (bus, windows) in buses.iter().zip(&plan.windows).skip(1) {
                for (space, window) in Space::ALL.into_iter().zip(windows) {
                    let Some(window) = *window else { continue };
                    prop_assert_eq!(window.start() % space.granule(), 0);
                    prop_assert_eq!(window.len() % space.granule(), 0);
                    prop_assert!(space != Space::Io || bus.io);
                    prop_assert!(space != Space::Prefetchable || bus.prefetchable);
                }
            }
            // Windows of buses on the same bus are as apart as what is on it.
            for parent in 0..count {
                let children = || (1..count).filter(|bus| buses[*bus].parent == parent);
                for child in children() {
                    let [io, windows @ ..] = plan.windows[child];
                    ports_and_memory(&requests, &plan, parent, io, &windows)?;
                }
            }
            for all in [&mut ports, &mut memory] {
                all.sort_unstable_by_key(|range| range.start());
                for pair in all.windows(2) {
                    prop_assert!(pair[0].end() <= pair[1].start(), "{:x?}", pair);
                }
            }
        }

        #[test]
        fn what_fits_is_placed(sizes in prop::collection::vec(4u32..24, 0..40)) {
            // 40 times 8 MiB at the most: less than the window.
            let requests: Vec<_> =
                sizes.iter().map(|shift| request(0, Space::Memory, 1 << shift)).collect();
            prop_assert!(places(&[ROOT], &requests).iter().all(Option::is_some));
        }
    }

    /// No window of a bridge overlaps what is on the bridge's own bus.
    fn ports_and_memory(
        requests: &[Request],
        plan: &Plan,
        bus: usize,
        io: Option<Range>,
        memory: &[Option<Range>],
    ) -> Result<(), TestCaseError> {
        for (request, place) in requests.iter().zip(&plan.places) {
            let (true, Some(start)) = (request.bus == bus, *place) else { continue };
            let range = Range::new(start, request.size).unwrap();
            let windows = if request.space == Space::Io { &[io][..] } else { memory };
            let apart = windows.iter().flatten().all(|window| !window.overlaps(range));
            prop_assert!(apart, "{:x?} in {:x?}", range, windows);
        }
        Ok(())
    }
}
