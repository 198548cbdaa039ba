//! The fw_cfg device: its registers, and descriptors of its DMA anywhere in memory.

use std::sync::{Arc, Mutex};

use abi::fw_cfg::file;
use arbitrary::Arbitrary;
use vmm::bus::Device as _;
use vmm::fw_cfg::{FwCfg, Item, Items};

use crate::guest;
use crate::input::Input;

/// Accesses of one input.
const ACCESSES_MAX: usize = 100;
/// Where the descriptor is, unless the input says otherwise.
const DESCRIPTOR: u64 = 0x1000;
/// Bytes of the file that the guest may write.
const WRITABLE: usize = 32;

/// An access: what it does, with what.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Access {
    kind: u8,
    control: u8,
    key: u16,
    length: u16,
    address: u16,
}

/// Uses the device as the input says.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    guest::with_devices(|devices| {
        let writable = Arc::new(Mutex::new(vec![0; WRITABLE]));
        let mut items = Items::default();
        items.set_u32(3, 7);
        items.set(5, input.bytes());
        items.add_file("opt/a", Item::Bytes(input.bytes().to_vec()));
        items.add_file(file::BOOT_TRACE, Item::Writable(writable.clone()));
        let device = FwCfg::new(items, devices.ram.clone());
        for access in input.list::<Access>().take(ACCESSES_MAX) {
            act(&device, devices, access);
        }
        assert_eq!(writable.lock().expect("no panic before").len(), WRITABLE);
    });
}

fn act(device: &FwCfg, devices: &guest::Devices, access: Access) {
    let Access { kind, control, key, length, address } = access;
    // Items that are there, mostly.
    let key = [0, 1, 3, 5, 0x19, 0x20, 0x21, key][usize::from(kind & 7)];
    let low = u64::from(address) << 4;
    let (address, length) = match kind >> 6 {
        3 => (u64::from(address) << 48 | low, u32::from(length) << 16 | 0xffff),
        2 => (guest::RAM - low % 4096, u32::from(length)),
        _ => (low, u32::from(length)),
    };
    match kind >> 3 & 3 {
        0 => drop(device.write(0, &key.to_le_bytes())),
        1 => {
            for _ in 0..length % 64 {
                device.read(1, &mut [0]);
            }
        }
        _ => {
            let control = u32::from(key) << 16 | u32::from(control & 0x1f);
            let mut bytes = control.to_be_bytes().to_vec();
            bytes.extend(length.to_be_bytes());
            bytes.extend(address.to_be_bytes());
            devices.ram.write(DESCRIPTOR, &bytes).expect("memory");
            // Somewhere else there is no descriptor, or no memory.
            let at = if control & 0x40_0000 == 0 { DESCRIPTOR } else { address };
            device.write(4, &((at >> 32) as u32).to_be_bytes());
            device.write(8, &(at as u32).to_be_bytes());
        }
    }
}
