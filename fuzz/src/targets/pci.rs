//! PCI: the walk over what functions say, and the planner for their addresses.

use abi::pci::{self as registers, command};
use abi::range::Range;
use pci::bars::{Plan, Space, Windows, plan};
use pci::chipset::Chipset;
use pci::tree::Tree;
use pci::{Address, ConfigSpace};

use crate::config::Config;
use crate::input::Input;

/// Functions that are described: what takes more of them takes longer, and shows no more.
const FUNCTIONS_MAX: usize = 96;

/// Finds, plans and sets the functions that the input describes.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let windows = windows(&mut input);
    let chipset = input.choose([Chipset::I440fx, Chipset::Q35]);
    let mut config = Config::new(&mut input, FUNCTIONS_MAX);
    let mut tree = Tree::find(&mut config).expect("there is memory");
    check_tree(&tree);
    let plan = plan(&tree.buses, &tree.requests, &windows).expect("there is memory");
    check_plan(&tree, &plan, &windows);
    tree.set(&mut config, &plan);
    check_decoding(&mut config, &tree, &plan);
    chipset.set_up(&mut config, &tree);
}

fn windows(input: &mut Input<'_>) -> Windows {
    use abi::layout;
    let [choice, shift] = input.take::<[u8; 2]>();
    let mut windows = Windows {
        io: layout::PCI_IO,
        io_large: layout::PCI_IO_LARGE,
        memory: layout::PCI_MEMORY,
        high: layout::PCI_MEMORY_HIGH,
    };
    if choice & 1 != 0 {
        windows.memory = layout::Q35_PCI_MEMORY;
    }
    if choice & 2 != 0 {
        let start = windows.memory.start() + u64::from(input.take::<u16>()) * 0x1001;
        let end = start + (1 << (shift % 31));
        windows.memory = Range::between(start, end.min(layout::IOAPIC).max(start));
    }
    if choice & 4 != 0 {
        windows.high = Range::between(layout::FOUR_GIB, layout::FOUR_GIB + (1 << (shift % 40)));
    }
    windows
}

fn check_tree(tree: &Tree) {
    assert!((1..=256).contains(&tree.buses.len()));
    for (number, bus) in tree.buses.iter().enumerate().skip(1) {
        assert!(bus.parent < number, "a bridge is on a bus before its own");
    }
    for request in &tree.requests {
        assert!(request.bus < tree.buses.len() && request.size.is_power_of_two());
        let function = &tree.functions[request.function];
        assert_eq!(usize::from(function.address.bus()), request.bus);
        assert!((0x10..0x28).contains(&request.register) && request.register % 4 == 0);
    }
    for function in &tree.functions {
        assert!(usize::from(function.address.bus()) < tree.buses.len());
    }
    // To look for all of them takes longer than everything else.
    for function in tree.functions.iter().rev().take(16) {
        if let Some((device, pin)) = tree.root_pin(function) {
            assert!(device < 32 && pin < 4);
        }
    }
}

/// Everything that has a place is aligned, within the windows above it, and shares it with nobody.
fn check_plan(tree: &Tree, plan: &Plan, windows: &Windows) {
    assert_eq!((plan.places.len(), plan.windows.len()), (tree.requests.len(), tree.buses.len()));
    let mut taken = Vec::new();
    for (request, place) in tree.requests.iter().zip(&plan.places) {
        let Some(start) = *place else { continue };
        assert_eq!(start % request.size, 0);
        let range = Range::new(start, request.size).expect("a place that ends");
        check_within(tree, plan, windows, request.bus, request.space, range);
        if request.space != Space::Prefetchable {
            assert!(range.end() <= 1 << 32, "32 bits cannot hold {range:x?}");
        }
        taken.push((request.space == Space::Io, range));
    }
    taken.sort_by_key(|(is_io, range)| (*is_io, range.start()));
    for pair in taken.windows(2) {
        let [(kind, before), (other, after)] = [pair[0], pair[1]];
        assert!(kind != other || !before.overlaps(after), "{before:x?} overlaps {after:x?}");
    }
}

fn check_within(
    tree: &Tree,
    plan: &Plan,
    windows: &Windows,
    bus: usize,
    space: Space,
    range: Range,
) {
    let is_in = |windows: &[Range]| windows.iter().any(|window| window.contains(range));
    let mut at = bus;
    while at != 0 {
        let own = plan.windows[at];
        let spaces: &[Space] = match space {
            Space::Prefetchable => &[Space::Memory, Space::Prefetchable],
            Space::Memory => &[Space::Memory],
            Space::Io => &[Space::Io],
        };
        let own: Vec<_> = spaces.iter().filter_map(|space| own[*space as usize]).collect();
        assert!(is_in(&own), "{range:x?} is not behind its bridge's windows {own:x?}");
        at = tree.buses[at].parent;
    }
    assert!(match space {
        Space::Io => is_in(&[windows.io, windows.io_large]),
        Space::Memory => is_in(&[windows.memory]),
        Space::Prefetchable => is_in(&[windows.memory, windows.high]),
    });
}

/// What has no place is not decoded.
fn check_decoding(config: &mut Config, tree: &Tree, plan: &Plan) {
    for (request, place) in tree.requests.iter().zip(&plan.places) {
        let address: Address = tree.functions[request.function].address;
        let class = config.register(address, registers::CLASS) >> 16;
        let bit = if request.space == Space::Io { command::IO } else { command::MEMORY };
        let decodes = config.read(address, registers::COMMAND) & bit != 0;
        let writable = config.mask(address, registers::COMMAND) & bit != 0;
        // VGA has more to decode than its registers say.
        if place.is_none() && class != registers::class::VGA && writable {
            assert!(!decodes, "{address:x?} decodes what it has no place for");
        }
    }
}
