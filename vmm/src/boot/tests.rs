//! What each way to boot puts into memory, and how it starts the CPU.

use super::*;
use crate::config::Config;
use abi::bytes::{get_u32, get_u64};
use abi::fw_cfg::{file, key};
use std::path::PathBuf;

const MIB: u64 = 1 << 20;

struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn add(&self, name: &str, bytes: &[u8]) -> Option<PathBuf> {
        let path = self.directory.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        Some(path)
    }
}

/// A bzImage of protocol 2.15 that runs where it is loaded, 16 MiB at best.
fn bzimage(xloadflags: u8) -> Vec<u8> {
    let mut image = vec![0; 5 * 512];
    for (at, value) in [
        (0x1f1, &[4][..]),
        (0x1fe, b"\x55\xaa"),
        (0x200, b"\xeb\x6aHdrS\x0f\x02"),
        (0x211, &[1]),
        (0x22c, &0x7fff_ffffu32.to_le_bytes()),
        (0x230, &0x20_0000u32.to_le_bytes()),
        (0x234, &[1, 21, xloadflags, 0]),
        (0x238, &2047u32.to_le_bytes()),
        (0x258, &0x100_0000u64.to_le_bytes()),
        (0x260, &0x100_0000u32.to_le_bytes()),
    ] {
        image[at..at + value.len()].copy_from_slice(value);
    }
    image.extend([0xcc; 1000]);
    image
}

/// An ELF file of one segment at 16 MiB with a PVH note.
fn elf() -> Vec<u8> {
    let mut image = vec![0; 0x1000];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 62, 0, 1, 0, 0, 0]);
    put(24, &0x100_0000u64.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(52, &[64, 0, 56, 0, 2, 0]);
    for (at, kind, offset, address, file_size, memory_size) in
        [(64, 1u32, 0x800u64, 0x100_0000u64, 0x400u64, 0x2000u64), (120, 4, 0x400, 0, 20, 20)]
    {
        put(at, &kind.to_le_bytes());
        put(at + 8, &offset.to_le_bytes());
        put(at + 24, &address.to_le_bytes());
        put(at + 32, &file_size.to_le_bytes());
        put(at + 40, &memory_size.to_le_bytes());
    }
    put(0x400, &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
    put(0x40c, b"Xen\0\x40\x00\x00\x01");
    put(0x800, &[0xee; 0x400]);
    image
}

fn prepared(config: &Config, memory: u64) -> Result<(InitState, Option<Items>, GuestRam), Error> {
    let bios_size = config.bios.as_ref().map(|path| path.metadata().unwrap().len());
    let ram = GuestRam::new(memory, bios_size)?;
    let (state, items) = prepared_in(&ram, config, memory)?;
    Ok((state, items, ram))
}

fn prepared_in(
    ram: &GuestRam,
    config: &Config,
    memory: u64,
) -> Result<(InitState, Option<Items>), Error> {
    let config = &Config { memory, ..config.clone() };
    let images = Images::open(config)?;
    let acpi = acpi::Tables::new(config);
    let source = Source { config, images: &images, acpi: config.acpi.then_some(&acpi) };
    prepare(&source, ram)
}

fn at<const N: usize>(ram: &GuestRam, address: u64) -> [u8; N] {
    let mut bytes = [0; N];
    ram.read(address, &mut bytes).unwrap();
    bytes
}

fn with_kernel(files: &Files, kernel: &[u8]) -> Config {
    Config {
        kernel: files.add("kernel", kernel),
        initrd: files.add("initrd", &[0xaa; 5000]),
        append: "console=ttyS0".into(),
        ..Config::default()
    }
}

#[test]
fn a_bzimage_is_entered_by_its_64_bit_entry() {
    let files = Files::new();
    let config = with_kernel(&files, &bzimage(3));
    let (state, items, ram) = prepared(&config, 128 * MIB).unwrap();
    assert!(items.is_none() && state.direct);
    assert_eq!((state.cpu.rip, state.cpu.rsi), (0x100_0200, layout::BOOT_PARAMS.start()));
    assert_eq!(state.cpu.cr3, layout::PAGE_TABLES.start());
    assert!(state.cpu.cs.bits_64);
    assert_eq!(at(&ram, 0x100_0000), [0xcc; 1000]);
    assert_eq!(at(&ram, 128 * MIB - 0x2000), [0xaa; 5000]);
    assert_eq!(&at(&ram, 0x2_0000), b"console=ttyS0\0");
    let page: [u8; 4096] = at(&ram, layout::BOOT_PARAMS.start());
    assert_eq!(get_u32(&page, 0x218), Some(0x7ff_e000));
    let rsdp = get_u64(&page, 0x070).unwrap();
    assert_eq!(&at(&ram, rsdp), b"RSD PTR ");
    assert_eq!(page[0x1e8], 5, "low RAM, EBDA, tables and BIOS, RAM, KVM's pages");
    assert_eq!(at(&ram, layout::GDT.start() + 16), 0x00af_9b00_0000_ffffu64.to_le_bytes());
}

#[test]
fn a_bzimage_without_that_entry_is_entered_in_protected_mode() {
    let files = Files::new();
    let (state, _, _) = prepared(&with_kernel(&files, &bzimage(0)), 128 * MIB).unwrap();
    assert_eq!((state.cpu.rip, state.cpu.cr0 & 1 << 31), (0x100_0000, 0));
}

#[test]
fn an_elf_kernel_is_entered_by_pvh() {
    let files = Files::new();
    let (state, _, ram) = prepared(&with_kernel(&files, &elf()), 128 * MIB).unwrap();
    assert_eq!((state.cpu.rip, state.cpu.rbx), (0x100_0040, layout::PVH_INFO.start()));
    assert_eq!(state.placed[0], ("kernel", Range::between(0x100_0000, 0x100_2000)));
    assert_eq!(at(&ram, 0x100_0000), [0xee; 0x400]);
    let info: [u8; 120] = at(&ram, layout::PVH_INFO.start());
    assert_eq!(get_u32(&info, 0), Some(abi::pvh::MAGIC));
    assert_eq!(get_u64(&info, 24), Some(0x2_0000));
    assert_eq!(get_u64(&info, 56), Some(128 * MIB - 0x2000), "the initrd");
    assert_eq!(&at(&ram, get_u64(&info, 32).unwrap()), b"RSD PTR ");
}

/// RAM keeps its contents over a reset, and a file may have had some before.
#[test]
fn what_ram_held_before_changes_nothing() {
    let files = Files::new();
    let bios = files.add("bios", &[0x90; 0x1_0000]);
    let linux = with_kernel(&files, &bzimage(3));
    let pvh = Config { kernel: files.add("vmlinux", &elf()), ..linux.clone() };
    let firmware = Config { bios, ..pvh.clone() };
    for config in [linux, pvh, firmware] {
        let bios_size = config.bios.as_ref().map(|_| 0x1_0000);
        let [clean, used] = [0, 0xa5].map(|byte| {
            let ram = GuestRam::new(32 * MIB, bios_size).unwrap();
            for page in 0..32 * MIB / 4096 {
                ram.write(page * 4096, &[byte; 4096]).unwrap();
            }
            let (state, _) = prepared_in(&ram, &config, 32 * MIB).unwrap();
            (state, ram)
        });
        assert_eq!(clean.0, used.0);
        let tables = [layout::BOOT_PARAMS, layout::PAGE_TABLES, layout::PVH_INFO, layout::GDT];
        let tables = tables.iter().filter(|range| at::<8>(&clean.1, range.start()) != [0; 8]);
        // A bzImage clears what it unpacks itself to.
        let placed = clean.0.placed.iter().filter(|(name, _)| *name != "kernel_run");
        let placed = placed.map(|(_, range)| range);
        for range in tables.chain(placed) {
            let bytes = |ram: &GuestRam| {
                let mut bytes = vec![0; usize::try_from(range.len()).unwrap()];
                ram.read(range.start(), &mut bytes).unwrap();
                bytes
            };
            assert!(bytes(&clean.1) == bytes(&used.1), "{range:?} of {config:?}");
        }
    }
}

#[test]
fn with_a_bios_the_kernel_is_in_fw_cfg() {
    let files = Files::new();
    let bios = files.add("bios", &[0x90; 0x1_0000]);
    let config = Config { bios, ..with_kernel(&files, &bzimage(3)) };
    let (state, items, ram) = prepared(&config, 128 * MIB).unwrap();
    assert_eq!((state.cpu, state.direct), (Cpu::RESET, false));
    assert_eq!(at(&ram, 0xf_0000), [0x90; 16]);
    // Our BIOS is going to want them there.
    assert_eq!(at(&ram, 0x100_0000), [0xcc; 16]);
    let initrd = files.directory.path().join("initrd");
    assert!(std::fs::read(initrd).unwrap().starts_with(&at::<16>(&ram, 0x7ff_e000)));
    let items = items.unwrap();
    let names: Vec<_> = items.files().iter().map(|(name, _)| name.as_str()).collect();
    for name in [file::E820, file::ACPI_RSDP, file::ACPI_TABLES, file::TABLE_LOADER] {
        assert!(names.contains(&name));
    }
    let number = |key| get_u32(&items.bytes(key).unwrap(), 0).unwrap();
    assert_eq!(number(key::KERNEL_ADDR), 0x10_0000);
    assert_eq!(number(key::KERNEL_SIZE), 1000);
    assert_eq!(number(key::SETUP_SIZE), 5 * 512);
    assert_eq!(number(key::INITRD_ADDR), 0x7ff_e000);
    assert_eq!(number(key::INITRD_SIZE), 5000);
    assert_eq!(number(key::CMDLINE_SIZE), 14);
    let setup = items.bytes(key::SETUP_DATA).unwrap();
    assert_eq!((setup[0x210], setup[0x211]), (0xb0, 0x81));
    assert_eq!(get_u32(&setup, 0x228), Some(0x2_0000));
    assert_eq!(get_u32(&setup, 0x218), Some(0x7ff_e000));
    assert_eq!(items.bytes(key::KERNEL_DATA).unwrap(), [0xcc; 1000]);
}

#[test]
fn with_a_bios_an_elf_kernel_is_in_memory() {
    let files = Files::new();
    let bios = files.add("bios", &[0x90; 0x1_0000]);
    let config = Config { bios, ..with_kernel(&files, &elf()) };
    let (_, items, ram) = prepared(&config, 128 * MIB).unwrap();
    let items = items.unwrap();
    let number = |key| get_u32(&items.bytes(key).unwrap(), 0);
    assert_eq!(number(key::KERNEL_ENTRY), Some(0x100_0040));
    assert_eq!(number(key::KERNEL_ADDR), Some(0x100_0000));
    assert_eq!(number(key::KERNEL_SIZE), Some(0x2000));
    assert_eq!(number(key::SETUP_SIZE), Some(0x1000));
    assert!(items.bytes(key::SETUP_DATA).unwrap().starts_with(b"\x7fELF"));
    assert!(items.bytes(key::CMDLINE_ADDR).is_none() && items.bytes(key::SETUP_ADDR).is_none());
    assert_eq!(at(&ram, 0x100_0000), [0xee; 0x400]);
}

#[test]
fn what_does_not_fit_is_one_line() {
    let files = Files::new();
    let line = |config: &Config, memory| {
        let text = prepared(config, memory).map(|_| ()).unwrap_err().to_string();
        text.replace(files.directory.path().to_str().unwrap(), "DIR")
    };
    let config = with_kernel(&files, &bzimage(3));
    assert_eq!(
        line(&config, 16 * MIB),
        "-kernel 'DIR/kernel': the kernel needs 16 MiB at 0x1000000, so at least 32 MiB of \
         memory; there are 16; give more by -m"
    );
    let long = Config { append: "x".repeat(3000), ..config.clone() };
    let expected = "the command line has 3000 bytes, the kernel takes 2047; shorten it";
    assert!(line(&long, 64 * MIB).ends_with(expected));
    let big = Config { initrd: files.add("initrd", &[0; 20 << 20]), ..config };
    assert!(line(&big, 33 * MIB).starts_with("-initrd 'DIR/initrd': no room for the initrd"));
    let elf = with_kernel(&files, &elf());
    assert!(line(&elf, 16 * MIB).contains("give it at least 17 MiB by -m"));
    let mut no_note = super::tests::elf();
    no_note[0x408] = 1;
    assert!(line(&with_kernel(&files, &no_note), 64 * MIB).contains("it has no PVH entry note"));
}

#[test]
fn the_map_is_what_the_firmware_makes_of_its_file() {
    let map = memory_map(5120 * MIB).unwrap();
    let ranges: Vec<_> = map.entries().iter().map(|e| (e.range.start(), e.kind)).collect();
    assert_eq!(
        ranges,
        [
            (0, kind::RAM),
            (layout::EBDA.start(), kind::RESERVED),
            (layout::ACPI_TABLES.start(), kind::RESERVED),
            (layout::HIGH_RAM_START, kind::RAM),
            (layout::KVM_IDENTITY_MAP, kind::RESERVED),
            (layout::FOUR_GIB, kind::RAM),
        ]
    );
    assert_eq!(map.ram_bytes(), 5120 * MIB - layout::LEGACY_HOLE.len() - layout::EBDA.len());
}
