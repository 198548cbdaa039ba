//! The setup header and the sizes beside it, by every entry.
#![no_main]

use abi::fw_cfg::{file, key};
use libfuzzer_sys::fuzz_target;
use microvm_fuzz::Host;

fuzz_target!(|input: (Vec<u8>, [u32; 3], u8, bool)| {
    let (mut image, [kernel, initrd, command_line], entry, patched) = input;
    if patched && image.len() > 0x206 {
        image[0x1fe..0x200].copy_from_slice(b"\x55\xaa");
        image[0x202..0x206].copy_from_slice(b"HdrS");
    }
    let mut host = Host::default();
    host.item(key::SETUP_DATA, image);
    host.item(key::KERNEL_SIZE, kernel.to_le_bytes());
    host.item(key::INITRD_SIZE, initrd.to_le_bytes());
    host.item(key::CMDLINE_SIZE, command_line.to_le_bytes());
    let choice = ["", "16", "32", "64", "pvh"][usize::from(entry) % 5];
    if !choice.is_empty() {
        host.file(file::ENTRY, choice, choice.len() as u32);
    }
    host.boot();
});
