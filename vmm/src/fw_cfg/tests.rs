//! The device against QEMU's specification, and against hostile descriptors.

use super::*;
use abi::fw_cfg::select_and;
use proptest::prelude::*;
use std::io::Write;

const RAM: u64 = 2 << 20;
const DESCRIPTOR: u64 = 0x1000;
const TARGET: u64 = 0x2000;

struct Guest {
    device: FwCfg,
    ram: Arc<GuestRam>,
    written: Arc<Mutex<Vec<u8>>>,
    _directory: tempfile::TempDir,
}

fn guest() -> Guest {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("big");
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(b"skipped").unwrap();
    file.write_all(&[7; 10_000]).unwrap();
    let image = Arc::new(Image::open("-kernel", &path).unwrap());
    let ram = Arc::new(GuestRam::new(RAM, None).unwrap());
    let mut items = Items::default();
    items.set_item(key::KERNEL_DATA, Item::Part { image: image.clone(), offset: 7 });
    items.set_u16(key::NB_CPUS, 3);
    items.set_u32(key::IRQ0_OVERRIDE, 1);
    items.add_file("opt/b", Item::Bytes(b"abc".into()));
    items.add_file("opt/a", Item::whole(image));
    items.add_file("opt/b", Item::Bytes(b"xyz".into()));
    let written = Arc::new(Mutex::new(vec![0; 4]));
    items.add_file("opt/c", Item::Writable(written.clone()));
    Guest { device: FwCfg::new(items, ram.clone()), ram, written, _directory: directory }
}

impl Guest {
    fn select(&self, key: u16) {
        assert_eq!(self.device.write(0, &key.to_le_bytes()), Action::None);
    }

    fn bytes(&self, count: usize) -> Vec<u8> {
        let byte = |_| {
            let mut byte = [0xff];
            self.device.read(1, &mut byte);
            byte[0]
        };
        (0..count).map(byte).collect()
    }

    fn dma(&self, control: u32, length: u32, address: u64) -> u32 {
        let access = DmaAccess { control, length, address };
        self.ram.write(DESCRIPTOR, &access.encode()).unwrap();
        self.device.write(8, &0x1000u32.to_be_bytes());
        let mut answer = [0; 4];
        self.ram.read(DESCRIPTOR, &mut answer).unwrap();
        u32::from_be_bytes(answer)
    }

    fn at(&self, address: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.ram.read(address, &mut bytes).unwrap();
        bytes
    }
}

#[test]
fn the_data_register_reads_on_and_then_zeroes() {
    let guest = guest();
    guest.select(key::SIGNATURE);
    assert_eq!(guest.bytes(6), b"QEMU\0\0");
    guest.select(key::SIGNATURE);
    assert_eq!(guest.bytes(1), b"Q", "a select goes back to the start");
    guest.select(key::ID);
    assert_eq!(guest.bytes(4), [3, 0, 0, 0]);
    guest.select(0x7777);
    assert_eq!(guest.bytes(2), [0, 0], "what is not there reads as zeroes");
    guest.select(key::NB_CPUS | 0x4000);
    assert_eq!(guest.bytes(2), [3, 0], "the write channel bit means nothing");
    guest.select(key::IRQ0_OVERRIDE);
    assert_eq!(guest.bytes(4), [1, 0, 0, 0]);
}

#[test]
fn the_data_register_reads_through_a_big_file() {
    let guest = guest();
    guest.select(key::KERNEL_DATA);
    let bytes = guest.bytes(10_002);
    assert!(bytes[..10_000].iter().all(|b| *b == 7));
    assert_eq!(bytes[10_000..], [0, 0]);
}

#[test]
fn the_directory_is_sorted_by_name() {
    let guest = guest();
    guest.select(key::FILE_DIR);
    let bytes = guest.bytes(4 + 3 * File::SIZE);
    assert_eq!(bytes[..4], [0, 0, 0, 4]);
    let (entries, _) = bytes[4..].as_chunks();
    let [first, second, third] = [0, 1, 2].map(|index| File::decode(&entries[index]));
    assert!(first.is_named(file::PREFETCH) && first.selector == 0x20);
    assert!(second.is_named("opt/a") && second.selector == 0x21 && second.size == 10_007);
    assert!(third.is_named("opt/b") && third.selector == 0x22 && third.size == 3);
    guest.select(0x22);
    assert_eq!(guest.bytes(3), b"xyz", "the later file of a name counts");
}

#[test]
fn the_address_register_says_that_there_is_dma() {
    let mut data = [0; 4];
    guest().device.read(4, &mut data);
    assert_eq!(&data, b"QEMU");
    guest().device.read(8, &mut data);
    assert_eq!(&data, b" CFG");
}

#[test]
fn a_dma_read_copies_and_zero_fills() {
    let guest = guest();
    guest.ram.write(TARGET, &[0xee; 16]).unwrap();
    assert_eq!(guest.dma(select_and(key::SIGNATURE, dma::READ), 8, TARGET), 0);
    assert_eq!(guest.at(TARGET, 10), b"QEMU\0\0\0\0\xee\xee");
    assert_eq!(guest.dma(dma::READ, 2, TARGET), 0, "past the end");
    assert_eq!(guest.at(TARGET, 3), b"\0\0M");
    assert_eq!(guest.dma(select_and(0x7777, dma::READ), 2, TARGET + 2), 0, "no such item");
    assert_eq!(guest.at(TARGET + 2, 2), [0, 0]);
}

#[test]
fn dma_goes_on_where_the_last_one_ended() {
    let guest = guest();
    assert_eq!(guest.dma(select_and(key::KERNEL_DATA, dma::SKIP), 9_998, 0), 0);
    assert_eq!(guest.dma(dma::READ, 4, TARGET), 0);
    assert_eq!(guest.at(TARGET, 4), [7, 7, 0, 0]);
    assert_eq!(guest.dma(select_and(key::SIGNATURE, 0), 3, 0), 0, "a mere select");
    assert_eq!(guest.bytes(2), b"QE", "the length of a mere select counts for nothing");
    assert_eq!(guest.dma(dma::READ | dma::SKIP | dma::WRITE, 2, TARGET), 0, "READ goes first");
    assert_eq!(guest.at(TARGET, 2), b"MU");
}

#[test]
fn what_cannot_be_is_an_error_and_changes_nothing() {
    let guest = guest();
    let signature = select_and(key::SIGNATURE, dma::READ);
    for (control, length, address) in [
        (signature, 4, RAM),
        (signature, 4, RAM - 3),
        (signature, u32::MAX, TARGET),
        (signature, 4, u64::MAX - 1),
        (select_and(key::SIGNATURE, dma::WRITE), 4, TARGET),
        (select_and(0x7777, dma::WRITE), 1, TARGET),
    ] {
        assert_eq!(guest.dma(control, length, address), dma::ERROR, "{control:#x} {length}");
        assert_eq!(guest.at(TARGET, 4), [0; 4]);
    }
    assert_eq!(guest.bytes(1), [0], "0x7777 is selected");
}

#[test]
fn only_a_writable_file_is_written_and_only_within_its_bytes() {
    let guest = guest();
    // The files in the order of their names: prefetch, a, b, c.
    let item = key::FILE_FIRST + 3;
    guest.ram.write(TARGET, b"wxyz").unwrap();
    assert_eq!(guest.dma(select_and(item, dma::WRITE), 5, TARGET), dma::ERROR);
    assert_eq!(guest.dma(select_and(item, dma::SKIP), 2, 0), 0);
    assert_eq!(guest.dma(dma::WRITE, 3, TARGET), dma::ERROR);
    assert_eq!(guest.dma(dma::WRITE, 2, TARGET), 0);
    assert_eq!(*guest.written.lock().unwrap(), b"\0\0wx");
    guest.select(item);
    assert_eq!(guest.bytes(5), b"\0\0wx\0");
    assert_eq!(guest.dma(select_and(item - 1, dma::WRITE), 1, TARGET), dma::ERROR);
}

#[test]
fn small_items_are_in_the_prefetch_file() {
    let mut items = Items::default();
    items.set_u32(key::KERNEL_SIZE, 7);
    items.set(key::SETUP_DATA, vec![1; 8192]);
    items.set(key::INITRD_DATA, vec![2; 5000]);
    items.add_file("opt/mine", Item::Bytes(b"not asked for".into()));
    items.add_file(file::E820, Item::Bytes(b"map".into()));
    let items = items.finish();
    let of = |key| items.iter().find(|(k, _)| *k == key).map(|(_, item)| item.clone()).unwrap();
    let Item::Bytes(bytes) = of(key::FILE_FIRST + 1) else { panic!("etc/e820 comes first") };
    let mut rest = bytes.as_slice();
    let records: Vec<_> = std::iter::from_fn(|| Record::take(&mut rest)).collect();
    let found = |key| records.iter().find(|r| r.selector == key).map(|r| r.bytes);
    assert_eq!(found(key::KERNEL_SIZE), Some(&[7, 0, 0, 0][..]));
    assert_eq!(found(key::SETUP_DATA), Some(&[1; HEADER_END][..]));
    assert_eq!(found(key::INITRD_DATA), None, "too big");
    assert_eq!(found(key::FILE_FIRST), Some(&b"map"[..]));
    assert_eq!(found(key::FILE_FIRST + 2), None, "nobody reads opt/mine");
    assert_eq!(rest, b"");
}

#[test]
fn the_high_half_is_cleared_after_each_operation() {
    let guest = guest();
    guest.device.write(4, &1u32.to_be_bytes());
    guest.device.write(8, &0u32.to_be_bytes());
    assert_eq!(guest.dma(select_and(key::SIGNATURE, dma::READ), 4, TARGET), 0);
    assert_eq!(guest.at(TARGET, 4), b"QEMU");
}

proptest! {
    #[test]
    fn no_descriptor_reaches_past_memory_or_makes_it_panic(
        steps in prop::collection::vec(
            (any::<u32>(), prop_oneof![0u32..0x40, any::<u32>()],
             prop_oneof![0u64..RAM + 64, any::<u64>()], 0u32..64), 1..20),
    ) {
        let guest = guest();
        for (control, length, address, key) in steps {
            // Mostly a plausible selector, mostly an operation.
            let control = control & 0x1f | key << 16;
            let answer = guest.dma(control, length, address);
            let in_ram = length == 0
                || address.checked_add(length.into()).is_some_and(|end| end <= RAM);
            if control & dma::READ != 0 {
                // The descriptor itself may be overwritten by what is read.
                let overwrites = address < DESCRIPTOR + 16
                    && address.saturating_add(length.into()) > DESCRIPTOR;
                let expected = if in_ram { 0 } else { dma::ERROR };
                prop_assert!(overwrites || answer == expected);
            }
            guest.bytes(2);
        }
    }

    #[test]
    fn no_access_makes_it_panic(
        accesses in prop::collection::vec(
            (0u64..14, prop::collection::vec(any::<u8>(), 0..9), any::<bool>()), 0..40),
    ) {
        let guest = guest();
        for (offset, mut data, write) in accesses {
            if write {
                guest.device.write(offset, &data);
            } else {
                guest.device.read(offset, &mut data);
            }
        }
    }
}
