//! The memory of a candidate's processes, as /proc accounts for it.

use std::{fs, io};

/// Guest RAM is larger than all else: KiB that are surely of it, when they are in a row.
const RAM_KIB: u64 = 64 << 10;
/// What memory is called that is in no file, beside nothing at all.
const NO_FILES: [&str; 3] = ["[anon", "/memfd:", "/dev/zero"];

/// A mapping of a process.
#[derive(Debug, Default, PartialEq, Eq)]
struct Map {
    start: u64,
    end: u64,
    /// Whether it can be guest RAM: writable, and in no file.
    is_free: bool,
    pss_kib: u64,
    library: Option<String>,
}

/// What is mapped, in KiB with the processes' share of what others use too (PSS).
#[derive(Debug, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub pss_kib: u64,
    /// What is not the guest's memory.
    pub own_kib: u64,
    /// Shared libraries.
    pub libraries: usize,
}

/// A process and those that it began, and they.
pub fn family(process: u32) -> io::Result<Vec<u32>> {
    let mut family = vec![process];
    let mut next = 0;
    while let Some(process) = family.get(next) {
        for thread in fs::read_dir(format!("/proc/{process}/task"))? {
            let children = fs::read_to_string(thread?.path().join("children"))?;
            family.extend(children.split_whitespace().filter_map(|id| id.parse::<u32>().ok()));
        }
        next += 1;
    }
    Ok(family)
}

/// Reads /proc/PID/smaps of some processes, one after the other.
pub fn parse(text: &str) -> Memory {
    let maps = parse_maps(text);
    let pss = |maps: &[Map]| maps.iter().map(|map| map.pss_kib).sum();
    // madvise and mprotect cut a mapping into several, one beside the other.
    let runs = maps.chunk_by(|a, b| a.is_free && b.is_free && a.end == b.start);
    let mut libraries: Vec<_> = maps.iter().filter_map(|map| map.library.as_deref()).collect();
    libraries.sort_unstable();
    libraries.dedup();
    Memory {
        pss_kib: pss(&maps),
        own_kib: runs.filter(|run| !is_ram(run)).map(pss).sum(),
        libraries: libraries.len(),
    }
}

fn is_ram(run: &[Map]) -> bool {
    let bytes: u64 = run.iter().map(|map| map.end.saturating_sub(map.start)).sum();
    run.iter().all(|map| map.is_free) && bytes >> 10 >= RAM_KIB
}

fn parse_maps(text: &str) -> Vec<Map> {
    let mut maps: Vec<Map> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        match (first, maps.last_mut()) {
            ("Pss:", Some(map)) => {
                map.pss_kib = words.next().and_then(|kib| kib.parse().ok()).unwrap_or(0);
            }
            _ if first.ends_with(':') => {}
            _ => maps.extend(parse_head(line)),
        }
    }
    maps
}

/// `START-END PERMISSIONS OFFSET DEVICE INODE [NAME]`.
fn parse_head(line: &str) -> Option<Map> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let [start, end] = [start, end].map(|address| u64::from_str_radix(address, 16).ok());
    let permissions = words.next()?;
    let name = words.nth(3);
    let in_no_file = name.is_none_or(|name| NO_FILES.iter().any(|kind| name.starts_with(kind)));
    Some(Map {
        start: start?,
        end: end?,
        // A reserve that nobody may touch yet is none.
        is_free: in_no_file && permissions.starts_with("rw"),
        pss_kib: 0,
        library: name.filter(|name| name.contains(".so")).map(str::to_owned),
    })
}

/// The sum of VmHWM in /proc/PID/status of some processes, in KiB.
pub fn parse_peaks(text: &str) -> u64 {
    let peaks =
        text.lines().filter_map(|line| line.strip_prefix("VmHWM:")?.split(' ').rev().nth(1));
    peaks.filter_map(|peak| peak.trim().parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program of 5 KiB in two mappings, and what else is mapped: addresses in MiB, permissions,
    /// name, PSS.
    fn smaps(maps: &[(u64, u64, &str, &str, u64)]) -> String {
        let mut text = "5500-5510 r-xp 0 08:01 5   /lib/x86/libc.so.6\nSize: 8 kB\nPss: 4 kB\n\
                        5510-5520 r--p 0 08:01 5   /lib/x86/libc.so.6\nSize: 8 kB\nPss: 1 kB\n"
            .to_owned();
        for (start, end, permissions, name, pss) in maps {
            let [start, end] = [start, end].map(|mib| mib << 20);
            text += &format!("{start:x}-{end:x} {permissions} 0 00:00 0  {name}\n");
            text += &format!("Rss: 9 kB\nPss:  {pss} kB\nVmFlags: rd wr\n");
        }
        text
    }

    #[test]
    fn guest_memory_is_told_from_the_program_s_own() {
        let memory = parse(&smaps(&[(0x700, 0x780, "rw-p", "", 20_000)]));
        assert_eq!(memory, Memory { pss_kib: 20_005, own_kib: 5, libraries: 1 });
        assert_eq!(parse_peaks("Name: x\nVmHWM:\t   46562 kB\nVmHWM:\t       8 kB\n"), 46_570);
    }

    #[test]
    fn guest_memory_may_be_cut_into_mappings() {
        let cut = [(0x700, 0x730, "rw-p", "", 100), (0x730, 0x780, "rw-p", "[anon:ram]", 20)];
        assert_eq!(parse(&smaps(&cut)).own_kib, 5);
        let name = "/memfd:ram (deleted)";
        let cut = [(0x700, 0x730, "rw-s", name, 100), (0x730, 0x780, "rw-s", name, 20)];
        assert_eq!(parse(&smaps(&cut)).own_kib, 5);
    }

    #[test]
    fn what_is_apart_or_reserved_or_a_file_is_no_guest_memory() {
        for own in [
            // Two, but a hole between them.
            [(0x700, 0x730, "rw-p", "", 7), (0x731, 0x760, "rw-p", "", 0)],
            // As an allocator reserves 64 MiB for a thread, and lets it use the first of them.
            [(0x700, 0x701, "rw-p", "", 7), (0x701, 0x740, "---p", "", 0)],
            [(0x700, 0x730, "rw-p", "", 7), (0x730, 0x780, "rw-p", "/data", 0)],
        ] {
            assert_eq!(parse(&smaps(&own)).own_kib, 12, "{own:?}");
        }
    }
}
