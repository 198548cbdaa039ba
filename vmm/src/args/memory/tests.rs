//! Options about guest RAM: what they mean together, and what is refused.

use super::*;
use crate::args::parse;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;
const MEMFD: &str = "-object memory-backend-memfd,id=m,size=64M";

/// Parses the words of `line`, and a kernel.
fn parsed(line: &str) -> std::result::Result<Config, String> {
    let words = line.split_whitespace().chain(["-kernel", "k"]).map(OsString::from);
    match parse(words) {
        Ok(Request::Run(config)) => Ok(*config),
        Ok(other) => panic!("{line}: {other:?}"),
        Err(error) => Err(error.to_string()),
    }
}

fn backend(line: &str) -> Backend {
    parsed(line).unwrap_or_else(|error| panic!("{line}: {error}")).backend
}

fn check(line: &str, expected: &str) {
    assert_eq!(parsed(line).unwrap_err(), expected, "{line}");
}

#[test]
fn sizes_are_whole_and_within_bounds() {
    for (line, bytes) in [
        ("", 128 * MIB),
        ("-m 0", 128 * MIB),
        ("-m 64", 64 * MIB),
        ("-m 1.5G", 1536 * MIB),
        ("-m size=5G", 5120 * MIB),
        ("-m 1G,maxmem=1G,slots=0", 1024 * MIB),
        ("-m maxmem=1G,size=1024", 1024 * MIB),
        ("-m 1G -m 2G", 2048 * MIB),
        ("-m 1G -m maxmem=1G", 1024 * MIB),
        ("-m 2097153b", 2 * MIB + 8192),
        ("-m 1023G", 1023 << 30),
    ] {
        assert_eq!(parsed(line).map(|config| config.memory), Ok(bytes), "{line}");
    }
    check("-m 1", "-m: 1M is too little: give at least 2M");
    check("-m 1024G", "-m: 1024G is too much: give at most 1023G");
    check("-m 15.999E", "-m: 18445591152204944769B is too much: give at most 1023G");
    check("-m 1G,maxmem=2G", "-m: maxmem=2G: memory cannot be plugged in: give 1G");
    check("-m 1G,maxmem=512M", "-m: maxmem=512M: memory cannot be plugged in: give 1G");
    check("-m 1G,slots=2", "-m: memory cannot be plugged in: leave slots out");
    check("-m 1G,x=2", "-m: 'x' is not a property that is here");
    check("-m 1.5", "-m: '1.5' is no size: give MiB, or a number with K, M, G or T");
}

#[test]
fn defaults_are_qemu_s() {
    assert_eq!(backend("-m 64M"), Backend::default());
    let memfd = Backend {
        option: "-object m".into(),
        source: MemorySource::Memfd { pages: Pages::Usual, seal: true },
        share: true,
        prealloc: false,
        merge: true,
        dump: true,
        huge: true,
        reserve: true,
    };
    assert_eq!(backend(&format!("-m 64M {MEMFD} -M memory-backend=m")), memfd);
    let file = Backend { source: MemorySource::File("/x".into()), share: false, ..memfd.clone() };
    let line = "-object memory-backend-file,id=m,size=64M,mem-path=/x -M memory-backend=m";
    assert_eq!(backend(line), file);
    let ram = Backend { source: MemorySource::Anonymous, share: false, ..memfd.clone() };
    let line = "-M memory-backend=m -object memory-backend-ram,id=m,size=64M";
    assert_eq!(backend(line), ram);
    assert_eq!(backend(&format!("{line},share=on")), memfd, "another process can be given it");
    let path = Backend { option: "-mem-path".into(), ..file };
    assert_eq!(backend("-mem-path /x"), path);
}

#[test]
fn the_order_of_options_does_not_matter() {
    for line in [
        format!("-m 64M {MEMFD} -numa node,memdev=m"),
        format!("-numa node,memdev=m,nodeid=0,cpus=0 {MEMFD} -m 64M"),
        format!("{MEMFD} -M microvm,memory-backend=m"),
        format!("-M memory-backend=m -M microvm {MEMFD} -m 64"),
        format!("-numa node {MEMFD} -M memory-backend=m"),
        format!("-numa node,cpus=0-1,cpus=2-3,memdev=m {MEMFD} -smp 4 -m 64M"),
        "-object size=64M,id=m,qom-type=memory-backend-memfd -M memory-backend=m".into(),
    ] {
        let config = parsed(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert_eq!((config.memory, config.backend.share), (64 * MIB, true), "{line}");
    }
    assert_eq!(backend("-numa node"), Backend::default());
}

#[test]
fn switches_are_taken() {
    let with = |more: &str| backend(&format!("{MEMFD},{more} -M memory-backend=m -m 64M"));
    let source = |more| with(more).source;
    assert_eq!(source("hugetlb=on"), MemorySource::Memfd { pages: Pages::Huge, seal: true });
    assert_eq!(
        source("hugetlb=y,hugetlbsize=2M,seal=off"),
        MemorySource::Memfd { pages: Pages::HugeOf(2 * MIB), seal: false }
    );
    assert!(!with("share=off").share);
    assert!(!with("share=on,share=off").share, "the last one counts");
    assert!(with("prealloc=on,prealloc-threads=4").prealloc);
    let rest = with("merge=off,dump=off,reserve=off,policy=default");
    assert!(!rest.merge && !rest.dump && !rest.reserve);
    assert!(rest.huge && !backend("-M huge-pages=off").huge);
    assert!(!backend(&format!("{MEMFD} -m 64M -M memory-backend=m,huge-pages=off")).huge);
    // Switches of the machine are the defaults of the objects.
    let line = |more| format!("-m 64M {MEMFD}{more} -mem-prealloc -M mem-merge=off");
    let by_machine = |more| backend(&format!("{},memory-backend=m", line(more)));
    assert!(by_machine("").prealloc && !by_machine("").merge);
    assert!(!by_machine(",prealloc=off").prealloc && by_machine(",merge=on").merge);
    let alone = backend("-mem-prealloc -M mem-merge=no,dump-guest-core=off");
    assert!(alone.prealloc && !alone.merge && !alone.dump);
}

#[test]
fn what_does_not_fit_together_is_one_line() {
    for (line, expected) in [
        (
            "-M memory-backend=x",
            "-M: there is no object 'x': add -object memory-backend-memfd,size=SIZE,id=x",
        ),
        (
            "-numa node,memdev=",
            "-numa: there is no object '': add -object memory-backend-memfd,size=SIZE,id=",
        ),
        (
            "MEMFD -m 128M -M memory-backend=m",
            "-object: m has 64M and the machine 128M: give both the same size",
        ),
        (
            "MEMFD -numa node,memdev=m",
            "-object: m has 64M and the machine 128M: give both the same size",
        ),
        ("MEMFD", "-object: nothing uses 'm': add -M memory-backend=m"),
        ("MEMFD MEMFD", "-object: there are two objects 'm'"),
        (
            "MEMFD -M memory-backend=m -numa node,memdev=m",
            "-numa: memdev and -M memory-backend: give one of them",
        ),
        (
            "MEMFD -M memory-backend=m -mem-path /x",
            "-mem-path: -M takes guest memory from 'm': leave one of them out",
        ),
        ("-numa node -numa node", "-numa: the machine has one node: give it once"),
        ("-numa node,nodeid=1", "-numa: the only node is nodeid=0"),
        ("-numa node,cpus=0-1", "-numa: there is no CPU 1: -smp gives 1"),
        ("-numa node,cpus=1-0", "-numa: cpus=1-0: give a CPU's number, or FIRST-LAST"),
        ("-numa node,cpus=x", "-numa: cpus=x: give a CPU's number, or FIRST-LAST"),
        (
            "-numa node,mem=64M",
            "-numa: mem=64M is not here: use -object memory-backend-ram,id=m,size=SIZE and \
             memdev=m",
        ),
        (
            "-numa cpu,node-id=0",
            "-numa: 'cpu' is not here: the machine has one node of all its CPUs",
        ),
        ("-numa node,initiator=0", "-numa: 'initiator' is not a property that is here"),
        ("-M mem-merge=maybe", "-M: mem-merge=maybe: give on or off"),
    ] {
        check(&line.replace("MEMFD", MEMFD), expected);
    }
}

#[test]
fn an_object_that_is_not_right_is_one_line() {
    for (object, expected) in [
        ("memory-backend-memfd,size=64M", "id is missing: add id=NAME"),
        (
            "memory-backend-memfd,id=1,size=64M",
            "id=1: give a letter, then letters, digits, '-', '.' and '_'",
        ),
        (
            "memory-backend-memfd,id=,size=64M",
            "id=: give a letter, then letters, digits, '-', '.' and '_'",
        ),
        ("memory-backend-memfd,id=m", "m: size is missing: add size=SIZE"),
        (
            "memory-backend-memfd,id=m,size=lots",
            "size=lots is no size: give bytes, or a number with K, M, G or T",
        ),
        ("memory-backend-memfd,id=m,size=64M,foo=on", "'foo' is not a property that is here"),
        ("memory-backend-memfd,id=m,size=64M,share", "'share' is not a property that is here"),
        ("memory-backend-memfd,id=m,size=64M,share=maybe", "share=maybe: give on or off"),
        (
            "memory-backend-memfd,id=m,size=64M,hugetlbsize=2M",
            "hugetlbsize needs hugetlb=on: add it",
        ),
        (
            "memory-backend-memfd,id=m,size=64M,hugetlb=on,hugetlbsize=3M",
            "hugetlbsize=3145728: give a power of two",
        ),
        (
            "memory-backend-memfd,id=m,size=64M,hugetlb=on,reserve=off",
            "huge pages that run out end the guest: leave reserve=off out",
        ),
        (
            "memory-backend-ram,id=m,size=64M,mem-path=/x",
            "'mem-path' is not a property that is here",
        ),
        (
            "memory-backend-ram,id=m,size=64M,reserve=off,prealloc=on",
            "prealloc=on and reserve=off exclude each other",
        ),
        (
            "memory-backend-ram,id=m,size=64M,prealloc-threads=0",
            "prealloc-threads=0: give a number from 1 up",
        ),
        (
            "memory-backend-ram,id=m,size=64M,policy=bind",
            "policy=bind is not here: start microvm by numactl",
        ),
        ("memory-backend-file,id=m,size=64M", "mem-path is missing: add mem-path=FILE"),
        (
            "memory-backend-file,id=m,size=64M,mem-path=/x,readonly=on",
            "readonly=on is not here: leave it out",
        ),
        (
            "memory-backend-shm,id=m,size=64M",
            "'memory-backend-shm' is not here: use memory-backend-memfd, which is shared too",
        ),
        (
            "iothread,id=i",
            "'iothread' is not here: this version has no device that runs in a thread of its own",
        ),
        ("secret,id=s,data=x", "'secret' is not here: nothing here asks for one"),
        ("throttle-group,id=t", "'throttle-group' is not here; -object help lists what is"),
        ("id=m,size=64M", "the type must come first"),
        (
            "{\"qom-type\":\"memory-backend-ram\"}",
            "JSON is not read here: give TYPE,id=ID,size=SIZE",
        ),
    ] {
        let line = format!("-m 64M -M memory-backend=m -object {object}");
        check(&line, &format!("-object: {expected}"));
    }
}

proptest! {
    #[test]
    fn no_option_about_memory_makes_it_panic(
        words in prop::collection::vec(
            prop::sample::select(vec![
                "memory-backend-memfd", "memory-backend-file", "memory-backend-ram", "id=m", "id=é",
                "size=64M", "size=0", "size=1.9999999999999999999E", "share=on", "hugetlb=on",
                "hugetlbsize=0", "hugetlbsize=16E", "node", "memdev=m", "cpus=0-", "nodeid=0", ",",
                "maxmem=64M", "slots=0", "64M", "mem-path=/x", "memory-backend=m", "=", "qom-type=",
            ]),
            0..6,
        ),
        option in prop::sample::select(vec!["-m", "-object", "-numa", "-M"]),
    ) {
        let _ = parse(["-kernel", "k", option, &words.join(",")].map(OsString::from));
    }
}
