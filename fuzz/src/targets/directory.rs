//! The file directory: any count, names, sizes; and what smaller files say.

use abi::fw_cfg::{FILE_NAME_SIZE, File, file, key};

use crate::host::Host;
use crate::input::{Input, odd_size};
use crate::targets::{kernel, machine};

/// Names that the firmware looks for, and one that it does not.
const NAMES: [&str; 14] = [
    file::E820,
    file::TABLE_LOADER,
    file::ACPI_RSDP,
    file::ACPI_TABLES,
    file::SMBIOS_ANCHOR,
    file::SMBIOS_TABLES,
    file::RESERVED_MEMORY_END,
    file::ENTRY,
    "opt/filler",
    file::PREFETCH,
    file::BOOT_TRACE,
    file::VERBOSE,
    file::FEATURE_CONTROL,
    file::PVPANIC_PORT,
];

/// Boots with the files that the input describes.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut host = machine(&mut input);
    kernel(&mut host);
    let [mode, off] = input.take::<[u8; 2]>();
    match mode % 4 {
        // The item as such, its size the input's.
        0 => host.item(key::FILE_DIR, input.rest()),
        // As many entries as one says, the first of them real.
        1 => {
            let filler: u16 = input.take();
            files(&mut host, &mut input);
            for index in 0..filler % 10_240 {
                let size = u32::from(index) << (index % 32);
                let name = format!("opt/filler/{index}");
                host.entry(File::new(&name, index, size).expect("a name of ours"));
            }
            host.directory(0);
        }
        _ => {
            files(&mut host, &mut input);
            // Counts that are right mostly, off by a few, or far off.
            host.directory(match off {
                ..0xe0 => 0,
                0xe0..0xf0 => u32::from(off & 7).wrapping_sub(4),
                0xf0..0xf8 => input.take::<u16>().into(),
                _ => input.take(),
            });
        }
    }
    host.boot();
}

fn files(host: &mut Host, input: &mut Input<'_>) {
    for _ in 0..64 {
        if input.is_empty() {
            return;
        }
        let [name, size] = input.take::<[u8; 2]>();
        if name == 0xff {
            return;
        }
        let any = if size & 0x80 != 0 { input.take() } else { 0 };
        let contents = input.bytes();
        let size = odd_size(size, any, contents.len() as u32);
        if name & 0xc0 == 0xc0 {
            // A name of the input's own, and any item: those of the kernel, the directory itself.
            let mut own = [0; FILE_NAME_SIZE];
            let length = contents.len().min(FILE_NAME_SIZE);
            own[..length].copy_from_slice(&contents[..length]);
            let selector = u16::from(name & 0x3f);
            host.entry(File { size, selector, name: own });
        } else {
            host.file(NAMES[usize::from(name) % NAMES.len()], contents, size);
        }
    }
}
