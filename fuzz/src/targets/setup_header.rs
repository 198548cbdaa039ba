//! The setup header and the sizes beside it, by every entry.

use abi::fw_cfg::{file, key};

use crate::input::{Input, odd_size};
use crate::targets::{kernel, machine, setup};

/// Boots with the kernel that the input describes.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut host = machine(&mut input);
    kernel(&mut host);
    if let Some(choice) =
        input.choose([None, None, Some("16"), Some("32"), Some("64\n"), Some("pvh")])
    {
        host.file(file::ENTRY, choice, choice.len() as u32);
    }
    host.directory(0);
    for (item, honest) in
        [(key::KERNEL_SIZE, 0x1400), (key::INITRD_SIZE, 0x777), (key::CMDLINE_SIZE, 14)]
    {
        let choice = input.take::<u8>();
        let any = if choice & 0x80 != 0 { input.take() } else { 0x100 };
        host.number(item, odd_size(choice, any, honest));
    }
    if let Some(value) = input.choose([None, None, None, Some(0), Some(u16::MAX)]) {
        host.item(key::NB_CPUS, value.to_le_bytes());
        host.number(key::IRQ0_OVERRIDE, value.into());
    }
    let image = match input.take::<u8>() % 4 {
        // The item as such.
        0 => input.rest().to_vec(),
        // The same, with the marks that make a header of it.
        1 => {
            let mut image = input.rest().to_vec();
            for (at, mark) in [(0x1fe, &b"\x55\xaa"[..]), (0x202, b"HdrS")] {
                if let Some(target) = image.get_mut(at..at + mark.len()) {
                    target.copy_from_slice(mark);
                }
            }
            image
        }
        // A good one with some fields changed, and cut off.
        _ => {
            let mut image = setup();
            image.truncate(1024 - usize::from(input.take::<u8>()) * 4);
            while !input.is_empty() {
                // Fields begin at 0x1f1.
                let at = 0x1f0 + usize::from(input.take::<u8>());
                let value: u32 = input.take();
                if let Some(target) = image.get_mut(at..at + 4) {
                    target.copy_from_slice(&value.to_le_bytes());
                }
            }
            image
        }
    };
    host.item(key::SETUP_DATA, image);
    host.boot();
}
