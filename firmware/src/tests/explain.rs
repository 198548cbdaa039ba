//! What the firmware tells: a log, its times, one write to the host.

use abi::boot_trace::{self, BootTrace};
use abi::bytes::{array, get_u32, get_u64, put, sum8};
use abi::fw_cfg::{Record, file, key};
use abi::layout;
use abi::range::Range;
use abi::table_loader::{Command, Zone};

use super::{machine, name, with_script};
use crate::boot::boot;
use crate::kernel::Launch;
use crate::model::{Flavour, Model};

/// ACPI tables as a host gives them: an XSDT with one entry in `etc/acpi/tables`, and an RSDP.
fn with_tables(entry_signature: &[u8; 4]) -> Model {
    let (rsdp, tables) = (name(file::ACPI_RSDP), name(file::ACPI_TABLES));
    let mut model = with_script(&[
        Command::Allocate { file: rsdp, alignment: 16, zone: Zone::FSegment },
        Command::Allocate { file: tables, alignment: 64, zone: Zone::High },
        // The entry points to the start of the file, the RSDP to the XSDT behind it.
        Command::AddPointer { destination: tables, source: tables, offset: 100, size: 8 },
        Command::AddPointer { destination: rsdp, source: tables, offset: 24, size: 8 },
    ]);
    let mut bytes = vec![0; 128];
    put(&mut bytes, 0, entry_signature).unwrap();
    put(&mut bytes, 64, b"XSDT").unwrap();
    put(&mut bytes, 68, &44u32.to_le_bytes()).unwrap();
    model.file(file::ACPI_TABLES, bytes);
    let mut root = vec![0; 36];
    put(&mut root, 0, b"RSD PTR ").unwrap();
    root[15] = 2;
    put(&mut root, 24, &64u64.to_le_bytes()).unwrap();
    model.file(file::ACPI_RSDP, root);
    model
}

fn bytes(model: &Model, address: u64, length: u64) -> &[u8] {
    model.ram(Range::new(address, length).unwrap())
}

/// The XSDT that the kernel finds.
fn root(model: &mut Model) -> Vec<u8> {
    let launch = boot(model).unwrap();
    assert!(matches!(launch, Launch::Linux { .. }));
    let rsdp = get_u64(model.ram(layout::BOOT_PARAMS), 0x70).unwrap();
    let address = get_u64(bytes(model, rsdp, 36), 24).unwrap();
    let length = get_u32(bytes(model, address, 36), 4).unwrap();
    bytes(model, address, length.into()).to_vec()
}

#[test]
fn the_kernel_finds_the_times_of_the_stages() {
    let mut model = with_tables(b"FACP");
    // Two counts in a nanosecond.
    model.tsc_khz = Some(2_000_000);
    let root = root(&mut model);
    assert_eq!((root.len(), sum8(&root)), (52, 0), "one entry more");
    let facp = get_u64(&root, 36).unwrap();
    assert_eq!(bytes(&model, facp, 4), b"FACP");
    let table = bytes(&model, get_u64(&root, 44).unwrap(), 52);
    assert_eq!((&table[..4], sum8(table)), (&b"FPDT"[..], 0));
    let times = bytes(&model, get_u64(table, 44).unwrap(), 56);
    assert_eq!((&times[..4], &times[8..12]), (&b"FBPT"[..], &[2, 0, 48, 2][..]));
    // The model's counter stands at 1000, 2000 and 3000.
    let time = |index: usize| get_u64(times, 16 + 8 * index).unwrap();
    assert_eq!([0, 1, 2, 3, 4].map(time), [500, 1000, 1000, 1500, 1500]);
}

#[test]
fn a_table_of_the_hosts_own_is_left_alone_and_so_are_tables_without_a_clock() {
    let mut own = with_tables(b"FPDT");
    own.tsc_khz = Some(2_000_000);
    assert_eq!(root(&mut own).len(), 44);
    assert_eq!(root(&mut with_tables(b"FACP")).len(), 44, "nobody knows the clock's rate");
}

#[test]
fn tables_that_make_no_sense_get_no_times_and_do_no_harm() {
    for (at, value) in [(68, 4u32), (68, 4096), (68, u32::MAX), (68, 0), (68, 39)] {
        let mut model = with_tables(b"FACP");
        let mut tables = model.contents(file::ACPI_TABLES).to_vec();
        put(&mut tables, at, &value.to_le_bytes()).unwrap();
        model.file(file::ACPI_TABLES, tables);
        model.tsc_khz = Some(1);
        boot(&mut model).unwrap();
    }
}

#[test]
fn the_host_gets_the_stamps_in_one_write() {
    for flavour in [Flavour::Qemu, Flavour::NoSelect] {
        let mut model = machine(flavour);
        boot(&mut model).unwrap();
        let without = model.exits;
        let mut model = machine(flavour);
        model.file(file::BOOT_TRACE, vec![0; boot_trace::SIZE]);
        boot(&mut model).unwrap();
        let trace = BootTrace::decode(model.contents(file::BOOT_TRACE));
        let expected = BootTrace { start: 1000, load_kernel: 2000, kernel_entry: 3000 };
        assert_eq!(trace, Some(expected));
        let selects = usize::from(flavour == Flavour::NoSelect);
        assert_eq!(model.exits, without + 1 + selects);
    }
}

#[test]
fn a_host_that_cannot_be_written_to_boots_without_the_stamps() {
    let mut model = machine(Flavour::Ports);
    model.file(file::BOOT_TRACE, vec![0; boot_trace::SIZE]);
    boot(&mut model).unwrap();
    assert_eq!(model.contents(file::BOOT_TRACE), [0; boot_trace::SIZE]);
}

#[test]
fn the_log_names_every_part_and_only_when_asked() {
    let mut model = machine(Flavour::Qemu);
    boot(&mut model).unwrap();
    assert_eq!(model.printed, [""; 0]);
    model.file(file::VERBOSE, b"off".to_vec());
    boot(&mut model).unwrap();
    assert_eq!(model.printed, [""; 0]);
    model.file(file::VERBOSE, b"on".to_vec());
    boot(&mut model).unwrap();
    let log = model.printed.join("\n");
    for part in [
        "fw_cfg by DMA, 2 files",
        "memory 0x100000 to 0x2000000: RAM",
        "MP table",
        "kernel at 0x1000000, 70001 bytes",
        "initrd at ",
        "64-bit entry at 0x1000200",
    ] {
        assert!(log.contains(part), "no {part:?} in\n{log}");
    }
}

#[test]
fn what_the_host_gives_beforehand_is_not_asked_for() {
    let mut model = machine(Flavour::Qemu);
    let launch = boot(&mut model).unwrap();
    let page = model.ram(layout::BOOT_PARAMS).to_vec();
    let without = model.exits;

    let mut model = machine(Flavour::Qemu);
    let e820 = model.contents(file::E820).to_vec();
    let mut records = Vec::new();
    let small = [
        key::NB_CPUS,
        key::IRQ0_OVERRIDE,
        key::KERNEL_SIZE,
        key::INITRD_SIZE,
        key::CMDLINE_SIZE,
        key::CMDLINE_DATA,
        key::SETUP_DATA,
    ];
    for item in small {
        let mut bytes = model.items.get(&item).cloned().unwrap_or_default();
        bytes.resize(bytes.len().max(4), 0);
        records.extend(Record::header(item, bytes.len()).unwrap());
        records.extend(bytes);
    }
    records.extend(Record::header(model.selector(file::E820), e820.len()).unwrap());
    records.extend(e820);
    model.file(file::PREFETCH, records);
    assert_eq!(boot(&mut model), Ok(launch));
    assert_eq!(model.ram(layout::BOOT_PARAMS), page);
    // The file itself, instead of eight items.
    assert_eq!(model.exits, without - 8 + 1);
}

#[test]
fn records_that_are_short_or_cut_off_are_passed_over() {
    let mut model = machine(Flavour::Qemu);
    let launch = boot(&mut model).unwrap();
    let short = [&Record::header(key::KERNEL_SIZE, 2).unwrap()[..], &[0xff, 0xff]].concat();
    let cut = [&Record::header(key::INITRD_SIZE, 4).unwrap()[..], &[0xff]].concat();
    for records in [short, cut, vec![0xff; 3], Vec::new()] {
        let mut model = machine(Flavour::Qemu);
        model.file(file::PREFETCH, records);
        assert_eq!(boot(&mut model), Ok(launch));
        let page = model.ram(layout::BOOT_PARAMS);
        assert_eq!(array::<4>(page, 0x21c), Some(5_555u32.to_le_bytes()));
    }
}
