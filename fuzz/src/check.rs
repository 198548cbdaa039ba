//! What must hold after a boot, whatever the host said.

use abi::bytes::{get_u16, get_u32, get_u64};
use abi::e820::{Entry, kind};
use abi::fw_cfg::{file, key};
use abi::layout;
use abi::linux;
use abi::pvh;
use abi::range::Range;
use firmware::error::Error;
use firmware::kernel::Launch;

use crate::host::{Area, Host};
use crate::tables;

/// What the kernel is told, by whichever protocol.
struct Told {
    command_line: u64,
    initrd: Range,
    /// Not by the 16-bit protocol.
    rsdp: Option<u64>,
    map: Vec<(Range, u32)>,
}

/// Checks a boot's end.
pub fn outcome(host: &Host, outcome: Result<Launch, Error>) {
    let launch = match outcome {
        Ok(launch) => launch,
        Err(error) => {
            let line = error.to_string();
            assert!(error.code() > 1 && !line.is_empty() && line.len() < 200);
            assert!(!line.contains(['\n', '\r']), "{line:?} is more than a line");
            return;
        }
    };
    let told = match launch {
        Launch::Linux { protocol: linux::Entry::Bits16, entry, .. } => {
            assert_eq!(entry, layout::SETUP.start());
            by_setup(host)
        }
        Launch::Linux { entry, boot_params, .. } => {
            assert_eq!(boot_params, layout::BOOT_PARAMS.start());
            assert!((layout::HIGH_RAM_START..layout::FOUR_GIB).contains(&entry));
            check_entry(host, entry);
            by_zero_page(host)
        }
        Launch::Pvh { entry, start_info } => {
            assert_eq!(start_info, layout::PVH_INFO.start());
            check_entry(host, entry);
            by_start_info(host)
        }
    };
    check_bios_data(host);
    check_told(host, &told);
    check_areas(host, &told);
    check_mp_table(host, &told);
    check_smbios(host);
    tables::check(host);
}

/// What a BIOS leaves for kernels at 0x400 (Linux, arch/x86/kernel/ebda.c).
fn check_bios_data(host: &Host) {
    let data = host.memory_at(layout::BDA);
    let ebda = u64::from(get_u16(data, 0x0e).unwrap_or(0)) << 4;
    let kib = u64::from(get_u16(data, 0x13).unwrap_or(0));
    assert_eq!((ebda, kib << 10), (layout::EBDA.start(), layout::EBDA.start()));
}

/// The first instruction is in RAM, and not before the kernel.
fn check_entry(host: &Host, entry: u64) {
    assert!(host.is_promised(Range::between(entry, entry + 1)));
    if let Some(kernel) = loaded(host, key::KERNEL_DATA) {
        assert!(entry >= kernel.range.start());
    }
}

fn loaded(host: &Host, item: u16) -> Option<&Area> {
    host.areas
        .iter()
        .find(|area| area.item == Some(item) && area.range.start() >= layout::HIGH_RAM_START)
}

fn by_zero_page(host: &Host) -> Told {
    let page = host.memory_at(layout::BOOT_PARAMS);
    assert_eq!((page[0x1ef], page[0x210]), (0, linux::LOADER_QEMU), "sentinel, type_of_loader");
    let wide = |low, high| u64::from(word(page, low)) | u64::from(word(page, high)) << 32;
    if let Some(kernel) = loaded(host, key::KERNEL_DATA) {
        assert_eq!(u64::from(word(page, 0x214)), kernel.range.start(), "code32_start");
    }
    Told {
        command_line: word(page, 0x228).into(),
        initrd: Range::new(wide(0x218, 0xc0), wide(0x21c, 0xc4)).expect("an initrd that ends"),
        rsdp: get_u64(page, 0x70),
        map: entries(&page[0x2d0..], page[0x1e8].into()),
    }
}

fn by_setup(host: &Host) -> Told {
    let setup = host.memory_at(layout::SETUP);
    let data = host.memory_at(layout::REAL_MODE_DATA);
    let initrd = Range::new(word(setup, 0x218).into(), word(setup, 0x21c).into());
    Told {
        command_line: word(setup, 0x228).into(),
        initrd: initrd.expect("an initrd that ends"),
        rsdp: None,
        map: entries(&data[8..], get_u16(data, 0).unwrap_or(0).into()),
    }
}

fn by_start_info(host: &Host) -> Told {
    let info = host.memory_at(layout::PVH_INFO);
    let at = |address: u64| (address - layout::PVH_INFO.start()) as usize;
    let quad = |at| get_u64(info, at).expect("in the area");
    assert_eq!(word(info, 0), pvh::MAGIC);
    let initrd = match word(info, 12) {
        0 => Range::between(0, 0),
        1 => {
            let module = at(quad(16));
            Range::new(quad(module), quad(module + 8)).expect("an initrd that ends")
        }
        more => panic!("{more} modules"),
    };
    let first = at(quad(40));
    let map = (0..word(info, 48) as usize).map(|index| {
        let at = first + 24 * index;
        (Range::new(quad(at), quad(at + 8)).expect("an entry that ends"), word(info, at + 16))
    });
    Told { command_line: quad(24), initrd, rsdp: Some(quad(32)), map: map.collect() }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    get_u32(bytes, at).expect("in the area")
}

fn entries(table: &[u8], count: usize) -> Vec<(Range, u32)> {
    let decode = |raw: &[u8]| {
        let range = Range::new(get_u64(raw, 0)?, get_u64(raw, 8)?)?;
        Some((range, get_u32(raw, 16)?))
    };
    let entries = table.chunks_exact(Entry::SIZE).take(count);
    let entries: Vec<_> = entries.map(|raw| decode(raw).expect("an entry that ends")).collect();
    assert_eq!(entries.len(), count, "more entries than there is room for");
    entries
}

fn check_told(host: &Host, told: &Told) {
    for pair in told.map.windows(2) {
        assert!(pair[0].0.end() <= pair[1].0.start(), "the kernel's map is ascending");
    }
    for (range, _) in told.map.iter().filter(|(_, kind)| *kind == kind::RAM) {
        assert!(host.is_promised(*range), "no RAM: {range:x?}");
        let hole = layout::LEGACY_HOLE;
        assert!(!hole.overlaps(*range) && !layout::EBDA.overlaps(*range), "{range:x?} is no RAM");
    }
    let line = layout::COMMAND_LINE;
    assert!(line.start() <= told.command_line && told.command_line < line.end());
    let line = Range::between(told.command_line, line.end());
    assert!(host.memory_at(line).contains(&0), "the command line ends");
    if !told.initrd.is_empty() {
        let is_initrd = |area: &Area| match area.item {
            Some(item) => item == key::INITRD_DATA && area.range == told.initrd,
            // A neighbour of what else was copied.
            None => host.prefetches && area.range.contains(told.initrd),
        };
        assert!(host.areas.iter().any(is_initrd), "no initrd at {:x?}", told.initrd);
    }
    if let Some(rsdp) = told.rsdp.filter(|rsdp| *rsdp != 0) {
        assert_eq!(rsdp % 16, 0, "an RSDP is on a 16-byte boundary");
        let at = Range::new(rsdp, RSDP_SIZE).expect("an RSDP that ends");
        let is_loaded = |area: &Area| area.range.contains(at) && !is_for_boot(area);
        assert!(host.areas.iter().any(is_loaded), "no RSDP at {rsdp:#x}");
        let mut ram = told.map.iter().filter(|(_, kind)| *kind == kind::RAM);
        assert!(ram.all(|(ram, _)| !ram.overlaps(at)), "the RSDP is free to be used");
    }
}

/// Bytes of the shortest RSDP (ACPI 6.5, 5.2.5.3).
const RSDP_SIZE: u64 = 20;

/// Whether this is the kernel or the initrd.
fn is_for_boot(area: &Area) -> bool {
    matches!(area.item, Some(key::KERNEL_DATA | key::INITRD_DATA))
}

/// Kernel and initrd are in RAM, everything else above 1 MiB is not.
fn check_areas(host: &Host, told: &Told) {
    for area in host.areas.iter().filter(|area| area.range.start() >= layout::HIGH_RAM_START) {
        let mut ram = told.map.iter().filter(|(_, kind)| *kind == kind::RAM);
        if host.prefetches && area.item.is_none() {
            continue;
        }
        if is_for_boot(area) {
            assert!(ram.any(|(ram, _)| ram.contains(area.range)), "{area:x?} is not in RAM");
        } else {
            assert!(ram.all(|(ram, _)| !ram.overlaps(area.range)), "{area:x?} is free to be used");
        }
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
}

fn check_mp_table(host: &Host, told: &Told) {
    let pointer = Range::new(layout::EBDA.start(), 16).expect("a constant");
    let pointer = host.memory_at(pointer);
    if host.known(file::TABLE_LOADER).is_some() {
        return;
    }
    assert!(pointer.starts_with(b"_MP_") && told.rsdp.is_none_or(|rsdp| rsdp == 0));
    assert_eq!(sum(pointer), 0);
    let at = word(pointer, 4).into();
    let head = host.memory_at(Range::new(at, 44).expect("a table that ends"));
    let length = get_u16(head, 4).unwrap_or(0).into();
    let table = Range::new(at, length).expect("a table that ends");
    assert!(head.starts_with(b"PCMP") && layout::ACPI_TABLES.contains(table));
    assert_eq!(sum(host.memory_at(table)), 0);
}

fn check_smbios(host: &Host) {
    if !host.areas.iter().any(|area| area.range == layout::SMBIOS_ANCHOR) {
        return;
    }
    let anchor = host.memory_at(layout::SMBIOS_ANCHOR);
    if anchor.starts_with(b"_SM3_") {
        assert_eq!(sum(&anchor[..anchor[6].into()]), 0);
    } else if anchor.starts_with(b"_SM_") {
        assert_eq!(sum(&anchor[0x10..0x1f]), 0);
        assert_eq!(sum(&anchor[..anchor[5].into()]), 0);
    }
}
