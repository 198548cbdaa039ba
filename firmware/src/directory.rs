//! fw_cfg's directory: which files there are.
//!
//! The files that every boot asks for are found in one pass, because looking for each of them costs
//! more instructions than the rest of fw_cfg together.

use alloc::vec::Vec;

use abi::fw_cfg::{File, file};

/// Bytes of the count in front of the entries.
pub const COUNT_SIZE: usize = 4;

/// A file: what is needed to read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its item.
    pub selector: u16,
    /// Its bytes, as the host says.
    pub size: u32,
}

impl From<File> for Place {
    fn from(file: File) -> Self {
        Self { selector: file.selector, size: file.size }
    }
}

/// The files that every boot asks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known {
    /// [`file::E820`].
    pub e820: Option<Place>,
    /// [`file::TABLE_LOADER`].
    pub table_loader: Option<Place>,
    /// [`file::PREFETCH`].
    pub prefetch: Option<Place>,
    /// [`file::BOOT_TRACE`].
    pub boot_trace: Option<Place>,
    /// [`file::FEATURE_CONTROL`].
    pub feature_control: Option<Place>,
    /// [`file::ENTRY`].
    pub entry: Option<Place>,
    /// [`file::VERBOSE`].
    pub verbose: Option<Place>,
}

/// The directory as on the wire, and what was found in it.
#[derive(Debug, Default)]
pub struct Directory {
    bytes: Vec<u8>,
    /// The files that every boot asks for.
    pub known: Known,
}

impl Directory {
    /// Takes in the count and the entries behind it.
    pub fn new(bytes: Vec<u8>) -> Self {
        let mut directory = Self { bytes, known: Known::default() };
        let mut known = Known::default();
        directory.entries().for_each(|entry| known.take_in(entry));
        directory.known = known;
        directory
    }

    /// All files.
    pub fn files(&self) -> impl Iterator<Item = File> + '_ {
        self.entries().map(File::decode)
    }

    fn entries(&self) -> impl Iterator<Item = &[u8; File::SIZE]> {
        self.bytes.get(COUNT_SIZE..).unwrap_or_default().as_chunks().0.iter()
    }
}

/// Where names that begin alike begin to differ: the bytes 8 to 15 of a name.
const fn tag(name: &str) -> u64 {
    let mut tag = [0; 8];
    let mut i = 0;
    while i < 8 && i + 8 < name.len() {
        tag[i] = name.as_bytes()[i + 8];
        i += 1;
    }
    u64::from_le_bytes(tag)
}

impl Known {
    /// Notes the entry if its file is one of those. Most entries are none: their tag says so.
    fn take_in(&mut self, entry: &[u8; File::SIZE]) {
        const E820: u64 = tag(file::E820);
        const TABLE_LOADER: u64 = tag(file::TABLE_LOADER);
        const PREFETCH: u64 = tag(file::PREFETCH);
        const BOOT_TRACE: u64 = tag(file::BOOT_TRACE);
        const FEATURE_CONTROL: u64 = tag(file::FEATURE_CONTROL);
        const ENTRY: u64 = tag(file::ENTRY);
        const VERBOSE: u64 = tag(file::VERBOSE);
        // Behind the 8 bytes of size and selector.
        const { assert!(ENTRY == VERBOSE, "the two are told apart by their names") };
        let [_, _, tag, ..] = entry.as_chunks::<8>().0 else { return };
        let (name, place) = match u64::from_le_bytes(*tag) {
            E820 => (file::E820, &mut self.e820),
            TABLE_LOADER => (file::TABLE_LOADER, &mut self.table_loader),
            PREFETCH => (file::PREFETCH, &mut self.prefetch),
            BOOT_TRACE => (file::BOOT_TRACE, &mut self.boot_trace),
            FEATURE_CONTROL => (file::FEATURE_CONTROL, &mut self.feature_control),
            ENTRY => return self.take_in_option(entry),
            _ => return,
        };
        note(entry, name, place);
    }

    fn take_in_option(&mut self, entry: &[u8; File::SIZE]) {
        note(entry, file::ENTRY, &mut self.entry);
        note(entry, file::VERBOSE, &mut self.verbose);
    }
}

fn note(entry: &[u8; File::SIZE], name: &str, place: &mut Option<Place>) {
    let file = File::decode(entry);
    if file.is_named(name) {
        *place = Some(file.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(names: &[&str]) -> Directory {
        let mut bytes = u32::try_from(names.len()).unwrap().to_be_bytes().to_vec();
        for (name, selector) in names.iter().zip(0x20..) {
            bytes.extend(File::new(name, selector, 7).unwrap().encode());
        }
        Directory::new(bytes)
    }

    #[test]
    fn every_known_file_is_found_among_others() {
        let names = [
            "bootorder",
            file::BOOT_TRACE,
            "etc/e8200",
            file::E820,
            file::PREFETCH,
            file::FEATURE_CONTROL,
            file::TABLE_LOADER,
            "opt/org.microvm/entry-not",
            file::ENTRY,
            file::VERBOSE,
        ];
        let known = directory(&names).known;
        let places = [
            (known.boot_trace, 1),
            (known.e820, 3),
            (known.prefetch, 4),
            (known.feature_control, 5),
            (known.table_loader, 6),
            (known.entry, 8),
            (known.verbose, 9),
        ];
        for (place, index) in places {
            assert_eq!(place, Some(Place { selector: 0x20 + index, size: 7 }));
        }
    }

    #[test]
    fn names_that_only_resemble_them_are_not_taken() {
        let known = directory(&["etc/e82", "ETC/e820", "xxx/table-loader", "a", ""]).known;
        assert_eq!((known.e820, known.table_loader), (None, None));
        assert!(Directory::new(vec![0, 0]).files().next().is_none());
    }
}
