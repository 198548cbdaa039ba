//! From a linked ELF file to a flat image: segments at their load addresses.

use anyhow::{Context, Result, bail};
use object::elf::{FileHeader64, PT_INTERP, PT_LOAD, PT_LOOS, ProgramType};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, ReadRef};

/// Bytes that no linked image of ours comes near: a wild address is an error, not a huge file.
const SIZE_LIMIT: u64 = 64 << 20;

/// How to lay out an image.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// The load address of the image's first byte.
    pub base: u64,
    /// The image's size, or as far as the last segment reaches.
    pub size: Option<u64>,
    /// What stands where no segment does.
    pub fill: u8,
}

/// A flat image.
#[derive(Debug)]
pub struct Image {
    /// All of it.
    pub bytes: Vec<u8>,
    /// How many of the bytes come from the file.
    pub used: usize,
}

/// Places the loadable segments of an ELF file by their physical addresses.
///
/// Segments without bytes in the file (zeroed at run time) have no place in an image.
pub fn flatten(elf: &[u8], layout: Layout) -> Result<Image> {
    let mut segments = segments(elf, PT_LOAD)?;
    segments.sort_unstable_by_key(|(address, _)| *address);

    let limit = layout.size.unwrap_or(SIZE_LIMIT);
    let mut bytes = Vec::new();
    let mut used = 0;
    for (address, data) in segments {
        let outside =
            || format!("segment at {address:#x}, {:#x} bytes, leaves the image", data.len());
        let start = address.checked_sub(layout.base).with_context(outside)?;
        let end = start.checked_add(data.len() as u64).filter(|end| *end <= limit);
        end.with_context(outside)?;
        let start = usize::try_from(start)?;
        if start < bytes.len() {
            bail!("segment at {address:#x} overlaps the one before it");
        }
        bytes.resize(start, layout.fill);
        bytes.extend_from_slice(data);
        used += data.len();
    }
    if used == 0 {
        bail!("no loadable bytes");
    }
    if let Some(size) = layout.size {
        bytes.resize(usize::try_from(size)?, layout.fill);
    }
    Ok(Image { bytes, used })
}

/// What comes before a kernel's loaded part in its image: the segment of the type `PT_LOOS`, which
/// the loader of an ELF file leaves out.
pub fn front(elf: &[u8]) -> Result<&[u8]> {
    match segments(elf, ProgramType(PT_LOOS))?[..] {
        [(_, front)] => Ok(front),
        _ => bail!("not one segment of the type PT_LOOS"),
    }
}

/// Whether a program is started by another one, which finds it its shared libraries.
pub fn needs_loader(elf: &[u8]) -> Result<bool> {
    Ok(!segments(elf, PT_INTERP)?.is_empty())
}

fn segments(elf: &[u8], kind: ProgramType) -> Result<Vec<(u64, &[u8])>> {
    let header = FileHeader64::<Endianness>::parse(elf).context("reading the ELF header")?;
    let endian = header.endian().context("reading the ELF header")?;
    let mut segments = Vec::new();
    for segment in header.program_headers(endian, elf).context("reading the program headers")? {
        let (offset, size) = segment.file_range(endian);
        if segment.p_type(endian) != kind || size == 0 {
            continue;
        }
        let data = elf.read_bytes_at(offset, size).ok();
        let data = data.context("a segment lies outside the file")?;
        segments.push((segment.p_paddr(endian), data));
    }
    Ok(segments)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROM: Layout = Layout { base: 0xf_0000, size: Some(0x100), fill: 0xff };
    const FLAT: Layout = Layout { base: 0, size: None, fill: 0 };

    /// An ELF file of segments (load address, bytes in the file, bytes claimed).
    fn elf(segments: &[(u64, &[u8], u64)]) -> Vec<u8> {
        let data_start = 64 + 56 * segments.len() as u64;
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
        for field in [0, 64, 0_u64] {
            file.extend_from_slice(&field.to_le_bytes());
        }
        let count = u16::try_from(segments.len()).unwrap();
        file.extend_from_slice(&[0, 0, 0, 0]);
        for field in [64, 56, count, 64, 0, 0] {
            file.extend_from_slice(&field.to_le_bytes());
        }
        let mut offset = data_start;
        for (address, data, claimed) in segments {
            file.extend_from_slice(&[1, 0, 0, 0, 5, 0, 0, 0]);
            for field in [offset, *address, *address, *claimed, *claimed, 1] {
                file.extend_from_slice(&field.to_le_bytes());
            }
            offset += data.len() as u64;
        }
        for (_, data, _) in segments {
            file.extend_from_slice(data);
        }
        file
    }

    fn check(segments: &[(u64, &[u8], u64)], layout: Layout) -> Result<Image, String> {
        flatten(&elf(segments), layout).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn places_segments_in_any_order_and_fills_the_rest() {
        let image = check(&[(0xf_00f0, b"end!", 4), (0xf_0000, b"start", 5)], ROM).unwrap();
        assert_eq!((image.bytes.len(), image.used), (0x100, 9));
        assert_eq!(&image.bytes[..6], b"start\xff");
        assert_eq!(&image.bytes[0xf0..0xf5], b"end!\xff");
    }

    #[test]
    fn an_image_without_a_size_ends_with_its_last_segment() {
        let image = check(&[(0, b"ab", 2), (4, b"cd", 2)], FLAT).unwrap();
        assert_eq!(image.bytes, b"ab\0\0cd");
    }

    #[test]
    fn segments_without_bytes_do_not_count() {
        let image = check(&[(0xc000, b"", 0), (0xf_0000, b"x", 1)], ROM).unwrap();
        assert_eq!(image.used, 1);
    }

    #[test]
    fn an_image_without_a_front_is_refused() {
        assert!(front(&elf(&[(0xf_0000, b"abcd", 4)])).is_err());
    }

    #[test]
    fn refuses_what_leaves_the_image() {
        for address in [0, 0xe_ffff, 0xf_00fd, 0x10_0000, u64::MAX - 1] {
            let error = check(&[(address, b"abcd", 4)], ROM).unwrap_err();
            assert!(error.contains("leaves the image"), "{address:#x}: {error}");
        }
        assert!(check(&[(SIZE_LIMIT, b"a", 1)], FLAT).is_err());
    }

    #[test]
    fn refuses_overlapping_segments() {
        let error = check(&[(0xf_0000, b"abcd", 4), (0xf_0003, b"e", 1)], ROM).unwrap_err();
        assert!(error.contains("overlaps"), "{error}");
    }

    #[test]
    fn refuses_files_that_claim_more_than_they_hold() {
        for claimed in [5, 1 << 40, u64::MAX] {
            let error = check(&[(0xf_0000, b"abcd", claimed)], ROM).unwrap_err();
            assert!(error.contains("outside the file"), "{claimed:#x}: {error}");
        }
    }

    #[test]
    fn refuses_every_truncation_of_a_file() {
        let file = elf(&[(0xf_0000, b"abcd", 4)]);
        for length in 0..file.len() {
            assert!(flatten(&file[..length], ROM).is_err(), "{length} bytes");
        }
        assert!(flatten(b"\x7fELF not one", ROM).is_err());
        assert!(check(&[], ROM).is_err());
    }
}
