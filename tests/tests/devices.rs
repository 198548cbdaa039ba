//! Network, sockets and the balloon under a distribution's kernel.
//!
//! Needs a /dev/kvm that runs kernel code natively, and root on a machine whose taps, bridge and
//! vhost-vsock are these tests' alone: the nested lab is one.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::UdpSocket;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use regression::busybox::{
    BALLOON, CONSOLE, DISK, ENTROPY, NETWORK, SOCKETS, host, initramfs, load_on_host,
};
use regression::machine::{Boot, microvm};
use regression::products::{VHOST_DEVICE_VSOCK, fetched, kernel, product};
use regression::program::{Ended, Guest, run};
use vmm::config::TapSource;
use vmm::virtio::net::tap::Tap;

/// What passes through a connection.
const MIB: &str = "100";
const DEADLINE: Duration = Duration::from_secs(180);
const APPEND: &str = "console=ttyS0 quiet";

fn linux(boot: Boot, memory: &str, initramfs: &Path) -> Command {
    let mut command = microvm(boot, memory, &kernel(), APPEND);
    command.arg("-initrd").arg(initramfs);
    command
}

/// The lines that begin with `word`, without it.
fn lines<'a>(output: &'a str, word: &str) -> Vec<&'a str> {
    output.lines().filter_map(|line| line.trim().strip_prefix(word)).collect()
}

/// The one sum that was sent and received.
fn sum<'a>(output: &'a str, word: &str, ended: &Ended) -> &'a str {
    match lines(output, word)[..] {
        [sum] => sum,
        _ => panic!("{word}: {ended}"),
    }
}

/// Two guests, each of which sends and receives at the same time.
const FIRST: &str = "
ip addr add 10.0.0.1/24 dev eth0; ip link set eth0 up
echo card $(cat /sys/class/net/eth0/address) $(cat /sys/class/net/eth0/mtu)
guest-work send tcp:10.0.0.2:5001 MIB 8 &
guest-work receive tcp:0.0.0.0:5000 MIB
wait
";
const SECOND: &str = "
ip addr add 10.0.0.2/24 dev eth0; ip link set eth0 up
echo card $(cat /sys/class/net/eth0/address) $(cat /sys/class/net/eth0/mtu)
guest-work send tcp:10.0.0.1:5000 MIB 7 &
guest-work receive tcp:0.0.0.0:5001 MIB
wait
";

/// A bridge with two taps.
struct Bridge;

impl Bridge {
    const TAPS: [&str; 2] = ["tap-a", "tap-b"];

    fn new() -> Self {
        load_on_host(&["net/llc/llc", "net/802/stp", "net/bridge/bridge", "drivers/net/tun"]);
        host(&["brctl", "addbr", "bridge"]);
        host(&["ip", "link", "set", "bridge", "up"]);
        for tap in Self::TAPS {
            host(&["tunctl", "-t", tap]);
            host(&["brctl", "addif", "bridge", tap]);
            host(&["ip", "link", "set", tap, "up"]);
        }
        Self
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        for tap in Self::TAPS {
            host(&["tunctl", "-d", tap]);
        }
        host(&["ip", "link", "set", "bridge", "down"]);
        host(&["brctl", "delbr", "bridge"]);
    }
}

#[test]
fn two_guests_exchange_100_mb_over_a_bridge() {
    let _bridge = Bridge::new();
    let folder = tempfile::tempdir().unwrap();
    // One by firmware and one directly; one with all that a card can do and one with nothing.
    let plain = ",csum=off,guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,\
                 guest_ufo=off,host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off,mrg_rxbuf=off";
    for (more, mtu) in [("", "1500"), (plain, "1500"), (",host_mtu=1400", "1400")] {
        let mib = if more.is_empty() { MIB } else { "10" };
        let ends = [(Boot::Firmware, "tap-a", "01", FIRST), (Boot::Direct, "tap-b", "02", SECOND)];
        let runs = ends.map(|(boot, tap, last, script)| {
            let script = script.replace("MIB", mib);
            let init = initramfs(folder.path(), tap, &NETWORK, &script);
            let mut command = linux(boot, "256M", &init);
            let netdev = format!("tap,id=n,ifname={tap},script=no,downscript=no");
            let device = format!("virtio-net-device,netdev=n,mac=02:00:00:00:00:{last}{more}");
            command.args(["-netdev", &netdev, "-device", &device]);
            thread::spawn(move || run(&mut command, b"", DEADLINE))
        });
        let [first, second] = runs.map(|run| run.join().unwrap());
        for (from, to) in [(&first, &second), (&second, &first)] {
            let sent = sum(&from.stdout, "sent ", from);
            assert_eq!(sum(&to.stdout, "received ", to), sent, "{first}{second}");
            assert!(sent.starts_with(&format!("{} bytes", mib.parse::<u64>().unwrap() << 20)));
            println!("{mib} MiB by a card with '{more}': {sent}");
        }
        assert_eq!(lines(&second.stdout, "card "), [format!("02:00:00:00:00:02 {mtu}")]);
        assert_eq!([first.status, second.status], [Some(0); 2], "{first}{second}");
    }
}

const PING: &str = "
ip addr add 10.9.0.2/24 dev eth0; ip link set eth0 up
ping -c 3 -s 1400 10.9.0.1 | grep received
";

/// A tap of that name, and this address of the host's; it goes with its last user.
fn tap(name: &str, address: &str) -> Tap {
    load_on_host(&["drivers/net/tun"]);
    let tap = Tap::open(&TapSource::Name(name.into())).unwrap();
    host(&["ip", "addr", "add", address, "dev", name]);
    host(&["ip", "link", "set", name, "up"]);
    tap
}

#[test]
fn a_tap_that_is_open_already_is_a_card() {
    let folder = tempfile::tempdir().unwrap();
    let init = initramfs(folder.path(), "ping", &NETWORK, PING);
    for (boot, name) in [(Boot::Firmware, "tap-d"), (Boot::Direct, "tap-e")] {
        let tap = tap(name, "10.9.0.1/24");
        let mut command = linux(boot, "256M", &init);
        command.args(["-netdev", "tap,id=n,fd=5", "-device", "virtio-net-device,netdev=n"]);
        // A shell hands over what it has open, under another number.
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "exec 5<&0 </dev/null; exec \"$0\" \"$@\""]);
        shell.arg(command.get_program()).args(command.get_args());
        shell.stdin(tap.as_fd().try_clone_to_owned().unwrap());
        drop(tap);
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || sender.send(shell.output().unwrap()));
        let ended = receiver.recv_timeout(DEADLINE).expect("the guest's end");
        let [out, error] = [ended.stdout, ended.stderr].map(|s| String::from_utf8(s).unwrap());
        assert_eq!((ended.status.code(), error.as_str()), (Some(0), ""), "{out}");
        assert!(out.contains(" 0% packet loss"), "{out}");
    }
}

/// As `hostile.rs`, with a device that only root can have there.
#[test]
fn a_hostile_driver_of_a_network_card_stops_it_and_nothing_else() {
    load_on_host(&["drivers/net/tun"]);
    host(&["tunctl", "-t", "tap-h"]);
    host(&["ip", "link", "set", "tap-h", "up"]);
    for boot in [Boot::Firmware, Boot::Direct] {
        let mut command = microvm(boot, "128M", &product("payload.bzImage"), "hostile");
        command.args(["-netdev", "tap,id=n,ifname=tap-h,script=no,downscript=no"]);
        command.args(["-device", "virtio-net-device,netdev=n", "-device", "virtio-rng-device"]);
        let ended = run(&mut command, b"", DEADLINE);
        assert_eq!(ended.status, Some(33), "{ended}");
        assert!(ended.stdout.contains("device 1, loop: "), "{ended}");
        assert!(ended.stdout.contains("hostile=ok"), "{ended}");
        assert_eq!(ended.stderr.lines().count(), 2, "each device says it once: {ended}");
    }
    host(&["tunctl", "-d", "tap-h"]);
}

/// What the other end of the guest's sockets needs.
const SOCKETS_ON_HOST: [&str; 5] = [
    "net/vmw_vsock/vsock",
    "net/vmw_vsock/vmw_vsock_virtio_transport_common",
    "drivers/vhost/vhost_iotlb",
    "drivers/vhost/vhost",
    "drivers/vhost/vhost_vsock",
];

const SOCKET_GUEST: &str = "
guest-work send vsock:2:1234 MIB 9
guest-work receive vsock:3:4321 MIB
";

#[test]
fn sockets_carry_100_mb_both_ways() {
    load_on_host(&SOCKETS_ON_HOST);
    let folder = tempfile::tempdir().unwrap();
    let script = SOCKET_GUEST.replace("MIB", MIB);
    let init = initramfs(folder.path(), "sockets", &SOCKETS, &script);
    for boot in [Boot::Firmware, Boot::Direct] {
        let mut command = linux(boot, "256M", &init);
        command.args(["-device", "vhost-vsock-device,guest-cid=42"]);
        let guest = thread::spawn(move || run(&mut command, b"", DEADLINE));
        let work = |words: &[&str]| {
            let mut command = Command::new(product("guest-work"));
            run(command.args(words), b"", DEADLINE)
        };
        let received = work(&["receive", "vsock:2:1234", MIB]);
        let sent = work(&["send", "vsock:42:4321", MIB, "11"]);
        let guest = guest.join().unwrap();
        let (there, here) = (&guest.stdout, &received.stdout);
        assert_eq!(sum(there, "sent ", &guest), sum(here, "received ", &received), "{guest}");
        assert_eq!(sum(&sent.stdout, "sent ", &sent), sum(there, "received ", &guest), "{guest}");
        assert_eq!((guest.status, guest.stderr.as_str()), (Some(0), ""), "{guest}");
    }
}

/// The same, then a connection that breaks, and one after it.
const USER_SOCKET_GUEST: &str = "
guest-work send vsock:2:1234 MIB 9
guest-work receive vsock:3:4321 MIB
guest-work receive vsock:3:4322 100000
echo connection-lost
guest-work send vsock:2:1235 1 5
";

/// A vhost-device-vsock; its sockets are in `folder`.
fn serve_sockets(folder: &Path) -> Child {
    let [socket, ports] = ["socket", "ports"].map(|name| folder.join(name));
    for old in [&socket, &ports] {
        let _ = std::fs::remove_file(old);
    }
    let mut command = Command::new(fetched(VHOST_DEVICE_VSOCK));
    command.args(["--guest-cid", "42", "--socket"]).arg(&socket).arg("--uds-path").arg(&ports);
    let daemon = command.spawn().unwrap();
    let since = Instant::now();
    while !socket.exists() {
        assert!(since.elapsed() < DEADLINE, "vhost-device-vsock makes no socket");
        thread::sleep(Duration::from_millis(10));
    }
    daemon
}

#[test]
fn another_process_serves_sockets_and_may_be_started_again() {
    let folder = tempfile::tempdir().unwrap();
    // Each byte goes through a process of the emulated host.
    const MIB: &str = "20";
    let script = USER_SOCKET_GUEST.replace("MIB", MIB);
    let init = initramfs(folder.path(), "user-sockets", &SOCKETS, &script);
    let mut daemon = serve_sockets(folder.path());
    let mut command = linux(Boot::Firmware, "256M", &init);
    let chardev = format!("socket,id=c,path={}", folder.path().join("socket").display());
    command.args(["-chardev", &chardev, "-device", "vhost-user-vsock-device,chardev=c"]);
    let ports = folder.path().join("ports");
    let work = move |what: &str, port: u32, more: &[&str]| {
        let mut command = Command::new(product("guest-work"));
        let address = format!("hybrid:{}:{port}", ports.display());
        run(command.args([what, &address]).args(more), b"", DEADLINE)
    };
    let guest = thread::spawn(move || run(&mut command, b"", DEADLINE));
    let received = work("receive", 1234, &[MIB]);
    let sent = work("send", 4321, &[MIB, "11"]);
    let more = thread::spawn({
        let work = work.clone();
        move || work("send", 4322, &["100000", "11"])
    });
    // In the midst of that.
    thread::sleep(Duration::from_secs(3));
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    more.join().unwrap();
    let mut daemon = serve_sockets(folder.path());
    let last = work("receive", 1235, &["1"]);
    let guest = guest.join().unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();

    let sums = |name| lines(&guest.stdout, name).into_iter().map(str::to_owned).collect::<Vec<_>>();
    let ends = [&received, &last].map(|end| sum(&end.stdout, "received ", end));
    assert_eq!(sums("sent "), ends, "{guest}");
    assert_eq!(sums("received ")[0], sum(&sent.stdout, "sent ", &sent), "{guest}");
    assert!(guest.stdout.contains("connection-lost"), "{guest}");
    assert_eq!(guest.status, Some(0), "{guest}");
    let said: Vec<&str> = guest.stderr.lines().collect();
    let gone = said.first().is_some_and(|line| line.contains("' is gone; the guest's connections"));
    assert!(gone && said.len() == 2 && said[1].contains("served again"), "{guest}");
}

/// Uses memory, and lets go of it; then waits to be asked for more.
const USER: &str = "
mount -t tmpfs -o size=400m memory /tmp
echo balloon-begins
read line < /dev/console
dd if=/dev/zero of=/tmp/file bs=1M count=300 2>/dev/null
echo memory-used
read line < /dev/console
rm /tmp/file
echo memory-free
read line < /dev/console
";

/// MiB of this process that are in memory.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}

/// Waits until the process has less memory than that.
fn wait_for_less(pid: u32, mib: u64) -> u64 {
    let start = Instant::now();
    loop {
        let now = resident(pid);
        if now < mib || start.elapsed() > Duration::from_secs(60) {
            return now;
        }
        thread::sleep(Duration::from_millis(200));
    }
}

struct Qmp(BufReader<UnixStream>);

impl Qmp {
    fn new(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut qmp = Self(BufReader::new(stream));
        qmp.read("QMP");
        qmp.ask(r#"{"execute":"qmp_capabilities"}"#);
        qmp
    }

    fn ask(&mut self, command: &str) -> serde_json::Value {
        self.0.get_mut().write_all(command.as_bytes()).unwrap();
        self.read("return")
    }

    /// The next message with this key.
    fn read(&mut self, key: &str) -> serde_json::Value {
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).unwrap();
            let mut value: serde_json::Value = serde_json::from_str(&line).expect(&line);
            if let Some(found) = value.get_mut(key) {
                return found.take();
            }
            assert!(value.get("error").is_none(), "{line}");
        }
    }
}

#[test]
fn the_balloon_gives_memory_back() {
    let folder = tempfile::tempdir().unwrap();
    let init = initramfs(folder.path(), "balloon", &BALLOON, USER);
    for (boot, reporting) in [(Boot::Firmware, "on"), (Boot::Direct, "off")] {
        let socket = folder.path().join("qmp");
        let mut command = linux(boot, "512M", &init);
        command.args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())]);
        let device = format!("virtio-balloon-device,free-page-reporting={reporting}");
        command.args(["-device", &device]);
        let mut guest = Guest::start(&mut command);
        guest.wait_for("balloon-begins", DEADLINE);
        guest.write(b"\n");
        guest.wait_for("memory-used", DEADLINE);
        let used = resident(guest.pid());
        assert!(used > 300, "{used} MiB");
        guest.write(b"\n");
        guest.wait_for("memory-free", DEADLINE);
        let mut qmp = Qmp::new(&socket);
        if reporting == "off" {
            thread::sleep(Duration::from_secs(5));
            assert!(resident(guest.pid()) >= used, "nothing is given back by itself");
            qmp.ask(r#"{"execute":"balloon","arguments":{"value":157286400}}"#);
        }
        let after = wait_for_less(guest.pid(), used - 200);
        assert!(after < used - 200, "{after} MiB of {used}");
        println!("balloon, free-page-reporting={reporting}: {used} MiB, then {after} MiB");
        if reporting == "off" {
            let mut actual = 0;
            for _ in 0..100 {
                actual = qmp.ask(r#"{"execute":"query-balloon"}"#)["actual"].as_u64().unwrap();
                if actual == 157_286_400 {
                    break;
                }
                thread::sleep(Duration::from_millis(200));
            }
            assert_eq!(actual, 157_286_400);
        }
        qmp.ask(r#"{"execute":"quit"}"#);
        let ended = guest.end(DEADLINE);
        assert_eq!(ended.status, Some(0), "{ended}");
    }
}

/// Answers on the virtio console, then says a lot on it.
const TALKER: &str = "
exec 3<>/dev/hvc0
echo console-begins >&3
read line <&3
echo you said $line >&3
stty -opost <&3
seq 1 20000 >&3
echo console-ends >&3
";

#[test]
fn the_console_types_both_ways_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let init = initramfs(folder.path(), "console", &CONSOLE, TALKER);
    for boot in [Boot::Firmware, Boot::Direct] {
        let mut command = Command::new(product("microvm"));
        command.args(["-M", "microvm,isa-serial=off,kernel-irqchip=split"]);
        command.args(["-m", "256M", "-append", "quiet"]);
        command.arg("-kernel").arg(kernel()).arg("-initrd").arg(&init);
        command.args(["-nodefaults", "-display", "none", "-chardev", "stdio,id=c"]);
        command.args(["-device", "virtio-serial-device", "-device", "virtconsole,chardev=c"]);
        if boot == Boot::Firmware {
            command.arg("-bios").arg(product("bios-microvm.bin"));
        }
        let mut guest = Guest::start(&mut command);
        guest.wait_for("console-begins", DEADLINE);
        guest.write(b"hello, guest\n");
        let ended = guest.end(DEADLINE);
        assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""), "{ended}");
        assert!(ended.stdout.contains("you said hello, guest"), "{ended}");
        let (_, numbers) = ended.stdout.split_once("you said hello, guest").unwrap();
        let (numbers, _) = numbers.split_once("console-ends").unwrap();
        let numbers: Vec<u32> =
            numbers.split_ascii_whitespace().map(|line| line.parse().unwrap()).collect();
        assert!(numbers == (1..=20_000).collect::<Vec<u32>>(), "{} numbers", numbers.len());
    }
}

/// Says more on the virtio console than a pipe and its VMM like to hold, by 37 KB, and that it
/// lives on COM1. Linux says it by 16 bytes at a time, and waits for each.
const CHATTERER: &str = "
exec 3<>/dev/hvc0
stty -opost <&3
echo chatter-begins
seq 1 30000 >&3 &
for beat in 1 2 3 4 5; do sleep 1; echo heart-beat $beat; done
wait
echo all-is-said
read line < /dev/console
";

#[test]
fn a_console_that_nobody_reads_stops_no_guest_and_loses_nothing() {
    // Twice that is less than what the lab waits for a test.
    const PATIENCE: Duration = Duration::from_secs(120);
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    let [input, output] = ["in", "out"].map(|end| pipe.with_extension(end));
    host(&["mkfifo", &input.display().to_string(), &output.display().to_string()]);
    let init = initramfs(folder.path(), "chatter", &CONSOLE, CHATTERER);
    let mut command = linux(Boot::Direct, "256M", &init);
    command.args(["-chardev", &format!("pipe,id=c,path={}", pipe.display())]);
    command.args(["-device", "virtio-serial-device", "-device", "virtconsole,chardev=c"]);
    let mut guest = Guest::start(&mut command);
    // Linux waits for its console with interrupts off, on the one CPU that there is.
    guest.wait_for("heart-beat 5", PATIENCE);
    guest.wait_for("all-is-said", PATIENCE);
    let expected: String = (1..=30_000).map(|number| format!("{number}\n")).collect();
    let (sender, receiver) = mpsc::channel();
    let mut got = vec![0; expected.len()];
    thread::spawn(move || {
        File::open(&output).and_then(|mut pipe| pipe.read_exact(&mut got)).unwrap();
        sender.send(got).unwrap();
    });
    let got = receiver.recv_timeout(PATIENCE).expect("all that the guest said");
    assert!(got == expected.as_bytes(), "what is read is not what was said");
    guest.write(b"\n");
    let ended = guest.end(DEADLINE);
    assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""), "{ended}");
}

/// Counts its boots on a disk, asks each device for what it is for, and restarts.
const RESTARTS: &str = "
read boots < /dev/vda
echo boot-number $boots.
echo $((boots + 1)) | dd of=/dev/vda bs=512 conv=notrunc,fsync,sync 2>/dev/null
ip addr add 10.8.0.2/24 dev eth0; ip link set eth0 up
ping -c 3 -s 1400 10.8.0.1 | grep received
guest-work send vsock:2:1235 1 $boots
echo boot $boots on the console > /dev/hvc0
[ $(head -c 16 /dev/hwrng | wc -c) = 16 ] && echo random
[ $boots = 3 ] || { reboot -f; sleep 1000; }
";

/// Sends frames to whoever is at the other end of a tap, about a thousand a second, until the
/// returned value is dropped: also when nobody takes them, and while a driver is being started.
fn flood(address: &'static str) -> mpsc::Sender<()> {
    let (going, stop) = mpsc::channel();
    let socket = UdpSocket::bind((address, 0)).unwrap();
    socket.set_broadcast(true).unwrap();
    thread::spawn(move || {
        let pause = Duration::from_millis(1);
        while stop.recv_timeout(pause) == Err(mpsc::RecvTimeoutError::Timeout) {
            // A tap without a reader is full at times.
            let _ = socket.send_to(&[0x5a; 1400], ("10.8.0.255", 9));
        }
    });
    going
}

/// Runs a guest that restarts until it was started for the third time, when `first` counts.
fn restarts(boot: Boot, (cpus, memory): (&str, &str), first: usize) {
    load_on_host(&SOCKETS_ON_HOST);
    load_on_host(&["drivers/net/tun"]);
    let folder = tempfile::tempdir().unwrap();
    let modules = [&DISK[..], &NETWORK, &SOCKETS, &BALLOON, &CONSOLE, &ENTROPY].concat();
    let init = initramfs(folder.path(), "restarts", &modules, RESTARTS);
    host(&["tunctl", "-t", "tap-c"]);
    host(&["ip", "addr", "add", "10.8.0.1/24", "broadcast", "10.8.0.255", "dev", "tap-c"]);
    host(&["ip", "link", "set", "tap-c", "up"]);
    let [disk, log] = ["disk", "log"].map(|name| folder.path().join(name));
    let mut count = format!("{first}\n").into_bytes();
    count.resize(4096, 0);
    std::fs::write(&disk, count).unwrap();
    let mut command = linux(boot, memory, &init);
    command.args(["-smp", cpus]);
    command.args(["-drive", &format!("id=d,file={},format=raw,if=none", disk.display())]);
    command.args(["-device", "virtio-blk-device,drive=d"]);
    command.args(["-netdev", "tap,id=n,ifname=tap-c,script=no,downscript=no"]);
    command.args(["-device", "virtio-net-device,netdev=n"]);
    command.args(["-device", "vhost-vsock-device,guest-cid=43"]);
    command.args(["-device", "virtio-balloon-device,free-page-reporting=on"]);
    command.args(["-chardev", &format!("file,id=c,path={}", log.display())]);
    command.args(["-device", "virtio-serial-device", "-device", "virtconsole,chardev=c"]);
    command.args(["-device", "virtio-rng-device"]);
    let going = flood("10.8.0.1");
    let guest = thread::spawn(move || run(&mut command, b"", DEADLINE));
    let boots: Vec<usize> = (first..=3).collect();
    let receive = |_: &usize| {
        let mut work = Command::new(product("guest-work"));
        run(work.args(["receive", "vsock:2:1235", "1"]), b"", DEADLINE)
    };
    let received: Vec<Ended> = boots.iter().map(receive).collect();
    let guest = guest.join().unwrap();
    drop(going);
    host(&["tunctl", "-d", "tap-c"]);
    assert_eq!((guest.status, guest.stderr.as_str()), (Some(0), ""), "{guest}");
    let numbers: Vec<String> = boots.iter().map(|boot| format!("{boot}.")).collect();
    assert_eq!(lines(&guest.stdout, "boot-number "), numbers, "{guest}");
    assert_eq!(guest.stdout.matches(" 0% packet loss").count(), boots.len(), "{guest}");
    assert_eq!(lines(&guest.stdout, "random"), vec![""; boots.len()], "{guest}");
    let sums: Vec<_> = received.iter().map(|end| sum(&end.stdout, "received ", end)).collect();
    assert_eq!(lines(&guest.stdout, "sent "), sums, "{guest}");
    let said = std::fs::read_to_string(&log).unwrap();
    let expected: Vec<_> = boots.iter().map(|boot| format!("{boot} on the console")).collect();
    assert_eq!(lines(&said, "boot "), expected, "{guest}");
}

#[test]
fn a_guest_that_restarts_under_load_finds_all_its_devices_again() {
    restarts(Boot::Firmware, ("1", "256M"), 1);
    restarts(Boot::Direct, ("2", "256M"), 1);
}

#[test]
fn a_machine_with_memory_above_4_gib_and_four_cpus_has_all_its_devices() {
    restarts(Boot::Firmware, ("4", "5G"), 3);
}
