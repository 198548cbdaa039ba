//! A virtio driver that does what none may, and then what all do.
//!
//! After each misdeed the device may have answered or have stopped; it is reset, and must be as
//! new. In the end the disk and the entropy device must still work (VIRTIO 1.2, sections 2.1 and
//! 4.2).

use core::fmt::{self, Write as _};

use abi::layout::{VIRTIO_MMIO, VIRTIO_MMIO_STRIDE};

use crate::hardware::{Console, cycles, mmio_read32, mmio_write8, mmio_write32};

const SLOTS: u64 = 8;
const MAGIC: u32 = u32::from_le_bytes(*b"virt");

/// Registers.
mod register {
    pub const DEVICE_ID: u64 = 0x08;
    pub const DEVICE_FEATURES: u64 = 0x10;
    pub const DEVICE_FEATURES_SELECT: u64 = 0x14;
    pub const DRIVER_FEATURES: u64 = 0x20;
    pub const DRIVER_FEATURES_SELECT: u64 = 0x24;
    pub const QUEUE_SELECT: u64 = 0x30;
    pub const QUEUE_SIZE_MAX: u64 = 0x34;
    pub const QUEUE_SIZE: u64 = 0x38;
    pub const QUEUE_READY: u64 = 0x44;
    pub const NOTIFY: u64 = 0x50;
    pub const INTERRUPT_STATUS: u64 = 0x60;
    pub const INTERRUPT_ACK: u64 = 0x64;
    pub const STATUS: u64 = 0x70;
    pub const DESC: u64 = 0x80;
    pub const AVAIL: u64 = 0x90;
    pub const USED: u64 = 0xa0;
    /// Those that are what they are, and the first of the configuration.
    pub const READ_ONLY: [u64; 9] = [0x00, 0x04, DEVICE_ID, 0x0c, 0xb0, 0xb4, 0xb8, 0xbc, 0x100];
}

const ACKNOWLEDGED: u32 = 1;
const DRIVER: u32 = 3;
const FEATURES_OK: u32 = 0xb;
const DRIVER_OK: u32 = 0xf;
const NEEDS_RESET: u32 = 0x40;

/// Free memory, far from the payload and below what the smallest tested machine has.
const RINGS: u64 = 0x40_0000;
/// Of one queue: descriptors, then both rings.
const QUEUE: u64 = 0x1000;
const AVAIL: u64 = 0x400;
const USED: u64 = 0x800;
const BUFFER: u64 = 0x41_0000;
const ENTRIES: u16 = 16;
const QUEUES_MAX: u64 = 4;

/// Descriptor flags: another follows, the device writes, a table of descriptors.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Ticks of the clock that a device gets to do what it must do, and what it may not do at all:
/// a console has no input.
const PATIENCE: u64 = 20_000_000_000;
const GLANCE: u64 = 10_000_000;
const BLOCK: u32 = 2;
const ENTROPY: u32 = 4;

/// A queue's number as a register takes it.
fn number(queue: u64) -> u32 {
    halves(queue)[0]
}

/// The lower and the upper half.
fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [[a, b, c, d], [e, f, g, h]].map(u32::from_le_bytes)
}

fn write16(address: u64, value: u16) {
    for (at, byte) in (address..).zip(value.to_le_bytes()) {
        mmio_write8(at, byte);
    }
}

/// A device's registers.
#[derive(Clone, Copy)]
struct Device(u64);

impl Device {
    fn read(self, register: u64) -> u32 {
        mmio_read32(self.0 + register)
    }

    fn write(self, register: u64, value: u32) {
        mmio_write32(self.0 + register, value);
    }

    /// What no driver can change: who it is, what it offers, and where its configuration begins,
    /// which is for reading in every device.
    fn identity(self) -> [u32; 12] {
        let mut identity = [0; 12];
        let [low, high] = [0, 1].map(|half| {
            self.write(register::DEVICE_FEATURES_SELECT, half);
            self.read(register::DEVICE_FEATURES)
        });
        self.write(register::QUEUE_SELECT, 0);
        let values = register::READ_ONLY.map(|register| self.read(register)).into_iter();
        let values = values.chain([low, high, self.read(register::QUEUE_SIZE_MAX)]);
        identity.iter_mut().zip(values).for_each(|(to, from)| *to = from);
        identity
    }

    fn queues(self) -> u64 {
        let has = |queue: &u64| {
            self.write(register::QUEUE_SELECT, number(*queue));
            self.read(register::QUEUE_SIZE_MAX) >= 8
        };
        (0..QUEUES_MAX).find(|queue| !has(queue)).unwrap_or(QUEUES_MAX)
    }

    /// Resets it; whether it is as new.
    fn reset(self) -> bool {
        self.write(register::STATUS, 0);
        self.read(register::STATUS) == 0 && self.read(register::INTERRUPT_STATUS) == 0
    }

    /// Does what a driver does until the device works, with all its features or with none.
    fn begin(self, all_features: bool) -> u64 {
        let queues = self.queues();
        for at in (RINGS..RINGS + QUEUE * QUEUES_MAX).step_by(4) {
            mmio_write32(at, 0);
        }
        self.write(register::STATUS, ACKNOWLEDGED);
        self.write(register::STATUS, DRIVER);
        for select in [0, 1] {
            self.write(register::DEVICE_FEATURES_SELECT, select);
            self.write(register::DRIVER_FEATURES_SELECT, select);
            let offered = self.read(register::DEVICE_FEATURES);
            // The first of the upper half is the version, without which there is nothing.
            let taken = if all_features { offered } else { select };
            self.write(register::DRIVER_FEATURES, taken);
        }
        self.write(register::STATUS, FEATURES_OK);
        (0..queues).for_each(|queue| self.set_up(queue, RINGS + QUEUE * queue));
        self.write(register::STATUS, DRIVER_OK);
        queues
    }

    fn set_up(self, queue: u64, rings: u64) {
        let max = self.read(register::QUEUE_SIZE_MAX);
        self.write(register::QUEUE_SELECT, number(queue));
        self.write(register::QUEUE_SIZE, max.min(ENTRIES.into()));
        for (register, address) in [
            (register::DESC, rings),
            (register::AVAIL, rings + AVAIL),
            (register::USED, rings + USED),
        ] {
            let [low, high] = halves(address);
            self.write(register, low);
            self.write(register + 4, high);
        }
        self.write(register::QUEUE_READY, 1);
    }

    /// Makes a chain available as the ring's only entry, and says so.
    fn offer(self, queue: u64, head: u16, index: u16) {
        let ring = RINGS + QUEUE * queue + AVAIL;
        write16(ring + 4, head);
        write16(ring + 2, index);
        self.write(register::NOTIFY, number(queue));
    }

    /// Waits for so long until the device has used something or has stopped.
    fn wait(self, queue: u64, patience: u64) -> Outcome {
        let (ring, start) = (RINGS + QUEUE * queue + USED, cycles());
        while cycles() - start < patience {
            if mmio_read32(ring) >> 16 != 0 {
                return Outcome::Used;
            }
            if self.read(register::STATUS) & NEEDS_RESET != 0 {
                return Outcome::Stopped;
            }
        }
        Outcome::Silent
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Used,
    Stopped,
    Silent,
}

fn descriptor(queue: u64, index: u64, address: u64, length: u32, flags: u16, next: u16) {
    let at = RINGS + QUEUE * queue + 16 * index;
    let [low, high] = halves(address);
    mmio_write32(at, low);
    mmio_write32(at + 4, high);
    mmio_write32(at + 8, length);
    write16(at + 12, flags);
    write16(at + 14, next);
}

/// A misdeed: what it is called, and what does it to a queue.
type Misdeed = (&'static str, fn(Device, u64));

const MISDEEDS: [Misdeed; 17] = [
    ("loop", |device, queue| {
        descriptor(queue, 0, BUFFER, 16, NEXT, 1);
        descriptor(queue, 1, BUFFER, 16, NEXT, 0);
        device.offer(queue, 0, 1);
    }),
    ("outside", |device, queue| {
        descriptor(queue, 0, u64::MAX - 4096, 64, WRITE, 0);
        device.offer(queue, 0, 1);
    }),
    ("end_of_memory", |device, queue| {
        // Half of it is memory: the last of 128 MiB.
        descriptor(queue, 0, (128 << 20) - 64, 128, 0, 0);
        device.offer(queue, 0, 1);
    }),
    ("four_gib", |device, queue| {
        descriptor(queue, 0, BUFFER, u32::MAX, WRITE, 0);
        device.offer(queue, 0, 1);
    }),
    ("four_gib_twice", |device, queue| {
        descriptor(queue, 0, BUFFER, u32::MAX, WRITE | NEXT, 1);
        descriptor(queue, 1, BUFFER, u32::MAX, WRITE, 0);
        device.offer(queue, 0, 1);
    }),
    ("nothing", |device, queue| {
        descriptor(queue, 0, BUFFER, 0, 0, 0);
        device.offer(queue, 0, 1);
    }),
    ("table_in_itself", |device, queue| {
        descriptor(queue, 0, RINGS + QUEUE * queue, 256, INDIRECT, 0);
        device.offer(queue, 0, 1);
    }),
    ("half_a_descriptor", |device, queue| {
        descriptor(queue, 0, BUFFER, 17, INDIRECT, 0);
        device.offer(queue, 0, 1);
    }),
    ("head_outside", |device, queue| device.offer(queue, 0xffff, 1)),
    ("index_runs_away", |device, queue| device.offer(queue, 0, 1000)),
    ("write_then_read", |device, queue| {
        descriptor(queue, 0, BUFFER, 16, WRITE | NEXT, 1);
        descriptor(queue, 1, BUFFER, 16, 0, 0);
        device.offer(queue, 0, 1);
    }),
    ("rings_move", |device, queue| {
        device.write(register::QUEUE_SELECT, number(queue));
        for register in [register::DESC, register::AVAIL, register::USED, register::QUEUE_SIZE] {
            device.write(register, 0xffff_f000);
            device.write(register + 4, 7);
        }
        descriptor(queue, 0, BUFFER, 16, 0, 0);
        device.offer(queue, 0, 1);
    }),
    ("queue_goes", |device, queue| {
        device.offer(queue, 0, 1);
        device.write(register::QUEUE_SELECT, number(queue));
        device.write(register::QUEUE_READY, 0);
    }),
    ("chains_change", |device, queue| {
        descriptor(queue, 0, BUFFER, 4096, 0, 0);
        device.offer(queue, 0, 1);
        for length in 0..200 {
            descriptor(queue, 0, u64::from(length) << 24, length << 8, 7, 9);
        }
    }),
    ("registers", |device, _| {
        for register in (0..0x200).step_by(4).filter(|register| *register != register::STATUS) {
            device.write(register, u32::MAX);
            mmio_write8(device.0 + register + 1, 0xff);
        }
    }),
    ("notify_storm", |device, queue| {
        for any in 0..3000_u32 {
            device.write(register::NOTIFY, if any % 3 == 0 { any } else { number(queue) });
        }
    }),
    ("reset_in_between", |device, queue| {
        // A large and honest request, whose end the driver does not wait for.
        mmio_write32(BUFFER, 0);
        mmio_write32(BUFFER + 8, 0);
        mmio_write32(BUFFER + 12, 0);
        descriptor(queue, 0, BUFFER, 16, NEXT, 1);
        descriptor(queue, 1, BUFFER + 0x1000, 0x8_0000, WRITE | NEXT, 2);
        descriptor(queue, 2, BUFFER + 16, 1, WRITE, 0);
        device.offer(queue, 0, 1);
        device.write(register::STATUS, 0);
    }),
];

/// What all devices made of it: `ok`, or what was wrong in brackets.
pub struct Verdict(Result<(), (u32, &'static str)>);

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Ok(()) => f.write_str("ok"),
            Err((device, problem)) => write!(f, "[device {device}: {problem}]"),
        }
    }
}

/// Does all of it to all devices.
pub fn mistreat_all() -> Verdict {
    Verdict(try_all())
}

fn try_all() -> Result<(), (u32, &'static str)> {
    let devices = || {
        (0..SLOTS)
            .map(|slot| Device(VIRTIO_MMIO + slot * VIRTIO_MMIO_STRIDE))
            .filter(|device| device.read(0) == MAGIC)
            .map(|device| (device.read(register::DEVICE_ID), device))
            .filter(|(id, _)| *id != 0)
    };
    for (id, device) in devices() {
        mistreat(id, device).map_err(|misdeed| (id, misdeed))?;
    }
    let mut works = false;
    for (id, device) in devices() {
        works = match id {
            BLOCK => reads_a_sector(device),
            ENTROPY => gives_entropy(device),
            _ => continue,
        };
        if !works {
            return Err((id, "does not work any more"));
        }
    }
    if works { Ok(()) } else { Err((0, "there is no disk and no entropy")) }
}

/// Does everything to each queue; what the device did not survive.
fn mistreat(id: u32, device: Device) -> Result<(), &'static str> {
    let identity = device.identity();
    for (name, misdeed) in MISDEEDS {
        let (mut used, mut stopped, mut silent) = (0, 0, 0);
        for all_features in [false, true] {
            for queue in 0..device.queues() {
                device.begin(all_features);
                misdeed(device, queue);
                if device.read(register::STATUS) != 0 {
                    match device.wait(queue, GLANCE) {
                        Outcome::Used => used += 1,
                        Outcome::Stopped => stopped += 1,
                        Outcome::Silent => silent += 1,
                    }
                }
                device.write(register::INTERRUPT_ACK, 3);
                if device.identity() != identity || !device.reset() {
                    return Err(name);
                }
            }
        }
        let _ = writeln!(
            Console,
            "device {id}, {name}: {used} answered, {stopped} stopped, {silent} silent"
        );
    }
    Ok(())
}

/// A request as it should be: the first sector, whose bytes are not all zero.
fn reads_a_sector(device: Device) -> bool {
    device.begin(true);
    for at in (BUFFER..BUFFER + 0x1000).step_by(4) {
        mmio_write32(at, 0);
    }
    mmio_write8(BUFFER + 0x800, 0xaa);
    descriptor(0, 0, BUFFER, 16, NEXT, 1);
    descriptor(0, 1, BUFFER + 0x200, 512, WRITE | NEXT, 2);
    descriptor(0, 2, BUFFER + 0x800, 1, WRITE, 0);
    device.offer(0, 0, 1);
    device.wait(0, PATIENCE) == Outcome::Used
        && mmio_read32(BUFFER + 0x800) & 0xff == 0
        && mmio_read32(BUFFER + 0x200) != 0
        && device.reset()
}

fn gives_entropy(device: Device) -> bool {
    device.begin(true);
    mmio_write32(BUFFER, 0);
    mmio_write32(BUFFER + 4, 0);
    descriptor(0, 0, BUFFER, 8, WRITE, 0);
    device.offer(0, 0, 1);
    device.wait(0, PATIENCE) == Outcome::Used
        && (mmio_read32(BUFFER) | mmio_read32(BUFFER + 4)) != 0
        && device.reset()
}
