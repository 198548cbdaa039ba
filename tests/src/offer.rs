//! What a machine offers its guest, and how two machines differ in that.
//!
//! An offer is `name -> value` in words, made of what the payload prints when it is told to dump
//! fw_cfg and the ACPI tables.

use std::collections::{BTreeMap, BTreeSet};

use abi::bytes::{array, get_u32, get_u64};
use abi::fw_cfg::{file, key};
use anyhow::{Context, Result};

use crate::acpi;
use crate::facts::Facts;

/// Everything that is offered, by name.
pub type Offer = BTreeMap<String, String>;

/// The items of fw_cfg that have names.
const ITEMS: [(u16, &str); 21] = [
    (key::SIGNATURE, "SIGNATURE"),
    (key::ID, "ID"),
    (0x02, "UUID"),
    (key::RAM_SIZE, "RAM_SIZE"),
    (key::NOGRAPHIC, "NOGRAPHIC"),
    (key::NB_CPUS, "NB_CPUS"),
    (key::KERNEL_ADDR, "KERNEL_ADDR"),
    (key::KERNEL_SIZE, "KERNEL_SIZE"),
    (key::INITRD_ADDR, "INITRD_ADDR"),
    (key::INITRD_SIZE, "INITRD_SIZE"),
    (0x0e, "BOOT_MENU"),
    (key::MAX_CPUS, "MAX_CPUS"),
    (key::KERNEL_ENTRY, "KERNEL_ENTRY"),
    (key::KERNEL_DATA, "KERNEL_DATA"),
    (key::INITRD_DATA, "INITRD_DATA"),
    (key::CMDLINE_ADDR, "CMDLINE_ADDR"),
    (key::CMDLINE_SIZE, "CMDLINE_SIZE"),
    (key::CMDLINE_DATA, "CMDLINE_DATA"),
    (key::SETUP_ADDR, "SETUP_ADDR"),
    (key::SETUP_SIZE, "SETUP_SIZE"),
    (key::IRQ0_OVERRIDE, "IRQ0_OVERRIDE"),
];
/// The items that have sizes, besides SETUP_DATA.
const DATA: [u16; 3] = [key::KERNEL_DATA, key::INITRD_DATA, key::CMDLINE_DATA];
/// `heap_end_ptr` of the setup header (Linux, Documentation/arch/x86/boot.rst).
const HEAP_END: std::ops::Range<usize> = 0x224..0x226;
/// Bytes of an entry of the memory map in fw_cfg.
const E820_ENTRY: usize = 20;

/// What a machine offers, as its guest says.
pub fn read(facts: &Facts) -> Result<Offer> {
    let mut offer = Offer::new();
    for (name, value) in facts {
        let reading = || format!("{name}={value}");
        if let Some(key) = name.strip_prefix("fw_cfg_item_") {
            item(key, value, &mut offer).with_context(reading)?;
        } else if let Some(name) = name.strip_prefix("fw_cfg_file_") {
            file(name, value, &mut offer).with_context(reading)?;
        } else if name == "e820" {
            let ranges = value.split(',').filter(|range| !range.is_empty());
            offer.extend(ranges.map(|range| (format!("kernel: e820 {range}"), "there".into())));
        } else if !name.starts_with("acpi_") {
            offer.insert(format!("kernel: {name}"), value.clone());
        }
    }
    tables(facts, &mut offer).context("the ACPI tables")?;
    Ok(offer)
}

/// An item of fw_cfg as the payload prints it.
struct Contents<'a> {
    size: &'a str,
    hash: &'a str,
    /// All bytes, when they are few.
    bytes: Option<Vec<u8>>,
}

impl<'a> Contents<'a> {
    fn parse(text: &'a str) -> Result<Self> {
        let mut parts = text.splitn(3, ':');
        let mut next = || parts.next().context("SIZE:HASH:HEX");
        let (size, hash) = (next()?, next()?);
        Ok(Self { size, hash, bytes: next().ok().map(bytes).transpose()? })
    }

    fn few(&self) -> Result<&[u8]> {
        self.bytes.as_deref().context("too many bytes to be printed")
    }
}

impl std::fmt::Display for Contents<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.bytes {
            Some(bytes) => write!(f, "{} bytes: {}", self.size, bytes.escape_ascii()),
            None => write!(f, "{} bytes with hash {}", self.size, self.hash),
        }
    }
}

fn item(key: &str, value: &str, offer: &mut Offer) -> Result<()> {
    let key = u16::from_str_radix(key.trim_start_matches("0x"), 16).context("a key")?;
    let mut contents = Contents::parse(value)?;
    if key == key::SETUP_DATA {
        // Setup code is printed, an ELF's head is longer.
        let Some(bytes) = contents.bytes.as_mut().filter(|bytes| bytes.len() > HEAP_END.end) else {
            offer.insert("fw_cfg: SETUP_DATA of an ELF".into(), contents.to_string());
            return Ok(());
        };
        let heap_end = bytes[HEAP_END].to_vec();
        bytes[HEAP_END].fill(0);
        offer.insert("fw_cfg: SETUP_DATA.heap_end_ptr".into(), format!("{heap_end:02x?}"));
        offer.insert("fw_cfg: SETUP_DATA".into(), contents.to_string());
        return Ok(());
    }
    let name = ITEMS.iter().find(|(other, _)| *other == key);
    let name = name.map_or_else(|| format!("item {key:#06x}"), |(_, name)| (*name).into());
    let value = match &contents.bytes {
        Some(bytes) if !DATA.contains(&key) => number(bytes)?,
        _ => Some(contents.to_string()),
    };
    offer.extend(value.map(|value| (format!("fw_cfg: {name}"), value)));
    Ok(())
}

/// The number of an item without a size; `None` of 0, which an item that is not there gives too.
fn number(bytes: &[u8]) -> Result<Option<String>> {
    let number = array(bytes, 0).map(u128::from_le_bytes).context("less than 16 bytes")?;
    Ok((number != 0).then(|| format!("{number:#x}")))
}

fn file(name: &str, value: &str, offer: &mut Offer) -> Result<()> {
    let contents = Contents::parse(value)?;
    if name != file::E820 {
        offer.insert(format!("fw_cfg: {name}"), contents.to_string());
        return Ok(());
    }
    for entry in contents.few()?.chunks(E820_ENTRY) {
        let parts = (get_u64(entry, 0), get_u64(entry, 8), get_u32(entry, 16));
        let (Some(start), Some(size), Some(kind)) = parts else { anyhow::bail!("a cut entry") };
        let range = format!("fw_cfg: {name} {start:#x}+{size:#x}:{kind}");
        offer.insert(range, "there".into());
    }
    Ok(())
}

fn tables(facts: &Facts, offer: &mut Offer) -> Result<()> {
    let Some(rsdp) = facts.get("acpi_rsdp") else { return Ok(()) };
    let root = bytes(facts.get("acpi_root").context("no root table")?)?;
    let tables = facts.iter().filter(|(name, _)| name.starts_with("acpi_table_"));
    let tables = tables.map(|(_, hex)| bytes(hex)).collect::<Result<Vec<_>>>()?;
    let meaning = acpi::decode(&bytes(rsdp)?, &root, &tables)?;
    offer.extend(meaning.into_iter().map(|(name, value)| (format!("ACPI: {name}"), value)));
    Ok(())
}

fn bytes(hex: &str) -> Result<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = hex.as_bytes().chunks(2).map(|pair| {
        let [high, low] = array(pair, 0)?;
        Some(digit(high)? << 4 | digit(low)?)
    });
    pairs.collect::<Option<_>>().with_context(|| format!("'{hex}' is not hexadecimal"))
}

/// Who has an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Has {
    /// Only the first machine.
    First,
    /// Only the second machine.
    Second,
    /// Both, with different values.
    Both,
}

/// A difference that there is a reason for.
#[derive(Clone, Copy, Debug)]
pub struct Difference {
    /// The item's name, or how it begins, with a `*` behind that.
    pub item: &'static str,
    /// Who has it.
    pub has: Has,
    /// Why.
    pub reason: &'static str,
}

impl Difference {
    fn is_about(&self, name: &str) -> bool {
        match self.item.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == self.item,
        }
    }
}

/// The differences of two offers: those without a reason, each with both values, and the numbers
/// of those in `known`.
pub fn compare(
    first: &Offer,
    second: &Offer,
    known: &[Difference],
) -> (Vec<String>, BTreeSet<usize>) {
    let (mut unknown, mut met) = (Vec::new(), BTreeSet::new());
    let names: BTreeSet<_> = first.keys().chain(second.keys()).collect();
    for name in names {
        let (a, b) = (first.get(name), second.get(name));
        let has = match (a, b) {
            (Some(a), Some(b)) if a == b => continue,
            (Some(_), Some(_)) => Has::Both,
            (Some(_), None) => Has::First,
            _ => Has::Second,
        };
        match known.iter().position(|known| known.has == has && known.is_about(name)) {
            Some(index) => drop(met.insert(index)),
            None => unknown.push(format!("{name}\n    {}\n    {}", value(a), value(b))),
        }
    }
    (unknown, met)
}

fn value(value: Option<&String>) -> &str {
    value.map_or("(not there)", String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts;

    fn offer(text: &str) -> Offer {
        let text = format!("guest-facts-begin\n{text}\nguest-facts-end");
        read(&facts::parse(&text).unwrap()).unwrap()
    }

    #[test]
    fn items_have_their_names_and_absent_ones_none() {
        let (two, zero) = (format!("02{}", "00".repeat(15)), "00".repeat(16));
        let offer = offer(&format!(
            "cpus=2\ne820=0x0+0x9fc00:1,\nfw_cfg_item_0x0005=16:ff:{two}\n\
             fw_cfg_item_0x0006=16:ff:{zero}\nfw_cfg_item_0x0011=70000:ff\n\
             fw_cfg_file_etc/e820=20:ff:0000000000000000000000080000000001000000",
        ));
        let pairs: Vec<_> = offer.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(
            pairs,
            [
                ("fw_cfg: KERNEL_DATA", "70000 bytes with hash ff"),
                ("fw_cfg: NB_CPUS", "0x2"),
                ("fw_cfg: etc/e820 0x0+0x8000000:1", "there"),
                ("kernel: cpus", "2"),
                ("kernel: e820 0x0+0x9fc00:1", "there"),
            ]
        );
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        for line in [
            "fw_cfg_item_0x0005=16",
            "fw_cfg_item_5=1:f:00",
            "fw_cfg_item_x=1:f",
            "fw_cfg_item_0x11=2:f:0g",
            "fw_cfg_file_etc/e820=1:f:00",
        ] {
            let text = format!("guest-facts-begin\n{line}\nguest-facts-end");
            assert!(read(&facts::parse(&text).unwrap()).is_err(), "{line}");
        }
    }

    #[test]
    fn only_a_difference_of_the_right_kind_has_a_reason() {
        let offer = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect::<Offer>()
        };
        let first = offer(&[("a", "1"), ("b", "1"), ("c/x", "1"), ("same", "1")]);
        let second = offer(&[("a", "2"), ("b", "2"), ("same", "1"), ("d", "2")]);
        let known = [
            Difference { item: "a", has: Has::Both, reason: "" },
            Difference { item: "b", has: Has::First, reason: "" },
            Difference { item: "c/*", has: Has::First, reason: "" },
            Difference { item: "same", has: Has::Both, reason: "" },
        ];
        let (unknown, met) = compare(&first, &second, &known);
        assert_eq!(unknown, ["b\n    1\n    2", "d\n    (not there)\n    2"]);
        assert_eq!(met.into_iter().collect::<Vec<_>>(), [0, 2]);
    }
}
