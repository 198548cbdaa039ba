//! Checked little-endian access to wire formats: out of bounds is a value.
//!
//! Every length and offset in this project comes from the other side of a trust boundary, so
//! there is no indexing: a field that is not there reads as `None`.

/// The `N` bytes at `offset`, or `None` when they are not all there.
pub fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

/// The byte at `offset`.
pub fn get_u8(bytes: &[u8], offset: usize) -> Option<u8> {
    bytes.get(offset).copied()
}

/// The little-endian 16-bit integer at `offset`.
pub fn get_u16(bytes: &[u8], offset: usize) -> Option<u16> {
    array(bytes, offset).map(u16::from_le_bytes)
}

/// The little-endian 32-bit integer at `offset`.
pub fn get_u32(bytes: &[u8], offset: usize) -> Option<u32> {
    array(bytes, offset).map(u32::from_le_bytes)
}

/// The little-endian 64-bit integer at `offset`.
pub fn get_u64(bytes: &[u8], offset: usize) -> Option<u64> {
    array(bytes, offset).map(u64::from_le_bytes)
}

/// The sum of all bytes, as ACPI and MP tables are checked by it.
///
/// Eight at a time: a firmware sums every table of its host.
#[inline(never)]
pub fn sum8(bytes: &[u8]) -> u8 {
    const EVEN: u64 = 0x00ff_00ff_00ff_00ff;
    // Two bytes of each word go into a lane of 16 bits, which so many words cannot overflow.
    const WORDS: usize = 128;
    let (words, rest) = bytes.as_chunks::<8>();
    let mut sum = rest.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    for words in words.chunks(WORDS) {
        let lanes = words.iter().fold(0, |lanes, word| {
            let word = u64::from_le_bytes(*word);
            lanes + (word & EVEN) + (word >> 8 & EVEN)
        });
        let [a, _, b, _, c, _, d, _] = lanes.to_le_bytes();
        sum = [a, b, c, d].into_iter().fold(sum, u8::wrapping_add);
    }
    sum
}

/// Makes the sum of all bytes 0 by the one at `offset`.
pub fn set_checksum(bytes: &mut [u8], offset: usize) -> Option<()> {
    *bytes.get_mut(offset)? = 0;
    let sum = sum8(bytes);
    *bytes.get_mut(offset)? = sum.wrapping_neg();
    Some(())
}

/// Copies `value` to `offset`; `None`, and nothing written, when it does not fit.
pub fn put(bytes: &mut [u8], offset: usize, value: &[u8]) -> Option<()> {
    let end = offset.checked_add(value.len())?;
    bytes.get_mut(offset..end)?.copy_from_slice(value);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_little_endian() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8, 9];
        assert_eq!(get_u8(&bytes, 8), Some(9));
        assert_eq!(get_u16(&bytes, 1), Some(0x0302));
        assert_eq!(get_u32(&bytes, 0), Some(0x0403_0201));
        assert_eq!(get_u64(&bytes, 1), Some(0x0908_0706_0504_0302));
    }

    #[test]
    fn sums_like_a_loop() {
        for length in 0..200u8 {
            let bytes: Vec<u8> = (0..length).map(|i| i.wrapping_mul(37) ^ 0xa5).collect();
            let expected = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
            assert_eq!(sum8(&bytes), expected, "{length}");
        }
        assert_eq!(sum8(&[0xff; 4096]), 0);
    }

    #[test]
    fn what_is_not_there_is_none() {
        let mut bytes = [0; 4];
        assert_eq!(get_u32(&bytes, 1), None);
        assert_eq!(get_u64(&bytes, usize::MAX), None);
        assert_eq!(put(&mut bytes, 3, &[1, 2]), None);
        assert_eq!(put(&mut bytes, usize::MAX, &[1]), None);
        assert_eq!(bytes, [0; 4], "a refused write changes nothing");
    }
}
