//! The planner: a plan lies in RAM, keeps its limits and never overlaps.
#![no_main]

use abi::layout;
use abi::placement::{Kernel, plan, plan_tables};
use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use microvm_fuzz::map;

#[derive(Arbitrary, Debug)]
struct Input {
    claims: Vec<(u16, u16, u8)>,
    size: u32,
    init_size: u32,
    shift: u8,
    pref_address: u64,
    relocatable: bool,
    cmdline_max: u32,
    initrd_addr_max: u32,
    above: bool,
    command_line: u32,
    initrd: u64,
}

fuzz_target!(|input: Input| {
    let Some(map) = map(&input.claims) else { return };
    let kernel = Kernel {
        size: input.size.into(),
        init_size: input.init_size.into(),
        alignment: 1 << (input.shift % 32),
        pref_address: input.pref_address,
        relocatable: input.relocatable,
        cmdline_max: input.cmdline_max.into(),
        initrd_addr_max: input.initrd_addr_max.into(),
        initrd_above_4g: input.above,
    };
    if let Some(tables) = plan_tables(&map, input.size.into(), 64) {
        assert!(map.is_ram(tables) && tables.end() <= layout::IDENTITY_MAPPED);
    }
    let Ok(plan) = plan(&map, &kernel, input.command_line.into(), input.initrd) else { return };
    assert!(layout::COMMAND_LINE.contains(plan.command_line));
    for range in [plan.kernel, plan.kernel_run, plan.initrd] {
        assert!(range.is_empty() || map.is_ram(range));
        assert!(range.is_empty() || range.start() >= layout::HIGH_RAM_START);
    }
    assert!(!plan.initrd.overlaps(plan.kernel) && !plan.initrd.overlaps(plan.kernel_run));
    assert_eq!(plan.initrd.len(), input.initrd);
    assert!(plan.kernel_run.end() <= layout::IDENTITY_MAPPED);
});
