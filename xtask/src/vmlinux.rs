//! The ELF kernel within a bzImage, for the PVH entry.
//!
//! Source: Linux, Documentation/arch/x86/boot.rst, on `payload_offset` and `payload_length`.

use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};

use crate::apt;

/// How payloads begin, the program that unpacks each with its package, and how many bytes the
/// kernel's build adds to the packed stream: the unpacked size, which gzip has anyway.
const FORMATS: [(&[u8], &str, &str, usize); 4] = [
    (b"\x1f\x8b", "gzip", "gzip", 0),
    (b"\xfd7zXZ", "xz", "xz-utils", 4),
    (b"\x02\x21\x4c\x18", "lz4", "lz4", 4),
    (b"\x28\xb5\x2f\xfd", "zstd", "zstd", 4),
];

/// Unpacks the kernel within.
pub fn unpack(bzimage: &[u8]) -> Result<Vec<u8>> {
    let payload = payload(bzimage).context("no bzImage with a payload")?;
    let format = FORMATS.iter().find(|(magic, ..)| payload.starts_with(magic));
    let Some((_, program, package, added)) = format else {
        bail!("the kernel's payload is packed in a way that is not known here");
    };
    let packed = payload.len().checked_sub(*added).and_then(|length| payload.get(..length));
    let vmlinux = filter(program, package, packed.context("the kernel's payload is cut off")?)?;
    if *added > 0 && size_within(payload) != u32::try_from(vmlinux.len()).ok() {
        bail!("the unpacked kernel has not the size that its image names");
    }
    if !vmlinux.starts_with(b"\x7fELF") {
        bail!("the unpacked kernel is no ELF file");
    }
    Ok(vmlinux)
}

/// The packed part of the image; `None` when the header names none within it.
fn payload(bzimage: &[u8]) -> Option<&[u8]> {
    const PAYLOAD_OFFSET: usize = 0x248;
    const PAYLOAD_LENGTH: usize = 0x24c;
    if bzimage.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let field = |at| abi::bytes::get_u32(bzimage, at).and_then(|v| usize::try_from(v).ok());
    // 0 means 4, for kernels older than the field.
    let setup_sectors = match bzimage.get(0x1f1)? {
        0 => 4,
        sectors => usize::from(*sectors),
    };
    let start = (setup_sectors + 1) * 512 + field(PAYLOAD_OFFSET)?;
    let payload = bzimage.get(start..start.checked_add(field(PAYLOAD_LENGTH)?)?)?;
    (!payload.is_empty()).then_some(payload)
}

fn size_within(payload: &[u8]) -> Option<u32> {
    abi::bytes::get_u32(payload, payload.len().checked_sub(4)?)
}

/// What the program makes of `input`.
fn filter(program: &str, package: &str, input: &[u8]) -> Result<Vec<u8>> {
    let mut command = Command::new(apt::tool(program, package)?);
    command.arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {program}"))?;
    let mut stdin = child.stdin.take().context("its input")?;
    let output = thread::scope(|scope| {
        // A program that stops reading says why by its status.
        scope.spawn(move || drop(stdin.write_all(input)));
        child.wait_with_output()
    });
    let output = output.with_context(|| format!("running {program}"))?;
    if !output.status.success() {
        bail!("{program} ended with {}", output.status);
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bzImage of one sector of setup code, `payload_offset` 16 and this payload.
    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024 + 16];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248] = 16;
        let length = u32::try_from(payload.len()).unwrap();
        image[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    #[test]
    fn the_payload_is_what_the_header_names() {
        assert_eq!(payload(&bzimage(b"packed")), Some(&b"packed"[..]));
        let image = bzimage(b"packed");
        assert_eq!(payload(&image[..image.len() - 1]), None);
        assert_eq!(payload(&bzimage(b"")), None);
        assert_eq!(payload(b"\x7fELF"), None);
    }

    #[test]
    fn unknown_and_broken_payloads_are_errors() {
        for packed in [&b"LZMA?"[..], b"\x02\x21\x4c\x18", b"\x1f\x8b\x08 no gzip"] {
            assert!(unpack(&bzimage(packed)).is_err(), "{packed:?}");
        }
    }
}
