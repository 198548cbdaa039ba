//! The matrix of machines, entries, kernels, memory sizes and initrds.

use std::fmt;

/// One machine that is booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Whether the machine describes itself by ACPI.
    pub acpi: bool,
    /// How the kernel is entered.
    pub entry: Entry,
    /// The kernel.
    pub kernel: Kernel,
    /// The machine's memory in MiB.
    pub memory_mib: u32,
    /// The initrd.
    pub initrd: Initrd,
}

/// How a kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A bzImage by its 16-bit entry.
    Bits16,
    /// A bzImage by its 32-bit entry.
    Bits32,
    /// A bzImage by its 64-bit entry.
    Bits64,
    /// An ELF file by its PVH note.
    Pvh,
}

/// A kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Ours, which checks its entry.
    Payload,
    /// The distribution's kernel for virtual machines.
    Cloud,
    /// The distribution's kernel for any machine.
    Standard,
}

/// An initrd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initrd {
    /// No initrd.
    None,
    /// One whose size is odd.
    Odd,
    /// One of 200 MiB.
    Large,
}

const ENTRIES: [Entry; 4] = [Entry::Bits16, Entry::Bits32, Entry::Bits64, Entry::Pvh];
const KERNELS: [Kernel; 3] = [Kernel::Payload, Kernel::Cloud, Kernel::Standard];
const MEMORY_MIB: [u32; 5] = [128, 2047, 2048, 3072, 5 << 10];
const INITRDS: [Initrd; 3] = [Initrd::None, Initrd::Odd, Initrd::Large];

/// Every cell.
pub fn all() -> Vec<Cell> {
    let mut cells = Vec::new();
    for kernel in KERNELS {
        for entry in ENTRIES {
            for memory_mib in MEMORY_MIB {
                for initrd in INITRDS {
                    for acpi in [true, false] {
                        cells.push(Cell { acpi, entry, kernel, memory_mib, initrd });
                    }
                }
            }
        }
    }
    cells
}

/// A few cells: each entry with each memory size, and each kernel with each initrd.
pub fn sample() -> Vec<Cell> {
    let mut cells = Vec::new();
    for (m, memory_mib) in MEMORY_MIB.into_iter().enumerate() {
        for (e, entry) in ENTRIES.into_iter().enumerate() {
            let acpi = (m + e) % 2 == 0;
            let kernel = KERNELS[(m + e) % KERNELS.len()];
            let initrd = INITRDS[(m + 2 * e) % INITRDS.len()];
            cells.push(Cell { acpi, entry, kernel, memory_mib, initrd });
        }
    }
    cells
}

impl Cell {
    /// What `-M` takes.
    pub fn machine(&self) -> &'static str {
        if self.acpi { "microvm" } else { "microvm,acpi=off" }
    }

    /// RAM that a kernel is offered: all but the EBDA's KiB and the 384 KiB below 1 MiB.
    pub fn memory_kib(&self) -> u64 {
        u64::from(self.memory_mib) * 1024 - 385
    }

    /// Whether kernel and initrd are too large for the machine.
    pub fn is_too_large(&self) -> bool {
        self.initrd == Initrd::Large && self.memory_mib < 200
    }
}

impl Entry {
    /// What `opt/org.microvm/entry` takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bits16 => "16",
            Self::Bits32 => "32",
            Self::Bits64 => "64",
            Self::Pvh => "pvh",
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { entry, kernel, memory_mib, initrd, .. } = self;
        let kernel = match kernel {
            Kernel::Payload => "payload",
            Kernel::Cloud => "cloud kernel",
            Kernel::Standard => "standard kernel",
        };
        let initrd = match initrd {
            Initrd::None => "no initrd",
            Initrd::Odd => "odd initrd",
            Initrd::Large => "initrd of 200 MiB",
        };
        write!(f, "{}, {}, {kernel}, {memory_mib} MiB, {initrd}", self.machine(), entry.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_cells_differ() {
        let cells = all();
        assert_eq!(cells.len(), 2 * 4 * 3 * 5 * 3);
        assert!((1..cells.len()).all(|i| !cells[..i].contains(&cells[i])));
    }

    #[test]
    fn the_sample_has_every_value_and_the_pairs_it_names() {
        let cells = sample();
        let has = |test: &dyn Fn(&Cell) -> bool| cells.iter().any(test);
        for entry in ENTRIES {
            for memory in MEMORY_MIB {
                assert!(has(&|c| c.entry == entry && c.memory_mib == memory), "{entry:?} {memory}");
            }
        }
        for kernel in KERNELS {
            for initrd in INITRDS {
                assert!(
                    has(&|c| c.kernel == kernel && c.initrd == initrd),
                    "{kernel:?} {initrd:?}"
                );
            }
            for acpi in [true, false] {
                assert!(has(&|c| c.kernel == kernel && c.acpi == acpi), "{kernel:?} {acpi}");
            }
        }
        assert!(has(&Cell::is_too_large));
    }
}
