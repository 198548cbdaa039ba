//! Guest RAM: mapped once, filled lazily, reached only by checked addresses.
#![expect(unsafe_code, reason = "mmap, and a vm-memory region over it")]

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ptr;

use abi::layout;
use abi::range::Range;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap, MmapRegion,
};

/// What can go wrong with guest memory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host gives no memory.
    #[error("mapping {size} bytes of guest memory (use a smaller -m)")]
    Map {
        /// Bytes.
        size: u64,
        /// The host's reason.
        source: io::Error,
    },
    /// An address range that is not all RAM.
    #[error("guest memory from {address:#x}, {length} bytes, is not all RAM")]
    NoRam {
        /// The first address.
        address: u64,
        /// Bytes.
        length: u64,
    },
    /// A file could not be read into memory.
    #[error("reading {length} bytes to guest address {address:#x}")]
    Load {
        /// The first address.
        address: u64,
        /// Bytes.
        length: u64,
        /// The host's reason.
        source: io::Error,
    },
}

/// The alignment that lets guest and host use the same huge page.
const HUGE_PAGE: usize = 2 << 20;

/// Bytes of a BIOS image that can be RAM and ROM at once: what is aliased below 1 MiB.
const ALIAS_MAX: u64 = 0x2_0000;

/// A memory slot of KVM: guest address, bytes, host address.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// Where it is in the guest.
    pub guest: Range,
    /// Where it is in this process.
    pub host: u64,
}

/// All memory of a guest. It is unmapped when the last user is gone, so what holds an address of
/// it (a KVM slot) must go first.
pub struct GuestRam {
    regions: GuestMemoryMmap,
    // Dropped after the regions, which point into them.
    mappings: Vec<Mapping>,
    bios: Option<Bios>,
}

struct Bios {
    size: u64,
    // Its own memory, for an image that is more than its alias.
    mapping: Option<Mapping>,
}

impl GuestRam {
    /// RAM of `size` bytes, and room for a BIOS image of `bios_size` bytes below 4 GiB.
    pub fn new(size: u64, bios_size: Option<u64>) -> Result<Self, Error> {
        let mut mappings = Vec::new();
        let mut regions = Vec::new();
        for range in ranges(size) {
            let mapping = Mapping::new(range.len())?;
            regions.push(mapping.region(range.start())?);
            mappings.push(mapping);
        }
        let refused = |_| Error::Map { size, source: io::ErrorKind::InvalidInput.into() };
        let regions = GuestMemoryMmap::from_regions(regions).map_err(refused)?;
        let bios = bios_size.map(|size| {
            let mapping = if size > ALIAS_MAX { Some(Mapping::new(size)?) } else { None };
            Ok(Bios { size, mapping })
        });
        Ok(Self { regions, mappings, bios: bios.transpose()? })
    }

    /// The slots that KVM needs: RAM, and the BIOS image under 4 GiB. An image of up to 128 KiB
    /// is the same memory as its alias below 1 MiB, writable at both places as on QEMU's
    /// microvm; the alias is part of RAM and costs no slot.
    pub fn slots(&self) -> Vec<Slot> {
        let slot = |guest: Range, host: u64| Slot { guest, host };
        let mut slots: Vec<_> = self
            .ranges()
            .zip(&self.mappings)
            .map(|(range, mapping)| slot(range, mapping.address()))
            .collect();
        if let (Some(bios), Some(ram)) = (&self.bios, self.mappings.first()) {
            let guest = Range::between(layout::FOUR_GIB - bios.size, layout::FOUR_GIB);
            let alias = || ram.address() + layout::HIGH_RAM_START - bios.size;
            slots.push(slot(guest, bios.mapping.as_ref().map_or_else(alias, Mapping::address)));
        }
        slots
    }

    /// The ranges that are RAM, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = Range> + '_ {
        self.regions.iter().map(|region| {
            let region: &GuestRegionMmap = region;
            let start = vm_memory::GuestMemoryRegion::start_addr(region).0;
            Range::between(start, start + vm_memory::GuestMemoryRegion::len(region))
        })
    }

    /// Reads the BIOS image from `file`, to 4 GiB and to its alias below 1 MiB.
    pub fn load_bios(&self, file: &File) -> Result<(), Error> {
        let Some(bios) = &self.bios else { return Ok(()) };
        let alias = bios.size.min(ALIAS_MAX);
        if let Some(mapping) = &bios.mapping {
            let region = mapping.region(layout::FOUR_GIB - bios.size)?;
            let high = GuestMemoryMmap::from_regions(vec![region]).map_err(|_| Error::NoRam {
                address: layout::FOUR_GIB - bios.size,
                length: bios.size,
            })?;
            load(&high, layout::FOUR_GIB - bios.size, file, 0, bios.size)?;
        }
        self.load(layout::HIGH_RAM_START - alias, file, bios.size - alias, alias)
    }

    /// Copies bytes in.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        let refused = |_| no_ram(address, bytes.len());
        self.regions.write_slice(bytes, GuestAddress(address)).map_err(refused)
    }

    /// Copies bytes out.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let length = bytes.len();
        let refused = |_| no_ram(address, length);
        self.regions.read_slice(bytes, GuestAddress(address)).map_err(refused)
    }

    /// Whether all of `length` bytes from `address` on are RAM.
    pub fn contains(&self, address: u64, length: u64) -> bool {
        Range::new(address, length).is_some_and(|wanted| {
            wanted.is_empty() || self.ranges().any(|ram| ram.contains(wanted))
        })
    }

    /// Zeroes `length` bytes.
    pub fn zero(&self, address: u64, length: u64) -> Result<(), Error> {
        const ZEROES: [u8; 4096] = [0; 4096];
        if !self.contains(address, length) {
            return Err(Error::NoRam { address, length });
        }
        let mut done = 0;
        while done < length {
            let step = (length - done).min(ZEROES.len() as u64);
            let bytes = usize::try_from(step).ok().and_then(|step| ZEROES.get(..step));
            self.write(address + done, bytes.unwrap_or(&ZEROES))?;
            done += step;
        }
        Ok(())
    }

    /// Reads `length` bytes of `file` from `offset` on, straight into guest memory.
    pub fn load(&self, address: u64, file: &File, offset: u64, length: u64) -> Result<(), Error> {
        load(&self.regions, address, file, offset, length)
    }

    /// For readers of kernel formats that want vm-memory's own type.
    pub fn regions(&self) -> &GuestMemoryMmap {
        &self.regions
    }
}

/// RAM of `size` bytes as QEMU's microvm lays it out.
pub fn ranges(size: u64) -> Vec<Range> {
    let low = size.min(layout::LOW_RAM_MAX);
    let mut ranges = vec![Range::between(0, low)];
    if let Some(high) = Range::new(layout::FOUR_GIB, size - low).filter(|high| !high.is_empty()) {
        ranges.push(high);
    }
    ranges
}

fn load(
    memory: &GuestMemoryMmap,
    address: u64,
    mut file: &File,
    offset: u64,
    length: u64,
) -> Result<(), Error> {
    let failed = |source| Error::Load { address, length, source };
    file.seek(SeekFrom::Start(offset)).map_err(failed)?;
    let mut done = 0;
    while done < length {
        let left = usize::try_from(length - done).unwrap_or(usize::MAX);
        let at = GuestAddress(address.checked_add(done).ok_or(Error::NoRam { address, length })?);
        match memory.read_volatile_from(at, &mut file, left) {
            Ok(0) => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
            Ok(read) => done += read as u64,
            Err(vm_memory::GuestMemoryError::IOError(e)) => return Err(failed(e)),
            Err(_) => return Err(Error::NoRam { address, length }),
        }
    }
    Ok(())
}

fn no_ram(address: u64, length: usize) -> Error {
    Error::NoRam { address, length: length as u64 }
}

/// Anonymous memory at a huge page's alignment, unmapped on drop.
struct Mapping {
    start: *mut u8,
    size: usize,
    reserved: *mut libc::c_void,
    reserved_size: usize,
}

// SAFETY: the memory belongs to the process, not to a thread; it is reached only through
// vm-memory's volatile accesses and by the guest.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

const PROT: i32 = libc::PROT_READ | libc::PROT_WRITE;
const FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

impl Mapping {
    fn new(size: u64) -> Result<Self, Error> {
        let failed = |source| Error::Map { size, source };
        let too_large = || failed(io::ErrorKind::OutOfMemory.into());
        let size = usize::try_from(size).map_err(|_| too_large())?;
        let reserved_size = size.checked_add(HUGE_PAGE).ok_or_else(too_large)?;
        // SAFETY: a new anonymous mapping, wherever the kernel likes: it replaces nothing.
        let reserved = unsafe { libc::mmap(ptr::null_mut(), reserved_size, PROT, FLAGS, -1, 0) };
        if reserved == libc::MAP_FAILED {
            return Err(failed(io::Error::last_os_error()));
        }
        let start = reserved.cast::<u8>();
        let start = start.wrapping_add(start.align_offset(HUGE_PAGE));
        // SAFETY: `size` bytes from `start` on are within the mapping made above, which has room
        // for the alignment. Refusal means no huge pages, which is slower and nothing else.
        unsafe { libc::madvise(start.cast(), size, libc::MADV_HUGEPAGE) };
        Ok(Self { start, size, reserved, reserved_size })
    }

    fn address(&self) -> u64 {
        self.start.addr() as u64
    }

    fn region(&self, guest: u64) -> Result<GuestRegionMmap, Error> {
        // SAFETY: the range lies within this mapping. Whoever keeps the region keeps the mapping
        // with it: `GuestRam` drops its regions first, `load_bios` returns before.
        let region = unsafe { MmapRegion::build_raw(self.start, self.size, PROT, FLAGS) };
        region
            .ok()
            .and_then(|region| GuestRegionMmap::new(region, GuestAddress(guest)))
            .ok_or_else(|| no_ram(guest, self.size))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, in whole; nothing points into it any more (see
        // `GuestRam`).
        unsafe { libc::munmap(self.reserved, self.reserved_size) };
    }
}

#[cfg(test)]
mod tests;
