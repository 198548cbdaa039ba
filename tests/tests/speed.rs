//! What requests to devices cost, beside QEMU's microvm.
//!
//! `cargo xtask bench-devices` runs this.
//!
//! Runs in the nested lab, whose clock counts the instructions of the host's kernel, the VMM and
//! the guest together. Both programs have the same guest, image and bridge, one after the other.
//! No test: it prints a table.

use std::fmt::Write as _;
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use regression::busybox::{DISK, NETWORK, host, initramfs, load_on_host};
use regression::products::{kernel, product};
use regression::program::Guest;

const DEADLINE: Duration = Duration::from_secs(20);
const DISK_MIB: u64 = 64;
const COUNTERS: &str = "/sys/kernel/debug/kvm";

/// What is measured: its name, the guest's command, how many requests that is.
struct Row {
    name: &'static str,
    command: &'static str,
    requests: u64,
}

const fn row(name: &'static str, command: &'static str, requests: u64) -> Row {
    Row { name, command, requests }
}

const DISK_ROWS: [Row; 6] = [
    row("disk, 4 KiB random read, depth 1", "disk /dev/vda random-read 1 2000", 2000),
    row("disk, 4 KiB random read, depth 32", "disk /dev/vda random-read 32 6400", 6400),
    row("disk, 128 KiB read, depth 1", "disk /dev/vda read 1 400", 400),
    row("disk, 128 KiB read, depth 32", "disk /dev/vda read 32 1600", 1600),
    row("disk, 128 KiB write, depth 1", "disk /dev/vda write 1 400", 400),
    row("disk, 128 KiB write, depth 32", "disk /dev/vda write 32 1600", 1600),
];
const NETWORK_ROWS: [Row; 3] = [
    row("network, a byte there and back", "ping 10.9.0.1:5001 1000", 1000),
    row("network, 64 KiB to the host", "send tcp:10.9.0.1:5002 32 1", 512),
    row("network, 64 KiB to the guest", "receive tcp:0.0.0.0:5003 32", 512),
];

/// What a row cost: virtual time, exits of all kinds and those to the VMM, for one request.
#[derive(Clone, Copy)]
struct Cost {
    ns: u64,
    exits: u64,
    to_vmm: u64,
}

/// The guest waits before each row until the counters were read, and after it likewise.
fn script(rows: &[Row]) -> String {
    let mut script = String::from(
        "ip addr add 10.9.0.2/24 dev eth0; ip link set eth0 up\nping -c 1 10.9.0.1 > /dev/null\n",
    );
    for (number, row) in rows.iter().enumerate() {
        let command = row.command;
        writeln!(script, "echo row-{number}-ready; read go < /dev/console; guest-work {command}")
            .expect("a string has room");
        writeln!(script, "echo row-{number}-done; read go < /dev/console").expect("likewise");
    }
    script
}

fn counter(name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("{COUNTERS}/{name}")).unwrap_or_default();
    text.trim().parse().unwrap_or_else(|_| panic!("{COUNTERS}/{name}: {text}"))
}

fn exits() -> [u64; 2] {
    [counter("exits"), counter("mmio_exits") + counter("io_exits")]
}

/// What the host does for a row, while the guest is at it.
fn accompany(row: &Row) -> Option<thread::JoinHandle<()>> {
    let words: &'static [&'static str] = match row.name {
        name if name.contains("there and back") => &["echo", "10.9.0.1:5001"],
        name if name.contains("to the host") => &["receive", "tcp:10.9.0.1:5002", "32"],
        name if name.contains("to the guest") => &["send", "tcp:10.9.0.2:5003", "32", "1"],
        _ => return None,
    };
    let work = thread::spawn(move || {
        let status = Command::new(product("guest-work")).args(words).output().unwrap().status;
        assert!(status.success(), "guest-work {words:?}");
    });
    if words[0] != "send" {
        // The guest connects when it is told to: somebody must listen by then.
        thread::sleep(Duration::from_millis(500));
    }
    Some(work)
}

fn measure(command: &mut Command, rows: &[Row]) -> Vec<Cost> {
    let mut guest = Guest::start(command);
    let mut costs = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        guest.wait_for(&format!("row-{number}-ready"), DEADLINE);
        let work = accompany(row);
        let before = exits();
        guest.write(b"\n");
        guest.wait_for(&format!("row-{number}-done"), DEADLINE);
        let after = exits();
        if let Some(work) = work {
            work.join().unwrap();
        }
        let seen = guest.seen();
        let took = seen.rsplit_once("took ").and_then(|(_, rest)| rest.split_once(" ns"));
        let ns: u64 = took.and_then(|(ns, _)| ns.parse().ok()).unwrap_or_else(|| panic!("{seen}"));
        let each = |count: u64| count / row.requests;
        costs.push(Cost {
            ns: each(ns),
            exits: each((after[0] - before[0]) * 100),
            to_vmm: each((after[1] - before[1]) * 100),
        });
        eprintln!("{}: {} ns", row.name, each(ns));
        guest.write(b"\n");
    }
    let ended = guest.end(DEADLINE);
    assert_eq!(ended.status, Some(0), "{ended}");
    costs
}

/// The options that both programs have.
fn with_devices(command: &mut Command, init: &Path, disk: &Path, tap: &str) {
    command.args(["-m", "256M", "-append", "console=ttyS0 quiet"]);
    command.arg("-kernel").arg(kernel()).arg("-initrd").arg(init);
    command.arg("-bios").arg(product("bios-microvm.bin"));
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"]);
    let drive = format!("id=d,file={},format=raw,if=none", disk.display());
    command.args(["-drive", &drive, "-device", "virtio-blk-device,drive=d"]);
    let netdev = format!("tap,id=n,ifname={tap},script=no,downscript=no");
    command.args(["-netdev", &netdev, "-device", "virtio-net-device,netdev=n"]);
}

fn main() {
    load_on_host(&["drivers/net/tun"]);
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    let image = File::create(&disk).unwrap();
    // No holes: a hole is read faster than anything else.
    let mut bytes = vec![0; 1 << 20];
    for mib in 0..DISK_MIB {
        use std::os::unix::fs::FileExt as _;
        bytes.fill(mib.to_le_bytes()[0] | 1);
        image.write_all_at(&bytes, mib << 20).unwrap();
    }
    let mut table = Vec::new();
    for rows in [&DISK_ROWS[..], &NETWORK_ROWS] {
        let modules = [&DISK[..], &NETWORK].concat();
        let init = initramfs(folder.path(), "speed", &modules, &script(rows));
        let [ours, theirs] = ["microvm", "QEMU"].map(|name| run_rows(name, rows, &init, &disk));
        table.extend(rows.iter().zip(ours.into_iter().zip(theirs)));
    }
    print(&table);
}

fn run_rows(name: &str, rows: &[Row], init: &Path, disk: &Path) -> Vec<Cost> {
    const TAP: &str = "tap-speed";
    host(&["tunctl", "-t", TAP]);
    host(&["ip", "addr", "add", "10.9.0.1/24", "dev", TAP]);
    host(&["ip", "link", "set", TAP, "up"]);
    let mut command = match name {
        "microvm" => Command::new(product("microvm")),
        _ => Command::new("qemu-system-x86_64"),
    };
    command.args(["-M", "microvm", "-accel", "kvm", "-cpu", "host"]);
    if name == "QEMU" {
        command.args(["-global", "virtio-mmio.force-legacy=false"]);
    }
    with_devices(&mut command, init, disk, TAP);
    eprintln!("{name}:");
    let costs = measure(&mut command, rows);
    host(&["tunctl", "-d", TAP]);
    costs
}

fn print(table: &[(&Row, (Cost, Cost))]) {
    let heads = ["virtual us", "exits", "exits to VMM"].map(|head| format!("{head:>18}")).concat();
    println!("{:34}{heads}", "one request");
    let pair = format!("{:>9}{:>9}", "microvm", "QEMU");
    println!("{:34}{pair}{pair}{pair}{:>9}", "", "us/us");
    let us = |ns: u64| format!("{:>9.2}", ns as f64 / 1e3);
    let exits = |count: u64| format!("{:>9.2}", count as f64 / 100.0);
    for (row, (ours, theirs)) in table {
        let name = row.name;
        let (time, all) = (us(ours.ns) + &us(theirs.ns), exits(ours.exits) + &exits(theirs.exits));
        let to_vmm = exits(ours.to_vmm) + &exits(theirs.to_vmm);
        let ratio = ours.ns as f64 / theirs.ns as f64;
        println!("{name:34}{time}{all}{to_vmm}{ratio:>9.2}");
    }
}
