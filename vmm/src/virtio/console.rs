//! The console device (section 5.3): ports for bytes, without the exits of a UART.
//!
//! One console alone is a device with one port, hvc0 under Linux. With more ports, or one that is
//! no console, the driver is told of each ([`control`]); under Linux those are /dev/vportNpM.
//!
//! Output that the reader of a port does not take stays in the guest's buffers, and input that the
//! guest does not take stays with its sender: neither is lost, and nobody but the port waits. A
//! console's output is kept here, up to 16 MiB, because a CPU of the guest spins while it is in its
//! buffers. With more than that the CPU does spin, until somebody reads.

mod control;
mod port;

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;

use self::control::Controller;
use self::port::Clerk;
pub use self::port::Port;
use super::{Device, Event, Interrupt, Work};

/// Entries of each queue, as in QEMU.
const QUEUE_SIZE: u16 = 128;
/// There may be many ports, and queues to tell of them.
const MULTIPORT: u32 = 1;
/// A driver can put a byte out without any queue, early or late in its life.
const EMERGENCY_WRITE: u32 = 2;
/// Where a driver writes a byte in an emergency.
const EMERGENCY: u64 = 8;
/// The queues to tell of ports.
const CONTROL: [usize; 2] = [2, 3];

/// The device.
pub struct Console {
    ports: Vec<Arc<Port>>,
    /// Somebody may have come to the other end of a port, or gone.
    news: Event,
}

impl Console {
    /// A device with these ports, each with a number of its own.
    pub fn new(ports: Vec<Arc<Port>>) -> io::Result<Self> {
        let news = Event::new()?;
        ports.iter().for_each(|port| port.tell(&news));
        Ok(Self { ports, news })
    }

    fn is_multiport(&self) -> bool {
        let is_first = |port: &Arc<Port>| port.number == 0 && port.is_console;
        self.ports.len() != 1 || !self.ports.iter().all(is_first)
    }

    /// The numbers that ports may have are below this one.
    fn ports_max(&self) -> u16 {
        self.ports.iter().map(|port| port.number + 1).max().unwrap_or(1)
    }

    /// Port 0, which is a console, if it is there.
    fn first(&self) -> Option<&Arc<Port>> {
        self.ports.iter().find(|port| port.number == 0)
    }
}

impl Device for Console {
    fn name(&self) -> &'static str {
        "virtio-console"
    }

    fn id(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn features(&self) -> u64 {
        1 << EMERGENCY_WRITE | u64::from(self.is_multiport()) << MULTIPORT
    }

    fn queues(&self) -> Vec<u16> {
        let pairs = if self.is_multiport() { 1 + self.ports_max() } else { 1 };
        vec![QUEUE_SIZE; 2 * usize::from(pairs)]
    }

    /// Columns and rows, which are not told, and the number of ports.
    fn config(&self) -> Vec<u8> {
        [[0; 4], u32::from(self.ports_max()).to_le_bytes()].concat()
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        if let (EMERGENCY, [byte, ..], Some(port)) = (offset, data, self.first()) {
            port.put_out_now(*byte);
        }
    }

    fn start(&self, features: u64, _: &Arc<Interrupt>) -> io::Result<Vec<Work>> {
        let work = |port: &Arc<Port>| Work {
            queues: queues_of(port.number).into(),
            server: Box::new(Clerk::new(port)),
        };
        if features & 1 << MULTIPORT == 0 {
            return Ok(self.first().into_iter().map(work).collect());
        }
        self.ports.iter().for_each(|port| port.set_open(false));
        let control = Box::new(Controller::new(self.ports.clone(), self.news.clone()));
        let mut works = vec![Work { queues: CONTROL.into(), server: control }];
        works.extend(self.ports.iter().map(work));
        Ok(works)
    }
}

/// The queues of a port: what the guest receives and what it sends.
fn queues_of(number: u16) -> [usize; 2] {
    let number = usize::from(number);
    // Those that tell of ports come after the first port's.
    let first = if number == 0 { 0 } else { 2 * number + 2 };
    [first, first + 1]
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read as _;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::chardev::{Chardev, Output};
    use crate::config;
    use crate::control::{Control, RunState};
    use crate::virtio::driver::{BUFFER, Driver, WRITE};

    const CHAIN: u32 = 0x1_0000;

    fn piped(number: u16, is_console: bool) -> (Arc<Console>, io::PipeReader) {
        let (reader, writer) = io::pipe().unwrap();
        let output = Output::file(File::from(OwnedFd::from(writer)));
        let port = Arc::new(Port::new(number, "", is_console, output).unwrap());
        (Arc::new(Console::new(vec![port]).unwrap()), reader)
    }

    fn console() -> (Arc<Console>, io::PipeReader) {
        piped(0, true)
    }

    /// Sends eight chains from queue `transmit`; what is in them.
    fn send_chains(driver: &Driver, transmit: u32) -> Vec<u8> {
        let sent: Vec<u8> = (0..8 * CHAIN).map(|n| (n / 251).to_le_bytes()[0]).collect();
        driver.ram.write(BUFFER, &sent).unwrap();
        for chain in 0..8 {
            let at = BUFFER + u64::from(CHAIN * chain);
            driver.descriptor_of(transmit, chain.into(), at, CHAIN, 0, 0);
            driver.offer_next(transmit, u16::try_from(chain).unwrap());
        }
        sent
    }

    /// A message of the control queues.
    fn message(number: u8, event: u8, value: u8) -> Vec<u8> {
        vec![number, 0, 0, 0, event, 0, value, 0]
    }

    /// Room for six messages of the device's.
    fn give_room(driver: &Driver) {
        for index in 0..6 {
            driver.descriptor_of(2, index, BUFFER + 64 * index, 64, WRITE, 0);
            driver.offer_next(2, u16::try_from(index).unwrap());
        }
    }

    /// The driver's next message, of which there were `index`.
    fn tell(driver: &Driver, index: u16, bytes: &[u8]) {
        let at = BUFFER + 0x2000 + 64 * u64::from(index);
        driver.ram.write(at, bytes).unwrap();
        let length = u32::try_from(bytes.len()).unwrap();
        driver.descriptor_of(3, index.into(), at, length, 0, 0);
        driver.offer_next(3, index);
        driver.used(3, index + 1);
    }

    /// The device's next message is this one.
    fn hear(driver: &Driver, index: u16, expected: &[u8]) {
        let length = driver.used(2, index + 1);
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        driver.ram.read(BUFFER + 64 * u64::from(index), &mut bytes).unwrap();
        assert_eq!(bytes, expected, "{index}");
    }

    #[test]
    fn a_port_is_open_while_its_socket_has_a_client() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let config = config::Chardev::Server { path: path.clone(), wait: false };
        let mut chardev = Chardev::open(&config, "-device virtserialport").unwrap();
        let port = Arc::new(Port::new(1, "", false, chardev.output()).unwrap());
        let device = Arc::new(Console::new(vec![port]).unwrap());
        let driver = Driver::ready(device, 1 << MULTIPORT);
        give_room(&driver);
        let control = Arc::new(Control::new(RunState::Running, false));
        chardev.start(Arc::new(|_: &[u8]| {}), &control).unwrap();
        tell(&driver, 0, &message(0, 0, 1));
        hear(&driver, 0, &message(1, 1, 1));
        tell(&driver, 1, &message(1, 3, 1));
        // Nobody is there, as a driver takes it from the start.
        for round in 0..2 {
            let client = UnixStream::connect(&path).unwrap();
            hear(&driver, 1 + 2 * round, &message(1, 6, 1));
            drop(client);
            hear(&driver, 2 + 2 * round, &message(1, 6, 0));
        }
    }

    #[test]
    fn a_driver_hears_of_ports_and_gets_input_when_one_is_open() {
        let port = |number: u16, name: &str, is_console: bool| {
            Arc::new(Port::new(number, name, is_console, Output::null()).unwrap())
        };
        let wire = port(2, "org.example.wire", false);
        let device = Arc::new(Console::new(vec![port(0, "", true), wire.clone()]).unwrap());
        assert_eq!((device.queues().len(), device.features()), (8, 0b110));
        let driver = Driver::ready(device, 1 << MULTIPORT);
        assert_eq!(driver.config::<4>(4), [3, 0, 0, 0]);
        give_room(&driver);
        // And for the wire's input.
        driver.descriptor_of(6, 0, BUFFER + 0x1000, 8, WRITE, 0);
        driver.offer_next(6, 0);
        wire.send(b"early");
        let tell = |index, bytes: &[u8]| tell(&driver, index, bytes);
        tell(0, &message(0, 0, 1));
        driver.used(2, 2);
        tell(1, &message(0, 3, 1));
        driver.used(2, 4);
        // Nobody has port 1, and no event is 9.
        tell(2, &message(1, 3, 1));
        tell(3, &message(2, 9, 1));
        tell(4, &message(2, 3, 1));
        hear(&driver, 5, &message(2, 6, 1));
        let mut bytes = [0; 24];
        driver.ram.read(BUFFER + 64 * 4, &mut bytes).unwrap();
        assert_eq!(bytes, *[&message(2, 7, 1)[..], b"org.example.wire"].concat());
        assert_eq!(driver.used_index(6), 0);
        tell(5, &message(2, 6, 1));
        assert_eq!(driver.used(6, 1), 5);
        // Fewer bytes than a message has.
        driver.descriptor_of(3, 6, BUFFER, 7, 0, 0);
        driver.offer_next(3, 6);
        driver.breaks();
    }

    #[test]
    fn input_waits_for_buffers_and_fills_them_in_order() {
        let (console, _reader) = console();
        let driver = Driver::ready(console.clone(), 0);
        console.ports[0].send(b"hello");
        driver.descriptor_of(0, 0, BUFFER, 3, WRITE, 0);
        driver.descriptor_of(0, 1, BUFFER + 3, 3, WRITE, 0);
        driver.offer_next(0, 0);
        assert_eq!(driver.used(0, 1), 3);
        driver.offer_next(0, 1);
        assert_eq!(driver.used(0, 2), 2);
        let mut bytes = [0; 5];
        driver.ram.read(BUFFER, &mut bytes).unwrap();
        assert_eq!(&bytes, b"hello");
    }

    #[test]
    fn a_ports_output_stays_with_the_guest_while_nobody_reads_and_is_not_lost() {
        let (port, mut reader) = piped(1, false);
        let driver = Driver::ready(port, 1 << MULTIPORT);
        let sent = send_chains(&driver, 5);
        std::thread::sleep(std::time::Duration::from_millis(50));
        // A pipe and what is kept hold some; the rest is the guest's.
        assert!(driver.used_index(5) < 4, "{}", driver.used_index(5));
        let mut got = vec![0; sent.len()];
        reader.read_exact(&mut got).unwrap();
        assert!(got == sent);
        driver.used(5, 8);
    }

    #[test]
    fn a_console_that_nobody_reads_is_done_with_its_output_and_loses_none() {
        let (console, mut reader) = console();
        let driver = Driver::ready(console, 0);
        let sent = send_chains(&driver, 1);
        driver.used(1, 8);
        let mut got = vec![0; sent.len()];
        reader.read_exact(&mut got).unwrap();
        assert!(got == sent);
        // A byte in an emergency.
        crate::bus::Device::write(&driver.transport, 0x108, &[b'!', 0, 0, 0]);
        let mut byte = [0];
        reader.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"!");
    }

    #[test]
    fn a_console_waits_when_there_is_far_too_much_and_goes_on_when_somebody_reads() {
        const MIB: u32 = 1 << 20;
        let (console, mut reader) = console();
        let driver = Driver::ready(console, 0);
        driver.ram.write(BUFFER, &vec![0x5a; MIB as usize]).unwrap();
        driver.descriptor_of(1, 0, BUFFER, MIB, 0, 0);
        for sent in 1..=16 {
            driver.offer_next(1, 0);
            driver.used(1, sent);
        }
        // The pipe has room for a little, and no more than 16 MiB are kept.
        driver.offer_next(1, 0);
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert_eq!(driver.used_index(1), 16);
        let mut got = vec![0; 17 * MIB as usize];
        reader.read_exact(&mut got[..2 * MIB as usize]).unwrap();
        driver.used(1, 17);
        reader.read_exact(&mut got[2 * MIB as usize..]).unwrap();
        assert!(got.iter().all(|byte| *byte == 0x5a));
    }
}
