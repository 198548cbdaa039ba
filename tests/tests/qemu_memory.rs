//! QEMU and our VMM on the same options about memory: what both take and refuse.

use std::ffi::OsString;
use std::time::Duration;

use regression::machine::qemu;
use regression::products::product;
use regression::program::run;
use vmm::args::{self, Request};
use vmm::memory::GuestRam;

const DEADLINE: Duration = Duration::from_secs(60);
/// What the payload leaves by isa-debug-exit when all its checks passed.
const PASSED: i32 = 33;

/// Lines that both take or both refuse. `MEMFD` is an object `m` of 64 MiB, `DIR` a folder.
const ALIKE: [&str; 49] = [
    "-m 0",
    "-m 0.0625G",
    "-m 1.G",
    "-m .5G",
    "-m 64.5",
    "-m 1e3",
    "-m -1",
    "-m 64MB",
    "-m 0x40",
    "-m 65536k",
    "-m 67108864b",
    "-m 64,maxmem=64M,slots=0",
    "-m 64M,maxmem=32M",
    "-m 64M,slots=1",
    "-m maxmem=64M,size=64M",
    "-m 64M,speed=1",
    "MEMFD -M memory-backend=m",
    "-M memory-backend=m MEMFD",
    "MEMFD -m 128M -M memory-backend=m",
    "MEMFD -numa node,memdev=m",
    "MEMFD -numa node,memdev=m,nodeid=0,cpus=0",
    "MEMFD -numa node,memdev=m,cpus=1",
    "MEMFD -numa node,memdev=m,nodeid=1",
    "MEMFD -numa node,memdev=m -M memory-backend=m",
    "MEMFD -mem-path DIR -M memory-backend=m",
    "MEMFD MEMFD -M memory-backend=m",
    "MEMFD,share=off,seal=off,merge=off,dump=off,prealloc=yes -M memory-backend=m",
    "MEMFD,share=maybe -M memory-backend=m",
    "-object memory-backend-memfd,id=1,size=64M -M memory-backend=1",
    "MEMFD,size=0x4000000 -M memory-backend=m",
    "MEMFD,size=67108864.0 -M memory-backend=m",
    "MEMFD,size=64 -M memory-backend=m",
    "MEMFD,hugetlb=on,hugetlbsize=3M -M memory-backend=m",
    "MEMFD,mem-path=DIR -M memory-backend=m",
    "-object memory-backend-memfd,id=m -M memory-backend=m",
    "-object memory-backend-memfd,size=64M -M memory-backend=m",
    "-object memory-backend-ram,id=m,size=64M,reserve=off -M memory-backend=m",
    "-object memory-backend-ram,id=m,size=64M,reserve=off,prealloc=on -M memory-backend=m",
    "-object memory-backend-file,id=m,size=64M -M memory-backend=m",
    "-object memory-backend-file,id=m,size=64M,mem-path=DIR/new,share=on -M memory-backend=m",
    "-object memory-backend-file,id=m,size=64M,mem-path=DIR/no/file -M memory-backend=m",
    "-object memory-backend-file,id=m,size=64M,mem-path=DIR/small -M memory-backend=m",
    "-object memory-backend-file,id=m,size=64M,mem-path=/dev/null -M memory-backend=m",
    "-object memory-backend-nothing,id=m,size=64M",
    "-M memory-backend=x",
    "-numa node,mem=64M",
    "-mem-path DIR",
    "-mem-path DIR/no/file",
    "-mem-prealloc -M mem-merge=off,dump-guest-core=off",
];

/// Lines that QEMU takes and we refuse, because they ask for what is not here or are a mistake.
const REFUSED_HERE: [&str; 4] = [
    "-m 64M,maxmem=128M",
    "MEMFD",
    "MEMFD -numa node,memdev=m -numa node",
    "-object iothread,id=i",
];

/// What QEMU 7.2 refuses and we take: a node says nothing that is not so anyway.
const TAKEN_HERE: [&str; 1] = ["-numa node"];

fn words(line: &str, folder: &tempfile::TempDir) -> Vec<OsString> {
    let line = line.replace("MEMFD", "-object memory-backend-memfd,id=m,size=64M");
    let line = line.replace("DIR", folder.path().to_str().unwrap());
    line.split_whitespace().map(OsString::from).collect()
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("small"), "x").unwrap();
    folder
}

fn is_taken_by_qemu(line: &str) -> bool {
    let mut command = qemu("microvm", "64M", &product("payload.bzImage"), "");
    let ended = run(command.args(words(line, &folder())), b"", DEADLINE);
    assert!(matches!(ended.status, Some(1 | PASSED)), "{ended}");
    ended.status == Some(PASSED)
}

fn is_taken_here(line: &str) -> bool {
    let folder = folder();
    let line =
        ["-kernel", "k", "-m", "64M"].map(OsString::from).into_iter().chain(words(line, &folder));
    match args::parse(line) {
        Ok(Request::Run(config)) => GuestRam::on(&config.backend, config.memory, None).is_ok(),
        Ok(_) => panic!("a machine is wanted"),
        Err(_) => false,
    }
}

#[test]
fn both_take_the_same_lines() {
    for line in ALIKE {
        assert_eq!(is_taken_here(line), is_taken_by_qemu(line), "{line}");
    }
}

#[test]
fn the_differences_are_these() {
    for line in REFUSED_HERE {
        assert!(!is_taken_here(line) && is_taken_by_qemu(line), "{line}");
    }
    for line in TAKEN_HERE {
        assert!(is_taken_here(line) && !is_taken_by_qemu(line), "{line}");
    }
}
