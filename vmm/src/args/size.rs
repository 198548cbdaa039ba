//! Sizes in QEMU's spelling: `64`, `1.5G`, `0x40M`.

/// Digits after the point that count: with any suffix they fit 128 bits.
const FRACTION_DIGITS: usize = 18;

/// Bytes from `text`; a number without a suffix counts `unit` bytes. Suffixes are B, K, M, G, T, P
/// and E, large or small, in powers of 1024. A fraction needs a suffix that gives it a meaning.
/// `None` for anything else, and for 16 EiB or more.
pub(super) fn parse(text: &str, unit: u64) -> Option<u64> {
    let (radix, rest) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(rest) => (16, rest),
        None => (10, text),
    };
    let (whole, rest) = split_digits(rest, radix);
    let whole = u64::from_str_radix(whole, radix).ok()?;
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) if radix == 10 => split_digits(rest, radix),
        _ => ("", rest),
    };
    let scale = match suffix.to_ascii_uppercase().as_str() {
        // As in QEMU, a bare number has no fraction, whatever its unit.
        "" if fraction.bytes().any(|digit| digit != b'0') => return None,
        "" => unit,
        "B" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        "T" => 1 << 40,
        "P" => 1 << 50,
        "E" => 1 << 60,
        _ => return None,
    };
    whole.checked_mul(scale)?.checked_add(part(fraction, scale)?)
}

fn split_digits(text: &str, radix: u32) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_digit(radix)).unwrap_or(text.len()))
}

/// `scale` times the number 0.`digits`, to the nearest byte.
fn part(digits: &str, scale: u64) -> Option<u64> {
    let digits = digits.get(..FRACTION_DIGITS).unwrap_or(digits);
    if digits.is_empty() {
        return Some(0);
    }
    let number: u128 = digits.parse().ok()?;
    let denominator = 10_u128.pow(u32::try_from(digits.len()).ok()?);
    if scale == 1 && number != 0 {
        return None;
    }
    u64::try_from((number * u128::from(scale) + denominator / 2) / denominator).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn sizes_are_qemu_s() {
        for (text, bytes) in [
            ("64", 64 * MIB),
            ("64M", 64 * MIB),
            ("65536k", 64 * MIB),
            ("1.5G", 1536 * MIB),
            ("1.G", 1024 * MIB),
            ("0.0000009536743164062500000000000M", 1),
            ("64.0", 64 * MIB),
            ("0x40", 64 * MIB),
            ("0x40M", 64 * MIB),
            ("12b", 12),
            ("12.0B", 12),
            ("2T", 2 << 40),
            ("1p", 1 << 50),
            ("15E", 15 << 60),
            ("15.999E", 18_445_591_152_204_944_769),
        ] {
            assert_eq!(parse(text, MIB), Some(bytes), "{text}");
        }
        assert_eq!(parse("64", 1), Some(64));
        for text in [
            "",
            "G",
            ".5G",
            "1.5",
            "1.5B",
            "-1",
            "+1",
            " 1",
            "1 ",
            "1G1",
            "64MB",
            "1e3",
            "0x",
            "é",
            "0x1.5M",
            "16E",
            "99999999999999999999",
            "1.5.5G",
            "1..5G",
            "1.éG",
            "٣",
        ] {
            assert_eq!(parse(text, MIB), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(0x)?[0-9]{0,21}\\.?[0-9]{0,30}[bkmgtpeE]?") {
            let _ = parse(&text, MIB);
        }

        #[test]
        fn a_number_with_a_suffix_is_itself(number in 0..1_u64 << 30) {
            prop_assert_eq!(parse(&format!("{number}K"), MIB), Some(number << 10));
        }
    }
}
