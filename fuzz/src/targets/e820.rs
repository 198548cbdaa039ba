//! The memory map: sorted, disjoint, and everywhere what the last claim made it.

use abi::e820::{Map, kind};
use abi::layout;
use abi::range::Range;

use crate::input::Input;
use crate::targets::encode;

/// A claim on a range of addresses: start, length, and a kind or a hole.
type Claim = (u64, u64, Option<u32>);

/// Claims at the most: an honest map has ten.
const CLAIMS_MAX: usize = 80;

/// Takes in a map, changes it, and compares each step with the claims themselves.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let raw = input.take::<u8>() & 1 != 0;
    let mut claims: Vec<Claim> = Vec::new();
    let map = if raw {
        // The file as such.
        let bytes = input.bytes();
        if bytes.len() / 20 > CLAIMS_MAX {
            return;
        }
        let map = Map::parse(bytes);
        assert!(map.is_err() || bytes.len().is_multiple_of(20));
        let entries = bytes.chunks_exact(20).map(|entry| {
            let mut entry = Input::new(entry);
            (entry.take(), entry.take(), Some(entry.take()))
        });
        claims.extend(entries);
        map
    } else {
        let count = usize::from(input.take::<u8>()) % CLAIMS_MAX;
        let raw: Vec<_> = (0..count).map(|_| claim(&mut input)).collect();
        claims.extend(raw.iter().map(|(start, len, kind)| (*start, *len, Some(*kind))));
        Map::parse(&encode(&raw))
    };
    let Ok(mut map) = map else { return };
    // RAM first, so that what is reserved wins; an unknown kind is no hole.
    claims.retain(|(_, len, _)| *len > 0);
    claims.sort_by_key(|(_, _, kind)| *kind != Some(kind::RAM));
    check(&map, &claims, false);
    while !input.is_empty() && claims.len() < CLAIMS_MAX * 4 {
        let (start, len, kind) = claim(&mut input);
        let Some(range) = Range::new(start, len) else { continue };
        let is_hole = kind == 0;
        let done = if is_hole { map.remove(range) } else { map.set(range, kind) };
        if done.is_err() {
            assert!(map.entries().len() >= Map::CAPACITY - 1, "refused with room left");
            return;
        }
        if len > 0 {
            claims.push((start, len, (!is_hole).then_some(kind)));
        }
        check(&map, &claims, true);
    }
    if map.reserve_legacy().is_ok() {
        assert!(!map.is_ram(Range::between(0x9_fc00, 0x9_fc01)));
        assert!(map.ram().all(|ram| !ram.overlaps(layout::LEGACY_HOLE)));
        order(&map);
    }
}

/// A claim of single bytes, pages, or anything.
fn claim(input: &mut Input<'_>) -> (u64, u64, u32) {
    let [shape, kind] = input.take::<[u8; 2]>();
    let kind = u32::from(kind % 6);
    match shape % 4 {
        0 => (input.take::<u8>().into(), (input.take::<u8>() % 32).into(), kind),
        1 => (u64::from(input.take::<u8>()) << 12, u64::from(input.take::<u8>()) << 12, kind),
        2 => (input.take::<u32>().into(), input.take::<u32>().into(), kind),
        _ => (input.take(), input.take(), kind),
    }
}

fn order(map: &Map) {
    for pair in map.entries().windows(2) {
        let [before, after] = [pair[0], pair[1]];
        assert!(before.range.end() <= after.range.start());
        assert!(before.range.end() < after.range.start() || before.kind != after.kind, "joined");
    }
    assert!(map.entries().len() <= Map::CAPACITY);
    assert!(map.entries().iter().all(|entry| !entry.range.is_empty()));
    assert!(map.ram().count() <= map.entries().len());
}

/// Compares the map with its claims at the ends of every claim, or of the last one.
fn check(map: &Map, claims: &[Claim], only_last: bool) {
    order(map);
    let first = if only_last { claims.len().saturating_sub(1) } else { 0 };
    for (start, len, _) in &claims[first..] {
        let end = start.wrapping_add(*len);
        for at in [start.wrapping_sub(1), *start, end.wrapping_sub(1), end] {
            let holds = |(start, len, _): &&Claim| *start <= at && at - start < *len;
            let expected = claims.iter().rev().find(holds).and_then(|(_, _, kind)| *kind);
            let Some(byte) = Range::new(at, 1) else { continue };
            let seen = map.entries().iter().find(|entry| entry.range.contains(byte));
            assert_eq!(seen.map(|entry| entry.kind), expected, "{at:#x}");
        }
    }
}
