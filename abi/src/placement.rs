//! Where kernel, initrd and command line go: one planner for both ways to boot.
//!
//! A pure function over the memory map and what the kernel says of itself. What it returns lies
//! in usable RAM and does not overlap; what does not fit is refused with its name, what it needs
//! and what there is. ACPI tables are placed before, and are no RAM in the map by then.

use core::fmt;

use crate::e820::Map;
use crate::layout;
use crate::range::{Range, align_down, align_up};

/// What a kernel says of itself; bytes and guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Bytes of the protected-mode part.
    pub size: u64,
    /// Bytes it needs from where it runs, or 0 when it does not say.
    pub init_size: u64,
    /// Alignment of where it runs; a power of two.
    pub alignment: u64,
    /// Where it would like to run, or 0 when it does not say.
    pub pref_address: u64,
    /// Whether it runs where it is loaded.
    pub relocatable: bool,
    /// Longest command line, without its NUL.
    pub cmdline_max: u64,
    /// Highest address of the initrd's last byte.
    pub initrd_addr_max: u64,
    /// Whether the initrd may go above 4 GiB when it does not fit below.
    pub initrd_above_4g: bool,
}

/// Where things go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The protected-mode part, as loaded.
    pub kernel: Range,
    /// What the kernel uses before it reads the memory map: it may write anywhere in here.
    pub kernel_run: Range,
    /// The command line with its NUL.
    pub command_line: Range,
    /// The initrd; empty for none.
    pub initrd: Range,
}

/// What does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The memory below 640 KiB, where boot parameters go, is not all RAM.
    LowMemory,
    /// The command line: bytes without NUL, and how many the kernel takes.
    CommandLine {
        /// Bytes of the command line.
        size: u64,
        /// Bytes at the most.
        max: u64,
    },
    /// No room for the kernel.
    Kernel {
        /// Bytes it needs from where it runs.
        needs: u64,
        /// The lowest address where it may run.
        from: u64,
        /// Bytes of RAM in the machine.
        ram: u64,
    },
    /// No room for the initrd beside the kernel.
    Initrd {
        /// Bytes of the initrd.
        size: u64,
        /// The first address that it must not reach.
        limit: u64,
        /// Bytes of RAM in the machine.
        ram: u64,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        match *self {
            Self::LowMemory => write!(f, "the memory map has no RAM from 0 to 0x9fc00"),
            Self::CommandLine { size, max } => {
                write!(f, "the command line has {size} bytes, the kernel takes {max}")
            }
            Self::Kernel { needs, from, .. }
                if from.saturating_add(needs) > layout::IDENTITY_MAPPED =>
            {
                let needs = mib(needs);
                write!(f, "the kernel needs {needs} MiB at {from:#x}, beyond the first GiB")
            }
            Self::Kernel { needs, from, ram } => write!(
                f,
                "the kernel needs {} MiB at {from:#x}, so at least {} MiB of memory; there are {}",
                mib(needs),
                mib(from.saturating_add(needs)),
                mib(ram),
            ),
            Self::Initrd { size, limit, ram } => write!(
                f,
                "no room for the initrd of {} MiB below {limit:#x} beside the kernel, \
                 with {} MiB of memory",
                mib(size),
                mib(ram),
            ),
        }
    }
}

impl core::error::Error for Error {}

/// Places everything. `command_line` is in bytes with the NUL.
pub fn plan(map: &Map, kernel: &Kernel, command_line: u64, initrd: u64) -> Result<Plan, Error> {
    if !map.is_ram(layout::LOW_RAM) {
        return Err(Error::LowMemory);
    }
    let command_line = plan_command_line(kernel.cmdline_max, command_line)?;
    let (kernel_image, kernel_run) = plan_kernel(map, kernel)?;
    let initrd = plan_initrd(map, kernel, [kernel_image, kernel_run], initrd)?;
    Ok(Plan { kernel: kernel_image, kernel_run, command_line, initrd })
}

/// Where a command line of `size` bytes with its NUL goes, for a kernel that takes `max`
/// without it.
pub fn plan_command_line(max: u64, size: u64) -> Result<Range, Error> {
    let max = max.min(layout::COMMAND_LINE.len() - 1);
    let length = size.saturating_sub(1);
    if length > max {
        return Err(Error::CommandLine { size: length, max });
    }
    Range::new(layout::COMMAND_LINE.start(), size).ok_or(Error::CommandLine { size, max })
}

fn plan_kernel(map: &Map, kernel: &Kernel) -> Result<(Range, Range), Error> {
    let needs = kernel.init_size.max(kernel.size);
    let from = kernel.pref_address.max(layout::HIGH_RAM_START);
    let refused = Error::Kernel { needs, from, ram: map.ram_bytes() };
    if !kernel.relocatable {
        // It is loaded at 1 MiB and moves itself to where it runs.
        let image = Range::new(layout::HIGH_RAM_START, kernel.size).ok_or(refused)?;
        let run = Range::new(from, needs).ok_or(refused)?;
        let fits = |range| map.is_ram(range) && range.end() <= layout::IDENTITY_MAPPED;
        return if fits(image) && fits(run) { Ok((image, run)) } else { Err(refused) };
    }
    // A kernel loaded below `pref_address` runs there all the same: the lowest place that counts
    // is the first aligned one above it.
    let start = map
        .ram()
        .filter_map(|ram| {
            let start = align_up(ram.start().max(from), kernel.alignment)?;
            let run = Range::new(start, needs)?;
            (ram.contains(run) && run.end() <= layout::IDENTITY_MAPPED).then_some(start)
        })
        .next()
        .ok_or(refused)?;
    let image = Range::new(start, kernel.size).ok_or(refused)?;
    Ok((image, Range::new(start, needs).ok_or(refused)?))
}

fn plan_initrd(map: &Map, kernel: &Kernel, taken: [Range; 2], size: u64) -> Result<Range, Error> {
    if size == 0 {
        return Ok(Range::between(0, 0));
    }
    let limit = kernel.initrd_addr_max.saturating_add(1).min(layout::FOUR_GIB);
    let refused = Error::Initrd { size, limit, ram: map.ram_bytes() };
    let low = Range::between(layout::HIGH_RAM_START.min(limit), limit);
    let high = Range::between(layout::FOUR_GIB, u64::MAX);
    let fit = |bounds| highest_fit(map, bounds, &taken, size, layout::PAGE);
    fit(low).or_else(|| if kernel.initrd_above_4g { fit(high) } else { None }).ok_or(refused)
}

/// Where an initrd of `size` bytes goes beside a kernel that is in `taken`, as far up below
/// 4 GiB as there is RAM; for kernels without a setup header.
pub fn plan_initrd_beside(map: &Map, taken: Range, size: u64) -> Result<Range, Error> {
    let kernel = Kernel {
        size: 0,
        init_size: 0,
        alignment: 1,
        pref_address: 0,
        relocatable: false,
        cmdline_max: 0,
        initrd_addr_max: layout::FOUR_GIB - 1,
        initrd_above_4g: false,
    };
    plan_initrd(map, &kernel, [taken, taken], size)
}

/// Where ACPI tables of `size` bytes go that are too big for [`layout::ACPI_TABLES`]: the top of
/// the RAM that a 64-bit kernel's loader maps, in whole pages.
pub fn plan_tables(map: &Map, size: u64, alignment: u64) -> Option<Range> {
    let bounds = Range::between(layout::HIGH_RAM_START, layout::IDENTITY_MAPPED);
    let size = align_up(size, layout::PAGE)?;
    highest_fit(map, bounds, &[], size, alignment.max(layout::PAGE))
}

/// The highest `size` bytes of RAM, aligned, within `bounds` that miss everything in `taken`.
fn highest_fit(
    map: &Map,
    bounds: Range,
    taken: &[Range],
    size: u64,
    alignment: u64,
) -> Option<Range> {
    for ram in map.ram().rev() {
        let floor = ram.start().max(bounds.start());
        let mut end = ram.end().min(bounds.end());
        // Each round but the last steps below one of `taken`, so this ends.
        while let Some(start) = end.checked_sub(size) {
            let start = align_down(start, alignment);
            if start < floor {
                break;
            }
            let candidate = Range::new(start, size)?;
            match taken.iter().find(|t| t.overlaps(candidate)) {
                None => return Some(candidate),
                Some(obstacle) => end = obstacle.start(),
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::e820::kind;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn machine(ram: u64) -> Map {
        let mut map = Map::new();
        map.set(Range::new(0, ram.min(layout::LOW_RAM_MAX)).unwrap(), kind::RAM).unwrap();
        if ram > layout::LOW_RAM_MAX {
            let high = Range::new(layout::FOUR_GIB, ram - layout::LOW_RAM_MAX).unwrap();
            map.set(high, kind::RAM).unwrap();
        }
        map.reserve_legacy().unwrap();
        map
    }

    fn debian() -> Kernel {
        Kernel {
            size: 7 * MIB + 0x123,
            init_size: 54 * MIB,
            alignment: 2 * MIB,
            pref_address: 16 * MIB,
            relocatable: true,
            cmdline_max: 2047,
            initrd_addr_max: 0x7fff_ffff,
            initrd_above_4g: true,
        }
    }

    #[test]
    fn a_kernel_runs_where_it_likes() {
        let plan = plan(&machine(128 * MIB), &debian(), 20, 0x777).unwrap();
        assert_eq!(plan.kernel.start(), 16 * MIB);
        assert_eq!(plan.kernel_run, Range::between(16 * MIB, 70 * MIB));
        assert_eq!(plan.initrd.start(), 128 * MIB - 0x1000);
        assert_eq!(plan.command_line, Range::between(0x2_0000, 0x2_0014));
    }

    #[test]
    fn too_little_memory_names_what_is_needed() {
        let error = plan(&machine(64 * MIB), &debian(), 20, 0).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the kernel needs 54 MiB at 0x1000000, so at least 70 MiB of memory; there are 64"
        );
        let error = plan(&machine(2 * MIB), &debian(), 20, 0).unwrap_err();
        assert!(matches!(error, Error::Kernel { .. }));
        assert_eq!(plan(&Map::new(), &debian(), 20, 0), Err(Error::LowMemory));
    }

    #[test]
    fn a_kernel_beyond_the_first_gib_is_told_so_and_not_to_have_more_memory() {
        let far = Kernel { pref_address: 1 << 30, ..debian() };
        let error = plan(&machine(8 << 30), &far, 20, 0).unwrap_err();
        let text = "the kernel needs 54 MiB at 0x40000000, beyond the first GiB";
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn a_fixed_kernel_is_loaded_at_one_mib() {
        let fixed = Kernel { relocatable: false, ..debian() };
        let plan = plan(&machine(128 * MIB), &fixed, 20, 0).unwrap();
        assert_eq!(plan.kernel.start(), MIB);
        assert_eq!(plan.kernel_run.start(), 16 * MIB);
    }

    #[test]
    fn a_huge_initrd_goes_above_4_gib_only_if_the_kernel_can() {
        let size = 3000 * MIB;
        let placed = plan(&machine(8192 * MIB), &debian(), 20, size).unwrap().initrd;
        assert!(placed.start() >= layout::FOUR_GIB);
        let old = Kernel { initrd_above_4g: false, ..debian() };
        let error = plan(&machine(8192 * MIB), &old, 20, size).unwrap_err();
        assert!(matches!(error, Error::Initrd { .. }));
    }

    #[test]
    fn a_long_command_line_is_refused() {
        let error = plan(&machine(128 * MIB), &debian(), 2049, 0).unwrap_err();
        assert_eq!(error, Error::CommandLine { size: 2048, max: 2047 });
        let greedy = Kernel { cmdline_max: u64::MAX, ..debian() };
        assert!(plan(&machine(128 * MIB), &greedy, 0x1_0000, 0).is_ok());
        assert!(plan(&machine(128 * MIB), &greedy, 0x1_0001, 0).is_err());
    }

    fn any_kernel() -> impl Strategy<Value = Kernel> {
        let size = prop_oneof![0..64 * MIB, any::<u64>()];
        let at = prop_oneof![0..64 * MIB, any::<u64>()];
        (size.clone(), size, 0u32..40, at.clone(), any::<bool>(), at, any::<bool>()).prop_map(
            |(size, init_size, shift, pref_address, relocatable, initrd_addr_max, above)| Kernel {
                size,
                init_size,
                alignment: 1 << shift,
                pref_address,
                relocatable,
                cmdline_max: 2047,
                initrd_addr_max,
                initrd_above_4g: above,
            },
        )
    }

    fn any_map() -> impl Strategy<Value = Map> {
        let claim = (0u64..256, 0u64..256, 1u32..3);
        (prop::collection::vec(claim, 0..12), any::<bool>()).prop_map(|(claims, low)| {
            let mut map = Map::new();
            for (start, len, kind) in claims {
                map.set(Range::new(start * MIB / 2, len * MIB / 2).unwrap(), kind).unwrap();
            }
            if low {
                map.set(Range::between(0, MIB), kind::RAM).unwrap();
            }
            map.reserve_legacy().unwrap();
            map
        })
    }

    proptest! {
        #[test]
        fn a_plan_lies_in_ram_and_never_overlaps(
            map in any_map(),
            kernel in any_kernel(),
            command_line in 0u64..4096,
            initrd in prop_oneof![Just(0), 1..64 * MIB, any::<u64>()],
        ) {
            let Ok(plan) = plan(&map, &kernel, command_line, initrd) else { return Ok(()) };
            prop_assert!(layout::COMMAND_LINE.contains(plan.command_line));
            for range in [plan.kernel, plan.kernel_run, plan.initrd] {
                prop_assert!(range.is_empty() || map.is_ram(range), "{:?} is no RAM", range);
                prop_assert!(range.is_empty() || range.start() >= layout::HIGH_RAM_START);
            }
            prop_assert!(!plan.initrd.overlaps(plan.kernel));
            prop_assert!(!plan.initrd.overlaps(plan.kernel_run));
            prop_assert_eq!(plan.initrd.len(), initrd);
            if initrd > 0 && !kernel.initrd_above_4g {
                prop_assert!(plan.initrd.end() - 1 <= kernel.initrd_addr_max);
            }
            if kernel.relocatable {
                prop_assert_eq!(plan.kernel.start() % kernel.alignment, 0);
            }
            prop_assert!(plan.kernel_run.end() <= layout::IDENTITY_MAPPED);
        }
    }
}
