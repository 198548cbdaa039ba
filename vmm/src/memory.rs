//! Guest RAM: mapped once, filled lazily, reached only by checked addresses.

mod file;
mod mapping;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use abi::layout;
use abi::range::{Range, align_down, align_up};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

use crate::config::Backend;
use mapping::Mapping;

/// What can go wrong with guest memory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host has not enough memory.
    #[error(
        "{option}: the host has no room for {size} bytes of guest memory: use a smaller -m, or \
         reserve=off with -object"
    )]
    TooMuch {
        /// The option that asked for it.
        option: String,
        /// Bytes.
        size: u64,
    },
    /// The host does not map it.
    #[error("{option}: mapping {size} bytes of guest memory")]
    Map {
        /// The option that asked for it.
        option: String,
        /// Bytes.
        size: u64,
        /// The host's reason.
        source: io::Error,
    },
    /// The host cannot back all memory.
    #[error("{option}: filling {size} bytes of guest memory in advance (prealloc; Linux 5.14 can)")]
    Fill {
        /// The option that asked for it.
        option: String,
        /// Bytes.
        size: u64,
        /// The host's reason.
        source: io::Error,
    },
    /// No file in memory.
    #[error("{option}: making a file in memory for guest memory")]
    Memfd {
        /// The option that asked for it.
        option: String,
        /// The host's reason.
        source: io::Error,
    },
    /// Huge pages of a size that the host does not have.
    #[error("{option}: the host has no huge pages of this size: see /sys/kernel/mm/hugepages")]
    NoSuchPages {
        /// The option that asked for it.
        option: String,
    },
    /// Too few free huge pages.
    #[error(
        "{option}: the host has fewer than {count} free huge pages: reserve them by \
         echo {count} > /sys/kernel/mm/hugepages/hugepages-{kib}kB/nr_hugepages"
    )]
    HugePages {
        /// The option that asked for them.
        option: String,
        /// Pages wanted.
        count: u64,
        /// KiB of one.
        kib: u64,
    },
    /// A size that huge pages do not divide.
    #[error("{option}: {size} bytes are no whole number of huge pages of {page} bytes")]
    PartialPage {
        /// The option that asked for it.
        option: String,
        /// Bytes wanted.
        size: u64,
        /// Bytes of a page.
        page: u64,
    },
    /// A file cannot be opened or grown.
    #[error("{option}: guest memory in '{path}'")]
    File {
        /// The option that named it.
        option: String,
        /// Its name.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// It is a device or a pipe.
    #[error("{option}: '{path}' is neither a regular file nor a folder")]
    NoFile {
        /// The option that named it.
        option: String,
        /// Its name.
        path: PathBuf,
    },
    /// A file that has contents, but too few.
    #[error(
        "{option}: '{path}' has {found} bytes and guest memory {size}: give a file of that size, \
         an empty one or a new one"
    )]
    FileSize {
        /// The option that named it.
        option: String,
        /// Its name.
        path: PathBuf,
        /// Bytes it has.
        found: u64,
        /// Bytes wanted.
        size: u64,
    },
    /// A file system that is too small.
    #[error("{option}: the file system of '{path}' has room for {room} of {size} bytes")]
    Room {
        /// The option that named it.
        option: String,
        /// Its name.
        path: PathBuf,
        /// Bytes that are free or in the file.
        room: u64,
        /// Bytes wanted.
        size: u64,
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

/// A region of RAM that another process can map: a vhost-user device's, say.
#[derive(Clone, Copy, Debug)]
pub struct Shared<'a> {
    /// Where it is in the guest.
    pub guest: Range,
    /// Where it is in this process.
    pub host: u64,
    /// What to map.
    pub file: &'a File,
    /// Where the region begins in the file, in bytes.
    pub offset: u64,
}

/// All memory of a guest. It is unmapped when the last user is gone, so what holds an address of
/// it (a KVM slot) must go first.
pub struct GuestRam {
    regions: GuestMemoryMmap,
    // Dropped after the regions, which point into it. The regions follow each other in it.
    mapping: Mapping,
    bios: Option<Bios>,
}

struct Bios {
    size: u64,
    // Its own memory, for an image that is more than its alias.
    mapping: Option<Mapping>,
}

impl GuestRam {
    /// RAM of `size` bytes as `-m` alone gives it, and room for a BIOS image of `bios_size` bytes
    /// below 4 GiB.
    pub fn new(size: u64, bios_size: Option<u64>) -> Result<Self, Error> {
        Self::on(&Backend::default(), size, bios_size)
    }

    /// RAM of `size` bytes on `backend`, and room for a BIOS image of `bios_size` bytes below
    /// 4 GiB.
    pub fn on(backend: &Backend, size: u64, bios_size: Option<u64>) -> Result<Self, Error> {
        let mapping = Mapping::new(size, backend)?;
        let mut regions = Vec::new();
        let mut offset = 0;
        for range in ranges(size) {
            regions.push(mapping.region(offset, range.len(), range.start())?);
            offset += range.len();
        }
        let regions = GuestMemoryMmap::from_regions(regions).map_err(|_| no_ram(0, size))?;
        let bios = bios_size.map(|size| {
            let own = || Mapping::new(size, &Backend::default());
            let mapping = if size > ALIAS_MAX { Some(own()?) } else { None };
            Ok(Bios { size, mapping })
        });
        Ok(Self { regions, mapping, bios: bios.transpose()? })
    }

    /// The slots that KVM needs: RAM, and the BIOS image under 4 GiB. An image of up to 128 KiB
    /// is the same memory as its alias below 1 MiB, writable at both places as on QEMU's
    /// microvm; the alias is part of RAM and costs no slot.
    pub fn slots(&self) -> Vec<Slot> {
        let mut slots: Vec<_> = self
            .ranges()
            .scan(self.mapping.address(), |host, guest| {
                let slot = Slot { guest, host: *host };
                *host += guest.len();
                Some(slot)
            })
            .collect();
        if let Some(bios) = &self.bios {
            let guest = Range::between(layout::FOUR_GIB - bios.size, layout::FOUR_GIB);
            let alias = || self.mapping.address() + layout::HIGH_RAM_START - bios.size;
            let host = bios.mapping.as_ref().map_or_else(alias, Mapping::address);
            slots.push(Slot { guest, host });
        }
        slots
    }

    /// The regions that other processes can map: all RAM of a shared backend, else none.
    pub fn shared(&self) -> impl Iterator<Item = Shared<'_>> {
        self.regions.iter().zip(self.slots()).filter_map(|(region, slot)| {
            let file = region.file_offset()?;
            let Slot { guest, host } = slot;
            Some(Shared { guest, host, file: file.file(), offset: file.start() })
        })
    }

    /// The ranges that are RAM, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = Range> + '_ {
        self.regions.iter().map(|region| {
            let region: &GuestRegionMmap = region;
            let start = region.start_addr().0;
            Range::between(start, start + region.len())
        })
    }

    /// Reads the BIOS image from `file`, to 4 GiB and to its alias below 1 MiB.
    pub fn load_bios(&self, file: &File) -> Result<(), Error> {
        let Some(bios) = &self.bios else { return Ok(()) };
        let alias = bios.size.min(ALIAS_MAX);
        if let Some(mapping) = &bios.mapping {
            let region = mapping.region(0, bios.size, layout::FOUR_GIB - bios.size)?;
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
        let refused = |_| no_ram(address, bytes.len() as u64);
        count_put(bytes.len() as u64);
        self.regions.write_slice(bytes, GuestAddress(address)).map_err(refused)
    }

    /// Copies bytes out.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let length = bytes.len() as u64;
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

    /// Zeroes `length` bytes that no guest needs any more. Pages that the host can take back cost
    /// nothing, not even when nobody ever touched them.
    pub fn clear(&self, address: u64, length: u64) -> Result<(), Error> {
        let range = Range::new(address, length).filter(|_| self.contains(address, length));
        let range = range.ok_or_else(|| no_ram(address, length))?;
        let first = align_up(range.start(), layout::PAGE).unwrap_or(range.end());
        let last = align_down(range.end(), layout::PAGE);
        if first >= last || !self.discard(first, last - first) {
            return self.zero(address, length);
        }
        self.zero(address, first - address)?;
        self.zero(last, range.end() - last)
    }

    /// Gives memory back to the host that the guest says it does not use, as far as it is memory
    /// and the host can take it.
    pub fn give_back(&self, address: u64, length: u64) {
        if let Some(length) =
            usize::try_from(length).ok().filter(|_| self.contains(address, length))
        {
            self.mapping.give_back(offset(address), length);
        }
    }

    /// Likewise, for `length` bytes at an address of this process.
    pub fn give_back_host(&self, address: u64, length: usize) {
        if let Some(offset) = address.checked_sub(self.mapping.address()) {
            self.mapping.give_back(offset, length);
        }
    }

    fn discard(&self, address: u64, length: u64) -> bool {
        let offset = offset(address);
        match (usize::try_from(offset), usize::try_from(length)) {
            (Ok(offset), Ok(length)) => self.mapping.discard(offset, length),
            _ => false,
        }
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

/// Bytes that [`GuestRam::write`] and [`GuestRam::load`] put into guests.
static PUT: AtomicU64 = AtomicU64::new(0);

/// Counts bytes that were put there by other means.
pub fn count_put(bytes: u64) {
    PUT.fetch_add(bytes, Ordering::Relaxed);
}

/// Bytes that this process has put into guest memory: images, tables, what firmware read over
/// fw_cfg. Devices move theirs themselves.
pub fn bytes_put() -> u64 {
    PUT.load(Ordering::Relaxed)
}

/// Where RAM at a guest's address is in the mapping: high RAM follows low RAM.
fn offset(address: u64) -> u64 {
    match address.checked_sub(layout::FOUR_GIB) {
        Some(above) => layout::LOW_RAM_MAX + above,
        None => address,
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
    count_put(length);
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

fn no_ram(address: u64, length: u64) -> Error {
    Error::NoRam { address, length }
}

#[cfg(test)]
mod tests;
