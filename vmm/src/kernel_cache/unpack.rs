//! The ELF kernel within a bzImage.
//!
//! Source: Linux, Documentation/arch/x86/boot.rst, on `payload_offset` and `payload_length`. The
//! last four bytes of a payload are the unpacked kernel's size: gzip has them itself, for the
//! others the kernel's build adds them.

use std::io::{self, Read};

use abi::bytes::{get_u16, get_u32, get_u64};
use abi::linux::SetupHeader;

/// Why an image cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The header.
    #[error("{0}")]
    Header(abi::linux::Error),
    /// The header names no payload within the file.
    #[error("its header tells of no packed kernel within it")]
    NoPayload,
    /// None of the known formats.
    #[error("its kernel is not packed by gzip, xz, lz4 or zstd")]
    Format,
    /// The packed bytes are no such stream.
    #[error("its kernel does not unpack: {0}")]
    Damaged(io::Error),
    /// Too short, or far too long.
    #[error("its kernel unpacks to another size than the {0} bytes that it names")]
    Size(u32),
    /// It cannot be started as it is.
    #[error("its kernel has no PVH entry (CONFIG_PVH)")]
    NoPvh,
}

/// What no kernel's size exceeds; hostile ones would be.
const SIZE_MAX: u32 = 512 << 20;
/// Fields of the setup header.
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// How a 64-bit ELF file begins.
pub const ELF_64: [u8; 5] = *b"\x7fELF\x02";

/// The size of a bzImage's kernel, unpacked.
pub fn size(image: &[u8]) -> Result<u32, Error> {
    split(payload(image)?).map(|(_, size)| size)
}

/// Unpacks a bzImage: an ELF kernel with a PVH entry.
pub fn unpack(image: &[u8]) -> Result<Vec<u8>, Error> {
    let payload = payload(image)?;
    let (packed, size) = split(payload)?;
    let mut kernel = Vec::new();
    let limit = u64::from(size) + 1;
    open(payload, packed)?.take(limit).read_to_end(&mut kernel).map_err(Error::Damaged)?;
    if u32::try_from(kernel.len()) != Ok(size) {
        return Err(Error::Size(size));
    }
    if has_pvh(&kernel).unwrap_or(false) { Ok(kernel) } else { Err(Error::NoPvh) }
}

/// All but the last four bytes of a payload, and what they say.
fn split(payload: &[u8]) -> Result<(&[u8], u32), Error> {
    let (packed, size) = payload.split_last_chunk().ok_or(Error::NoPayload)?;
    let size = u32::from_le_bytes(*size);
    if size > SIZE_MAX { Err(Error::Size(size)) } else { Ok((packed, size)) }
}

fn payload(image: &[u8]) -> Result<&[u8], Error> {
    let header = SetupHeader::parse(image).map_err(Error::Header)?;
    let field = |at| get_u32(image, at).and_then(|value| usize::try_from(value).ok());
    let find = || {
        let start = usize::try_from(header.setup_size).ok()?.checked_add(field(PAYLOAD_OFFSET)?)?;
        image.get(start..start.checked_add(field(PAYLOAD_LENGTH)?)?)
    };
    find().filter(|payload| !payload.is_empty()).ok_or(Error::NoPayload)
}

/// The unpacked bytes of `payload`. Of a kernel's, `packed` is all but the last four bytes.
pub fn open<'a>(payload: &'a [u8], packed: &'a [u8]) -> Result<Box<dyn Read + 'a>, Error> {
    Ok(match payload {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::GzDecoder::new(payload)),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => Box::new(lzma_rust2::XzReader::new(packed, false)),
        [0x02, 0x21, 0x4c, 0x18, ..] => Box::new(lz4_flex::frame::FrameDecoder::new(packed)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(
            ruzstd::decoding::StreamingDecoder::new(packed)
                .map_err(|error| Error::Damaged(io::Error::other(error)))?,
        ),
        _ => return Err(Error::Format),
    })
}

/// Whether a 64-bit ELF file has Xen's note of a 32-bit entry (Linux, include/xen/interface/
/// elfnote.h, XEN_ELFNOTE_PHYS32_ENTRY).
fn has_pvh(elf: &[u8]) -> Option<bool> {
    const PT_NOTE: u32 = 4;
    const PHYS32_ENTRY: u32 = 18;
    const XEN: &[u8] = b"Xen\0";
    if !elf.starts_with(&ELF_64) {
        return None;
    }
    let at = |value: u64| usize::try_from(value).ok();
    let (table, size) = (at(get_u64(elf, 0x20)?)?, usize::from(get_u16(elf, 0x36)?));
    for index in 0..usize::from(get_u16(elf, 0x38)?) {
        let header = table.checked_add(index.checked_mul(size)?)?;
        if get_u32(elf, header)? != PT_NOTE {
            continue;
        }
        let start = at(get_u64(elf, header.checked_add(8)?)?)?;
        let length = at(get_u64(elf, header.checked_add(32)?)?)?;
        let mut notes = elf.get(start..start.checked_add(length)?)?;
        while let Some(name_size) = get_u32(notes, 0) {
            let padded = |size: u32| at(size.into())?.checked_next_multiple_of(4);
            let (name, value) = (padded(name_size)?, padded(get_u32(notes, 4)?)?);
            if get_u32(notes, 8)? == PHYS32_ENTRY && notes.get(12..12 + XEN.len())? == XEN {
                return Some(true);
            }
            notes = notes.get(name.checked_add(value)?.checked_add(12)?..)?;
        }
    }
    Some(false)
}
