//! The table-loader script, over files of honest and of claimed sizes.

use std::sync::LazyLock;

use abi::fw_cfg::file;
use abi::table_loader::{COMMAND_SIZE, Command, Name, Zone};
use arbitrary::Arbitrary;

use crate::input::{Input, odd_size};
use crate::tables::name;
use crate::targets::{kernel, machine};

/// The files that scripts are about, and one that is not there.
const FILES: [&str; 6] = [
    file::ACPI_RSDP,
    file::ACPI_TABLES,
    "etc/tpm/log",
    "etc/vmgenid_guid",
    "etc/vmgenid_addr",
    "etc/absent",
];
/// Files with nothing in them that only fill the directory.
const FILLERS_MAX: u16 = 2048;

/// The files' bytes, less one, at the most.
const FILE_MAX: u16 = 0x2000;

/// Contents of which no two pieces are the same.
static CONTENTS: LazyLock<Vec<u8>> =
    LazyLock::new(|| (0..FILE_MAX).map(|at| (at ^ (at >> 7)).to_le_bytes()[0]).collect());

/// A command: what its fields mean depends on `kind`.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Compact {
    kind: u8,
    file: u8,
    other: u8,
    size: u8,
    offset: u16,
    start: u16,
    length: u16,
}

/// Boots with the script that the input describes.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut host = machine(&mut input);
    kernel(&mut host);
    let mut files = Vec::new();
    for _ in 0..FILES.len() - 1 {
        let (honest, choice) = (input.take::<u16>() % FILE_MAX, input.take::<u8>());
        let any = if choice & 0x80 != 0 { input.take() } else { 0x100 };
        let size = odd_size(choice, any, honest.into());
        let honest = usize::from(honest);
        let is_blank = choice & 0x40 != 0;
        let bytes = if is_blank { vec![0; honest] } else { CONTENTS[..honest].to_vec() };
        files.push((bytes, size));
    }
    // Many now and then only: they take long.
    let fillers: u16 = input.take();
    let fillers = if fillers & 0x8000 != 0 { fillers % FILLERS_MAX } else { fillers % 16 };
    let (choice, cut) = (input.take::<u8>(), input.take::<u32>());
    let mut script = Vec::new();
    while !input.is_empty() && script.len() < COMMAND_SIZE * usize::from(FILLERS_MAX) {
        command(&mut input, fillers, &mut script, &mut files);
    }
    for (name, (bytes, size)) in FILES.into_iter().zip(files) {
        host.file(name, bytes, size);
    }
    for index in 0..fillers {
        host.file(&filler(index), [], 0);
    }
    let size = odd_size(choice, cut, script.len() as u32);
    host.file(file::TABLE_LOADER, script, size);
    host.directory(0);
    host.boot();
}

fn filler(index: u16) -> String {
    format!("f{index}")
}

fn command(
    input: &mut Input<'_>,
    fillers: u16,
    script: &mut Vec<u8>,
    files: &mut [(Vec<u8>, u32)],
) {
    let compact: Compact = input.take();
    let Compact { kind, file, other, size, offset, start, length } = compact;
    let wide = |value: u16| odd_size(kind >> 4, input_word(start, length), value.into());
    let size = [1, 2, 4, 8, 8, 4, 3, 0][usize::from(size) % 8];
    let command = match kind & 15 {
        0..=3 => Command::Allocate {
            file: named(file),
            alignment: 1 << (start % 32),
            zone: if other & 1 == 0 { Zone::High } else { Zone::FSegment },
        },
        4..=6 => Command::AddPointer {
            destination: named(file),
            source: named(other),
            offset: wide(offset),
            size,
        },
        7..=9 => Command::AddChecksum {
            file: named(file),
            offset: offset.into(),
            start: start.into(),
            length: wide(length),
        },
        10 | 11 => Command::WritePointer {
            destination: named(file),
            source: named(other),
            offset: wide(offset),
            source_offset: start.into(),
            size,
        },
        12 if other & 1 != 0 => {
            // No command: bytes of a file.
            let count = files.len();
            let (bytes, _) = &mut files[usize::from(file) % count];
            let at = usize::from(offset);
            if let Some(target) = bytes.get_mut(at..at + 4) {
                target.copy_from_slice(&input_word(start, length).to_le_bytes());
            }
            return;
        }
        12 => Command::Unknown(input_word(start, length)),
        13 => {
            // All fillers from one to another.
            for index in start..fillers.min(start.saturating_add(length)) {
                let file = name(&filler(index));
                let zone = Zone::High;
                script.extend(Command::Allocate { file, alignment: 1, zone }.encode());
            }
            return;
        }
        14 => {
            // The command as such.
            let mut raw = [0; COMMAND_SIZE];
            let bytes = input.bytes();
            let length = bytes.len().min(COMMAND_SIZE);
            raw[..length].copy_from_slice(&bytes[..length]);
            script.extend(raw);
            return;
        }
        // The last command with some bytes changed.
        _ => {
            let at = script.len().saturating_sub(COMMAND_SIZE) + usize::from(offset) % COMMAND_SIZE;
            if let Some(target) = script.get_mut(at..at + 2) {
                target.copy_from_slice(&start.to_le_bytes());
            }
            return;
        }
    };
    script.extend(command.encode());
}

fn input_word(low: u16, high: u16) -> u32 {
    u32::from(low) | u32::from(high) << 16
}

fn named(choice: u8) -> Name {
    name(FILES[usize::from(choice) % FILES.len()])
}
