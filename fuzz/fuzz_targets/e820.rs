//! The memory map: sorted, disjoint, and what was set last holds.
#![no_main]

use abi::e820::{Map, kind};
use abi::range::Range;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<u8>, Vec<(u64, u64, u32)>)| {
    let (bytes, changes) = input;
    let Ok(mut map) = Map::parse(&bytes) else { return };
    check(&map);
    for (start, len, kind) in changes {
        let Some(range) = Range::new(start, len) else { continue };
        if kind == 0 {
            if map.remove(range).is_ok() {
                assert!(map.entries().iter().all(|e| !e.range.overlaps(range)));
            }
        } else if map.set(range, kind).is_ok() && !range.is_empty() {
            let holder = map.entries().iter().find(|e| e.range.contains(range));
            assert_eq!(holder.map(|e| e.kind), Some(kind));
        }
        check(&map);
    }
    let _ = map.reserve_legacy();
    check(&map);
});

fn check(map: &Map) {
    for pair in map.entries().windows(2) {
        assert!(pair[0].range.end() <= pair[1].range.start());
    }
    assert!(map.entries().iter().all(|e| !e.range.is_empty()));
    assert!(map.ram().count() == map.entries().iter().filter(|e| e.kind == kind::RAM).count());
}
