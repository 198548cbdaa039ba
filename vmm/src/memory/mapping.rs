//! Memory of this process that a guest has as RAM: mapped, advised, filled.
#![expect(unsafe_code, reason = "mmap, madvise, and vm-memory regions over them")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::Arc;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap};

use super::file::{self, Backing};
use super::{Error, no_ram};
use crate::config::{Backend, MemorySource};

/// The alignment that lets guest and host use the same huge page.
pub(super) const HUGE_PAGE: u64 = 2 << 20;

const PROT: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// Memory at a huge page's alignment, unmapped on drop. What nobody touched takes no room.
pub(super) struct Mapping {
    start: *mut u8,
    size: usize,
    flags: i32,
    /// What it maps, if others can map it too.
    shared: Option<Arc<File>>,
    /// Whether it can be given back to the host in parts: it is in no file, and not to be filled
    /// in advance.
    is_discardable: bool,
    // What is given back to the host reads as zero.
    becomes_zero: bool,
    /// Around it, and nothing else is in there.
    reserved: *mut libc::c_void,
    reserved_size: usize,
}

// SAFETY: the memory belongs to the process, not to a thread; it is reached only through
// vm-memory's volatile accesses and by the guest.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `size` bytes as `backend` describes them.
    pub(super) fn new(size: u64, backend: &Backend) -> Result<Self, Error> {
        let backing = file::open(backend, size)?;
        let huge_page = backing.as_ref().and_then(|backing| backing.huge_page);
        let align = huge_page.unwrap_or(HUGE_PAGE).max(HUGE_PAGE);
        let option = || backend.option.clone();
        let failed = |source: io::Error| match (source.kind(), huge_page) {
            (io::ErrorKind::OutOfMemory, Some(page)) => {
                Error::HugePages { option: option(), count: size / page, kib: page >> 10 }
            }
            (io::ErrorKind::OutOfMemory, None) => Error::TooMuch { option: option(), size },
            _ => Error::Map { option: option(), size, source },
        };
        let mut mapping = Self::reserve(size, align).map_err(failed)?;
        mapping.map(backend, backing).map_err(failed)?;
        mapping.advise(backend);
        if backend.prealloc {
            mapping.fill().map_err(|source| Error::Fill { option: option(), size, source })?;
        }
        Ok(mapping)
    }

    /// Room for `size` bytes at this alignment; an access is an error still.
    fn reserve(size: u64, align: u64) -> io::Result<Self> {
        let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
        let size = usize::try_from(size).map_err(|_| too_large())?;
        let align = usize::try_from(align).map_err(|_| too_large())?;
        let reserved_size = size.checked_add(align).ok_or_else(too_large)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping, wherever the kernel likes: it replaces nothing.
        let reserved =
            unsafe { libc::mmap(ptr::null_mut(), reserved_size, libc::PROT_NONE, flags, -1, 0) };
        if reserved == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = reserved.cast::<u8>();
        let start = start.wrapping_add(start.align_offset(align));
        let (is_discardable, becomes_zero) = (false, false);
        let shared = None;
        Ok(Self {
            start,
            size,
            flags,
            shared,
            is_discardable,
            becomes_zero,
            reserved,
            reserved_size,
        })
    }

    /// Puts the memory into the room.
    fn map(&mut self, backend: &Backend, backing: Option<Backing>) -> io::Result<()> {
        self.flags = if backend.share { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        if backing.is_none() {
            self.flags |= libc::MAP_ANONYMOUS;
        }
        if !backend.reserve {
            self.flags |= libc::MAP_NORESERVE;
        }
        let fd = backing.as_ref().map_or(-1, |backing| backing.file.as_raw_fd());
        let flags = self.flags | libc::MAP_FIXED;
        // SAFETY: it replaces `size` bytes from `start` on, which are within what `reserve` mapped
        // for this, with room for the alignment; nobody has an address in there yet.
        let mapped = unsafe { libc::mmap(self.start.cast(), self.size, PROT, flags, fd, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        self.becomes_zero = !matches!(backend.source, MemorySource::File(_));
        self.is_discardable = backend.source == MemorySource::Anonymous && !backend.prealloc;
        self.shared = backing.filter(|_| backend.share).map(|backing| Arc::new(backing.file));
        Ok(())
    }

    /// What the host may do with it. A refusal means that this host cannot, which is slower or
    /// takes more room, and nothing else.
    fn advise(&self, backend: &Backend) {
        let advise = |advice| {
            // SAFETY: the range is this mapping's. None of the advice changes what it holds.
            unsafe { libc::madvise(self.start.cast(), self.size, advice) };
        };
        // The host's default may be either.
        advise(if backend.huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE });
        if backend.merge {
            advise(libc::MADV_MERGEABLE);
        }
        if !backend.dump {
            advise(libc::MADV_DONTDUMP);
        }
    }

    /// Has the host back all of it now.
    fn fill(&self) -> io::Result<()> {
        // SAFETY: the range is this mapping's; its contents stay. What cannot be backed is an
        // error here, and no signal.
        let result =
            unsafe { libc::madvise(self.start.cast(), self.size, libc::MADV_POPULATE_WRITE) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Gives `length` bytes from `offset` on back to the host: they read as zero then. Whether
    /// that was possible; it takes whole pages.
    pub(super) fn discard(&self, offset: usize, length: usize) -> bool {
        let inside = offset.checked_add(length).is_some_and(|end| end <= self.size);
        if !inside || !self.is_discardable {
            return false;
        }
        let start = self.start.wrapping_add(offset);
        // SAFETY: the range is within this mapping, which is reached by volatile accesses only: no
        // reference sees its bytes change.
        unsafe { libc::madvise(start.cast(), length, libc::MADV_DONTNEED) == 0 }
    }

    /// Gives whole pages back to the host that nobody uses: they are zeroes when they are used
    /// again. Where the host cannot take them, or they would be something else, they stay.
    pub(super) fn give_back(&self, offset: u64, length: usize) {
        let Ok(offset) = usize::try_from(offset) else { return };
        let advice = match (&self.shared, self.becomes_zero) {
            // From the file, where others would still find them.
            (Some(_), _) => libc::MADV_REMOVE,
            (None, true) => libc::MADV_DONTNEED,
            (None, false) => return,
        };
        if offset.checked_add(length).is_some_and(|end| end <= self.size) {
            let start = self.start.wrapping_add(offset);
            // SAFETY: the range is within this mapping, which is reached by volatile accesses and
            // by the kernel only: no reference sees its bytes change.
            unsafe { libc::madvise(start.cast(), length, advice) };
        }
    }

    pub(super) fn address(&self) -> u64 {
        self.start.addr() as u64
    }

    /// `length` bytes from `offset` on, at `guest` in the guest.
    pub(super) fn region(
        &self,
        offset: u64,
        length: u64,
        guest: u64,
    ) -> Result<GuestRegionMmap, Error> {
        let refused = || no_ram(guest, length);
        let at = usize::try_from(offset).map_err(|_| refused())?;
        let size = usize::try_from(length).map_err(|_| refused())?;
        if at.checked_add(size).is_none_or(|end| end > self.size) {
            return Err(refused());
        }
        let builder = MmapRegionBuilder::new(size).with_mmap_prot(PROT).with_mmap_flags(self.flags);
        // SAFETY: the range lies within this mapping. Whoever keeps the region keeps the mapping
        // with it: `GuestRam` drops its regions first, `load_bios` returns before.
        let builder = unsafe { builder.with_raw_mmap_pointer(self.start.wrapping_add(at)) };
        let builder = match &self.shared {
            Some(file) => builder.with_file_offset(FileOffset::from_arc(file.clone(), offset)),
            None => builder,
        };
        let region = builder.build().ok();
        region
            .and_then(|region| GuestRegionMmap::new(region, GuestAddress(guest)))
            .ok_or_else(refused)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the room made in `reserve`, in whole; nothing points into it any more (see
        // `GuestRam`).
        unsafe { libc::munmap(self.reserved, self.reserved_size) };
    }
}
