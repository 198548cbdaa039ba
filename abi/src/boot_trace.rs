//! The firmware's own time line: when each stage began.
//!
//! The stamps are of the CPU's time-stamp counter. The firmware writes them once, before it enters
//! the kernel, to the host's file [`crate::fw_cfg::file::BOOT_TRACE`]. The host knows the counter's
//! rate and offset, so it can put them beside its own.

use crate::bytes::{get_u32, get_u64};

/// Bytes of a record.
pub const SIZE: usize = 32;
/// The version of this layout, in the first four bytes.
const VERSION: u32 = 1;
/// Stamps in a record, in the next four bytes.
const STAMPS: u32 = 3;

/// Values of the time-stamp counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BootTrace {
    /// When the firmware began: [`crate::post::FIRMWARE_START`].
    pub start: u64,
    /// When memory map and tables were in place: [`crate::post::LOAD_KERNEL`].
    pub load_kernel: u64,
    /// When the kernel was in place: [`crate::post::KERNEL_ENTRY`].
    pub kernel_entry: u64,
}

impl BootTrace {
    /// Little-endian: version, number of stamps, the stamps in the order of time.
    pub fn encode(&self) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        bytes[..4].copy_from_slice(&VERSION.to_le_bytes());
        bytes[4..8].copy_from_slice(&STAMPS.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.start.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.load_kernel.to_le_bytes());
        bytes[24..].copy_from_slice(&self.kernel_entry.to_le_bytes());
        bytes
    }

    /// The inverse; `None` for another version, and when the stamps run backwards.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if get_u32(bytes, 0)? != VERSION || get_u32(bytes, 4)? != STAMPS {
            return None;
        }
        let trace = Self {
            start: get_u64(bytes, 8)?,
            load_kernel: get_u64(bytes, 16)?,
            kernel_entry: get_u64(bytes, 24)?,
        };
        (trace.start <= trace.load_kernel && trace.load_kernel <= trace.kernel_entry)
            .then_some(trace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_round_trip_and_nonsense_is_none() {
        let trace = BootTrace { start: 1, load_kernel: 2, kernel_entry: 3 };
        assert_eq!(BootTrace::decode(&trace.encode()), Some(trace));
        let backwards = BootTrace { start: 4, ..trace };
        assert_eq!(BootTrace::decode(&backwards.encode()), None);
        assert_eq!(BootTrace::decode(&[0; SIZE]), None);
        assert_eq!(BootTrace::decode(&trace.encode()[..SIZE - 1]), None);
    }
}
