//! What a guest reads of the transports: memory, so that a read is no exit.
//!
//! Reading a register has no effect (section 4.2.2), so all slots' registers are kept in memory
//! that KVM maps into the guest for reading (`KVM_MEM_READONLY`). Writes leave the guest as those
//! to any register do. In a machine without virtio devices, reads do so too, and find empty slots.

use std::array;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use abi::layout;
use abi::range::Range;
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_MAGIC_VALUE, VIRTIO_MMIO_VERSION,
};

use super::slots;
use crate::bus::{Action, Device};
use crate::memory::Slot;

/// "virt".
const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
/// Bytes of a register.
const WIDTH: usize = 4;
/// Registers of a slot, its device's configuration included.
const OF_SLOT: usize = 128;
/// The first register of the configuration.
const CONFIG: usize = VIRTIO_MMIO_CONFIG as usize / WIDTH;
/// Registers of all slots, which are a page.
const OF_PAGE: usize = OF_SLOT * slots::COUNT as usize;

const _: () = assert!((OF_SLOT * WIDTH) as u64 == layout::VIRTIO_MMIO_STRIDE);
const _: () = assert!((OF_PAGE * WIDTH) as u64 == layout::PAGE);
const _: () = assert!(layout::VIRTIO_MMIO.is_multiple_of(layout::PAGE));

/// The registers of all slots.
#[derive(Debug)]
pub struct Page(Box<Words>);

#[derive(Debug)]
#[repr(C, align(4096))]
struct Words([AtomicU32; OF_PAGE]);

impl Default for Page {
    /// Every slot says that it has no device: its identifier is zero.
    fn default() -> Self {
        let word = |index| match u32::try_from(index % OF_SLOT * WIDTH) {
            Ok(VIRTIO_MMIO_MAGIC_VALUE) => MAGIC,
            Ok(VIRTIO_MMIO_VERSION) => VERSION,
            _ => 0,
        };
        Self(Box::new(Words(array::from_fn(|index| word(index).into()))))
    }
}

impl Page {
    /// Where it is in the guest and in this process.
    pub fn place(&self) -> Slot {
        let guest = Range::between(layout::VIRTIO_MMIO, layout::VIRTIO_MMIO + layout::PAGE);
        Slot { guest, host: (&raw const *self.0) as u64 }
    }

    /// Those of the slot `number`.
    pub fn slot(self: &Arc<Self>, number: u32) -> Registers {
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        Registers {
            page: self.clone(),
            first: number.saturating_mul(OF_SLOT),
            config: Mutex::new(()),
        }
    }
}

/// For a guest that does not have it as memory: all its slots are empty.
impl Device for Page {
    fn name(&self) -> &'static str {
        "virtio-mmio"
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            let word = usize::try_from(at).ok().and_then(|at| self.0.0.get(at / WIDTH));
            let word = word.map_or(0, |word| word.load(Ordering::SeqCst));
            *byte = byte_of(word, at);
        }
    }

    fn write(&self, _: u64, _: &[u8]) -> Action {
        Action::None
    }
}

/// The byte of a register that is at this offset.
fn byte_of(word: u32, at: u64) -> u8 {
    word.to_le_bytes()[usize::try_from(at % 4).unwrap_or(0)]
}

/// The registers of a slot. A guest sees each change at once.
#[derive(Debug)]
pub struct Registers {
    page: Arc<Page>,
    first: usize,
    // Whoever changes the configuration.
    config: Mutex<()>,
}

impl Registers {
    /// Registers that no guest sees.
    pub fn unseen() -> Self {
        Arc::new(Page::default()).slot(0)
    }

    fn words(&self) -> &[AtomicU32] {
        self.page.0.0.get(self.first..).and_then(|words| words.get(..OF_SLOT)).unwrap_or_default()
    }

    fn word(&self, register: u32) -> Option<&AtomicU32> {
        self.words().get(usize::try_from(register).ok()? / WIDTH)
    }

    /// What a guest reads in the register at this offset.
    pub fn get(&self, register: u32) -> u32 {
        self.word(register).map_or(0, |word| word.load(Ordering::SeqCst))
    }

    /// A guest reads `value` there from now on.
    pub fn set(&self, register: u32, value: u32) {
        if let Some(word) = self.word(register) {
            word.store(value, Ordering::SeqCst);
        }
    }

    /// It reads these bits, too.
    pub fn add(&self, register: u32, bits: u32) {
        if let Some(word) = self.word(register) {
            word.fetch_or(bits, Ordering::SeqCst);
        }
    }

    /// The device's configuration is what `config` says. Its generation changes before and after:
    /// who reads some of it old and some new finds that the generation is another one.
    pub fn set_config(&self, config: impl FnOnce() -> Vec<u8>) {
        let _changes = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let config = config();
        let mut bytes = config.chunks(WIDTH).map(|chunk| {
            let mut bytes = [0; WIDTH];
            bytes.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
            u32::from_le_bytes(bytes)
        });
        let words = self.words().get(CONFIG..).unwrap_or_default();
        let changed: Vec<_> = words
            .iter()
            .map(|word| (word, bytes.next().unwrap_or(0)))
            .filter(|(word, value)| word.load(Ordering::SeqCst) != *value)
            .collect();
        if changed.is_empty() {
            return;
        }
        self.next_generation();
        changed.iter().for_each(|(word, value)| word.store(*value, Ordering::SeqCst));
        self.next_generation();
    }

    fn next_generation(&self) {
        if let Some(word) = self.word(VIRTIO_MMIO_CONFIG_GENERATION) {
            word.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// What a guest reads at any offset, in any width.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            let word = u32::try_from(at).map_or(0, |register| self.get(register));
            *byte = byte_of(word, at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_slot_has_no_device() {
        let page = Arc::new(Page::default());
        for number in 0..slots::COUNT {
            let slot = page.slot(number);
            assert_eq!([0, 4, 8, 0x70].map(|at| slot.get(at)), [0x7472_6976, 2, 0, 0], "{number}");
        }
        assert_eq!(page.place().host % layout::PAGE, 0);
        // On a bus, it says the same.
        let mut data = [0xff; 8];
        page.read(7 * 0x200 + 2, &mut data);
        assert_eq!(data, *b"rt\x02\0\0\0\0\0");
        page.read(0xffc, &mut data);
        assert_eq!(data, [0; 8]);
    }

    #[test]
    fn slots_keep_to_themselves() {
        let page = Arc::new(Page::default());
        let [low, high] = [0, 1].map(|number| page.slot(number));
        low.set_config(|| vec![0xff; 0x400]);
        low.set(0x200, 7);
        assert_eq!(high.get(0), MAGIC);
        assert_eq!(low.get(0x1fc), u32::MAX);
        assert_eq!(low.get(0x200), 0);
        let beyond = page.slot(slots::COUNT);
        beyond.set(0, 7);
        assert_eq!(beyond.get(0), 0);
    }

    #[test]
    fn a_changed_configuration_has_another_generation() {
        let slot = Registers::unseen();
        let read = |offset, width: usize| {
            let mut data = [0xff; 8];
            slot.read(offset, &mut data[..width]);
            data
        };
        slot.set_config(|| vec![1, 2, 3, 4, 5]);
        let before = slot.get(0xfc);
        assert_eq!(read(0x101, 8), [2, 3, 4, 5, 0, 0, 0, 0]);
        assert_eq!(read(0x1fe, 4)[..4], [0; 4]);
        slot.set_config(|| vec![1, 2, 3, 4, 5]);
        assert_eq!(slot.get(0xfc), before, "it is the same one");
        slot.set_config(|| vec![1]);
        assert_ne!(slot.get(0xfc), before);
        assert_eq!(read(0x100, 8), [1, 0, 0, 0, 0, 0, 0, 0]);
    }
}
