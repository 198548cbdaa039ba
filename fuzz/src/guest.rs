//! The VMM's devices, and the memory of a guest that misuses them.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;

use tempfile::NamedTempFile;
use vmm::chardev::Output;
use vmm::config;
use vmm::memory::GuestRam;
use vmm::virtio::balloon::Balloon;
use vmm::virtio::block::Block;
use vmm::virtio::console::{Console, Port};
use vmm::virtio::net::{self, tap::Tap};
use vmm::virtio::rng::Rng;
use vmm::virtio::{Device, Interrupt, Work};

/// Bytes of guest memory.
pub const RAM: u64 = 2 << 20;
/// Bytes of the disk.
pub const DISK: u64 = 64 << 10;

/// Memory that is zeroes up to here at the start of each input.
const CLEARED: u64 = 0x1_0000;

/// Devices, each with what it works on.
pub struct Devices {
    /// The memory.
    pub ram: Arc<GuestRam>,
    /// The disk's image.
    pub image: NamedTempFile,
    all: Vec<Arc<dyn Device>>,
    // The other end of a card's wire.
    wire: UnixDatagram,
}

impl Devices {
    fn new() -> Self {
        let ram = Arc::new(GuestRam::new(RAM, None).expect("memory"));
        let image = NamedTempFile::new().expect("a file");
        image.as_file().set_len(DISK).expect("room");
        let disk = config::Disk {
            path: image.path().into(),
            is_raw: true,
            discard: true,
            ..config::Disk::default()
        };
        let nowhere = File::options().write(true).open("/dev/null").expect("/dev/null");
        let options = config::Balloon { deflate_on_oom: true, free_page_reporting: true };
        let (card, wire) = UnixDatagram::pair().expect("a pair of sockets");
        for end in [&card, &wire] {
            end.set_nonblocking(true).expect("sockets that do not wait");
        }
        let output = Output::file(nowhere);
        let port = |number| Port::new(number, "wire", number == 0, output.clone());
        let ports = [0, 2].map(|number| Arc::new(port(number).expect("a port"))).into();
        let tap = Arc::new(Tap::of(File::from(OwnedFd::from(card))));
        let all: Vec<Arc<dyn Device>> = vec![
            Arc::new(Block::new(&disk).expect("a disk")),
            Arc::new(Rng::new(Path::new("/dev/zero")).expect("zeroes")),
            Arc::new(Console::new(ports).expect("a console")),
            Arc::new(Balloon::new(&options, RAM)),
            Arc::new(Card(tap)),
        ];
        Self { ram, image, all, wire }
    }

    /// The device that `choice` stands for.
    pub fn choose(&self, choice: u8) -> Arc<dyn Device> {
        self.all[usize::from(choice) % self.all.len()].clone()
    }

    /// Makes everything as it was: memory where inputs have their rings, the disk, the wire.
    fn restore(&self) {
        self.ram.zero(0, CLEARED).expect("memory");
        let mut file = self.image.as_file();
        file.rewind().and_then(|()| file.write_all(&[0xa5; 512])).expect("the disk");
        while self.wire.recv(&mut [0; 1]).is_ok() {}
        // Two frames for who receives.
        for length in [60, 3000] {
            let _ = self.wire.send(&vec![7; length]);
        }
    }
}

/// Runs `body` with devices that are made once for all inputs.
pub fn with_devices<T>(body: impl FnOnce(&Devices) -> T) -> T {
    thread_local! {
        static DEVICES: Devices = Devices::new();
    }
    DEVICES.with(|devices| {
        devices.restore();
        body(devices)
    })
}

/// A card whose wire is a pair of sockets.
struct Card(Arc<Tap>);

impl Device for Card {
    fn name(&self) -> &'static str {
        "virtio-net"
    }

    fn id(&self) -> u32 {
        1
    }

    fn features(&self) -> u64 {
        1 << 15
    }

    fn queues(&self) -> Vec<u16> {
        vec![64, 64]
    }

    fn start(&self, features: u64, _: &Arc<Interrupt>) -> std::io::Result<Vec<Work>> {
        Ok(vec![net::work(self.0.clone(), features >> 15 & 1 == 1)])
    }
}
