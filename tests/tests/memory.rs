//! What guest RAM can be made of: the same machine on each backend.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use abi::layout;
use regression::facts::{self, Facts, differences};
use regression::machine::{Boot, microvm};
use regression::products::product;
use regression::program::{Ended, Guest, run, run_until_mark};

/// Far above the fraction of a second that the payload takes where /dev/kvm interprets it.
const DEADLINE: Duration = Duration::from_secs(60);
/// What the payload leaves by isa-debug-exit when all its checks passed.
const PASSED: i32 = 33;

fn payload(boot: Boot, memory: &str, append: &str) -> Command {
    microvm(boot, memory, &product("payload.bzImage"), append)
}

fn passed(ended: &Ended) -> Facts {
    assert_eq!(ended.status, Some(PASSED), "{ended}");
    facts::parse(&ended.stdout).unwrap_or_else(|| panic!("no facts: {ended}"))
}

/// Shared RAM of `size` in the file `path`.
fn in_file(path: &Path, size: &str) -> [String; 4] {
    let path = path.to_str().unwrap();
    let object = format!("memory-backend-file,id=m,size={size},mem-path={path},share=on");
    ["-object".into(), object, "-M".into(), "memory-backend=m".into()]
}

fn read(path: &Path, at: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    File::open(path).unwrap().read_exact_at(&mut bytes, at).unwrap();
    bytes
}

#[test]
fn every_backend_of_any_size_is_the_same_machine_on_both_paths() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display();
    for size in ["64M", "128M", "2047M", "2048M", "3072M", "5G"] {
        // A host that is smaller than the guest must not be asked to reserve it.
        let mut backends = vec![
            String::new(),
            format!("-object memory-backend-ram,id=m,size={size},reserve=off -M memory-backend=m"),
            format!("-object memory-backend-memfd,id=m,size={size} -M memory-backend=m"),
            format!(
                "-numa node,memdev=m -object \
                 memory-backend-memfd,id=m,size={size},share=off,reserve=off"
            ),
        ];
        // The nested lab's file system has no room for more.
        if ["64M", "128M"].contains(&size) {
            backends.extend([
                format!(
                    "-M memory-backend=m -object \
                     memory-backend-file,id=m,size={size},share=on,mem-path={path}/{size}"
                ),
                format!("-mem-path {path}"),
            ]);
        }
        for boot in [Boot::Firmware, Boot::Direct] {
            let runs: Vec<_> = backends
                .iter()
                .map(|backend| {
                    let mut command = payload(boot, size, "");
                    passed(&run(command.args(backend.split_whitespace()), b"", DEADLINE))
                })
                .collect();
            for (facts, backend) in runs.iter().zip(&backends) {
                assert_eq!(differences(facts, &runs[0], &[]), [""; 0], "{boot:?} {size} {backend}");
            }
        }
    }
}

#[test]
fn the_file_is_the_guest_s_memory() {
    let folder = tempfile::tempdir().unwrap();
    let initrd = folder.path().join("initrd");
    std::fs::write(&initrd, b"an initial RAM disk").unwrap();
    for boot in [Boot::Firmware, Boot::Direct] {
        let path = folder.path().join(format!("{boot:?}"));
        let append = "the guest's own command line";
        let mut command = payload(boot, "512M", append);
        command.arg("-initrd").arg(&initrd).args(in_file(&path, "512M"));
        let facts = passed(&run(&mut command, b"", DEADLINE));
        assert_eq!(path.metadata().unwrap().len(), 512 << 20);
        let line = read(&path, layout::COMMAND_LINE.start(), append.len());
        assert_eq!(line, append.as_bytes(), "{boot:?}");
        let (start, _) = facts["initrd"].split_once('+').unwrap();
        let start = u64::from_str_radix(start.trim_start_matches("0x"), 16).unwrap();
        assert_eq!(read(&path, start, 19), b"an initial RAM disk", "{boot:?}");
        // The code at the 64-bit entry, 512 bytes behind the setup sectors.
        let kernel = std::fs::read(product("payload.bzImage")).unwrap();
        let entry = (usize::from(kernel[0x1f1]) + 1) * 512 + 512;
        let code = &kernel[entry..entry + 256];
        let memory = read(&path, 1 << 20, 32 << 20);
        let found = memory.windows(code.len()).any(|bytes| bytes == code);
        assert!(found, "{boot:?}: no kernel");
    }
}

/// A file with `size` bytes that are nowhere zero.
fn used(path: &Path, size: usize) -> PathBuf {
    std::fs::write(path, vec![0xa5; size]).unwrap();
    path.into()
}

#[test]
fn a_machine_starts_in_memory_that_was_used() {
    let folder = tempfile::tempdir().unwrap();
    for boot in Boot::ALL {
        let clean = passed(&run(&mut payload(boot, "64M", "x"), b"", DEADLINE));
        let path = used(&folder.path().join("used"), 64 << 20);
        let mut command = payload(boot, "64M", "x");
        let facts = passed(&run(command.args(in_file(&path, "64M")), b"", DEADLINE));
        assert_eq!(differences(&facts, &clean, &["firmware_times"]), [""; 0], "{boot:?}");
    }
}

#[test]
fn a_reset_keeps_memory_and_its_file() {
    let folder = tempfile::tempdir().unwrap();
    // Nothing of the payload or of its boot is there.
    const MARK_AT: u64 = 40 << 20;
    for boot in [Boot::Firmware, Boot::Direct] {
        let path = used(&folder.path().join("ram"), 64 << 20);
        let held = File::options().write(true).open(&path).unwrap();
        held.write_all_at(b"kept over resets", MARK_AT).unwrap();
        let mut command = payload(boot, "64M", "leave=i8042");
        command.args(in_file(&path, "64M"));
        let ended = run_until_mark(&mut command, "guest-facts-end", 3, DEADLINE);
        let starts: Vec<_> = ended.stdout.split("guest-facts-begin").skip(1).collect();
        let facts = |start: &str| facts::parse(&format!("guest-facts-begin{start}"));
        assert!(starts.len() >= 3, "{boot:?}: {ended}");
        assert_eq!(facts(starts[0]), facts(starts[2]), "{boot:?}: the third start is the first");
        assert_eq!(read(&path, MARK_AT, 16), b"kept over resets");
        assert_eq!(read(&path, layout::COMMAND_LINE.start(), 11), b"leave=i8042");
    }
}

/// What the host's kernel was told of a running guest's RAM, by its short names (proc(5), smaps).
fn advice(machine: &str) -> Vec<String> {
    let mut command = payload(Boot::Direct, "64M", "echo");
    let mut guest = Guest::start(command.args(["-M", machine]));
    guest.wait_for("echo=", DEADLINE);
    let maps = fs::read_to_string(format!("/proc/{}/smaps", guest.pid())).unwrap();
    guest.write(b"\n");
    guest.end(DEADLINE);
    let (_, ram) = maps.split_once("\nSize:              65536 kB").expect(&maps);
    let flags = ram.lines().find_map(|line| line.strip_prefix("VmFlags:")).expect(ram);
    flags.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn guest_memory_is_of_huge_pages_unless_they_are_not_wanted() {
    let [huge, small] = ["microvm", "microvm,huge-pages=off"].map(advice);
    let has = |flags: &[String], flag| flags.iter().any(|known| known == flag);
    assert!(has(&huge, "hg") && !has(&huge, "nh"), "{huge:?}");
    assert!(has(&small, "nh") && !has(&small, "hg"), "{small:?}");
}

#[test]
fn what_cannot_be_memory_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let small = used(&folder.path().join("small"), 5);
    let with = |path: &Path| in_file(path, "64M");
    let memfd = |more: &str| {
        let object = format!("memory-backend-memfd,id=m,size=64M{more}");
        ["-object".into(), object, "-M".into(), "memory-backend=m".into()]
    };
    for (arguments, words) in [
        (with(&small), "-object m: '"),
        (with(&small), "has 5 bytes and guest memory 67108864: give a file of that size"),
        (with(&folder.path().join("no/ram")), "No such file or directory"),
        (with(Path::new("/dev/null")), "'/dev/null' is neither a regular file nor a folder"),
        (with(Path::new("/sys")), "guest memory in '/sys'"),
        (memfd(",hugetlb=on,hugetlbsize=4M"), "no huge pages of this size"),
        (memfd(",share=perhaps"), "-object: share=perhaps: give on or off"),
    ] {
        let mut command = payload(Boot::Direct, "64M", "");
        let ended = run(command.args(arguments), b"", DEADLINE);
        assert_eq!(ended.status, Some(1), "{ended}");
        assert_eq!(ended.stderr.lines().count(), 1, "{ended}");
        assert!(ended.stderr.starts_with("microvm: -object"), "{ended}");
        assert!(ended.stderr.contains(words), "{words:?}: {ended}");
    }
}
