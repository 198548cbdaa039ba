//! An ELF kernel: its place, its entry, and the sizes beside it.

use abi::fw_cfg::{file, key};

use crate::input::{Input, odd_size};
use crate::targets::{kernel, machine};

/// Boots with the ELF kernel that the input describes.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut host = machine(&mut input);
    kernel(&mut host);
    if let Some(choice) = input.choose([None, None, None, Some("pvh"), Some("64")]) {
        host.file(file::ENTRY, choice, choice.len() as u32);
    }
    host.directory(0);
    for (item, honest) in [
        (key::KERNEL_ENTRY, 0x10_0100),
        (key::KERNEL_ADDR, 0x10_0000),
        (key::KERNEL_SIZE, 0x2000),
        (key::INITRD_SIZE, 0x777),
        (key::CMDLINE_SIZE, 14),
    ] {
        let choice = input.take::<u8>();
        let any = if choice & 0x80 != 0 { input.take() } else { 0x100 };
        host.number(item, odd_size(choice, any, honest));
    }
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    if input.take::<u8>() & 1 != 0 {
        image = input.rest().to_vec();
    } else {
        image.extend(input.rest());
    }
    host.item(key::SETUP_DATA, image);
    host.boot();
}
