//! ELF kernels: loading, and direct boot by the PVH entry.

use std::io::{Read, Seek, SeekFrom};

use abi::pvh::StartInfo;
use abi::range::Range;
use abi::{layout, placement};
use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr, PT_LOAD};
use linux_loader::loader::{Elf, KernelLoader, PvhBootCapability};
use vm_memory::{ByteValued, GuestAddress};

use super::{Cpu, Error, InitState, Source};
use crate::image::Image;
use crate::memory::{self, GuestRam};

/// A kernel in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// From its first segment's start to its last segment's end, zeroed parts included.
    pub range: Range,
    /// The 32-bit PVH entry.
    pub entry: u32,
}

/// `e_ident[EI_CLASS]` of a 64-bit file.
const CLASS_64: u8 = 2;
const EI_CLASS: usize = 4;

/// Loads an ELF file's segments to their physical addresses.
pub fn load(image: &Image, ram: &GuestRam) -> Result<Loaded, Error> {
    let refused = |problem: String| Error::Elf { path: image.path().into(), problem };
    let Extent { range, unfilled, filled } = extent(image).map_err(refused)?;
    if range.start() < layout::HIGH_RAM_START {
        let start = range.start();
        return Err(refused(format!("its first segment is at {start:#x}, below 1 MiB")));
    }
    if !ram.contains(range.start(), range.len()) {
        let needs = range.end().div_ceil(1 << 20);
        return Err(refused(format!(
            "its segments reach to {:#x}: give it at least {needs} MiB by -m",
            range.end()
        )));
    }
    // RAM may hold what an earlier guest left, and a kernel's .bss is not in its file.
    for part in unfilled {
        ram.clear(part.start(), part.len())?;
    }
    let mut file = image.file();
    let start = Some(GuestAddress(layout::HIGH_RAM_START));
    let loaded = Elf::load(ram.regions(), None, &mut file, start)
        .map_err(|error| refused(error.to_string()))?;
    memory::count_put(filled);
    match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => {
            let inside = Range::new(entry.0, 1).is_some_and(|first| range.contains(first));
            match u32::try_from(entry.0) {
                Ok(entry) if inside => Ok(Loaded { range, entry }),
                _ => Err(refused(format!(
                    "its PVH entry {:#x} is not in its segments: the file is damaged",
                    entry.0
                ))),
            }
        }
        _ => Err(refused(
            "it has no PVH entry note: build it with CONFIG_PVH=y, or give its bzImage".into(),
        )),
    }
}

/// What the segments cover.
struct Extent {
    range: Range,
    /// Parts that no bytes of the file go to.
    unfilled: Vec<Range>,
    /// Bytes that the file has of it.
    filled: u64,
}

fn extent(image: &Image) -> Result<Extent, String> {
    let mut file = image.file();
    let mut header = Elf64_Ehdr::default();
    let read = |file: &mut &std::fs::File, at: u64, bytes: &mut [u8]| {
        let result = file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(bytes));
        result.map_err(|_| "the file ends within its headers".to_string())
    };
    read(&mut file, 0, header.as_mut_slice())?;
    if header.e_ident[EI_CLASS] != CLASS_64 {
        return Err("it is a 32-bit ELF file; only 64-bit ones are known here".into());
    }
    let mut covered: Option<Range> = None;
    let (mut unfilled, mut filled) = (Vec::new(), 0_u64);
    for index in 0..u64::from(header.e_phnum) {
        let mut segment = Elf64_Phdr::default();
        let size = size_of::<Elf64_Phdr>() as u64;
        let at = header.e_phoff.checked_add(index * size).ok_or("a header is out of range")?;
        read(&mut file, at, segment.as_mut_slice())?;
        if segment.p_type != PT_LOAD || segment.p_memsz == 0 {
            continue;
        }
        let range = Range::new(segment.p_paddr, segment.p_memsz.max(segment.p_filesz))
            .ok_or("a segment is out of range")?;
        let end = range.start() + segment.p_filesz;
        filled = filled.saturating_add(segment.p_filesz);
        unfilled.extend((end < range.end()).then(|| Range::between(end, range.end())));
        covered = Some(covered.map_or(range, |all| {
            Range::between(all.start().min(range.start()), all.end().max(range.end()))
        }));
    }
    let range = covered.ok_or("it has no segment to load")?;
    Ok(Extent { range, unfilled, filled })
}

/// Loads the kernel and what it is told.
pub(super) fn prepare(source: &Source<'_>, ram: &GuestRam) -> Result<InitState, Error> {
    let Some(kernel) = &source.images.kernel else { return Err(Error::TooBig("no kernels")) };
    let loaded = load(&kernel.image, ram)?;
    let map = super::memory_map(source.config.memory)?;
    let bytes = source.command_line_bytes();
    let fitted = |result: Result<Range, placement::Error>| {
        result.map_err(|error| source.placement_error(error))
    };
    let max = layout::COMMAND_LINE.len() - 1;
    let command_line = fitted(placement::plan_command_line(max, bytes.len() as u64))?;
    let initrd = fitted(placement::plan_initrd_beside(&map, loaded.range, source.initrd_size()))?;

    super::place_initrd(source, initrd, ram)?;
    ram.write(command_line.start(), &bytes)?;
    let rsdp = super::place_description(source, ram)?;
    super::place_bios_remains(ram)?;
    let info = StartInfo { command_line: command_line.start(), initrd, rsdp, map: &map };
    let mut area = [0; 4096];
    const _: () = assert!(layout::PVH_INFO.len() == 4096);
    info.encode(layout::PVH_INFO.start(), &mut area).ok_or(Error::TooBig("the start info"))?;
    ram.write(layout::PVH_INFO.start(), &area)?;
    let cpu = Cpu { rbx: layout::PVH_INFO.start(), ..Cpu::protected(loaded.entry.into()) };
    ram.write(layout::GDT.start(), &cpu.gdt_bytes())?;
    Ok(InitState {
        cpu,
        placed: vec![("kernel", loaded.range), ("command_line", command_line), ("initrd", initrd)],
        direct: true,
    })
}
