//! The planner: a plan lies in RAM and never overlaps; a refusal is no whim.

use abi::e820::Map;
use abi::layout;
use abi::placement::{Error, Kernel, Plan, plan, plan_initrd_beside, plan_tables};
use abi::range::{Range, align_up};
use arbitrary::Arbitrary;

use crate::input::Input;
use crate::targets::{claims, encode, memory};

#[derive(Arbitrary, Debug)]
struct Fields {
    size: u32,
    init_size: u32,
    shift: u8,
    /// Pages.
    pref_address: u32,
    flags: u8,
    cmdline_max: u16,
    command_line: u32,
    initrd_addr_max: u32,
    initrd: u32,
    /// How far the sizes are scaled down.
    scale: u8,
    map: u8,
}

/// Plans for the machine and the kernel that the input describes.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let fields: Fields = input.take();
    let claims = if fields.map % 8 == 7 { claims(&mut input) } else { memory(fields.map % 8) };
    let Ok(mut map) = Map::parse(&encode(&claims)) else { return };
    if fields.flags & 8 == 0 && map.reserve_legacy().is_err() {
        return;
    }
    let scale = fields.scale % 32;
    let kernel = Kernel {
        size: (fields.size >> scale).into(),
        init_size: (fields.init_size >> scale).into(),
        alignment: 1 << (fields.shift % 32),
        pref_address: u64::from(fields.pref_address) << 12,
        relocatable: fields.flags & 1 != 0,
        cmdline_max: fields.cmdline_max.into(),
        initrd_addr_max: fields.initrd_addr_max.into(),
        initrd_above_4g: fields.flags & 2 != 0,
    };
    let command_line = if fields.flags & 4 != 0 { fields.command_line } else { 14 };
    // Sizes of 32 bits are what a host can say, but the planner takes any.
    let wide = if fields.flags & 16 != 0 { u64::MAX } else { u32::MAX.into() };
    let initrd = (u64::from(fields.initrd) << (fields.shift % 40) >> scale) & wide;
    check_tables(&map, initrd, kernel.alignment);
    check_beside(&map, &kernel, initrd);
    match plan(&map, &kernel, command_line.into(), initrd) {
        Ok(plan) => check_plan(&map, &kernel, &plan, command_line.into(), initrd),
        Err(error) => check_refusal(&map, &kernel, error, initrd),
    }
}

fn check_plan(map: &Map, kernel: &Kernel, plan: &Plan, command_line: u64, initrd: u64) {
    assert!(layout::COMMAND_LINE.contains(plan.command_line));
    assert_eq!(plan.command_line.len(), command_line);
    assert!(command_line <= kernel.cmdline_max + 1);
    for range in [plan.kernel, plan.kernel_run, plan.initrd] {
        assert!(range.is_empty() || map.is_ram(range));
        assert!(range.is_empty() || range.start() >= layout::HIGH_RAM_START);
    }
    assert!(!plan.initrd.overlaps(plan.kernel) && !plan.initrd.overlaps(plan.kernel_run));
    assert!(plan.kernel_run.end() <= layout::IDENTITY_MAPPED);
    assert_eq!(plan.kernel.len(), kernel.size);
    assert_eq!(plan.kernel_run.len(), kernel.size.max(kernel.init_size));
    assert!(plan.kernel_run.start() >= kernel.pref_address);
    if kernel.relocatable {
        assert_eq!(plan.kernel.start() % kernel.alignment, 0);
        assert_eq!(plan.kernel.start(), plan.kernel_run.start());
    }
    assert_eq!(plan.initrd.len(), initrd);
    if !plan.initrd.is_empty() {
        assert_eq!(plan.initrd.start() % layout::PAGE, 0);
        let below = plan.initrd.end() - 1 <= kernel.initrd_addr_max;
        assert!(below || kernel.initrd_above_4g && plan.initrd.start() >= layout::FOUR_GIB);
    }
}

/// What is refused fits nowhere.
fn check_refusal(map: &Map, kernel: &Kernel, error: Error, initrd: u64) {
    let line = error.to_string();
    assert!(!line.is_empty() && line.len() < 200);
    match error {
        Error::LowMemory => assert!(!map.is_ram(layout::LOW_RAM)),
        Error::CommandLine { size, max } => assert!(size > max),
        Error::Kernel { needs, from, .. } => {
            let bounds = Range::between(from.min(layout::IDENTITY_MAPPED), layout::IDENTITY_MAPPED);
            // Nothing at all fits anywhere, even where no RAM is.
            let is_fixed = !kernel.relocatable || needs == 0;
            assert!(is_fixed || !fits(map, bounds, &[], needs, kernel.alignment));
        }
        Error::Initrd { limit, .. } => {
            let without = plan(map, kernel, 1, 0).expect("only the initrd does not fit");
            let taken = [without.kernel, without.kernel_run];
            let start = layout::HIGH_RAM_START.min(limit);
            let below = Range::between(start, limit);
            assert!(!fits(map, below, &taken, initrd, layout::PAGE));
            let above = Range::between(layout::FOUR_GIB, u64::MAX);
            assert!(
                !kernel.initrd_above_4g || !fits(map, above, &taken, initrd, layout::PAGE),
                "there is room above 4 GiB"
            );
        }
    }
}

fn check_tables(map: &Map, size: u64, alignment: u64) {
    let bounds = Range::between(layout::HIGH_RAM_START, layout::IDENTITY_MAPPED);
    match plan_tables(map, size, alignment) {
        Some(tables) => {
            assert!(map.is_ram(tables) && bounds.contains(tables) && tables.len() >= size);
            assert_eq!(tables.start() % alignment, 0);
        }
        None => {
            let pages = align_up(size, layout::PAGE);
            let alignment = alignment.max(layout::PAGE);
            assert!(pages.is_none_or(|size| !fits(map, bounds, &[], size, alignment)));
        }
    }
}

fn check_beside(map: &Map, kernel: &Kernel, initrd: u64) {
    let Some(taken) = Range::new(kernel.pref_address, kernel.size) else { return };
    match plan_initrd_beside(map, taken, initrd) {
        Ok(range) => {
            assert_eq!(range.len(), initrd);
            assert!(range.is_empty() || map.is_ram(range) && !range.overlaps(taken));
            assert!(range.end() <= layout::FOUR_GIB);
        }
        Err(error) => {
            let bounds = Range::between(layout::HIGH_RAM_START, layout::FOUR_GIB);
            assert!(matches!(error, Error::Initrd { .. }));
            assert!(!fits(map, bounds, &[taken], initrd, layout::PAGE));
        }
    }
}

/// Whether `size` bytes fit: at the start of RAM, or behind something that is taken.
fn fits(map: &Map, bounds: Range, taken: &[Range], size: u64, alignment: u64) -> bool {
    map.ram().any(|ram| {
        let starts = taken.iter().map(|range| range.end()).chain([ram.start(), bounds.start()]);
        let fit = |start: u64| {
            let range = Range::new(align_up(start, alignment)?, size)?;
            let is_free = ram.contains(range) && bounds.contains(range);
            (is_free && taken.iter().all(|taken| !taken.overlaps(range))).then_some(())
        };
        starts.into_iter().any(|start| fit(start).is_some())
    })
}
