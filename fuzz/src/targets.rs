//! The targets, and the machines that most of them share.

pub mod directory;
pub mod e820;
pub mod fw_cfg_dma;
pub mod pci;
pub mod placement;
pub mod pvh;
pub mod setup_header;
pub mod table_loader;
pub mod virtio_queues;
pub mod virtio_registers;

use abi::fw_cfg::{file, key};
use abi::pci as ids;
use arbitrary::Arbitrary;

use crate::config::Config;
use crate::host::{Flavour, Host};
use crate::input::Input;

const MIB: u64 = 1 << 20;

/// What any target may change about the machine.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Knobs {
    flavour: u8,
    bridge: u8,
    fail_at: u8,
    memory: u8,
}

/// A machine of this kind, with a memory map.
fn machine(input: &mut Input<'_>) -> Host {
    let knobs: Knobs = input.take();
    let mut host = Host::default();
    host.flavour = match knobs.flavour % 16 {
        0..=10 => Flavour::Qemu,
        11 => Flavour::Silent,
        12 => Flavour::NoSelect,
        13 | 14 => Flavour::Ports,
        _ => Flavour::Absent,
    };
    host.tsc_khz =
        [Some(2_000_000), None, Some(1), Some(u32::MAX)][usize::from(knobs.flavour >> 6)];
    host.has_mtrrs = knobs.bridge & 0x80 == 0;
    host.silent_cpus = [Some(0), Some(0), Some(1), None][usize::from(knobs.bridge >> 5 & 3)];
    match knobs.fail_at {
        transfer @ ..0x80 => host.fail_at = transfer.into(),
        heap => host.heap = usize::from(heap & 0x7f) * 512,
    }
    host.host_bridge = match knobs.bridge % 8 {
        5 => ids::I440FX,
        6 => ids::Q35,
        7 => 0x1234_8086,
        _ => 0,
    };
    if host.host_bridge != 0 {
        let functions = input.bytes();
        host.config = Config::new(&mut Input::new(functions), 16).without_echo();
    }
    let choice = knobs.memory % 8;
    let map = if choice == 7 { claims(&mut Input::new(input.bytes())) } else { memory(choice) };
    let bytes = encode(&map);
    let size = bytes.len() as u32;
    host.file(file::E820, bytes, size);
    host
}

/// Memory maps as hosts have them.
fn memory(choice: u8) -> Vec<(u64, u64, u32)> {
    let gib = 1024 * MIB;
    match choice {
        0 => vec![(0, 4 * MIB, 1)],
        1 => vec![(0, 16 * MIB, 1)],
        // QEMU's, with RAM above 4 GiB.
        2 => vec![
            (0, 16 * MIB, 1),
            (gib, 2 * gib, 1),
            (4 * gib, 2 * gib, 1),
            (0xfeff_c000, 0x4000, 2),
            (0xfffc_0000, 0x4_0000, 2),
        ],
        3 => vec![(0, 2 * MIB, 1)],
        4 => vec![(0, MIB, 1)],
        // A hole, and a reserved area in RAM.
        5 => vec![(0, 3 * MIB, 1), (4 * MIB, 12 * MIB, 1), (8 * MIB, 0x1000, 2)],
        // RAM below 1 MiB where firmware itself needs it and nowhere else.
        _ => vec![(0, 0x9_fc00, 1), (0xe_0000, 0xc000, 1), (MIB, 7 * MIB, 1)],
    }
}

/// A memory map out of the fuzzer's claims, in pages or more.
fn claims(input: &mut Input<'_>) -> Vec<(u64, u64, u32)> {
    let mut map = Vec::new();
    while !input.is_empty() && map.len() < 64 {
        let [kind, unit] = input.take::<[u8; 2]>();
        let [start, len] = input.take::<[u16; 2]>();
        let shift = 8 + unit % 41;
        map.push((u64::from(start) << shift, u64::from(len) << shift, u32::from(kind % 6)));
    }
    map
}

/// As `etc/e820` has it.
pub(crate) fn encode(map: &[(u64, u64, u32)]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(map.len() * 20);
    for (start, len, kind) in map {
        bytes.extend(start.to_le_bytes());
        bytes.extend(len.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
    }
    bytes
}

/// A setup header that is in order: protocol 2.12, every entry, runs in little memory.
pub(crate) fn setup() -> Vec<u8> {
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
    image
}

/// Offers a kernel that is in order.
fn kernel(host: &mut Host) {
    host.item(key::SETUP_DATA, setup());
    host.number(key::KERNEL_SIZE, 0x1400);
    host.item(key::KERNEL_DATA, [0x90; 0x1400]);
    host.number(key::INITRD_SIZE, 0x777);
    host.item(key::INITRD_DATA, [0x33; 0x777]);
    host.number(key::CMDLINE_SIZE, 14);
    host.item(key::CMDLINE_DATA, *b"console=ttyS0\0");
    host.item(key::NB_CPUS, [3, 0]);
}
