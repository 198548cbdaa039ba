//! The ACPI table-loader script: `etc/table-loader`.
//!
//! A list of 128-byte commands by which the host tells the firmware where to put files and which
//! pointers and checksums to patch in them. Source: QEMU, hw/acpi/bios-linker-loader.c.

use crate::bytes::{array, get_u8, get_u32};
use crate::fw_cfg::FILE_NAME_SIZE;

/// Bytes of a command.
pub const COMMAND_SIZE: usize = 128;

/// A NUL-padded file name.
pub type Name = [u8; FILE_NAME_SIZE];

/// Where an allocation may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zone {
    /// Anywhere below 4 GiB.
    High,
    /// Where a kernel scans for the RSDP: 0xe0000 to 0xfffff.
    FSegment,
}

/// One command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Load the whole of `file`.
    Allocate {
        /// The file.
        file: Name,
        /// Alignment in bytes; a power of two.
        alignment: u32,
        /// Where.
        zone: Zone,
    },
    /// Add the address of `source` to the little-endian integer of `size` bytes at `offset` in
    /// `destination`.
    AddPointer {
        /// The file that is patched.
        destination: Name,
        /// The file that is pointed to.
        source: Name,
        /// Bytes into `destination`.
        offset: u32,
        /// 1, 2, 4 or 8 bytes.
        size: u8,
    },
    /// Make the bytes from `start`, `length` of them, sum to 0 with the byte at `offset`.
    AddChecksum {
        /// The file that is patched.
        file: Name,
        /// The checksum's place.
        offset: u32,
        /// The first byte that is summed.
        start: u32,
        /// How many bytes are summed.
        length: u32,
    },
    /// Write the address of `source`, plus `source_offset`, to `offset` in the host's copy of
    /// `destination`, as a little-endian integer of `size` bytes.
    WritePointer {
        /// The host's file that is written.
        destination: Name,
        /// The file that is pointed to.
        source: Name,
        /// Bytes into `destination`.
        offset: u32,
        /// Bytes into `source`.
        source_offset: u32,
        /// 1, 2, 4 or 8 bytes.
        size: u8,
    },
    /// The end of the script, or a command that this firmware does not know: both are passed
    /// over, as SeaBIOS does.
    Unknown(u32),
}

/// A command with a field that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Fewer bytes than a command has.
    Truncated,
    /// An alignment that is no power of two.
    Alignment(u32),
    /// A zone other than 1 and 2.
    Zone(u8),
    /// A pointer of other than 1, 2, 4 or 8 bytes.
    PointerSize(u8),
}

const ALLOCATE: u32 = 1;
const ADD_POINTER: u32 = 2;
const ADD_CHECKSUM: u32 = 3;
const WRITE_POINTER: u32 = 4;
const ZONE_HIGH: u8 = 1;
const ZONE_FSEG: u8 = 2;

impl Command {
    /// The command at the start of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let name = |at| array(bytes, at).ok_or(Error::Truncated);
        let word = |at| get_u32(bytes, at).ok_or(Error::Truncated);
        let byte = |at| get_u8(bytes, at).ok_or(Error::Truncated);
        match word(0)? {
            ALLOCATE => {
                let alignment = word(60)?;
                if !alignment.is_power_of_two() {
                    return Err(Error::Alignment(alignment));
                }
                let zone = match byte(64)? {
                    ZONE_HIGH => Zone::High,
                    ZONE_FSEG => Zone::FSegment,
                    other => return Err(Error::Zone(other)),
                };
                Ok(Self::Allocate { file: name(4)?, alignment, zone })
            }
            ADD_POINTER => {
                let size = pointer_size(byte(120)?)?;
                let (destination, source) = (name(4)?, name(60)?);
                Ok(Self::AddPointer { destination, source, offset: word(116)?, size })
            }
            ADD_CHECKSUM => Ok(Self::AddChecksum {
                file: name(4)?,
                offset: word(60)?,
                start: word(64)?,
                length: word(68)?,
            }),
            WRITE_POINTER => Ok(Self::WritePointer {
                destination: name(4)?,
                source: name(60)?,
                offset: word(116)?,
                source_offset: word(120)?,
                size: pointer_size(byte(124)?)?,
            }),
            other => Ok(Self::Unknown(other)),
        }
    }

    /// The inverse of [`Self::decode`].
    pub fn encode(&self) -> [u8; COMMAND_SIZE] {
        let mut bytes = [0; COMMAND_SIZE];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        match self {
            Self::Allocate { file, alignment, zone } => {
                put(0, &ALLOCATE.to_le_bytes());
                put(4, file);
                put(60, &alignment.to_le_bytes());
                put(64, &[if *zone == Zone::High { ZONE_HIGH } else { ZONE_FSEG }]);
            }
            Self::AddPointer { destination, source, offset, size } => {
                put(0, &ADD_POINTER.to_le_bytes());
                put(4, destination);
                put(60, source);
                put(116, &offset.to_le_bytes());
                put(120, &[*size]);
            }
            Self::AddChecksum { file, offset, start, length } => {
                put(0, &ADD_CHECKSUM.to_le_bytes());
                put(4, file);
                put(60, &offset.to_le_bytes());
                put(64, &start.to_le_bytes());
                put(68, &length.to_le_bytes());
            }
            Self::WritePointer { destination, source, offset, source_offset, size } => {
                put(0, &WRITE_POINTER.to_le_bytes());
                put(4, destination);
                put(60, source);
                put(116, &offset.to_le_bytes());
                put(120, &source_offset.to_le_bytes());
                put(124, &[*size]);
            }
            Self::Unknown(command) => put(0, &command.to_le_bytes()),
        }
        bytes
    }
}

fn pointer_size(size: u8) -> Result<u8, Error> {
    if matches!(size, 1 | 2 | 4 | 8) { Ok(size) } else { Err(Error::PointerSize(size)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fw_cfg::{File, file};
    use proptest::prelude::*;

    fn name(name: &str) -> Name {
        File::new(name, 0, 0).unwrap().name
    }

    #[test]
    fn commands_round_trip() {
        let tables = name(file::ACPI_TABLES);
        let rsdp = name(file::ACPI_RSDP);
        for command in [
            Command::Allocate { file: tables, alignment: 64, zone: Zone::High },
            Command::Allocate { file: rsdp, alignment: 16, zone: Zone::FSegment },
            Command::AddPointer { destination: rsdp, source: tables, offset: 24, size: 8 },
            Command::AddChecksum { file: rsdp, offset: 8, start: 0, length: 20 },
            Command::WritePointer {
                destination: tables,
                source: rsdp,
                offset: 8,
                source_offset: 40,
                size: 4,
            },
            Command::Unknown(0x8000_0004),
        ] {
            assert_eq!(Command::decode(&command.encode()), Ok(command));
        }
    }

    #[test]
    fn impossible_fields_are_named() {
        let allocate =
            Command::Allocate { file: name("x"), alignment: 3, zone: Zone::High }.encode();
        assert_eq!(Command::decode(&allocate), Err(Error::Alignment(3)));
        let mut zone =
            Command::Allocate { file: name("x"), alignment: 1, zone: Zone::High }.encode();
        zone[64] = 9;
        assert_eq!(Command::decode(&zone), Err(Error::Zone(9)));
        let pointer =
            Command::AddPointer { destination: name("x"), source: name("x"), offset: 0, size: 3 };
        assert_eq!(Command::decode(&pointer.encode()), Err(Error::PointerSize(3)));
        assert_eq!(Command::decode(&pointer.encode()[..119]), Err(Error::Truncated));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..140)) {
            let _ = Command::decode(&bytes);
        }
    }
}
