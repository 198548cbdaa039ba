//! The last exits of a CPU: what it was doing when it died.

use std::fmt;

use crate::trace::Exit;

/// Exits that are remembered.
const KEPT: usize = 6;
/// Bytes of an access that are remembered.
const DATA_MAX: usize = 8;

/// The last exits, the oldest first.
#[derive(Default)]
pub struct Recent {
    exits: [Option<Exited>; KEPT],
    next: usize,
}

#[derive(Clone, Copy)]
struct Exited {
    kind: Exit,
    address: u64,
    data: u64,
    times: u32,
}

impl Recent {
    /// Remembers an access of `data` at `address`; one that is like the last counts with it.
    pub fn push(&mut self, kind: Exit, address: u64, data: &[u8]) {
        let mut bytes = [0; DATA_MAX];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        let data = u64::from_le_bytes(bytes);
        let last = (self.next + KEPT - 1) % KEPT;
        match &mut self.exits[last] {
            Some(exit) if (exit.kind, exit.address, exit.data) == (kind, address, data) => {
                exit.times = exit.times.saturating_add(1);
            }
            _ => {
                self.exits[self.next] = Some(Exited { kind, address, data, times: 1 });
                self.next = (self.next + 1) % KEPT;
            }
        }
    }
}

impl fmt::Display for Recent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (newer, older) = self.exits.split_at(self.next);
        let mut between = "";
        for exit in older.iter().chain(newer).flatten() {
            write!(f, "{between}{exit}")?;
            between = ", ";
        }
        if between.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

impl fmt::Display for Exited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, address, data, times } = self;
        match kind {
            Exit::IoIn => write!(f, "in {address:#x} -> {data:#x}")?,
            Exit::IoOut => write!(f, "out {address:#x} <- {data:#x}")?,
            Exit::MmioRead => write!(f, "read {address:#x} -> {data:#x}")?,
            Exit::MmioWrite => write!(f, "write {address:#x} <- {data:#x}")?,
            Exit::Eoi => write!(f, "end of interrupt {address:#x}")?,
            Exit::Msr => write!(f, "wrmsr {address:#x} <- {data:#x}")?,
            Exit::Signal | Exit::Other => write!(f, "{kind:?}")?,
        }
        if *times > 1 { write!(f, " ({times} times)") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_kept_in_order() {
        let mut recent = Recent::default();
        assert_eq!(recent.to_string(), "none");
        for port in 0..10 {
            recent.push(Exit::IoOut, port, &[1, 2]);
        }
        assert!(recent.to_string().starts_with("out 0x4 <- 0x201, out 0x5"), "{recent}");
        assert!(recent.to_string().ends_with("out 0x9 <- 0x201"), "{recent}");
    }

    #[test]
    fn what_is_repeated_is_counted() {
        let mut recent = Recent::default();
        recent.push(Exit::MmioRead, 0xfec0_0010, &[0; 64]);
        (0..3).for_each(|_| recent.push(Exit::IoIn, 0x3fd, &[0x60]));
        assert_eq!(recent.to_string(), "read 0xfec00010 -> 0x0, in 0x3fd -> 0x60 (3 times)");
    }
}
