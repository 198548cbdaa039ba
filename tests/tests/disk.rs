//! Disks under a distribution's kernel.
//!
//! A root file system, the order of disks, errors, and what survives a kill.
//!
//! Needs a /dev/kvm that runs kernel code natively, and root: the nested lab has both.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use regression::busybox::{DISK, check_disk, host, initramfs, root_disk};
use regression::machine::{Boot, microvm};
use regression::medium::{Medium, flushed, lost};
use regression::products::{is_full, kernel};
use regression::program::{Ended, retried, run, run_steps, run_until_mark};

const DEADLINE: Duration = Duration::from_secs(90);
const APPEND: &str = "console=ttyS0 quiet";

/// A machine that runs the init of `initramfs`.
fn linux(boot: Boot, memory: &str, initramfs: &Path) -> Command {
    let mut command = microvm(boot, memory, &kernel(), APPEND);
    command.arg("-initrd").arg(initramfs);
    command
}

/// Adds a disk; `more` goes to the drive, `device` to the device.
fn add_disk(command: &mut Command, id: &str, image: &Path, more: &str, device: &str) {
    let image = image.display();
    command.args(["-drive", &format!("id={id},file={image},format=raw,if=none{more}")]);
    command.args(["-device", &format!("virtio-blk-device,drive={id}{device}")]);
}

fn boot(command: impl Fn() -> Command) -> Ended {
    let ended = retried(|| run(&mut command(), b"", DEADLINE));
    assert_eq!(ended.status, Some(0), "{ended}");
    ended
}

fn image(folder: &Path, name: &str, size: u64) -> std::path::PathBuf {
    let path = folder.join(name);
    File::create(&path).unwrap().set_len(size).unwrap();
    path
}

/// Mounts the disk and goes on as its init.
const SWITCH: &str = "mount -t ext4 /dev/vda /root && exec switch_root /root /sbin/init";

/// Writes files on the first boot and finds them on the second; each time they come from the disk.
const FILES: &str = "
mount -o remount,rw /
if [ -e /sums ]; then echo boot-again; else
  for n in 1 2 3; do dd if=/dev/urandom of=/file$n bs=1M count=3 2>/dev/null; done
  sha256sum /file* > /sums
  sync
fi
echo 3 > /proc/sys/vm/drop_caches
sha256sum -c /sums && echo sums-are-right
nproc
mount -o remount,ro /
";

#[test]
fn a_root_disk_keeps_its_files_over_boots() {
    let machines: [(&str, &[&str], &str); 3] = [
        ("256M", &[], ""),
        ("5G", &["-smp", "4"], ",num-queues=4"),
        ("256M", &["-machine", "kernel-irqchip=split"], ""),
    ];
    for path in [Boot::Firmware, Boot::Direct] {
        let folder = tempfile::tempdir().unwrap();
        let disk = root_disk(folder.path(), 48, FILES);
        let init = initramfs(folder.path(), "switch", &DISK, SWITCH);
        for (number, (memory, options, device)) in machines.iter().enumerate() {
            let ended = boot(|| {
                let mut command = linux(path, memory, &init);
                command.args(*options);
                add_disk(&mut command, "root", &disk, "", device);
                command
            });
            assert!(ended.stdout.contains("sums-are-right"), "{ended}");
            assert_eq!(ended.stdout.contains("boot-again"), number > 0, "{ended}");
            assert_eq!(ended.stderr, "", "{ended}");
            check_disk(&disk).unwrap_or_else(|problem| panic!("{problem}{ended}"));
        }
    }
}

/// Says of each disk what it is, then tries to write to the last, and gives sectors back.
const DISKS: &str = "
for d in vda vdb vdc; do
  echo $d $(cat /sys/block/$d/size) $(cat /sys/block/$d/ro) $(cat /sys/block/$d/serial)
done
dd if=/dev/zero of=/dev/vdc bs=4096 count=1 oflag=direct 2>/dev/null && echo vdc was written
blkdiscard /dev/vdc 2>/dev/null && echo vdc was written
cat /sys/block/vdb/queue/discard_max_bytes
dd if=/dev/urandom of=/dev/vdb bs=1M count=4 oflag=direct 2>/dev/null
blkdiscard -o 0 -l 4194304 /dev/vdb && echo discarded
cat /sys/block/vda/queue/write_cache
";

#[test]
fn disks_come_in_the_order_of_the_command_line_and_are_what_was_asked_for() {
    for path in Boot::ALL {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let init = initramfs(folder, "disks", &DISK, DISKS);
        let images = [("a", 3), ("b", 5), ("c", 7)].map(|(n, mib)| image(folder, n, mib << 20));
        fs::write(&images[2], vec![0xa5; 7 << 20]).unwrap();
        let ended = boot(|| {
            let mut command = linux(path, "256M", &init);
            add_disk(&mut command, "z", &images[0], ",cache=writethrough", ",serial=first");
            add_disk(&mut command, "y", &images[1], ",discard=unmap", ",serial=second");
            add_disk(&mut command, "x", &images[2], ",readonly=on", ",serial=01234567890123456789");
            command
        });
        for line in [
            "vda 6144 0 first",
            "vdb 10240 0 second",
            "vdc 14336 1 01234567890123456789",
            "discarded",
        ] {
            assert!(ended.stdout.contains(&format!("{line}\r")), "{line}: {ended}");
        }
        assert!(ended.stdout.contains("write through"), "{ended}");
        assert!(!ended.stdout.contains("vdc was written"), "{ended}");
        assert!(fs::read(&images[2]).unwrap() == vec![0xa5; 7 << 20], "a read-only image changed");
        assert_eq!(images[1].metadata().unwrap().blocks(), 0, "what was discarded is given back");
    }
}

/// Writes numbered blocks, several at a time; each is said to be flushed once it is.
const WRITER: &str = "
guest-work durable /dev/vda 8
";

/// How often: all when the matrix is.
fn kills() -> usize {
    if is_full() { 20 } else { 4 }
}

/// Runs the writer and kills the machine; the blocks that were flushed by then. The moment is
/// chance: of eight blocks, some are being written, some flushed, some are not begun.
fn killed(command: impl Fn() -> Command) -> (Ended, Vec<u64>) {
    let mut random = [0];
    File::open("/dev/urandom").unwrap().read_exact(&mut random).unwrap();
    let wanted = 20 + usize::from(random[0]);
    let ended = retried(|| run_until_mark(&mut command(), "flushed ", wanted, DEADLINE));
    assert_eq!((ended.status, ended.timed_out), (None, false), "it was killed: {ended}");
    let numbers = flushed(&ended.stdout);
    assert!(numbers.len() + 1 >= wanted, "{ended}");
    (ended, numbers)
}

#[test]
fn what_was_flushed_survives_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let init = initramfs(folder.path(), "writer", &DISK, WRITER);
    for round in 0..kills() {
        let path = [Boot::Firmware, Boot::Direct][round % 2];
        let cpus = ["1", "2"][round / 2 % 2];
        let disk = image(folder.path(), &format!("disk{round}"), 64 << 20);
        let (ended, numbers) = killed(|| {
            let mut command = linux(path, "256M", &init);
            add_disk(&mut command, "d", &disk, "", &format!(",num-queues={cpus}"));
            command.args(["-smp", cpus]);
            command
        });
        assert_eq!(lost(&disk, &numbers), [], "{ended}");
        println!("killed after {} flushed blocks: all are there", numbers.len());
    }
}

/// Fills a small disk from all CPUs at once, and says what it reads from there.
const CROWD: &str = "
guest-work durable /dev/vda 32 | tail -n 1
dd if=/dev/vda bs=64k iflag=direct 2>/dev/null | sha256sum
";

#[test]
fn four_cpus_on_four_queues_write_each_block_where_it_belongs() {
    let folder = tempfile::tempdir().unwrap();
    let init = initramfs(folder.path(), "crowd", &DISK, CROWD);
    let disk = image(folder.path(), "disk", 4 << 20);
    let ended = boot(|| {
        let mut command = linux(Boot::Firmware, "256M", &init);
        command.args(["-smp", "4"]);
        add_disk(&mut command, "d", &disk, "", ",num-queues=4,queue-size=16");
        command
    });
    assert!(ended.stdout.contains("the disk is full\r"), "{ended}");
    assert_eq!(lost(&disk, &(0..1024).collect::<Vec<_>>()), [], "{ended}");
    let sum = host(&["sha256sum", &disk.display().to_string()]);
    assert!(ended.stdout.contains(sum.split(' ').next().unwrap()), "{sum}: {ended}");
}

/// A way to say when writes are on the medium, and whether it keeps its word.
struct Cache {
    drive: &'static str,
    device: &'static str,
    script: &'static str,
    is_safe: bool,
}

const fn cache(drive: &'static str, device: &'static str, script: &'static str) -> Cache {
    Cache { drive, device, script, is_safe: true }
}

/// Where there is no cache in between, the guest has nothing to flush.
const CACHES: [Cache; 6] = [
    cache(",cache=writeback", "", ""),
    cache(",cache=writethrough", "", ""),
    cache(",cache=none", "", ""),
    cache("", ",write-cache=off", ""),
    cache("", "", "echo write through > /sys/block/vda/cache_type"),
    // Without a flush, blocks are lost: this test would see it.
    Cache { is_safe: false, ..cache(",cache=unsafe", "", "") },
];

#[test]
fn what_was_flushed_survives_a_power_cut() {
    let folder = tempfile::tempdir().unwrap();
    for (number, cache) in CACHES.iter().enumerate() {
        let medium = Medium::new(folder.path(), 64, "80m");
        let script = [cache.script, WRITER].concat();
        let init = initramfs(folder.path(), "writer", &DISK, &script);
        let (ended, numbers) = killed(|| {
            let mut command = linux([Boot::Firmware, Boot::Direct][number % 2], "256M", &init);
            add_disk(&mut command, "d", medium.device(), cache.drive, cache.device);
            command
        });
        let lost = lost(medium.left(), &numbers);
        let Cache { drive, device, script, is_safe } = cache;
        let count = format!("{} of {} flushed blocks lost", lost.len(), numbers.len());
        assert_eq!(lost.is_empty(), *is_safe, "{drive}{device} {script}: {count}: {ended}");
        println!("power cut, '{drive}{device} {script}': {count}");
    }
}

/// Writes until that fails, and goes on; and writes it all once there is room.
const FILL: &str = "
fill() { dd if=/dev/zero of=/dev/vda bs=64k count=256 oflag=direct && echo all was written $*; }
fill at once
dd if=/dev/vda of=/dev/null bs=64k count=4 iflag=direct && echo reading goes on
dmesg | grep 'I/O error, dev vda'
echo room-now; read line < /dev/console
fill in the end
";

#[test]
fn a_full_host_is_an_error_in_the_guest() {
    let folder = tempfile::tempdir().unwrap();
    let small = folder.path().join("small");
    fs::create_dir(&small).unwrap();
    let small_path = small.display().to_string();
    host(&["mount", "-t", "tmpfs", "small", &small_path]);
    let init = initramfs(folder.path(), "fill", &DISK, FILL);
    for path in [Boot::Firmware, Boot::Direct] {
        let ended = retried(|| {
            // It takes no room yet, nor does what a guest before left of it.
            let disk = image(&small, "disk", 16 << 20);
            host(&["mount", "-o", "remount,size=4m", &small_path]);
            let mut command = linux(path, "256M", &init);
            add_disk(&mut command, "d", &disk, "", "");
            let make_room = |_: &str| drop(host(&["mount", "-o", "remount,size=32m", &small_path]));
            run_steps(&mut command, &["room-now"], make_room, DEADLINE)
        });
        check_filled(&ended);
    }
    host(&["umount", &small_path]);
}

fn check_filled(ended: &Ended) {
    assert_eq!(ended.status, Some(0), "{ended}");
    assert!(ended.stdout.contains("dd: error writing"), "{ended}");
    assert!(ended.stdout.contains("I/O error, dev vda"), "{ended}");
    assert!(!ended.stdout.contains("all was written at once"), "{ended}");
    assert!(ended.stdout.contains("reading goes on"), "{ended}");
    assert!(ended.stdout.contains("all was written in the end"), "{ended}");
    assert!(ended.stderr.contains("No space left on device"), "{ended}");
    assert_eq!(ended.stderr.lines().count(), 1, "it is told once: {ended}");
}

/// Writes to a disk whose medium fails behind the host's cache: the flush says so. Then it writes
/// what there is room for, and flushes again.
const FLUSH: &str = "
dd if=/dev/zero of=/dev/vda bs=64k count=128 conv=fsync && echo all is on the medium
dmesg | grep 'I/O error, dev vda'
dd if=/dev/zero of=/dev/vda bs=64k count=1 conv=fsync && echo a second flush succeeds
";

#[test]
fn a_medium_that_fails_is_an_error_in_the_guest() {
    let folder = tempfile::tempdir().unwrap();
    // A block device whose writes end in EIO: the file below it has no room.
    let medium = Medium::new(folder.path(), 16, "2m");
    let init = initramfs(folder.path(), "flush", &DISK, FLUSH);
    for (path, cache) in [
        (Boot::Firmware, "writeback"),
        (Boot::Direct, "writeback"),
        (Boot::Direct, "none"),
        (Boot::Firmware, "writethrough"),
    ] {
        let ended = boot(|| {
            let mut command = linux(path, "256M", &init);
            add_disk(&mut command, "d", medium.device(), &format!(",cache={cache}"), "");
            command
        });
        assert!(ended.stdout.contains("I/O error, dev vda"), "{cache}: {ended}");
        assert!(!ended.stdout.contains("all is on the medium"), "{cache}: {ended}");
        assert!(ended.stderr.contains("the guest is told"), "{cache}: {ended}");
        // What the first one lost is still lost, unless each write tells for itself.
        let succeeds = ended.stdout.contains("a second flush succeeds");
        assert_eq!(succeeds, cache != "writeback", "{cache}: {ended}");
    }
}

/// Reads a disk, is told that it was cut short, and then that it is whole again.
const CUT: &str = "
part() { dd if=/dev/vda of=/dev/null bs=64k skip=$1 count=$2 iflag=direct && echo $3 was read; }
part 0 64 all; echo cut-now; read line < /dev/console
part 0 16 start; part 48 16 missing; part 4 16 start-again
dmesg | grep 'I/O error, dev vda'
echo mend-now; read line < /dev/console
part 0 64 mended
";

#[test]
fn an_image_that_is_cut_short_is_an_error_in_the_guest() {
    let folder = tempfile::tempdir().unwrap();
    let init = initramfs(folder.path(), "cut", &DISK, CUT);
    let ended = retried(|| {
        let disk = image(folder.path(), "disk", 4 << 20);
        let file = OpenOptions::new().write(true).open(&disk).unwrap();
        let mut command = linux(Boot::Direct, "256M", &init);
        add_disk(&mut command, "d", &disk, "", "");
        // No whole number of sectors, and then the old size.
        let size = |mark: &str| if mark == "cut-now" { (2 << 20) + 100 } else { 4 << 20 };
        let act = |mark: &str| file.set_len(size(mark)).unwrap();
        run_steps(&mut command, &["cut-now", "mend-now"], act, DEADLINE)
    });
    assert_eq!(ended.status, Some(0), "{ended}");
    for part in ["all", "start", "start-again", "mended"] {
        assert!(ended.stdout.contains(&format!("{part} was read\r")), "{part}: {ended}");
    }
    assert!(!ended.stdout.contains("missing was read"), "{ended}");
    assert!(ended.stdout.contains("I/O error, dev vda"), "{ended}");
    assert_eq!(ended.stderr.lines().count(), 1, "{ended}");
    assert!(ended.stderr.contains("the guest is told"), "{ended}");
}

/// Makes parts of one disk zeroes, and gives back what a file had on the other.
const ZEROES: &str = "
guest-work zero /dev/vda 1048576 1048576 keep
guest-work zero /dev/vda 3145728 1048576 unmap
mount -t ext4 /dev/vdb /root; cd /root
dd if=/dev/urandom of=large bs=1M count=8 2>/dev/null
sync; echo large-is-there; read line < /dev/console
rm large; sync; fstrim . && echo trimmed
cd /; umount /root
";

#[test]
fn zeroes_are_zeroes_and_trimmed_room_is_given_back_where_that_is_wanted() {
    const MIB: usize = 1 << 20;
    let unmap = ",discard=unmap";
    let rows = [(unmap, "", false), ("", ",logical_block_size=4096", false), (unmap, "", true)];
    for (drive, device, is_block_device) in rows {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let init = initramfs(folder, "zeroes", &DISK, ZEROES);
        let medium = Medium::new(folder, 5, "8m");
        let disk = if is_block_device { medium.left().to_owned() } else { folder.join("disk") };
        fs::write(&disk, vec![0xa5; 5 * MIB]).unwrap();
        let root = root_disk(folder, 32, "");
        let mib = |path: &Path| path.metadata().unwrap().blocks() / 2048;
        let (room, unused, used) = (mib(&disk), mib(&root), Cell::new(0));
        let image = if is_block_device { medium.device() } else { &disk };
        let ended = retried(|| {
            let mut command = linux(Boot::Direct, "256M", &init);
            add_disk(&mut command, "a", image, drive, device);
            add_disk(&mut command, "b", &root, drive, "");
            let look = |_: &str| used.set(mib(&root));
            run_steps(&mut command, &["large-is-there"], look, DEADLINE)
        });
        let used = used.get();
        assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""), "{ended}");
        assert!(ended.stdout.contains("trimmed\r"), "{ended}");
        assert_eq!(ended.stdout.matches("zeroed\r").count(), 2, "{ended}");
        for (number, part) in fs::read(&disk).unwrap().chunks(MIB).enumerate() {
            let expected = if number % 2 == 1 { 0 } else { 0xa5 };
            assert!(part.iter().all(|&byte| byte == expected), "MiB {number}: {ended}");
        }
        check_disk(&root).unwrap_or_else(|problem| panic!("{problem}{ended}"));
        let is_given_back = drive.contains("unmap");
        // What is to be kept is kept; only what may be forgotten is.
        assert_eq!(room - mib(&disk), u64::from(is_given_back), "{ended}");
        assert!(used >= unused + 8, "{unused} MiB, then {used}: {ended}");
        assert_eq!(used - mib(&root) >= 8, is_given_back, "{used} MiB: {ended}");
    }
}

/// Counts its boots on one disk, and restarts while the other is written to.
const RESTARTS: &str = "
read boots < /dev/vda
echo boot-number $boots.
echo $((boots + 1)) | dd of=/dev/vda bs=512 conv=notrunc,fsync,sync 2>/dev/null
guest-work durable /dev/vdb 8 > /dev/null &
usleep 300000
[ $boots = 3 ] || { reboot -f; sleep 1000; }
";

#[test]
fn a_guest_that_restarts_while_it_writes_finds_its_disks_again() {
    for path in [Boot::Firmware, Boot::Direct] {
        let folder = tempfile::tempdir().unwrap();
        let init = initramfs(folder.path(), "restarts", &DISK, RESTARTS);
        let written = image(folder.path(), "written", 64 << 20);
        let counted = folder.path().join("counted");
        let ended = boot(|| {
            let mut first = b"1\n".to_vec();
            first.resize(4096, 0);
            fs::write(&counted, first).unwrap();
            let mut command = linux(path, "256M", &init);
            add_disk(&mut command, "a", &counted, "", "");
            add_disk(&mut command, "b", &written, "", "");
            command
        });
        for number in 1..=3 {
            assert!(ended.stdout.contains(&format!("boot-number {number}.\r")), "{ended}");
        }
        assert_eq!(ended.stderr, "", "{ended}");
        // The first blocks were written on each boot.
        assert_eq!(lost(&written, &[0, 1, 2, 3]), [], "{ended}");
    }
}
