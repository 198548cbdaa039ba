//! Queues of each virtio device, as any driver may fill them.
//!
//! Chains are of any shape, and rings change while they are worked on.

use std::sync::Arc;

use arbitrary::Arbitrary;
use virtio_queue::{Queue, QueueT};
use vmm::virtio::registers::Registers;
use vmm::virtio::{Event, Interrupt, Ring, Wake, Work};

use crate::guest::{self, DISK};
use crate::input::Input;

/// Where the rings of the first queue are, and those of the next ones from there.
const RINGS: u64 = 0x1000;
const STRIDE: u64 = 0x1000;
const AVAIL: u64 = 0x400;
const USED: u64 = 0x800;
/// Where buffers are.
const BUFFERS: u64 = 0x8000;
const ENTRIES: u16 = 16;
const QUEUES_MAX: usize = 3;

/// A descriptor: mostly one that could be.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Descriptor {
    address: u16,
    length: u16,
    flags: u8,
    next: u8,
}

impl Descriptor {
    fn encode(self) -> Vec<u8> {
        let near = BUFFERS + u64::from(self.address % 0x6000);
        let (address, length) = match self.flags >> 4 {
            // Nowhere, at the end of memory, over the rings, a table of descriptors.
            15 => (u64::from(self.address) << 48 | 0xfff0, u32::from(self.length)),
            14 => (guest::RAM - u64::from(self.address % 64), u32::from(self.length)),
            13 => (RINGS + u64::from(self.address % 0x3000), u32::from(self.length)),
            12 => (
                RINGS + STRIDE * 2 + 16 * u64::from(self.address % 16),
                u32::from(self.length) * 16,
            ),
            11 => (near, u32::from(self.length) << 16 | 0xffff),
            _ => (near, u32::from(self.length)),
        };
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend(u16::from(self.flags & 7).to_le_bytes());
        bytes.extend(u16::from(self.next % 20).to_le_bytes());
        bytes
    }
}

/// Serves queues that the input describes, twice.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    guest::with_devices(|devices| {
        let [choice, features, rounds] = input.take::<[u8; 3]>();
        let device = devices.choose(choice);
        let event_idx = features & 1 == 1;
        let features =
            device.features() & (u64::from(features) << 8 | 0xff) | u64::from(event_idx) << 29;
        let interrupt =
            Arc::new(Interrupt::new("fuzzed", Arc::new(|| {}), Arc::new(Registers::unseen())));
        let works = device.start(features, &interrupt).expect("it starts");
        for Work { queues, mut server } in works {
            let count = queues.len().min(QUEUES_MAX);
            let mut rings: Vec<Ring> =
                (0..count).map(|number| ring(number, event_idx, &interrupt)).collect();
            rings.truncate(count);
            if rings.len() < queues.len() {
                continue;
            }
            for _ in 0..=rounds % 3 {
                for number in 0..count {
                    fill(&mut input, number, devices);
                }
                let wake = Wake { ram: &devices.ram, source: true };
                // A driver that does what none may is told, and the device stops.
                if server.serve(&mut rings, &wake).is_err() {
                    break;
                }
            }
        }
        let size = devices.image.as_file().metadata().expect("the image").len();
        assert_eq!(size, DISK, "a disk keeps its size");
    });
}

fn rings_at(number: usize) -> u64 {
    RINGS + STRIDE * number as u64
}

fn ring(number: usize, event_idx: bool, interrupt: &Arc<Interrupt>) -> Ring {
    let mut queue = Queue::new(ENTRIES).expect("a power of two");
    let at = rings_at(number) as u32;
    queue.set_size(ENTRIES);
    queue.set_desc_table_address(Some(at), Some(0));
    queue.set_avail_ring_address(Some(at + AVAIL as u32), Some(0));
    queue.set_used_ring_address(Some(at + USED as u32), Some(0));
    queue.set_event_idx(event_idx);
    queue.set_ready(true);
    Ring::new(number, queue, Event::new().expect("an event"), interrupt.clone())
}

/// Writes the next descriptors, the ring and what is in the buffers.
fn fill(input: &mut Input<'_>, number: usize, devices: &guest::Devices) {
    let write = |at: u64, bytes: &[u8]| devices.ram.write(at, bytes).expect("memory");
    let at = rings_at(number);
    let [descriptors, heads, flags] = input.take::<[u8; 3]>();
    for index in 0..u64::from(descriptors % 17) {
        write(at + 16 * index, &input.take::<Descriptor>().encode());
    }
    let mut index = [0; 2];
    devices.ram.read(at + AVAIL + 2, &mut index).expect("memory");
    let mut index = u16::from_le_bytes(index);
    for _ in 0..heads % 17 {
        let head = u16::from(input.take::<u8>() % 18);
        write(at + AVAIL + 4 + 2 * u64::from(index % ENTRIES), &head.to_le_bytes());
        index = index.wrapping_add(1);
    }
    if heads == 0xff {
        index = input.take();
    }
    write(at + AVAIL, &u16::from(flags & 1).to_le_bytes());
    write(at + AVAIL + 2, &index.to_le_bytes());
    let contents = input.bytes();
    write(BUFFERS + 0x100 * u64::from(flags >> 4), &contents[..contents.len().min(0x4000)]);
}
