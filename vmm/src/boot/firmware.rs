//! Boot through a BIOS: the image at the reset vector, the kernel in fw_cfg.
//!
//! The items and their contents are those of QEMU's microvm (hw/i386/x86-common.c), so that any
//! BIOS for it boots here.

use abi::e820::Map;
use abi::fw_cfg::{file, key};
use abi::linux::{Handoff, SetupHeader, patch_setup};
use abi::range::{Range, align_down};
use abi::{layout, placement};

use super::{Cpu, Error, InitState, Source, elf};
use crate::fw_cfg::{Item, Items};
use crate::image::{Blob, Format, Kernel};
use crate::memory::GuestRam;

/// What QEMU serves of an ELF kernel as setup code: its first bytes, so that firmware sees that
/// it is no bzImage.
const ELF_HEAD: u64 = 8192;
/// What QEMU says in `etc/boot-fail-wait` when it is not told otherwise.
const BOOT_FAIL_NEVER: i32 = -1;

/// Loads the image, and collects what the BIOS is to find.
pub(super) fn prepare(source: &Source<'_>, ram: &GuestRam) -> Result<(InitState, Items), Error> {
    if let Some(bios) = &source.images.bios {
        ram.load_bios(bios.file())?;
    }
    let mut items = Items::default();
    offer_machine(source, &mut items);
    let mut placed = Vec::new();
    if let Some(kernel) = &source.images.kernel {
        match &kernel.format {
            Format::BzImage(header, setup) => {
                offer_bzimage(source, kernel, header, setup, &mut items)?;
                place_bzimage(source, kernel, header, ram, &mut items)?;
            }
            Format::Elf => {
                let range = offer_elf(source, kernel, ram, &mut items)?;
                let map = super::memory_map(source.config.memory)?;
                let initrd = placement::plan_initrd_beside(&map, range, source.initrd_size());
                place_initrd(source, initrd, ram, &mut items)?;
                placed.push(("kernel", range));
            }
        }
        offer_command_line(source, &mut items);
    }
    Ok((InitState { cpu: Cpu::RESET, placed, direct: false }, items))
}

fn offer_machine(source: &Source<'_>, items: &mut Items) {
    items.set(key::RAM_SIZE, source.config.memory.to_le_bytes());
    items.set_u16(key::NOGRAPHIC, 1);
    items.set_u16(key::NB_CPUS, source.config.cpus.into());
    items.set_u16(key::MAX_CPUS, source.config.cpus.into());
    items.set_u32(key::IRQ0_OVERRIDE, super::IRQ0_OVERRIDE.into());
    let mut add = |name, bytes| items.add_file(name, Item::Bytes(bytes));
    add(file::E820, super::e820_bytes(source.config.memory));
    // There are no disks, and no BIOS is to start over when there is no kernel.
    add(file::BOOT_ORDER, Vec::new());
    add(file::BIOS_GEOMETRY, Vec::new());
    add(file::BOOT_FAIL_WAIT, BOOT_FAIL_NEVER.to_le_bytes().into());
    if let Some(acpi) = source.acpi {
        add(file::ACPI_RSDP, acpi.rsdp.clone());
        add(file::ACPI_TABLES, acpi.tables.clone());
        add(file::TABLE_LOADER, acpi.script_bytes());
    }
    if let Some(pvpanic) = source.config.pvpanic {
        add(file::PVPANIC_PORT, pvpanic.ioport.to_le_bytes().into());
    }
    for (name, blob) in &source.images.fw_cfg {
        let item = match blob {
            Blob::Bytes(bytes) => Item::Bytes(bytes.clone()),
            Blob::Image(image) => Item::whole(image.clone()),
        };
        items.add_file(name, item);
    }
}

fn offer_bzimage(
    source: &Source<'_>,
    kernel: &Kernel,
    header: &SetupHeader,
    setup: &[u8],
    items: &mut Items,
) -> Result<(), Error> {
    let low = source.config.memory.min(layout::LOW_RAM_MAX);
    let limit = match header.can_load_above_4g() {
        true => low,
        false => low.min(u64::from(header.initrd_addr_max) + 1),
    };
    let initrd = offer_initrd(source, limit, items)?;
    let mut setup = setup.to_vec();
    let handoff = Handoff {
        kernel: layout::HIGH_RAM_START,
        command_line: layout::COMMAND_LINE.start(),
        initrd,
        rsdp: 0,
        map: &Map::new(),
    };
    patch_setup(&mut setup, &handoff).map_err(Error::Header)?;
    items.set_u32(key::KERNEL_ADDR, word(layout::HIGH_RAM_START));
    items.set_u32(key::KERNEL_SIZE, word(kernel.image.size()) - header.setup_size);
    let offset = u64::from(header.setup_size);
    items.set_item(key::KERNEL_DATA, Item::Part { image: kernel.image.clone(), offset });
    items.set_u32(key::SETUP_ADDR, word(layout::SETUP.start()));
    items.set_u32(key::SETUP_SIZE, header.setup_size);
    items.set(key::SETUP_DATA, setup);
    items.set_u32(key::CMDLINE_ADDR, word(layout::COMMAND_LINE.start()));
    Ok(())
}

/// Puts kernel and initrd where our BIOS is going to want them, while the host has time. If it
/// wants something else after all, or is another BIOS, it loads them itself.
fn place_bzimage(
    source: &Source<'_>,
    kernel: &Kernel,
    header: &SetupHeader,
    ram: &GuestRam,
    items: &mut Items,
) -> Result<(), Error> {
    let setup_size = u64::from(header.setup_size);
    let size = kernel.image.size().saturating_sub(setup_size);
    let map = super::memory_map(source.config.memory)?;
    let cmdline_size = source.command_line_bytes().len() as u64;
    let plan = placement::plan(&map, &header.kernel(size), cmdline_size, source.initrd_size());
    // What does not fit, the BIOS says.
    let Ok(plan) = plan else { return Ok(()) };
    ram.load(plan.kernel.start(), kernel.image.file(), setup_size, size)?;
    items.tell_placed(key::KERNEL_DATA, plan.kernel);
    place_initrd(source, Ok(plan.initrd), ram, items)
}

fn place_initrd(
    source: &Source<'_>,
    planned: Result<Range, placement::Error>,
    ram: &GuestRam,
    items: &mut Items,
) -> Result<(), Error> {
    if let Ok(initrd) = planned {
        super::place_initrd(source, initrd, ram)?;
        items.tell_placed(key::INITRD_DATA, initrd);
    }
    Ok(())
}

/// QEMU puts an ELF kernel into memory by itself, and says where.
fn offer_elf(
    source: &Source<'_>,
    kernel: &Kernel,
    ram: &GuestRam,
    items: &mut Items,
) -> Result<Range, Error> {
    let loaded = elf::load(&kernel.image, ram)?;
    offer_initrd(source, source.config.memory.min(layout::LOW_RAM_MAX), items)?;
    let head = kernel.image.head(ELF_HEAD)?;
    items.set_u32(key::KERNEL_ENTRY, loaded.entry);
    items.set_u32(key::KERNEL_ADDR, word(loaded.range.start()));
    items.set_u32(key::KERNEL_SIZE, word(loaded.range.len()));
    items.set_u32(key::SETUP_SIZE, word(head.len() as u64));
    items.set(key::SETUP_DATA, head);
    Ok(loaded.range)
}

/// The initrd, with the address that QEMU would give it: as high below `limit` as it goes.
fn offer_initrd(source: &Source<'_>, limit: u64, items: &mut Items) -> Result<Range, Error> {
    let Some(initrd) = &source.images.initrd else { return Ok(Range::between(0, 0)) };
    let size = initrd.size();
    let too_big = || {
        let error = placement::Error::Initrd { size, limit, ram: source.config.memory };
        source.placement_error(error)
    };
    let start = align_down(limit.checked_sub(size).ok_or_else(too_big)?, layout::PAGE);
    items.set_u32(key::INITRD_ADDR, word(start));
    items.set_u32(key::INITRD_SIZE, word(size));
    items.set_item(key::INITRD_DATA, Item::whole(initrd.clone()));
    Range::new(start, size).ok_or_else(too_big)
}

fn offer_command_line(source: &Source<'_>, items: &mut Items) {
    let bytes = source.command_line_bytes();
    items.set_u32(key::CMDLINE_SIZE, word(bytes.len() as u64));
    items.set(key::CMDLINE_DATA, bytes);
}

/// A size or address below 4 GiB: images are no bigger, and low RAM ends before.
fn word(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
