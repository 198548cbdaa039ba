//! Trees of functions, good and hostile, against the model.

use abi::pci::{self, bridge, command, header};
use abi::range::Range;
use proptest::prelude::*;

use crate::bars::{Space, Windows, plan};
use crate::chipset::Chipset;
use crate::model::{Device, Model};
use crate::tree::Tree;
use crate::{Address, ConfigSpace};

const WINDOWS: Windows = Windows {
    io: Range::between(0xc000, 0x1_0000),
    io_large: Range::between(0x1000, 0xa000),
    memory: Range::between(0xc000_0000, 0xfec0_0000),
    high: Range::between(0x1_4000_0000, 1 << 39),
};
const STORAGE: u32 = 0x0100;

fn set_up(model: &mut Model) -> Tree {
    let mut tree = Tree::find(model).unwrap();
    let plan = plan(&tree.buses, &tree.requests, &WINDOWS).unwrap();
    tree.set(model, &plan);
    Chipset::Q35.set_up(model, &tree);
    tree
}

/// As QEMU's virtio-blk-pci: I/O, memory, 64-bit prefetchable memory.
fn virtio() -> Device {
    let bars = [
        (0x10, 0xffff_ff80, 1),
        (0x14, 0xffff_f000, 0),
        (0x20, 0xffff_c000, 0xc),
        (0x24, u32::MAX, 0),
    ];
    Device::new(STORAGE, &bars)
}

fn registers(device: &Device, offsets: &[u8]) -> Vec<u32> {
    offsets.iter().map(|offset| device.register(*offset)).collect()
}

#[test]
fn a_device_gets_its_addresses_and_is_turned_on() {
    let mut model = Model::new([(0x10, virtio())]);
    set_up(&mut model);
    let device = &model.root[&0x10];
    let seen = registers(device, &[0x10, 0x14, 0x20, 0x24]);
    assert_eq!(seen, [0xc001, 0xc000_4000, 0xc000_000c, 0]);
    assert_eq!(device.register(pci::COMMAND), command::IO | command::MEMORY);
    // Device 2, INTA: PIRQ C of q35.
    assert_eq!(device.register(pci::INTERRUPT), 0x010b);
}

#[test]
fn a_device_behind_two_bridges_is_reached_by_their_buses_and_windows() {
    let inner = Device::bridge([(0x18, virtio())]);
    let outer = Device::bridge([(0x08, inner)]);
    let mut model = Model::new([(0x00, virtio()), (0x20, outer), (0x28, Device::bridge([]))]);
    let tree = set_up(&mut model);
    let numbers = |device: &Device| device.register(bridge::BUSES);
    let outer = &model.root[&0x20];
    let inner = &outer.behind[&0x08];
    let device = &inner.behind[&0x18];
    let seen = [outer, inner, &model.root[&0x28]].map(numbers);
    assert_eq!(seen, [0x02_01_00, 0x02_02_01, 0x03_03_00]);
    assert_eq!(device.register(0x10) & 0xf000, 0xc000);
    for bridge in [outer, inner] {
        let windows = [bridge::IO, bridge::MEMORY, bridge::PREFETCHABLE];
        // Both from the same base, as the inner bridge is all that the outer one has.
        assert_eq!(registers(bridge, &windows), [0xc0c0, 0xc000_c000, 0xc011_c011]);
        let on = command::IO | command::MEMORY | command::MASTER;
        assert_eq!(bridge.register(pci::COMMAND), on);
    }
    let closed = registers(&model.root[&0x28], &[bridge::IO, bridge::MEMORY]);
    assert_eq!(closed, [0x00f0, 0x0000_fff0]);
    // INTA of device 3 is INTD of device 1 is INTA of device 4.
    let deepest = tree.functions.iter().find(|f| f.address.bus() == 2).unwrap();
    assert_eq!(tree.root_pin(deepest), Some((4, 0)));
}

#[test]
fn functions_are_found_where_there_can_be_some() {
    let first = virtio().with(pci::HEADER, header::MULTI_FUNCTION);
    // A function 3 without a multi-function device is an echo of function 0.
    let root = [(0x08, first), (0x0a, virtio()), (0x10, virtio()), (0x13, virtio())];
    let tree = set_up(&mut Model::new(root));
    let found: Vec<_> = tree.functions.iter().map(|f| f.address).collect();
    assert_eq!(found, [0x08, 0x0a, 0x10].map(Address));
}

#[test]
fn what_cannot_be_understood_or_placed_stays_off() {
    let on = |bars: &[(u8, u32, u32)]| {
        let mut model = Model::new([(0x08, Device::new(STORAGE, bars))]);
        set_up(&mut model);
        model.root[&0x08].register(pci::COMMAND)
    };
    assert_eq!(on(&[(0x10, 0xffff_f000, 0)]), command::MEMORY);
    // Holes in the mask; below 1 MiB; the upper half of the last register.
    assert_eq!(on(&[(0x10, 0xf0f0_f000, 0)]), 0);
    assert_eq!(on(&[(0x10, 0xffff_f000, 2)]), 0);
    assert_eq!(on(&[(0x24, 0xffff_f000, 4)]), 0);
    // 2 GiB of memory; I/O goes on.
    assert_eq!(on(&[(0x10, 0x8000_0000, 0), (0x14, 0xffe0, 1)]), command::IO);
    // Any size of 64 bits goes above, if there is room.
    assert_eq!(on(&[(0x10, 0, 0xc), (0x14, 0xffff_ffe0, 0)]), command::MEMORY);
    assert_eq!(on(&[(0x10, 0, 0xc), (0x14, 0x8000_0000, 0)]), 0);
    assert_eq!(on(&[]), 0);
}

/// Every place has a bridge, and no register can be written.
struct Endless(usize);

impl ConfigSpace for Endless {
    fn read(&mut self, _: Address, offset: u8) -> u32 {
        self.0 += 1;
        match offset {
            pci::ID => 0x000c_1b36,
            pci::HEADER => header::BRIDGE | header::MULTI_FUNCTION,
            _ => 0x0101_0101,
        }
    }

    fn write(&mut self, _: Address, _: u8, _: u32) {
        self.0 += 1;
    }
}

#[test]
fn bridges_without_end_come_to_an_end() {
    let mut endless = Endless(0);
    let tree = set_up_any(&mut endless);
    assert_eq!(tree.buses.len(), 256);
    assert!(endless.0 < 100_000, "{}", endless.0);
}

fn set_up_any(config: &mut dyn ConfigSpace) -> Tree {
    let mut tree = Tree::find(config).unwrap();
    let plan = plan(&tree.buses, &tree.requests, &WINDOWS).unwrap();
    tree.set(config, &plan);
    for chipset in [Chipset::I440fx, Chipset::Q35] {
        chipset.set_up(config, &tree);
    }
    tree
}

/// Answers anything to anything.
struct Noise(u64);

impl ConfigSpace for Noise {
    fn read(&mut self, address: Address, offset: u8) -> u32 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        let noise = self.0.to_be_bytes();
        let [a, b, c, d, e, ..] = noise;
        match offset {
            // Some functions, many of them bridges.
            pci::ID if e & 3 != 0 => u32::MAX,
            pci::HEADER => u32::from_le_bytes([a, b, c & 0x81, d]),
            _ => u32::from_le_bytes([a, b, c, d]) ^ u32::from(address.0),
        }
    }

    fn write(&mut self, _: Address, _: u8, _: u32) {}
}

fn any_device() -> impl Strategy<Value = Device> {
    let bar = (0usize..3, 0u32..30);
    let leaf = prop::collection::vec(bar, 0..4).prop_map(|bars| {
        let mut all = Vec::new();
        let mut offset = 0x10;
        for (kind, shift) in bars {
            match kind {
                0 => all.push((offset, u32::MAX << (shift % 12).max(2), 1)),
                1 => all.push((offset, u32::MAX << shift.max(4), 0)),
                _ if offset < 0x24 => {
                    all.push((offset, u32::MAX << shift.max(4), 0xc));
                    all.push((offset + 4, u32::MAX, 0));
                    offset += 4;
                }
                _ => {}
            }
            offset += 4;
        }
        Device::new(STORAGE, &all)
    });
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop::collection::btree_map((0u8..32).prop_map(|device| device << 3), inner, 0..5)
            .prop_map(Device::bridge)
    })
}

/// What is decoded on a bus: all of it apart, and within what the bridge passes.
fn check(
    devices: &std::collections::BTreeMap<u8, Device>,
    passes: &dyn Fn(Space, Range) -> bool,
) -> Result<(), TestCaseError> {
    let mut taken: Vec<(Space, Range)> = Vec::new();
    for device in devices.values() {
        let on = device.register(pci::COMMAND);
        let mut own = Vec::new();
        if device.register(pci::HEADER) == header::BRIDGE {
            let window = |offset: u8, high: [u8; 2]| {
                let [low, above] = [device.register(offset), 0].map(u64::from);
                let [base, limit] = high.map(|at| u64::from(device.register(at)) << 32);
                let base = base | (low & 0xfff0) << 16;
                let limit = limit | above | low & 0xfff0_0000 | 0xf_ffff;
                (limit + 1).checked_sub(base).and_then(|len| Range::new(base, len))
            };
            const NONE: [u8; 2] = [0xfc, 0xfc];
            let memory = window(bridge::MEMORY, NONE);
            let highs = [bridge::PREFETCHABLE_BASE_HIGH, bridge::PREFETCHABLE_LIMIT_HIGH];
            let prefetchable = window(bridge::PREFETCHABLE, highs);
            let io = u64::from(device.register(bridge::IO));
            let (base, limit) = ((io & 0xf0) << 8, io & 0xf000 | 0xfff);
            let io = (limit + 1).checked_sub(base).and_then(|len| Range::new(base, len));
            own.extend(io.map(|range| (Space::Io, range)));
            own.extend(memory.map(|range| (Space::Memory, range)));
            own.extend(prefetchable.map(|range| (Space::Prefetchable, range)));
            check(&device.behind, &|space, range| match space {
                Space::Io => io.is_some_and(|io| io.contains(range)),
                _ => [memory, prefetchable].iter().flatten().any(|w| w.contains(range)),
            })?;
        } else {
            let mut offset = 0x10;
            while offset < 0x28 {
                let bar = device.register(offset);
                let wide = bar & 7 == 4;
                let mask = u64::from(device.mask(offset));
                let range = |start: u64, size: u64| Range::new(start, size).unwrap();
                if bar & 1 == 1 && on & command::IO != 0 {
                    let size = (mask & 0xfffc).wrapping_neg() & 0xffff;
                    own.push((Space::Io, range(u64::from(bar & !3), size)));
                } else if mask != 0 && bar & 1 == 0 && on & command::MEMORY != 0 {
                    let size = (mask & !15).wrapping_neg() & 0xffff_ffff;
                    let high = if wide { u64::from(device.register(offset + 4)) << 32 } else { 0 };
                    own.push((Space::Memory, range(high | u64::from(bar & !15), size)));
                }
                offset += if wide { 8 } else { 4 };
            }
        }
        for (space, range) in own {
            prop_assert!(range.start() != 0, "{:?} {:x?}", space, range);
            prop_assert!(passes(space, range), "{:?} {:x?} is not passed", space, range);
            let io = space == Space::Io;
            let apart =
                taken.iter().all(|(s, other)| (*s == Space::Io) != io || !other.overlaps(range));
            prop_assert!(apart, "{:?} {:x?} is taken", space, range);
            taken.push((space, range));
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn what_is_decoded_never_overlaps_and_is_passed_by_every_bridge(
        devices in prop::collection::btree_map(
            (0u8..32).prop_map(|device| device << 3), any_device(), 0..8,
        ),
    ) {
        let mut model = Model::new(devices);
        set_up(&mut model);
        check(&model.root, &|space, range| match space {
            Space::Io => WINDOWS.io.contains(range) || WINDOWS.io_large.contains(range),
            _ => WINDOWS.memory.contains(range) || WINDOWS.high.contains(range),
        })?;
    }

    #[test]
    fn noise_is_survived(seed in any::<u64>()) {
        let tree = set_up_any(&mut Noise(seed));
        prop_assert!(tree.buses.len() <= 256 && tree.functions.len() <= 512);
    }
}
