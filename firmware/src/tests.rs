//! The boot path against a model of the host: good hosts, odd hosts, hostile hosts.

use abi::bytes::{get_u32, get_u64, put};
use abi::fw_cfg::{File, Placed, Record, file, key};
use abi::linux::{self, Entry};
use abi::range::Range;
use abi::table_loader::{self, Command, Name, Zone};
use abi::{layout, placement, post};
use proptest::prelude::*;

use crate::boot::boot;
use crate::error::{Error, TableError};
use crate::fw_cfg::FwCfg;
use crate::kernel::Launch;
use crate::machine::Msr;
use crate::model::{Flavour, Model};

mod explain;

const MIB: u64 = 1 << 20;

/// A setup header of protocol 2.12: relocatable, prefers 16 MiB, needs 4 MiB there.
fn setup() -> Vec<u8> {
    let mut image = vec![0; 1024];
    for (at, value) in [
        (0x1f1, &b"\x01"[..]),
        (0x1fe, b"\x55\xaa\xeb\x66HdrS\x0c\x02"),
        (0x211, b"\x01"),
        (0x22c, &0x7fff_ffffu32.to_le_bytes()),
        (0x230, &0x20_0000u32.to_le_bytes()),
        (0x234, b"\x01\x15\x01\x00"),
        (0x238, &2047u32.to_le_bytes()),
        (0x258, &0x100_0000u64.to_le_bytes()),
        (0x260, &0x40_0000u32.to_le_bytes()),
    ] {
        put(&mut image, at, value).unwrap();
    }
    image
}

fn word(value: usize) -> Vec<u8> {
    u32::try_from(value).unwrap().to_le_bytes().to_vec()
}

fn machine(flavour: Flavour) -> Model {
    let mut model = Model::new(flavour, 32 * MIB);
    let kernel: Vec<u8> = (0..70_001u32).map(|i| i.to_le_bytes()[0] ^ 0x5a).collect();
    let initrd: Vec<u8> = (0..5_555u32).map(|i| i.to_le_bytes()[0]).collect();
    let command_line = b"console=ttyS0\0".to_vec();
    for (item, data, size) in [
        (key::SETUP_DATA, setup(), key::SETUP_SIZE),
        (key::KERNEL_DATA, kernel, key::KERNEL_SIZE),
        (key::INITRD_DATA, initrd, key::INITRD_SIZE),
        (key::CMDLINE_DATA, command_line, key::CMDLINE_SIZE),
    ] {
        model.items.insert(size, word(data.len()));
        model.items.insert(item, data);
    }
    model
}

fn protocol(launch: Launch) -> (Entry, u64) {
    match launch {
        Launch::Linux { protocol, entry, .. } => (protocol, entry),
        Launch::Pvh { .. } => panic!("a bzImage is entered by the Linux protocol"),
    }
}

fn check_loaded(model: &mut Model, launch: Launch) {
    assert!(matches!(launch, Launch::Linux { boot_params: 0x7000, .. }));
    let page = model.ram(layout::BOOT_PARAMS).to_vec();
    let kernel = Range::new(16 * MIB, 70_001).unwrap();
    assert_eq!(model.ram(kernel), model.items[&key::KERNEL_DATA]);
    let initrd = Range::new(get_u32(&page, 0x218).unwrap().into(), 5_555).unwrap();
    assert_eq!(get_u32(&page, 0x21c), Some(5_555));
    assert_eq!(model.ram(initrd), model.items[&key::INITRD_DATA]);
    assert_eq!(initrd.start() % 4096, 0);
    let command_line = Range::new(get_u32(&page, 0x228).unwrap().into(), 14).unwrap();
    assert_eq!(model.ram(command_line), b"console=ttyS0\0");
    assert_eq!(model.posts, [post::FIRMWARE_START, post::LOAD_KERNEL, post::KERNEL_ENTRY]);
}

#[test]
fn boots_on_every_kind_of_host() {
    for flavour in [Flavour::Qemu, Flavour::NoSelect, Flavour::Silent, Flavour::Ports] {
        let mut model = machine(flavour);
        let launch = boot(&mut model).unwrap_or_else(|e| panic!("{flavour:?}: {e}"));
        assert_eq!(protocol(launch), (Entry::Bits64, 16 * MIB + 0x200));
        check_loaded(&mut model, launch);
    }
}

#[test]
fn on_qemu_every_item_costs_one_exit() {
    let mut model = machine(Flavour::Qemu);
    boot(&mut model).unwrap();
    // Detection, directory, e820, two scalars for the MP table, setup header, three sizes, three
    // loads, three POST codes.
    assert_eq!(model.exits, 15);
}

/// A machine whose host says that kernel and initrd are in memory already.
fn with_placed(kernel: Range, initrd: Range) -> Model {
    let mut model = machine(Flavour::Qemu);
    let placed = [(key::KERNEL_DATA, kernel), (key::INITRD_DATA, initrd)];
    let placed = placed.map(|(selector, range)| Placed { selector, range }.encode()).concat();
    let header = Record::header(Placed::RECORD, placed.len()).unwrap();
    model.file(file::PREFETCH, [&header[..], &placed].concat());
    model
}

#[test]
fn what_the_host_has_placed_right_is_not_loaded_again() {
    let kernel = Range::new(16 * MIB, 70_001).unwrap();
    let initrd = Range::new(32 * MIB - 8192, 5_555).unwrap();
    let mut model = with_placed(kernel, initrd);
    boot(&mut model).unwrap();
    // The model's host has not: what was in memory is still there.
    for range in [kernel, initrd] {
        assert!(model.ram(range).iter().all(|byte| *byte == 0xa5), "{range:?}");
    }
    let near = |range: Range, by: u64, longer: u64| {
        Range::new(range.start().wrapping_add(by), range.len() + longer).unwrap()
    };
    for (kernel, initrd) in [
        (near(kernel, 1, 0), near(initrd, 4096, 0)),
        (near(kernel, 0, 1), near(initrd, 0, 1)),
        (Range::between(0, 0), Range::between(0, 0)),
        (initrd, kernel),
    ] {
        let mut model = with_placed(kernel, initrd);
        let launch = boot(&mut model).unwrap();
        check_loaded(&mut model, launch);
    }
}

fn stopped(model: &mut Model) -> Error {
    boot(model).unwrap_err()
}

#[test]
fn a_machine_without_fw_cfg_is_named() {
    assert_eq!(stopped(&mut machine(Flavour::Absent)), Error::NoFwCfg);
}

/// Without DMA the firmware copies by itself, and it maps the first GiB.
#[test]
fn without_dma_what_goes_above_the_map_is_refused() {
    let mut model = machine(Flavour::Ports);
    let mut fw_cfg = FwCfg::probe(&mut model).unwrap();
    let above = Range::new(layout::IDENTITY_MAPPED - 1, 2).unwrap();
    assert_eq!(fw_cfg.load(key::INITRD_DATA, above), Err(Error::NeedsDma(key::INITRD_DATA)));
}

#[test]
fn a_failing_transfer_names_its_item() {
    for item in [key::FILE_DIR, key::SETUP_DATA, key::KERNEL_DATA, key::INITRD_DATA] {
        let mut model = machine(Flavour::Qemu);
        model.broken.push(item);
        assert_eq!(stopped(&mut model), Error::Dma(item));
    }
}

#[test]
fn directories_of_any_length_are_read_or_refused() {
    let mut model = machine(Flavour::Qemu);
    for i in 0..100 {
        model.file(&format!("opt/filler/{i}"), vec![i]);
    }
    assert!(FwCfg::probe(&mut model).unwrap().find("opt/filler/99").is_some());
    model.directory(0);
    assert_eq!(stopped(&mut model), Error::NoE820);
    model.directory(10_000);
    assert_eq!(stopped(&mut model), Error::Directory(10_000));
}

#[test]
fn no_kernel_is_said_so() {
    let mut model = machine(Flavour::Qemu);
    model.items.remove(&key::SETUP_DATA);
    assert_eq!(stopped(&mut model), Error::NoKernel);
    model.items.insert(key::KERNEL_ENTRY, 0x10_0020u32.to_le_bytes().to_vec());
    assert_eq!(stopped(&mut model), Error::Multiboot);
}

/// A machine whose host has put an ELF kernel of 1 MiB at 16 MiB.
fn elf(entry: u32, start: u32, size: u32) -> Model {
    let mut model = machine(Flavour::Qemu);
    model.items.insert(key::SETUP_DATA, b"\x7fELF\x02\x01\x01".to_vec());
    for (item, value) in
        [(key::KERNEL_ENTRY, entry), (key::KERNEL_ADDR, start), (key::KERNEL_SIZE, size)]
    {
        model.items.insert(item, value.to_le_bytes().to_vec());
    }
    model
}

#[test]
fn an_elf_kernel_gets_a_start_info() {
    let mut model = elf(0x100_0850, 0x100_0000, 0x10_0000);
    let launch = boot(&mut model).unwrap();
    assert_eq!(launch, Launch::Pvh { entry: 0x100_0850, start_info: 0x6000 });
    let info = model.ram(layout::PVH_INFO).to_vec();
    assert_eq!(get_u32(&info, 0), Some(abi::pvh::MAGIC));
    let module = usize::try_from(get_u64(&info, 16).unwrap() - 0x6000).unwrap();
    let initrd = Range::new(get_u64(&info, module).unwrap(), 5_555).unwrap();
    assert_eq!(model.ram(initrd), model.items[&key::INITRD_DATA]);
    let command_line = Range::new(get_u64(&info, 24).unwrap(), 14).unwrap();
    assert_eq!(model.ram(command_line), b"console=ttyS0\0");
    // QEMU gives no SETUP_ADDR here: nothing may be written at 0.
    let (before, behind) = (Range::between(0, 0x400), Range::between(0x500, 0x1000));
    assert!([before, behind].iter().all(|r| model.ram(*r).iter().all(|byte| *byte == 0xa5)));
}

#[test]
fn an_elf_kernel_that_cannot_be_is_refused() {
    for (entry, start, size, expected) in [
        (0, 0x100_0000, 0x1000, Error::NoPvhEntry),
        (0x200_0000, 0x100_0000, 0x1000, Error::NoPvhEntry),
        (0x9000, 0x8000, 0x2000, Error::ElfPlace(0x8000, 0x2000)),
        (0x2000_0000, 0x2000_0000, 0x2000, Error::ElfPlace(0x2000_0000, 0x2000)),
    ] {
        assert_eq!(stopped(&mut elf(entry, start, size)), expected);
    }
    let mut model = elf(0x100_0000, 0x100_0000, 0x1000);
    model.file(file::ENTRY, b"64".to_vec());
    assert_eq!(stopped(&mut model), Error::NoSuchEntry);
}

#[test]
fn the_user_chooses_the_entry() {
    for (choice, expected) in [
        ("32", Ok(Entry::Bits32)),
        ("64\n", Ok(Entry::Bits64)),
        ("", Err(Error::EntryOption)),
        ("16", Ok(Entry::Bits16)),
        ("8", Err(Error::EntryOption)),
        ("pvh", Err(Error::NoSuchEntry)),
    ] {
        let mut model = machine(Flavour::Qemu);
        model.file(file::ENTRY, choice.into());
        assert_eq!(boot(&mut model).map(|l| protocol(l).0), expected, "{choice:?}");
    }
}

#[test]
fn a_kernel_without_a_64_bit_entry_is_entered_in_32_bit_mode() {
    let mut model = machine(Flavour::Qemu);
    model.items.get_mut(&key::SETUP_DATA).unwrap()[0x236] = 0;
    let launch = boot(&mut model).unwrap();
    assert_eq!(protocol(launch), (Entry::Bits32, 16 * MIB));
    model.file(file::ENTRY, b"64".to_vec());
    assert_eq!(stopped(&mut model), Error::NoSuchEntry);
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_loaded() {
    for (item, size, expected) in [
        (key::KERNEL_SIZE, u32::MAX, 44),
        (key::INITRD_SIZE, u32::MAX, 45),
        (key::CMDLINE_SIZE, u32::MAX, 43),
    ] {
        let mut model = machine(Flavour::Qemu);
        model.items.insert(item, size.to_le_bytes().to_vec());
        let error = stopped(&mut model);
        assert!(matches!(error, Error::Placement(_)), "{error}");
        assert_eq!(error.code(), expected);
        let untouched = Range::new(16 * MIB, 4096).unwrap();
        assert!(model.ram(untouched).iter().all(|byte| *byte == 0xa5));
    }
}

#[test]
fn a_memory_map_without_low_memory_is_refused() {
    for entries in [&[][..], &[(MIB, 31 * MIB, 1)], &[(0, 32 * MIB, 1), (0x7000, 0x1000, 2)]] {
        let mut model = machine(Flavour::Qemu);
        model.e820(entries);
        assert_eq!(stopped(&mut model), Error::Placement(placement::Error::LowMemory));
    }
}

fn name(text: &str) -> Name {
    File::new(text, 0, 0).unwrap().name
}

fn with_script(commands: &[Command]) -> Model {
    let mut model = machine(Flavour::Qemu);
    model.file("tables", vec![0x11; 256]);
    model.file("rsdp", vec![0; 36]);
    model.file("big", vec![0x22; 0x2_0000]);
    model.file("host", vec![0x33; 16]);
    model.file(file::ACPI_RSDP, vec![0; 36]);
    let script: Vec<u8> = commands.iter().flat_map(Command::encode).collect();
    model.file(file::TABLE_LOADER, script);
    model
}

#[test]
fn the_script_links_the_tables() {
    let rsdp = name(file::ACPI_RSDP);
    let tables = name("tables");
    let mut model = with_script(&[
        Command::Allocate { file: rsdp, alignment: 16, zone: Zone::FSegment },
        Command::Allocate { file: tables, alignment: 64, zone: Zone::High },
        Command::AddPointer { destination: rsdp, source: tables, offset: 24, size: 8 },
        Command::AddPointer { destination: tables, source: tables, offset: 252, size: 4 },
        Command::AddChecksum { file: tables, offset: 9, start: 0, length: 256 },
        Command::WritePointer {
            destination: name("host"),
            source: tables,
            offset: 4,
            source_offset: 40,
            size: 8,
        },
        Command::Unknown(0x8000_0004),
        Command::Unknown(0),
    ]);
    boot(&mut model).unwrap();
    let page = model.ram(layout::BOOT_PARAMS);
    let rsdp = get_u64(page, 0x70).unwrap();
    assert_eq!(rsdp, layout::ACPI_TABLES.start());
    let rsdp = model.ram(Range::new(rsdp, 36).unwrap());
    let tables = get_u64(rsdp, 24).unwrap();
    assert_eq!(tables % 64, 0);
    let bytes = model.ram(Range::new(tables, 256).unwrap());
    assert_eq!(u64::from(get_u32(bytes, 252).unwrap()), tables + 0x1111_1111);
    assert_eq!(bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0);
    let host = model.contents("host");
    assert_eq!((get_u32(host, 0), get_u64(host, 4)), (Some(0x3333_3333), Some(tables + 40)));
}

#[test]
fn tables_too_big_for_the_e_segment_go_high_and_leave_the_map() {
    let big = name("big");
    let mut model =
        with_script(&[Command::Allocate { file: big, alignment: 64, zone: Zone::High }]);
    let launch = boot(&mut model).unwrap();
    let at = Range::new(32 * MIB - 0x2_0000, 0x2_0000).unwrap();
    assert!(model.ram(at).iter().all(|byte| *byte == 0x22), "in place, and not overwritten");
    let page = model.ram(layout::BOOT_PARAMS).to_vec();
    let initrd = get_u32(&page, 0x218).unwrap();
    assert!(u64::from(initrd) + 5_555 <= at.start(), "the initrd keeps clear of it");
    check_loaded(&mut model, launch);
}

#[test]
fn a_script_that_cannot_be_is_refused_by_its_command() {
    let tables = name("tables");
    let here = Command::Allocate { file: tables, alignment: 64, zone: Zone::High };
    let pointer =
        |offset, size| Command::AddPointer { destination: tables, source: tables, offset, size };
    let write = |destination, offset, source_offset| Command::WritePointer {
        destination: name(destination),
        source: tables,
        offset,
        source_offset,
        size: 8,
    };
    let sum = |offset, start, length| Command::AddChecksum { file: tables, offset, start, length };
    for (commands, expected) in [
        (&[here, here][..], TableError::AllocatedTwice),
        (&[here, pointer(249, 8)], TableError::OutOfBounds),
        (&[here, pointer(u32::MAX, 8)], TableError::OutOfBounds),
        (&[here, sum(256, 0, 256)], TableError::OutOfBounds),
        (&[here, sum(0, 1, 256)], TableError::OutOfBounds),
        (&[here, sum(0, u32::MAX, u32::MAX)], TableError::OutOfBounds),
        (&[here, write("host", 9, 0)], TableError::OutOfBounds),
        (&[here, write("host", 0, 256)], TableError::OutOfBounds),
        (&[here, write("nothing", 0, 0)], TableError::NoFile),
    ] {
        assert_eq!(stopped(&mut with_script(commands)), Error::TableLoader(1, expected));
    }
    for (command, expected) in [
        (pointer(0, 4), TableError::NotAllocated),
        (
            Command::Allocate { file: name("nothing"), alignment: 64, zone: Zone::High },
            TableError::NoFile,
        ),
        (
            Command::Allocate { file: name("big"), alignment: 64, zone: Zone::FSegment },
            TableError::NoRoom(0x2_0000),
        ),
        (
            Command::Allocate { file: tables, alignment: 3, zone: Zone::High },
            TableError::Command(table_loader::Error::Alignment(3)),
        ),
    ] {
        assert_eq!(stopped(&mut with_script(&[command])), Error::TableLoader(0, expected));
    }
}

#[test]
fn a_script_of_many_files_is_carried_out() {
    let names: Vec<_> = (0..1500).map(|i| format!("f{i}")).collect();
    let commands: Vec<_> = names
        .iter()
        .map(|n| Command::Allocate { file: name(n), alignment: 1, zone: Zone::High })
        .collect();
    let mut model = with_script(&commands);
    names.iter().for_each(|name| model.file(name, Vec::new()));
    assert!(boot(&mut model).is_ok());
}

#[test]
fn files_without_an_rsdp_stay_where_they_were_loaded() {
    let tables = name("tables");
    let mut model =
        with_script(&[Command::Allocate { file: tables, alignment: 16, zone: Zone::High }]);
    let launch = boot(&mut model);
    assert!(matches!(launch, Ok(Launch::Linux { .. })), "{launch:?}");
    let loaded = Range::new(layout::ACPI_TABLES.start(), 256).unwrap();
    assert_eq!(model.ram(loaded), [0x11; 256], "no MP table over it");
    assert_eq!(get_u64(model.ram(layout::BOOT_PARAMS), 0x70), Some(0));
}

#[test]
fn an_rsdp_too_short_to_be_one_is_none() {
    let rsdp = name(file::ACPI_RSDP);
    let mut model =
        with_script(&[Command::Allocate { file: rsdp, alignment: 16, zone: Zone::FSegment }]);
    model.file(file::ACPI_RSDP, vec![0; 19]);
    boot(&mut model).unwrap();
    assert_eq!(get_u64(model.ram(layout::BOOT_PARAMS), 0x70), Some(0));
}

#[test]
fn a_kernel_that_ends_before_its_entry_is_cut_off() {
    for (size, missing) in [(0u32, 0x201), (0x200, 1)] {
        let mut model = machine(Flavour::Qemu);
        model.items.insert(key::KERNEL_SIZE, size.to_le_bytes().to_vec());
        assert_eq!(stopped(&mut model), Error::Kernel(linux::Error::CutOff(missing)));
    }
}

#[test]
fn every_error_has_its_own_number_and_fits_a_line() {
    let errors = [
        Error::HeapFull(1),
        Error::NoFwCfg,
        Error::Dma(1),
        Error::Directory(1),
        Error::NeedsDma(1),
        Error::NoE820,
        Error::E820(abi::e820::Error::TooMany),
        Error::TableLoader(0, TableError::NoFile),
        Error::CpusSilent(1, 2),
        Error::MsrRefused,
        Error::NoKernel,
        Error::Multiboot,
        Error::Kernel(linux::Error::Elf),
        Error::Placement(placement::Error::LowMemory),
        Error::Placement(placement::Error::CommandLine { size: 1, max: 1 }),
        Error::Placement(placement::Error::Kernel { needs: 1, from: 1, ram: 1 }),
        Error::Placement(placement::Error::Initrd { size: 1, limit: 1, ram: 1 }),
        Error::EntryOption,
        Error::NoSuchEntry,
        Error::NoPvhEntry,
        Error::ElfPlace(1, 1),
    ];
    let mut codes: Vec<_> = errors.iter().map(|e| e.code()).collect();
    assert!(errors.iter().all(|e| !e.to_string().contains('\n')));
    codes.sort_unstable();
    codes.dedup();
    assert_eq!(codes.len(), errors.len());
    assert!(codes.iter().all(|code| *code > crate::error::PANIC_CODE && *code < 0x80));
}

proptest! {
    /// Whatever the host says, the firmware answers with a launch or an error.
    #[test]
    fn a_hostile_host_gets_an_error(
        header in prop::collection::vec(any::<u8>(), 0..1024),
        keep_header in any::<bool>(),
        sizes in prop::array::uniform3(prop_oneof![0u32..9_000_000, any::<u32>()]),
        script in prop::collection::vec(any::<u8>(), 0..600),
        e820 in prop::collection::vec((0u64..64, 0u64..64, 1u32..3), 0..6),
    ) {
        let mut model = machine(Flavour::Qemu);
        if !keep_header {
            model.items.insert(key::SETUP_DATA, header);
        }
        let keys = [key::KERNEL_SIZE, key::INITRD_SIZE, key::CMDLINE_SIZE];
        for (item, size) in keys.into_iter().zip(sizes) {
            model.items.insert(item, size.to_le_bytes().to_vec());
        }
        model.file(file::TABLE_LOADER, script);
        let mut map = vec![(0, 2 * MIB, 1)];
        // Only RAM that the model has.
        map.extend(e820.iter().map(|(start, len, kind)| {
            (start * MIB / 2, (len * MIB / 2).min(32 * MIB - start * MIB / 2), *kind)
        }));
        model.e820(&map);
        match boot(&mut model) {
            Ok(launch) => prop_assert!(protocol(launch).1 < layout::IDENTITY_MAPPED),
            Err(error) => prop_assert!(error.code() > 1),
        }
    }
}

/// A q35 with nothing but its host bridge and its LPC bridge, and SMBIOS tables of two structures.
fn q35() -> Model {
    let mut model = machine(Flavour::Qemu);
    model.host_bridge = abi::pci::Q35;
    for (function, id, class, registers) in [
        (0u32, abi::pci::Q35, 0x0600_0000, &[0x60, 0x64][..]),
        (0x1f << 11, abi::pci::ICH9_LPC, 0x0601_0000, &[0x40, 0x44, 0x60, 0x68, 0xf0]),
    ] {
        let selector = 1 << 31 | function;
        model.config.insert(selector, id);
        model.config.insert(selector | 0x08, class);
        model.config.extend(registers.iter().map(|register| (selector | register, 0)));
    }
    let mut anchor = b"_SM_\0\x1f\x02\x08\x15\0\0\0\0\0\0\0_DMI_".to_vec();
    anchor.resize(31, 0);
    put(&mut anchor, 0x1c, &[2, 0, 0x28]).unwrap();
    model.file(file::SMBIOS_ANCHOR, anchor);
    model.file(file::SMBIOS_TABLES, b"\x01\x06\x00\x01\x01\0QEMU\0\0\x7f\x04\xff\xfe\0\0".to_vec());
    model
}

#[test]
fn a_chipset_is_set_up() {
    let mut model = q35();
    boot(&mut model).unwrap();
    let register = |device: u32, offset: u32| model.config[&(1 << 31 | device << 11 | offset)];
    assert_eq!([0x60, 0x64].map(|offset| register(0, offset)), [0xb000_0001, 0]);
    let seen = [0x40, 0x44, 0x60, 0x68, 0xf0].map(|offset| register(0x1f, offset));
    assert_eq!(seen, [0x601, 0x80, 0x0b0b_0a0a, 0x0b0b_0a0a, 0xfed1_c001]);
    let pics = [0x11, 0x08, 0x04, 0x01, 0xff, 0x11, 0x70, 0x02, 0x01, 0xff, 0x0c];
    let written: Vec<_> = model.chipset_writes.iter().map(|(_, value)| *value).collect();
    assert_eq!(written, pics);
    // The kernel's map has MMCONFIG as its last entry.
    let page = model.ram(layout::BOOT_PARAMS);
    let last = 0x2d0 + 20 * (usize::from(page[0x1e8]) - 1);
    assert_eq!((get_u64(page, last), get_u32(page, last + 16)), (Some(0xb000_0000), Some(2)));
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

#[test]
fn smbios_tables_are_found_from_the_f_segment() {
    let mut model = q35();
    boot(&mut model).unwrap();
    let anchor = model.ram(layout::SMBIOS_ANCHOR);
    assert!(anchor.starts_with(b"_SM_") && sum(&anchor[..31]) == 0 && sum(&anchor[16..31]) == 0);
    assert_eq!(anchor[0x1c], 3, "the BIOS's own structure is one more");
    let size = u64::from(anchor[0x16]);
    assert_eq!(get_u32(anchor, 0x18).map(u64::from), Some(layout::SMBIOS_TABLES.start()));
    let tables = model.ram(Range::new(layout::SMBIOS_TABLES.start(), size).unwrap());
    assert!(tables.starts_with(&[0, 24]) && tables.ends_with(b"\x7f\x04\xff\xfe\0\0"));
}

#[test]
fn smbios_tables_of_any_kind_are_placed_or_left_out() {
    let place = |anchor: Vec<u8>, tables: Vec<u8>| {
        let mut model = q35();
        model.file(file::SMBIOS_ANCHOR, anchor);
        model.file(file::SMBIOS_TABLES, tables);
        boot(&mut model).unwrap();
        let area = model.ram(layout::SMBIOS_ANCHOR).to_vec();
        (area[0] == b'_').then_some(area)
    };
    let mut third = b"_SM3_\0\x18\x03\0\0\x01\0".to_vec();
    third.resize(24, 0);
    // Too large for its segment, and with a BIOS structure of the user's.
    let mut tables = vec![0, 24];
    tables.resize(0x8000, 1);
    let anchor = place(third.clone(), tables).unwrap();
    assert_eq!((sum(&anchor[..24]), get_u32(&anchor, 12)), (0, Some(0x8000)));
    assert_eq!(get_u64(&anchor, 16), Some(32 * MIB - 0x8000));
    assert!(place(third, Vec::new()).is_some());
    let hostile = |anchor: &[u8]| place(anchor.to_vec(), vec![1, 0, 0, 0]);
    for anchor in [&b""[..], b"_SM_", b"_SM3_\0\xff", &[b'_'; 31], &[0; 4096]] {
        assert_eq!(hostile(anchor), None, "{anchor:x?}");
    }
}

#[test]
fn another_host_bridge_is_left_alone() {
    for id in [u32::MAX, 0x0d57_8086] {
        let mut model = machine(Flavour::Qemu);
        model.host_bridge = id;
        boot(&mut model).unwrap();
        assert!(model.chipset_writes.is_empty());
    }
}

fn asks_for_vmx(mut model: Model) -> Model {
    model.items.insert(key::NB_CPUS, vec![200, 0]);
    // Cut off after the first of its bytes that count.
    model.file(file::FEATURE_CONTROL, vec![5]);
    model
}

#[test]
fn all_cpus_get_the_registers_that_the_host_and_the_chipset_want() {
    let vmx = Msr { number: 0x3a, low: 5, high: 0 };
    let write_back = Msr { number: 0x2ff, low: 0x806, high: 0 };
    let mut model = asks_for_vmx(machine(Flavour::Qemu));
    boot(&mut model).unwrap();
    assert_eq!(model.msrs, [(vmx, 199)]);

    let mut model = asks_for_vmx(q35());
    boot(&mut model).unwrap();
    assert_eq!(model.msrs, [(write_back, 199), (vmx, 199)]);

    // Without the item there is one CPU to be sure of.
    let mut model = q35();
    boot(&mut model).unwrap();
    assert_eq!(model.msrs, [(write_back, 0)]);

    let mut model = machine(Flavour::Qemu);
    boot(&mut model).unwrap();
    assert_eq!(model.msrs, [], "nobody asks, and no CPU is started");
}

#[test]
fn cpus_that_do_not_answer_or_refuse_are_named() {
    for (answer, expected) in [(Some(198), Error::CpusSilent(198, 199)), (None, Error::MsrRefused)]
    {
        let mut model = asks_for_vmx(machine(Flavour::Qemu));
        model.cpus_answer = Some(answer);
        assert_eq!(stopped(&mut model), expected);
    }
}
