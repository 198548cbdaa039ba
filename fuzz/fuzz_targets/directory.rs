//! The file directory: any count, any names, any sizes.
#![no_main]

use abi::fw_cfg::key;
use libfuzzer_sys::fuzz_target;
use microvm_fuzz::Host;

fuzz_target!(|input: (Vec<u8>, Option<u8>)| {
    let (bytes, fail_at) = input;
    let mut host = Host::default();
    host.fail_at = fail_at.map(usize::from);
    host.kernel();
    host.item(key::FILE_DIR, bytes);
    host.boot();
});
