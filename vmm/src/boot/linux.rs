//! Direct boot of a bzImage, by its 64-bit entry if it has one.

use abi::linux::{BOOT_PARAMS_SIZE, ENTRY_64_OFFSET, Handoff, SetupHeader, fill_boot_params};
use abi::{layout, placement};

use super::{Cpu, Error, InitState, Source};
use crate::memory::GuestRam;

/// Bytes that a page directory entry maps here.
const LARGE_PAGE: u64 = 2 << 20;
/// Page table entry: present, writable.
const PRESENT: u64 = 0b11;
/// Page directory entry: a 2 MiB page.
const LARGE: u64 = 1 << 7;

/// Loads the kernel and what it is told.
pub(super) fn prepare(
    source: &Source<'_>,
    header: &SetupHeader,
    setup: &[u8],
    ram: &GuestRam,
) -> Result<InitState, Error> {
    let Some(kernel) = &source.images.kernel else { return Err(Error::TooBig("no kernels")) };
    let setup_size = u64::from(header.setup_size);
    let size = kernel.image.size().saturating_sub(setup_size);
    let command_line = source.command_line_bytes();
    let map = super::memory_map(source.config.memory)?;
    let plan = placement::plan(
        &map,
        &header.kernel(size),
        command_line.len() as u64,
        source.initrd_size(),
    )
    .map_err(|error| source.placement_error(error))?;

    ram.load(plan.kernel.start(), kernel.image.file(), setup_size, size)?;
    super::place_initrd(source, plan.initrd, ram)?;
    ram.write(plan.command_line.start(), &command_line)?;
    let rsdp = super::place_description(source, ram)?;
    super::place_bios_remains(ram)?;
    let handoff = Handoff {
        kernel: plan.kernel.start(),
        command_line: plan.command_line.start(),
        initrd: plan.initrd,
        rsdp,
        map: &map,
    };
    let mut boot_params = [0; BOOT_PARAMS_SIZE];
    fill_boot_params(&mut boot_params, setup, &handoff).map_err(Error::Header)?;
    ram.write(layout::BOOT_PARAMS.start(), &boot_params)?;

    let cpu = if header.has_64_bit_entry() {
        ram.write(layout::PAGE_TABLES.start(), &page_tables())?;
        Cpu::long(plan.kernel.start() + ENTRY_64_OFFSET)
    } else {
        Cpu::protected(plan.kernel.start())
    };
    ram.write(layout::GDT.start(), &cpu.gdt_bytes())?;
    Ok(InitState {
        cpu: Cpu { rsi: layout::BOOT_PARAMS.start(), ..cpu },
        placed: vec![
            ("kernel", plan.kernel),
            ("kernel_run", plan.kernel_run),
            ("command_line", plan.command_line),
            ("initrd", plan.initrd),
        ],
        direct: true,
    })
}

/// PML4, PDPT and one page directory: the first GiB, mapped to itself by large pages.
fn page_tables() -> Vec<u8> {
    const ENTRIES: u64 = layout::IDENTITY_MAPPED / LARGE_PAGE;
    const _: () = assert!(ENTRIES == 512 && layout::PAGE_TABLES.len() == 3 * layout::PAGE);
    let start = layout::PAGE_TABLES.start();
    let table = |first: u64| std::iter::once(first).chain(std::iter::repeat_n(0, 511));
    let pages = (0..ENTRIES).map(|page| (page * LARGE_PAGE) | PRESENT | LARGE);
    table((start + layout::PAGE) | PRESENT)
        .chain(table((start + 2 * layout::PAGE) | PRESENT))
        .chain(pages)
        .flat_map(u64::to_le_bytes)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::bytes::get_u64;

    #[test]
    fn the_first_gib_is_mapped_to_itself() {
        let tables = page_tables();
        assert_eq!(tables.len() as u64, layout::PAGE_TABLES.len());
        assert_eq!(get_u64(&tables, 0), Some(0x9003));
        assert_eq!(get_u64(&tables, 4096), Some(0xa003));
        assert_eq!(get_u64(&tables, 8192), Some(0x83));
        assert_eq!(get_u64(&tables, 8192 + 511 * 8), Some(0x3fe0_0083));
    }
}
