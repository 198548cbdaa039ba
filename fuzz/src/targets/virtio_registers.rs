//! The registers of virtio devices, and the threads behind them.

use std::sync::Arc;

use arbitrary::Arbitrary;
use vmm::bus::Device as _;
use vmm::virtio::mmio::Transport;
use vmm::virtio::registers::Registers;
use vmm::virtio::{Doorbells, Event};

use crate::guest;
use crate::input::Input;

/// Accesses of one input: what takes more of them takes longer, and shows no more.
const ACCESSES_MAX: usize = 200;

/// No KVM: notifications come by the register.
struct NoDoorbells;

impl Doorbells for NoDoorbells {
    fn attach(&self, _: u64, _: u32, _: &Event) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    fn detach(&self, _: u64, _: u32, _: &Event) {}
}

/// An access: what it does, to which register, with what.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Access {
    kind: u8,
    register: u8,
    value: u16,
}

/// Registers that are there, in the order in which a driver uses them.
const REGISTERS: [u64; 20] = [
    0x070, 0x014, 0x010, 0x024, 0x020, 0x030, 0x034, 0x038, 0x080, 0x084, 0x090, 0x094, 0x0a0,
    0x0a4, 0x044, 0x050, 0x060, 0x064, 0x100, 0x120,
];

/// Reads and writes registers as the input says.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    guest::with_devices(|devices| {
        let device = devices.choose(input.take());
        let contents = input.bytes();
        let image = &contents[..contents.len().min(0x1000)];
        devices.ram.write(0x1000, image).expect("memory");
        let line = Arc::new(|| {});
        let ram = devices.ram.clone();
        let place = (0, Registers::unseen());
        let transport = Transport::new(device, place, ram, line, Arc::new(NoDoorbells));
        for access in input.list::<Access>().take(ACCESSES_MAX) {
            let Access { kind, register, value } = access;
            let offset = match kind >> 6 {
                3 => u64::from(register) * 2,
                _ => REGISTERS[usize::from(register) % REGISTERS.len()],
            };
            let value = match kind >> 4 & 3 {
                3 => u32::from(value) << 16 | 0xffff,
                _ => u32::from(value),
            };
            let width = [4, 4, 4, 4, 4, 1, 2, 8][usize::from(kind & 7)];
            let mut data = u64::from(value).to_le_bytes();
            match kind >> 3 & 1 {
                0 => drop(transport.write(offset, &data[..width])),
                _ => transport.read(offset, &mut data[..width]),
            }
        }
        // A driver's reset is always possible, and makes all new.
        transport.write(0x070, &[0; 4]);
        let mut status = [0xff; 4];
        transport.read(0x070, &mut status);
        assert_eq!(status, [0; 4]);
    });
}
