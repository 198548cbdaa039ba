//! The memory balloon (section 5.5).
//!
//! The guest gives memory back that it is asked for, and, with free-page reporting, what it has no
//! use for anyway.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;

use super::{Broken, Buffers, Device, Interrupt, Ring, Server, Wake, Work};
use crate::config;
use crate::memory::GuestRam;

/// The driver deflates the balloon rather than run out of memory.
const DEFLATE_ON_OOM: u32 = 2;
/// The driver tells of pages that it does not use.
const PAGE_REPORTING: u32 = 5;
/// Bytes of a page, whatever pages the guest has.
const PAGE: u64 = 4096;
/// Page numbers that are looked at together.
const BATCH: usize = 1024;
/// Bytes of page numbers that a driver gives at once, at the most: Linux gives 1024.
const NUMBERS_MAX: usize = 1 << 20;
const INFLATE: usize = 0;
const REPORT: usize = 2;

/// Who hears of the memory that the guest has, in bytes.
pub type Listener = Box<dyn Fn(u64) + Send + Sync>;

/// The device.
pub struct Balloon {
    options: config::Balloon,
    /// Bytes of guest RAM.
    memory: u64,
    /// Pages that the balloon is to hold.
    target: AtomicU32,
    /// Pages that it holds, as the driver says.
    actual: AtomicU32,
    // Where a change of the target is told, while there is a driver: of a machine that may be gone.
    interrupt: Mutex<Weak<Interrupt>>,
    listener: OnceLock<Listener>,
}

impl Balloon {
    /// A balloon in a guest with so many bytes of memory.
    pub fn new(options: &config::Balloon, memory: u64) -> Self {
        Self {
            options: options.clone(),
            memory,
            target: AtomicU32::new(0),
            actual: AtomicU32::new(0),
            interrupt: Mutex::new(Weak::new()),
            listener: OnceLock::new(),
        }
    }

    /// From now on `listener` hears when the guest's memory changes.
    pub fn listen(&self, listener: Listener) {
        // There is one.
        let _ = self.listener.set(listener);
    }

    /// Bytes of memory that the guest has.
    pub fn actual(&self) -> u64 {
        let held = u64::from(self.actual.load(Ordering::SeqCst)) * PAGE;
        self.memory.saturating_sub(held)
    }

    /// Asks the guest to have `memory` bytes, or all if that is more. False when it has no driver.
    pub fn ask(&self, memory: u64) -> bool {
        let pages = self.memory.saturating_sub(memory) / PAGE;
        self.target.store(u32::try_from(pages).unwrap_or(u32::MAX), Ordering::SeqCst);
        match self.interrupt.lock().unwrap_or_else(PoisonError::into_inner).upgrade() {
            Some(interrupt) => {
                interrupt.configuration_changed(|| self.config());
                true
            }
            None => false,
        }
    }
}

impl Device for Balloon {
    fn name(&self) -> &'static str {
        "virtio-balloon"
    }

    fn id(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn features(&self) -> u64 {
        let config::Balloon { deflate_on_oom, free_page_reporting } = self.options;
        u64::from(deflate_on_oom) << DEFLATE_ON_OOM
            | u64::from(free_page_reporting) << PAGE_REPORTING
    }

    fn queues(&self) -> Vec<u16> {
        match self.options.free_page_reporting {
            true => vec![128, 128, 128],
            false => vec![128, 128],
        }
    }

    fn config(&self) -> Vec<u8> {
        let [target, actual] = [&self.target, &self.actual].map(|n| n.load(Ordering::SeqCst));
        [target.to_le_bytes(), actual.to_le_bytes()].concat()
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        let (4, Ok(actual)) = (offset, <[u8; 4]>::try_from(data)) else { return };
        let actual = u32::from_le_bytes(actual);
        let before = self.actual.swap(actual, Ordering::SeqCst);
        if let Some(listener) = self.listener.get().filter(|_| before != actual) {
            listener(self.actual());
        }
    }

    fn start(&self, _: u64, interrupt: &Arc<Interrupt>) -> io::Result<Vec<Work>> {
        // A new driver begins with an empty balloon.
        self.actual.store(0, Ordering::SeqCst);
        let mut current = self.interrupt.lock().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::downgrade(interrupt);
        let queues = (0..self.queues().len()).collect();
        Ok(vec![Work { queues, server: Box::new(Taker) }])
    }

    /// The next driver reads the target when it begins; until then nobody is told of it.
    fn stop(&self) {
        *self.interrupt.lock().unwrap_or_else(PoisonError::into_inner) = Weak::new();
    }
}

/// Who takes the pages.
struct Taker;

impl Server for Taker {
    fn serve(&mut self, rings: &mut [Ring], wake: &Wake<'_>) -> Result<(), Broken> {
        for (number, ring) in rings.iter_mut().enumerate() {
            ring.drain(wake.memory(), |chain| {
                match number {
                    INFLATE if chain.readable.len() > NUMBERS_MAX => {
                        return Err("more page numbers than any guest has use for");
                    }
                    INFLATE => inflate(&chain.readable, wake.ram),
                    REPORT => report(&chain.writable, wake.ram),
                    // Deflated: the guest uses the pages again, and they come when they are
                    // touched.
                    _ => {}
                }
                Ok(0)
            })?;
        }
        Ok(())
    }
}

/// Gives the pages of these numbers back to the host. What is no page of the guest's is none of
/// ours.
fn inflate(numbers: &Buffers<'_>, ram: &GuestRam) {
    let mut rest = numbers.clone();
    let mut bytes = [0; BATCH * 4];
    while !rest.is_empty() {
        let count = rest.copy_to(&mut bytes);
        let (numbers, _) = bytes.get(..count).unwrap_or_default().as_chunks();
        let mut pages: Vec<u32> = numbers.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        pages.sort_unstable();
        for (first, pages) in runs(&pages) {
            ram.give_back(u64::from(first) * PAGE, pages * PAGE);
        }
        let Some((_, after)) = rest.split_at(count) else { break };
        rest = after;
    }
}

/// Pages that follow each other: the first, and how many. `pages` ascends.
fn runs(pages: &[u32]) -> impl Iterator<Item = (u32, u64)> + '_ {
    let follows = |a: &u32, b: &u32| a.abs_diff(*b) <= 1;
    pages.chunk_by(follows).filter_map(|run| {
        let (first, last) = (*run.first()?, *run.last()?);
        Some((first, u64::from(last - first) + 1))
    })
}

/// Gives these pieces of memory back to the host.
fn report(pieces: &Buffers<'_>, ram: &GuestRam) {
    for (address, length) in pieces.host_ranges() {
        ram.give_back_host(address, length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::driver::{BUFFER, Driver, WRITE};

    fn balloon() -> Arc<Balloon> {
        let options = config::Balloon { deflate_on_oom: false, free_page_reporting: true };
        Arc::new(Balloon::new(&options, crate::virtio::driver::RAM))
    }

    #[test]
    fn pages_that_follow_each_other_go_together() {
        let runs: Vec<_> = runs(&[1, 2, 2, 3, 7, 9, 10]).collect();
        assert_eq!(runs, [(1, 3), (7, 1), (9, 2)]);
    }

    #[test]
    fn pages_in_the_balloon_are_gone_and_others_stay() {
        let driver = Driver::ready(balloon(), 1 << PAGE_REPORTING);
        let page = |at: u64| {
            let mut bytes = [0; 2];
            driver.ram.read(at, &mut bytes).unwrap();
            bytes
        };
        for at in [0x18_0000, 0x18_1000, 0x18_2000, 0x19_0000] {
            driver.ram.write(at, &[1, 1]).unwrap();
        }
        // The last one is nowhere.
        let numbers: Vec<u8> =
            [0x182_u32, 0x180, u32::MAX].iter().flat_map(|page| page.to_le_bytes()).collect();
        driver.ram.write(BUFFER, &numbers).unwrap();
        driver.descriptor_of(0, 0, BUFFER, 12, 0, 0);
        driver.offer_next(0, 0);
        driver.used(0, 1);
        assert_eq!([page(0x18_0000), page(0x18_1000), page(0x18_2000)], [[0, 0], [1, 1], [0, 0]]);
        driver.descriptor_of(2, 0, 0x19_0000, 0x2000, WRITE, 0);
        driver.offer_next(2, 0);
        driver.used(2, 1);
        assert_eq!(page(0x19_0000), [0, 0]);
        // And they can be used again.
        driver.ram.write(0x18_0000, &[2, 2]).unwrap();
        driver.offer_next(1, 0);
        driver.used(1, 1);
        assert_eq!(page(0x18_0000), [2, 2]);
    }

    #[test]
    fn the_guest_is_asked_and_says_what_it_has() {
        let balloon = balloon();
        assert!(!balloon.ask(1 << 20), "there is no driver yet");
        let driver = Driver::ready(balloon.clone(), 0);
        assert!(balloon.ask(1 << 20));
        assert_eq!(driver.config(0), 256_u32.to_le_bytes());
        assert_eq!(driver.read(0x60), 2, "the configuration has changed");
        assert_ne!(driver.read(0xfc), 0, "and is another generation");
        let heard = Arc::new(std::sync::Mutex::new(Vec::new()));
        let ear = heard.clone();
        balloon.listen(Box::new(move |actual| ear.lock().unwrap().push(actual)));
        for actual in [256_u32, 256, u32::MAX] {
            crate::bus::Device::write(&driver.transport, 0x104, &actual.to_le_bytes());
        }
        assert_eq!(*heard.lock().unwrap(), [1 << 20, 0]);
        assert_eq!(balloon.actual(), 0);
        assert_eq!(driver.status(0), 0);
        assert!(!balloon.ask(2 << 20), "its driver has gone");
        assert_eq!(driver.read(0x60), 0, "and nobody is interrupted");
    }
}
