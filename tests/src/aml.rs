//! Reads as much AML as the DSDTs of microVMs have, into `name -> value` in words.
//!
//! Source: ACPI 6.5, 20.2 (the encoding) and 6.4 (resource descriptors). What is not known here is
//! an error, not passed over: else two tables could differ unseen.

use std::collections::BTreeMap;

use abi::bytes::{array, get_u16, get_u32};
use anyhow::{Context, Result, bail, ensure};

/// The name of the root.
const ROOT: &str = "\\";

/// Objects by their path and name; a device's name is its `_HID` and `_UID`.
pub type Objects = BTreeMap<String, String>;

/// The objects in the body of a DSDT.
pub fn decode(body: &[u8]) -> Result<Objects> {
    let mut objects = Objects::new();
    terms(body, "", &mut objects)?;
    Ok(objects)
}

/// Adds the objects of a scope.
fn terms(body: &[u8], path: &str, objects: &mut Objects) -> Result<()> {
    let mut rest = Bytes(body);
    while !rest.0.is_empty() {
        match rest.opcode()? {
            0x08 => {
                let name = rest.name()?;
                let value = rest.data(&name)?;
                add(objects, path, &name, value)?;
            }
            0x10 => {
                let mut scope = rest.package()?;
                let name = scope.name()?;
                let path = if name == ROOT { String::new() } else { format!("{path}{name} ") };
                terms(scope.0, &path, objects)?;
            }
            0x14 => {
                let mut method = rest.package()?;
                let name = method.name()?;
                add(objects, path, &name, format!("method {}", hex(method.0)))?;
            }
            0x5b80 => {
                let name = rest.name()?;
                let [space] = rest.take()?;
                let (start, size) = (rest.data("")?, rest.data("")?);
                add(objects, path, &name, format!("region {space}, {start}+{size}"))?;
            }
            0x5b81 => {
                let mut field = rest.package()?;
                let name = field.name()?;
                add(objects, path, &format!("field of {name}"), hex(field.0))?;
            }
            0x5b82 => {
                let mut device = rest.package()?;
                let name = device.name()?;
                let mut own = Objects::new();
                terms(device.0, "", &mut own)?;
                let id = |key| own.get(key).map(|value: &String| value.trim_matches('"'));
                let hid = id("_HID").map_or(name, str::to_owned);
                let uid = id("_UID").map_or(String::new(), |uid| format!("/{uid}"));
                for (name, value) in &own {
                    add(objects, path, &format!("{hid}{uid} {name}"), value.clone())?;
                }
            }
            opcode => bail!("AML opcode {opcode:#x} is not known here"),
        }
    }
    Ok(())
}

fn add(objects: &mut Objects, path: &str, name: &str, value: String) -> Result<()> {
    let before = objects.insert(format!("{path}{name}"), value);
    ensure!(before.is_none(), "{path}{name} is there twice");
    Ok(())
}

/// Bytes that are still to be read.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn slice(&mut self, length: usize) -> Result<&'a [u8]> {
        let (slice, rest) = self.0.split_at_checked(length).context("AML is cut off")?;
        self.0 = rest;
        Ok(slice)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        array(self.slice(N)?, 0).context("AML is cut off")
    }

    fn opcode(&mut self) -> Result<u16> {
        let [first] = self.take()?;
        if first != 0x5b {
            return Ok(first.into());
        }
        let [second] = self.take()?;
        Ok(u16::from_be_bytes([first, second]))
    }

    /// A name of one segment, or of none.
    fn name(&mut self) -> Result<String> {
        self.0 = self.0.strip_prefix(b"\\").unwrap_or(self.0);
        if let Some(rest) = self.0.strip_prefix(&[0]) {
            self.0 = rest;
            return Ok(ROOT.into());
        }
        let name: [u8; 4] = self.take()?;
        let is_segment =
            name.iter().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || *b == b'_');
        ensure!(is_segment, "{name:?} is no name of one segment");
        Ok(String::from_utf8_lossy(&name).into_owned())
    }

    /// What a package length spans.
    fn package(&mut self) -> Result<Self> {
        let before = self.0.len();
        let [lead] = self.take()?;
        let mut length = usize::from(lead);
        let more = length >> 6;
        if more > 0 {
            length &= 0xf;
        }
        for (shift, byte) in (4..).step_by(8).zip(self.slice(more)?) {
            length |= usize::from(*byte) << shift;
        }
        let read = before - self.0.len();
        Ok(Self(self.slice(length.checked_sub(read).context("AML package length")?)?))
    }

    /// A data object, the value of `name`.
    fn data(&mut self, name: &str) -> Result<String> {
        Ok(match self.opcode()? {
            0x0d => {
                let length = self.0.iter().position(|byte| *byte == 0).context("AML string")?;
                let text = self.slice(length + 1)?;
                format!("{:?}", String::from_utf8_lossy(&text[..length]))
            }
            0x11 => {
                let mut buffer = self.package()?;
                buffer.data("")?;
                if name == "_CRS" { resources(buffer.0)? } else { hex(buffer.0) }
            }
            0x12 => {
                let mut package = self.package()?;
                let [count] = package.take()?;
                let elements: Result<Vec<_>> = (0..count).map(|_| package.data("")).collect();
                format!("[{}]", elements?.join(", "))
            }
            opcode => {
                let number = self.number(opcode)?;
                if name == "_HID" { eisa_id(number) } else { format!("{number:#x}") }
            }
        })
    }

    fn number(&mut self, opcode: u16) -> Result<u32> {
        Ok(match opcode {
            0x00 => 0,
            0x01 => 1,
            0x0a => u8::from_le_bytes(self.take()?).into(),
            0x0b => u16::from_le_bytes(self.take()?).into(),
            0x0c => u32::from_le_bytes(self.take()?),
            _ => bail!("AML opcode {opcode:#x} is not known here as a value"),
        })
    }
}

/// The text that a compressed EISA id stands for (ACPI 6.5, 19.3.4), quoted as a string is.
fn eisa_id(id: u32) -> String {
    let id = id.swap_bytes();
    let letter = |shift: u32| char::from(b'@' + (id >> shift & 0x1f).to_le_bytes()[0]);
    format!("\"{}{}{}{:04X}\"", letter(26), letter(21), letter(16), id & 0xffff)
}

/// Resource descriptors. An interrupt without flags is edge-triggered, active-high and exclusive; a
/// range with one place has no alignment.
fn resources(bytes: &[u8]) -> Result<String> {
    let mut rest = Bytes(bytes);
    let mut words = Vec::new();
    loop {
        let [tag] = rest.take()?;
        let length = match tag {
            0x80.. => u16::from_le_bytes(rest.take()?).into(),
            _ => usize::from(tag & 7),
        };
        let body = rest.slice(length)?;
        match (tag, body) {
            (0x47, [1, a, b, c, d, _, length]) if (a, b) == (c, d) => {
                words.push(format!("ports {:#x}+{length}", u16::from_le_bytes([*a, *b])));
            }
            (0x22, _) => {
                let lines = get_u16(body, 0).context("an interrupt")?;
                ensure!(lines.is_power_of_two(), "interrupts {lines:#x}");
                words.push(format!("interrupt {}, flags 0x3", lines.trailing_zeros()));
            }
            (0x86, [_, _, ..]) => {
                let base = get_u32(body, 1).context("a memory range")?;
                let size = get_u32(body, 5).context("a memory range")?;
                words.push(format!("memory {base:#x}+{size:#x}"));
            }
            (0x89, [flags, 1, _, _, _, _]) => {
                let line = get_u32(body, 2).context("an interrupt")?;
                words.push(format!("interrupt {line}, flags {flags:#x}"));
            }
            (0x79, _) => return Ok(words.join("; ")),
            _ => bail!("resource descriptor {tag:#x} {} is not known here", hex(body)),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_by_its_ids_and_equal_meanings_read_alike() {
        let short = b"\x08_HID\x0c\x41\xd0\x05\x01\x08_CRS\x11\x10\x0a\x0d\
                      \x47\x01\xf8\x03\xf8\x03\x00\x08\x22\x10\x00\x79\x00";
        let long = b"\x08_HID\x0dPNP0501\x00\x08_CRS\x11\x16\x0a\x13\
                     \x47\x01\xf8\x03\xf8\x03\x01\x08\x89\x06\x00\x03\x01\x04\x00\x00\x00\x79\x00";
        let device = |body: &[u8]| {
            let length = u8::try_from(body.len() + 5).unwrap();
            [&[0x5b, 0x82, length], &b"COM1"[..], body].concat()
        };
        let objects = decode(&device(short)).unwrap();
        assert_eq!(objects["PNP0501 _CRS"], "ports 0x3f8+8; interrupt 4, flags 0x3");
        assert_eq!(objects, decode(&device(long)).unwrap());
    }

    #[test]
    fn a_scope_of_more_than_63_bytes_is_read_whole() {
        let mut body = b"_SB_".to_vec();
        (0..20).for_each(|i| body.extend([0x08, b'N', b'A', b'M', b'A' + i, 0x01]));
        let length = u8::try_from(body.len() + 2).unwrap();
        let scope = [&[0x10, 0x40 | length & 0xf, length >> 4], body.as_slice()].concat();
        let objects = decode(&scope).unwrap();
        assert_eq!((objects.len(), objects["_SB_ NAMT"].as_str()), (20, "0x1"));
    }

    #[test]
    fn what_is_not_known_is_an_error() {
        for (body, part) in [
            (&b"\x08ABCD"[..], "cut off"),
            (b"\x15ABCD", "opcode 0x15"),
            (b"\x08ABCD\x13", "opcode 0x13"),
            (b"\x08abcd\x00", "no name"),
            (b"\x08ABCD\x00\x08ABCD\x00", "twice"),
            (b"\x10\x00ABCD", "package length"),
            (b"\x10\x3fABCD", "cut off"),
            (b"\x08_CRS\x11\x05\x0a\x02\x30\x00", "descriptor 0x30"),
        ] {
            let error = decode(body).unwrap_err().to_string();
            assert!(error.contains(part), "{error:?} is not about {part:?}");
        }
    }
}
