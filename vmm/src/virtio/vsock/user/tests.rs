//! The device with a daemon that is a thread of the test.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::JoinHandle;

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_DEVICE_FEATURES, VIRTIO_MMIO_DEVICE_FEATURES_SEL};

use super::*;
use crate::virtio::driver::{BUFFER, Driver, USED, WRITE};

/// Requests of the protocol that are answered or looked at (vhost-user.rst, front-end messages).
const GET_FEATURES: u32 = 1;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const GET_PROTOCOL_FEATURES: u32 = 15;
const GET_CONFIG: u32 = 24;
/// Version 1, and a reply.
const REPLY: u32 = 0x5;
/// VERSION_1, PROTOCOL_FEATURES and EVENT_IDX, but no INDIRECT_DESC.
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 29;
/// CONFIG.
const PROTOCOL: u64 = 1 << 9;

/// A process that knows the protocol, and serves nothing.
struct Peer {
    connection: Arc<Mutex<Option<UnixStream>>>,
    /// From where on the second queue was to be served.
    base: Arc<AtomicU16>,
    thread: JoinHandle<()>,
}

impl Peer {
    fn start(socket: &Path, features: u64, cid: u64) -> Self {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).unwrap();
        let (connection, base) = (Arc::new(Mutex::new(None)), Arc::new(AtomicU16::new(u16::MAX)));
        let (shared, seen) = (connection.clone(), base.clone());
        let thread = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            *shared.lock().unwrap() = Some(stream.try_clone().unwrap());
            while let Some((request, body)) = next(&mut stream) {
                let answer = match request {
                    GET_FEATURES => features.to_le_bytes().to_vec(),
                    GET_PROTOCOL_FEATURES => PROTOCOL.to_le_bytes().to_vec(),
                    GET_CONFIG => [&body[..12], &cid.to_le_bytes()].concat(),
                    GET_VRING_BASE => body,
                    SET_VRING_BASE if body[0] == 1 => {
                        seen.store(u16::from_le_bytes([body[4], body[5]]), Ordering::SeqCst);
                        continue;
                    }
                    _ => continue,
                };
                let size = u32::try_from(answer.len()).unwrap();
                let header = [request, REPLY, size].map(u32::to_le_bytes).concat();
                stream.write_all(&[header, answer].concat()).unwrap();
            }
        });
        Self { connection, base, thread }
    }

    fn end(self) {
        let connection = self.connection.lock().unwrap().take().unwrap();
        connection.shutdown(std::net::Shutdown::Both).unwrap();
        self.thread.join().unwrap();
    }
}

fn next(stream: &mut UnixStream) -> Option<(u32, Vec<u8>)> {
    let mut header = [0; 12];
    stream.read_exact(&mut header).ok()?;
    let [request, _, size] = [0, 4, 8]
        .map(|at| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]));
    let mut body = vec![0; usize::try_from(size).unwrap()];
    stream.read_exact(&mut body).ok()?;
    Some((request, body))
}

#[test]
fn the_driver_is_told_when_the_process_is_gone_and_goes_on_with_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let first = Peer::start(&socket, FEATURES, 42);
    let driver = Driver::ready(Arc::new(UserVsock::new(&socket).unwrap()), 1 << 29);
    assert_eq!(u64::from_le_bytes(driver.config(0)), 42);
    driver.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
    assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_FEATURES) >> 28, 0b10, "no indirect descriptors");
    driver.wait(|_| first.base.load(Ordering::SeqCst) == 0);

    // Two buffers for events.
    for head in 0..2_u16 {
        let at = BUFFER + 8 * u64::from(head);
        driver.ram.write(at, &[0xff; 8]).unwrap();
        driver.descriptor_of(2, head.into(), at, 8, WRITE, 0);
        driver.offer_next(2, head);
    }
    // It has used three of what the driver sent.
    driver.ram.write(u64::from(USED) + 0x4000 + 2, &3_u16.to_le_bytes()).unwrap();
    first.end();
    assert_eq!(driver.used(2, 1), 4);
    let mut event = [0; 8];
    driver.ram.read(BUFFER, &mut event).unwrap();
    assert_eq!(event, [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], "the transport is reset");

    let second = Peer::start(&socket, FEATURES, 43);
    assert_eq!(driver.used(2, 2), 4);
    assert_eq!(u64::from_le_bytes(driver.config(0)), 43);
    assert_eq!(second.base.load(Ordering::SeqCst), 3);
    assert!(!driver.is_broken());
    drop(driver);
    second.end();
}

#[test]
fn a_process_that_cannot_serve_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let missing = UserVsock::new(&socket).err().unwrap().to_string();
    let path = socket.display();
    assert_eq!(
        missing,
        format!("no vhost-device-vsock at '{path}': start it first, with --socket={path}")
    );
    let old = Peer::start(&socket, FEATURES & !(1 << 32), 42);
    let error = UserVsock::new(&socket).err().unwrap().to_string();
    assert!(error.contains("lacks virtio features 0x100000000"), "{error}");
    old.thread.join().unwrap();
}
