//! QEMU's `key=value,key=value`: `,,` is a comma in a value.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use super::Error;

/// The key whose value is the name of a file, and may have any bytes.
const PATH: &str = "path";

/// The properties of one option's value, in order, until they are taken.
pub struct Properties {
    option: String,
    items: Vec<Item>,
}

struct Item {
    key: Option<String>,
    /// UTF-8, unless it is that of [`PATH`].
    value: OsString,
}

impl Item {
    fn read(bytes: Vec<u8>) -> Option<Self> {
        let equals = bytes.iter().position(|byte| *byte == b'=');
        let Some((key, [_, value @ ..])) = equals.and_then(|at| bytes.split_at_checked(at)) else {
            return Some(Self { key: None, value: String::from_utf8(bytes).ok()?.into() });
        };
        let key = str::from_utf8(key).ok()?;
        if key != PATH {
            str::from_utf8(value).ok()?;
        }
        Some(Self { key: Some(key.into()), value: OsStr::from_bytes(value).into() })
    }

    fn text(value: OsString) -> String {
        value.into_string().unwrap_or_else(|value| value.to_string_lossy().into_owned())
    }
}

impl Properties {
    /// Splits `text`; `option` is for error lines.
    pub fn new(option: &str, text: &str) -> Self {
        let items = split(text.as_bytes()).filter_map(Item::read);
        Self { option: option.into(), items: items.collect() }
    }

    /// The same for bytes, of which only the value of `path=` may be something else than UTF-8.
    pub fn of_bytes(option: &str, text: OsString) -> Option<Self> {
        let items = split(&text.into_vec()).map(Item::read).collect::<Option<_>>()?;
        Some(Self { option: option.into(), items })
    }

    /// Those of a JSON object, as `-blockdev` and `-device` take it too: what is nested becomes
    /// `outer.inner`, as QEMU has it.
    pub fn from_json(option: &str, text: &str) -> Result<Self, Error> {
        let mut properties = Self { option: option.into(), items: Vec::new() };
        match serde_json::from_str(text) {
            Ok(value @ serde_json::Value::Object(_)) => properties.flatten("", &value)?,
            Ok(_) => return Err(properties.error("a JSON object is expected".into())),
            Err(error) => return Err(properties.error(format!("JSON: {error}"))),
        }
        Ok(properties)
    }

    fn flatten(&mut self, key: &str, value: &serde_json::Value) -> Result<(), Error> {
        use serde_json::Value;
        let text = match value {
            Value::Object(fields) => {
                let path = |name: &String| match key {
                    "" => name.clone(),
                    _ => format!("{key}.{name}"),
                };
                return fields
                    .iter()
                    .try_for_each(|(name, value)| self.flatten(&path(name), value));
            }
            Value::String(text) => text.clone(),
            Value::Bool(true) => "on".into(),
            Value::Bool(false) => "off".into(),
            Value::Number(number) => number.to_string(),
            Value::Null | Value::Array(_) => {
                return Err(self.error(format!("{key}: no such value is taken")));
            }
        };
        self.items.push(Item { key: Some(key.into()), value: text.into() });
        Ok(())
    }

    /// The first item, which has no key or this one.
    pub fn positional(&mut self, key: &str) -> Result<String, Error> {
        match self.implied(key).filter(|value| !value.is_empty()) {
            Some(value) => Ok(value),
            None => Err(self.error(format!("the {key} must come first"))),
        }
    }

    /// What `-device` is about: the first item, or in JSON whichever is called so.
    pub fn driver(&mut self) -> Result<String, Error> {
        match self.items.first() {
            Some(first) if first.key.is_none() => self.positional("driver"),
            _ => self.take("driver").ok_or_else(|| self.error("the driver must come first".into())),
        }
    }

    /// Whether an item is just `word`.
    pub fn has_alone(&self, word: &str) -> bool {
        self.items.iter().any(|item| item.key.is_none() && item.value == word)
    }

    /// Whether a value is given for `key`.
    pub fn has(&self, key: &str) -> bool {
        self.items.iter().any(|item| item.key.as_deref() == Some(key))
    }

    /// The first item, if it has no key or this one.
    pub fn implied(&mut self, key: &str) -> Option<String> {
        let item = self.items.first()?;
        let is_meant = item.key.as_deref().is_none_or(|k| k == key);
        is_meant.then(|| Item::text(self.items.remove(0).value))
    }

    /// The last value given for `key`; earlier ones count for nothing, as in QEMU.
    pub fn take(&mut self, key: &str) -> Option<String> {
        self.take_bytes(key).map(Item::text)
    }

    /// The name of a file, in the same way.
    pub fn take_path(&mut self) -> Option<PathBuf> {
        self.take_bytes(PATH).filter(|path| !path.is_empty()).map(PathBuf::from)
    }

    fn take_bytes(&mut self, key: &str) -> Option<OsString> {
        let mut last = None;
        self.items.retain_mut(|item| {
            let mine = item.key.as_deref() == Some(key);
            if mine {
                last = Some(std::mem::take(&mut item.value));
            }
            !mine
        });
        last
    }

    /// A number up to `max`, decimal or with `0x`.
    pub fn number(&mut self, key: &str, max: u64) -> Result<Option<u64>, Error> {
        let Some(text) = self.take(key) else { return Ok(None) };
        let parsed = match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => text.parse(),
        };
        match parsed {
            Ok(number) if number <= max => Ok(Some(number)),
            _ => Err(self.error(format!("{key}={text}: give a number up to {max:#x}"))),
        }
    }

    /// Whether `key` is on, if it is given: alone, or as QEMU writes a truth value.
    pub fn switch(&mut self, key: &str) -> Result<Option<bool>, Error> {
        let alone = |item: &Item| item.key.is_none() && item.value == key;
        if let Some(at) = self.items.iter().position(alone) {
            self.items.remove(at);
            return Ok(Some(true));
        }
        match self.take(key).as_deref() {
            None => Ok(None),
            Some("on" | "yes" | "true" | "y") => Ok(Some(true)),
            Some("off" | "no" | "false" | "n") => Ok(Some(false)),
            Some(other) => Err(self.error(format!("{key}={other}: give on or off"))),
        }
    }

    /// The next item: its key, and its value if it has one.
    pub fn take_first(&mut self) -> Option<(String, Option<String>)> {
        if self.items.is_empty() {
            return None;
        }
        let item = self.items.remove(0);
        Some(match item.key {
            Some(key) => (key, Some(Item::text(item.value))),
            None => (Item::text(item.value), None),
        })
    }

    /// Refuses what was not taken.
    pub fn finish(mut self) -> Result<(), Error> {
        match self.take_first() {
            Some((key, _)) => Err(self.error(format!("'{key}' is not a property that is here"))),
            None => Ok(()),
        }
    }

    /// An error line about this option.
    pub fn error(&self, problem: String) -> Error {
        Error { option: self.option.clone(), problem }
    }
}

fn split(text: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let mut items = vec![Vec::new()];
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        if byte != b',' || bytes.next_if_eq(&b',').is_some() {
            if let Some(item) = items.last_mut() {
                item.push(byte);
            }
        } else {
            items.push(Vec::new());
        }
    }
    // A comma at the end is allowed, as in QEMU.
    items.into_iter().filter(|item| !item.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str, expected: &[(&str, Option<&str>)]) {
        let mut properties = Properties::new("-x", text);
        for (key, value) in expected {
            let seen = properties.take_first().unwrap();
            assert_eq!((seen.0.as_str(), seen.1.as_deref()), (*key, *value), "{text}");
        }
        assert!(properties.take_first().is_none(), "{text}");
    }

    #[test]
    fn a_double_comma_is_a_comma() {
        check("a,b=c", &[("a", None), ("b", Some("c"))]);
        check("string=x,,y,z=1", &[("string", Some("x,y")), ("z", Some("1"))]);
        check("a,,,b", &[("a,", None), ("b", None)]);
        check("a=b=c,,", &[("a", Some("b=c,"))]);
        check("", &[]);
        check(",x,", &[("x", None)]);
    }

    #[test]
    fn the_name_of_a_file_has_any_bytes() {
        let of = |bytes: &[u8]| Properties::of_bytes("-x", OsStr::from_bytes(bytes).into());
        let mut properties = of(b"file,path=/a=\xff,,b,id=c").unwrap();
        assert_eq!(properties.take_path().unwrap().as_os_str().as_bytes(), b"/a=\xff,b");
        assert_eq!(properties.positional("backend").unwrap(), "file");
        assert_eq!(properties.take("id").as_deref(), Some("c"));
        assert!(properties.finish().is_ok());
        for bytes in [&b"\xff"[..], b"id=\xff", b"\xff=id,path=/a"] {
            assert!(of(bytes).is_none(), "{bytes:?}");
        }
    }

    #[test]
    fn the_last_value_counts() {
        let mut properties = Properties::new("-x", "a=1,a=2,b");
        assert_eq!(properties.take("a").as_deref(), Some("2"));
        assert_eq!(properties.take("a"), None);
        assert_eq!(
            properties.finish().unwrap_err().to_string(),
            "-x: 'b' is not a property that is here"
        );
    }

    proptest! {
        #[test]
        fn a_value_survives_its_escape(value in "[a-z=, ]{1,20}") {
            let mut properties = Properties::new("-x", &format!("k={}", value.replace(',', ",,")));
            prop_assert_eq!(properties.take("k"), Some(value));
        }
    }
}
