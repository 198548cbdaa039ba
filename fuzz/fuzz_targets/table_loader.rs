//! The table-loader script, over files of honest and of claimed sizes.
#![no_main]

use abi::fw_cfg::file;
use libfuzzer_sys::fuzz_target;
use microvm_fuzz::Host;

fuzz_target!(|input: (Vec<u8>, u16, u32)| {
    let (script, honest, claimed) = input;
    let mut host = Host::default();
    host.kernel();
    host.file(file::ACPI_TABLES, vec![7; honest.into()], honest.into());
    host.file(file::ACPI_RSDP, vec![9; 36], claimed);
    let size = script.len() as u32;
    host.file(file::TABLE_LOADER, script, size);
    host.boot();
});
