//! Inputs written by hand: honest hosts, and dishonest ones never to be missed.

use abi::fw_cfg::key;
use abi::table_loader::COMMAND_SIZE;

use crate::targets::{encode, setup};

/// An input in the making: the values in the order in which its target takes them.
#[derive(Clone, Default)]
struct Seed(Vec<u8>);

impl Seed {
    fn u8s(mut self, values: &[u8]) -> Self {
        self.0.extend(values);
        self
    }

    fn u16(self, value: u16) -> Self {
        self.u8s(&value.to_le_bytes())
    }

    fn u32(self, value: u32) -> Self {
        self.u8s(&value.to_le_bytes())
    }

    /// Bytes with their length in front.
    fn bytes(self, bytes: &[u8]) -> Self {
        self.u16(bytes.len() as u16).u8s(bytes)
    }

    /// A file of a directory: which name, how its size is claimed.
    fn file(self, name: u8, size: u8, bytes: &[u8]) -> Self {
        self.u8s(&[name, size]).bytes(bytes)
    }

    /// A table-loader command.
    fn command(self, [kind, file, other, size]: [u8; 4], words: [u16; 3]) -> Self {
        words.into_iter().fold(self.u8s(&[kind, file, other, size]), Self::u16)
    }
}

/// The knobs: flavour, host bridge, the transfer that fails, memory map.
fn machine(knobs: [u8; 4]) -> Seed {
    Seed::default().u8s(&knobs)
}

/// How `odd_size` is asked for a size of 0, of 2^32 - 1, and for one that is off.
const EMPTY: u8 = 3;
const HUGE: u8 = 4;
const OFF: u8 = 5;
/// How a file of the table-loader's is asked for that has nothing in it to begin with.
const ZEROES: u8 = 0x40;

/// The seeds of a target, each with what it is about.
pub fn of(target: &str) -> Vec<(String, Vec<u8>)> {
    let seeds = match target {
        "directory" => directory(),
        "table_loader" => table_loader(),
        "e820" => e820(),
        "setup_header" => setup_header(),
        "pvh" => pvh(),
        "placement" => placement(),
        "pci" => pci(),
        _ => Vec::new(),
    };
    seeds.into_iter().map(|(name, seed)| (name, seed.0)).collect()
}

/// The same seed on every kind of host, with every early transfer failing, in every memory map.
fn everywhere(seeds: &mut Vec<(String, Seed)>, rest: &Seed) {
    for flavour in 11..16 {
        seeds.push((format!("flavour-{flavour}"), machine([flavour, 0, 0, 0]).u8s(&rest.0)));
    }
    for transfer in 1..16 {
        seeds.push((format!("error-{transfer}"), machine([0, 0, transfer, 0]).u8s(&rest.0)));
    }
    // Heaps of 512 bytes and more.
    for heap in [0, 1, 2, 4, 8, 16, 64] {
        seeds.push((format!("heap-{heap}"), machine([0, 0, 0x80 | heap, 0]).u8s(&rest.0)));
    }
    for memory in 0..7 {
        seeds.push((format!("memory-{memory}"), machine([0, 0, 0, memory]).u8s(&rest.0)));
    }
    let pages = [[1, 4, 0, 0, 0, 1], [1, 4, 0, 1, 0, 2], [2, 4, 0, 2, 1, 0]].concat();
    seeds.push(("memory-7".into(), machine([0, 0, 0, 7]).bytes(&pages).u8s(&rest.0)));
    for cpus in [0x40, 0x60, 0x80] {
        seeds.push((format!("cpus-{cpus:x}"), machine([0, cpus, 0, 0]).u8s(&rest.0)));
    }
    for bridge in [5, 6] {
        let seed = machine([0, bridge, 0, 0]).bytes(&functions().0).u8s(&rest.0);
        seeds.push((format!("bridge-{bridge}"), seed));
    }
}

fn directory() -> Vec<(String, Seed)> {
    let files = Seed::default()
        .u8s(&[2, 0])
        .file(6, 0, &[0, 0, 0, 0, 2, 0, 0, 0])
        .file(4, 0, &anchor())
        .file(5, 0, &[4, 4, 0, 1, 0, 0])
        .file(8, HUGE, b"filler")
        .file(8, EMPTY, b"")
        .file(9, 0, &prefetched())
        .file(10, 0, &[0; 32])
        .file(11, 0, b"on")
        .file(12, 0, &[5, 0, 0, 0, 0, 0, 0, 0])
        .file(7, 0, b"64");
    let mut seeds = vec![("files".into(), machine([0; 4]).u8s(&files.0))];
    everywhere(&mut seeds, &files);
    let raw = |bytes: &[u8]| machine([0; 4]).u8s(&[0, 0]).u8s(bytes);
    seeds.push(("nothing".into(), raw(&[])));
    seeds.push(("empty".into(), raw(&[0; 4])));
    seeds.push(("claims-10000".into(), raw(&10_000u32.to_be_bytes())));
    seeds.push(("claims-all".into(), raw(&[0xff; 4])));
    for count in [23, 24, 25, 4095, 4096, 10_000] {
        seeds.push((format!("entries-{count}"), machine([0; 4]).u8s(&[1, 0]).u16(count)));
    }
    for (index, size) in [EMPTY, HUGE, OFF].into_iter().enumerate() {
        for name in 0..14 {
            let seed = machine([0, 5, 0, 0]).u16(0).u8s(&[2, 0]).file(name, size, &[1; 40]);
            seeds.push((format!("size-{index}-{name}"), seed));
        }
    }
    seeds
}

/// Records of the number of CPUs and more than that, of the initrd, and of one that is cut off.
fn prefetched() -> Vec<u8> {
    let record = |item: u16, bytes: &[u8]| Seed::default().u16(item).bytes(bytes).0;
    let initrd = record(key::INITRD_DATA, &[0x44; 0x777]);
    let cpus = record(key::NB_CPUS, &[2, 0, 0, 0, 0, 0, 0, 0]);
    [cpus, initrd, vec![0x18, 0, 0xff, 0xff, 1]].concat()
}

/// An SMBIOS 2.8 anchor as a host gives it.
fn anchor() -> Vec<u8> {
    let mut anchor = b"_SM_\0\x1f\x02\x08".to_vec();
    anchor.resize(0x10, 0);
    anchor.extend(b"_DMI_");
    anchor.resize(0x1f, 0);
    anchor
}

fn table_loader() -> Vec<(String, Seed)> {
    const RSDP: u8 = 0;
    const TABLES: u8 = 1;
    const GUID: u8 = 3;
    const ADDRESS: u8 = 4;
    let files = |sizes: [(u16, u8); 5]| {
        sizes
            .into_iter()
            .fold(Seed::default(), |seed, (size, choice)| seed.u16(size).u8s(&[choice]))
    };
    let honest = files([(36, ZEROES), (3000, ZEROES), (0x100, 0), (4096, 0), (8, 0)]);
    // An RSDP of revision 2 that points to an XSDT, which points to an empty table.
    let bytes = |file: u8, at: u16, value: u32| {
        let [a, b, c, d] = value.to_le_bytes();
        let words = [at, u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])];
        Seed::default().command([12, file, 1, 0], words).0
    };
    let script = Seed::default()
        .u8s(&bytes(RSDP, 12, 2 << 24))
        .u8s(&bytes(RSDP, 24, 0x40))
        .u8s(&bytes(TABLES, 0x44, 44))
        .u8s(&bytes(TABLES, 0x64, 0x100))
        .u8s(&bytes(TABLES, 0x104, 36))
        .command([0, RSDP, 1, 0], [0, 4, 0])
        .command([0, TABLES, 0, 0], [0, 6, 0])
        .command([0, GUID, 0, 0], [0, 12, 0])
        .command([4, TABLES, TABLES, 3], [0x64, 0, 0])
        .command([7, TABLES, 0, 0], [0x49, 0x40, 44])
        .command([10, ADDRESS, GUID, 3], [0, 40, 0])
        .command([4, RSDP, TABLES, 3], [24, 0, 0])
        .command([7, RSDP, 0, 0], [8, 0, 20])
        .command([7, RSDP, 0, 0], [32, 0, 36])
        .command([12, 0, 0, 0], [0, 4, 0x8000]);
    let whole = honest.clone().u16(0).u8s(&[0]).u32(0).u8s(&script.0);
    let mut seeds = vec![("acpi".into(), machine([0; 4]).u8s(&whole.0))];
    everywhere(&mut seeds, &whole);
    // An RSDP that is too short, and one of revision 0 that points to an RSDT.
    for size in [0, 19] {
        let script = Seed::default().command([0, RSDP, 1, 0], [0, 4, 0]);
        let files = files([(size, ZEROES), (0, 0), (0, 0), (0, 0), (0, 0)]);
        let seed = machine([0; 4]).u8s(&files.u16(0).u8s(&[0]).u32(0).0).u8s(&script.0);
        seeds.push((format!("rsdp-{size}"), seed));
    }
    for size in [20, 36] {
        let script = Seed::default()
            .u8s(&bytes(TABLES, 0x44, 40))
            .u8s(&bytes(RSDP, 16, 0x40))
            .command([0, RSDP, 1, 0], [0, 4, 0])
            .command([0, TABLES, 0, 0], [0, 6, 0])
            .command([4, RSDP, TABLES, 2], [16, 0, 0])
            .command([7, RSDP, 0, 0], [8, 0, 20]);
        let files = files([(size, ZEROES), (0x100, ZEROES), (0, 0), (0, 0), (0, 0)]);
        let seed = machine([0; 4]).u8s(&files.u16(0).u8s(&[0]).u32(0).0).u8s(&script.0);
        seeds.push((format!("rsdt-{size}"), seed));
    }
    for (index, choice) in [EMPTY, HUGE, OFF].into_iter().enumerate() {
        for file in 0..5 {
            let mut sizes = [(36, ZEROES), (3000, ZEROES), (0x100, 0), (4096, 0), (8, 0)];
            sizes[file].1 |= choice;
            let seed = machine([0; 4]).u8s(&files(sizes).u16(0).u8s(&[0]).u32(0).0);
            seeds.push((format!("size-{index}-{file}"), seed.u8s(&script.0)));
        }
        let seed = machine([0; 4]).u8s(&honest.0).u16(0).u8s(&[choice]).u32(0).u8s(&script.0);
        seeds.push((format!("script-{index}"), seed));
    }
    // A directory and a script that leave little of the heap.
    let many = machine([0; 4]).u8s(&honest.0).u16(0x8000 | 1500).u8s(&[0]).u32(0);
    seeds.push(("many-files".into(), many.command([13, 0, 0, 0], [0, 0, 1500])));
    let raw = machine([0; 4]).u8s(&honest.0).u16(0).u8s(&[0]).u32(0).command([14, 0, 0, 0], [0; 3]);
    seeds.push(("raw".into(), raw.bytes(&[0xff; COMMAND_SIZE])));
    seeds
}

fn e820() -> Vec<(String, Seed)> {
    let honest = encode(&[(0, 0x800_0000, 1), (0xfeff_c000, 0x4000, 2), (0, 0, 0)]);
    let many: Vec<_> = (0..33).map(|index| (index * 0x2000, 0x1000, 1)).collect();
    let wraps = encode(&[(0, 1, 1), (u64::MAX, 2, 1)]);
    let raw = |bytes: &[u8]| Seed::default().u8s(&[1]).bytes(bytes);
    let mut seeds = vec![
        ("honest".into(), raw(&honest).u8s(&[1, 0, 0xa0, 0x60, 1, 2, 0x80, 8])),
        ("empty".into(), raw(&[])),
        ("cut-off".into(), raw(&honest[..50])),
        ("many".into(), raw(&encode(&many))),
        ("wraps".into(), raw(&wraps)),
    ];
    let overlapping: Vec<u8> = (0..16).flat_map(|at| [0, at % 6, at * 7, 30 - at]).collect();
    seeds.push(("overlapping".into(), Seed::default().u8s(&[0, 16]).u8s(&overlapping)));
    let hole = Seed::default().u8s(&[0, 1, 0, 1, 0, 18]).u8s(&[0, 0, 1, 0]);
    seeds.push(("empty-hole".into(), hole));
    let steps: Vec<u8> = (0..16).flat_map(|at| [1, at % 5, at * 3, 20]).collect();
    seeds.push(("steps".into(), Seed::default().u8s(&[0, 0]).u8s(&steps)));
    seeds
}

fn setup_header() -> Vec<(String, Seed)> {
    let sizes = |kernel: u8, initrd: u8, line: u8| Seed::default().u8s(&[kernel, initrd, line]);
    let good = |entry: u8| Seed::default().u8s(&[entry]).u8s(&sizes(0, 0, 0).0).u8s(&[0, 2, 0]);
    let mut seeds: Vec<_> = (0..6)
        .map(|entry| (format!("entry-{entry}"), machine([0; 4]).u8s(&good(entry).0)))
        .collect();
    everywhere(&mut seeds, &good(2));
    for (index, choice) in [EMPTY, HUGE, OFF].into_iter().enumerate() {
        for (item, sizes) in
            [sizes(choice, 0, 0), sizes(0, choice, 0), sizes(0, 0, choice)].into_iter().enumerate()
        {
            let seed = machine([0; 4]).u8s(&[0]).u8s(&sizes.0).u8s(&[0, 2, 0]);
            seeds.push((format!("size-{index}-{item}"), seed));
        }
    }
    // Every field of the header at its extremes.
    for at in [0x01, 0x04, 0x16, 0x21, 0x3c, 0x40, 0x44, 0x48, 0x60, 0x68, 0x6c, 0x70] {
        for value in [0, u32::MAX, 0x8000_0000] {
            let seed = machine([0; 4]).u8s(&good(0).0).u8s(&[at]).u32(value);
            seeds.push((format!("field-{at:x}-{value:x}"), seed));
        }
    }
    let raw = machine([0; 4]).u8s(&[0]).u8s(&sizes(0, 0, 0).0).u8s(&[0, 1]);
    seeds.push(("raw".into(), raw.u8s(&setup())));
    seeds
}

fn pvh() -> Vec<(String, Seed)> {
    let good = Seed::default().u8s(&[0; 7]);
    let mut seeds = vec![("elf".into(), machine([0; 4]).u8s(&good.0))];
    everywhere(&mut seeds, &good);
    for item in 0..5 {
        for choice in [EMPTY, HUGE, OFF] {
            let mut sizes = [0; 5];
            sizes[item] = choice;
            let seed = machine([0; 4]).u8s(&[0]).u8s(&sizes).u8s(&[0]);
            seeds.push((format!("size-{item}-{choice}"), seed));
        }
    }
    seeds
}

fn placement() -> Vec<(String, Seed)> {
    // The fields in their order; the last three bytes are scale, map and a piece of one.
    let kernel = |map: u8, flags: u8, initrd: u32| {
        let seed = Seed::default().u32(0x1400).u32(0x8000).u8s(&[12]).u32(0x100).u8s(&[flags]);
        seed.u16(2047).u32(14).u32(0x7fff_ffff).u32(initrd).u8s(&[0, map])
    };
    let mut seeds = Vec::new();
    for map in 0..7 {
        for flags in [0, 3, 7, 23] {
            seeds.push((format!("map-{map}-{flags}"), kernel(map, flags, 1)));
        }
    }
    for initrd in [0, u32::MAX, 0x777] {
        seeds.push((format!("initrd-{initrd:x}"), kernel(2, 3, initrd)));
    }
    // Alignments that the start of RAM does not have.
    for shift in [13, 21, 23] {
        let mut seed = kernel(5, 1, 1);
        seed.0[8] = shift;
        seeds.push((format!("alignment-{shift}"), seed));
    }
    let pages = [[1, 4, 0, 0, 0, 1], [1, 4, 0, 1, 0, 2], [2, 4, 0, 2, 1, 0]].concat();
    seeds.push(("pages".into(), kernel(7, 1, 1).u8s(&pages)));
    seeds
}

/// A bus with a chipset, a card, and a bridge to another card.
fn functions() -> Seed {
    let bars = [8, 12, 0x0c, 14, 1, 5];
    Seed::default()
        .u8s(&[0])
        .u8s(&[0, 0x0c, 0, 0])
        .u8s(&[8, 0x32, 0, 0])
        .u8s(&[1, 0x44, 0, 0])
        .u8s(&[2, 0x64, 0, 0])
        .u8s(&[5, 4, 3, 0])
        .u8s(&bars)
        .u8s(&[8, 1, 1, 1, 0, 20])
        // Behind it: bus 1 begins 0xe8 functions on.
        .u8s(&[0xe8, 4, 3, 0])
        .u8s(&bars)
}

fn pci() -> Vec<(String, Seed)> {
    let mut seeds = Vec::new();
    for windows in 0..4 {
        for chipset in [0, 1] {
            let head = Seed::default().u8s(&[windows & !2, 20, chipset]);
            seeds.push((format!("bus-{windows}-{chipset}"), head.u8s(&functions().0)));
        }
    }
    // A bridge on every bus, each to the next.
    let bridges: Vec<u8> = (0..90).flat_map(|_| [0xff, 1, 2, 1, 8, 20, 0x0c, 21]).collect();
    seeds.push(("deep".into(), Seed::default().u8s(&[0, 20, 0, 0]).u8s(&bridges)));
    let card = |kind: u8| [8, kind, 6, 0, 0, 31, 12, 31, 1, 2, 8, 12, 0, 4, 0, 20];
    let cards: Vec<u8> = (0..32).flat_map(|_| card(4)).collect();
    seeds.push(("wide".into(), Seed::default().u8s(&[0, 20, 0, 0]).u8s(&cards)));
    // Everything that is asked answers, as a bridge.
    let everywhere = Seed::default().u8s(&[0, 20, 0, 0xff]).u32(0x1111_1af4).u32(0);
    seeds.push(("echo".into(), everywhere.u32(0x0604_0000).u32(0x0081_0000)));
    seeds
}
