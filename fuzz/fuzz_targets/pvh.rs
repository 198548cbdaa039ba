//! An ELF kernel: its place, its entry, and the sizes beside it.
#![no_main]

use abi::fw_cfg::key;
use libfuzzer_sys::fuzz_target;
use microvm_fuzz::Host;

fuzz_target!(|input: [u32; 5]| {
    let [entry, start, size, initrd, command_line] = input;
    let mut host = Host::default();
    host.item(key::SETUP_DATA, *b"\x7fELF\x02");
    for (item, value) in [
        (key::KERNEL_ENTRY, entry),
        (key::KERNEL_ADDR, start),
        (key::KERNEL_SIZE, size),
        (key::INITRD_SIZE, initrd),
        (key::CMDLINE_SIZE, command_line),
    ] {
        host.item(item, value.to_le_bytes());
    }
    host.boot();
});
