//! Disks under a distribution's kernel.
//!
//! A root file system, the order of disks, errors, and what survives a kill.
//!
//! Needs a /dev/kvm that runs kernel code natively, and root: the nested lab has both.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use regression::busybox::{DISK, check_disk, host, initramfs, load_on_host, root_disk};
use regression::machine::{Boot, microvm};
use regression::products::kernel;
use regression::program::{Ended, retried, run, run_until_mark};

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
    let machines: [(&str, &[&str], &str); 3] =
        [("256M", &[], ""), ("5G", &["-smp", "4"], ",num-queues=4"), ("256M", &[], "")];
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
cat /sys/block/vdb/queue/discard_max_bytes
dd if=/dev/urandom of=/dev/vdb bs=1M count=4 oflag=direct 2>/dev/null
blkdiscard -o 0 -l 4194304 /dev/vdb && echo discarded
cat /sys/block/vda/queue/write_cache
";

#[test]
fn disks_come_in_the_order_of_the_command_line_and_are_what_was_asked_for() {
    for path in [Boot::Firmware, Boot::Direct] {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let init = initramfs(folder, "disks", &DISK, DISKS);
        let images = [("a", 3), ("b", 5), ("c", 7)].map(|(n, mib)| image(folder, n, mib << 20));
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
        assert_eq!(images[1].metadata().unwrap().blocks(), 0, "what was discarded is given back");
    }
}

/// Writes numbered blocks; each is said to be flushed once it is.
const WRITER: &str = "
n=0
echo writer-begins
while true; do
  yes $n | head -c 4096 > /tmp/block
  dd if=/tmp/block of=/dev/vda bs=4096 seek=$n oflag=direct conv=notrunc,fsync 2>/dev/null || break
  echo flushed $n.
  n=$((n+1))
done
";

/// How often: all when the matrix is.
fn kills() -> usize {
    if std::env::var_os("MICROVM_FULL").is_some() { 20 } else { 4 }
}

#[test]
fn what_was_flushed_survives_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let init = initramfs(folder.path(), "writer", &DISK, WRITER);
    for round in 0..kills() {
        let path = [Boot::Firmware, Boot::Direct][round % 2];
        let disk = image(folder.path(), &format!("disk{round}"), 64 << 20);
        // The moment is chance: the block is being written or is not, and so are others.
        let mut random = [0];
        File::open("/dev/urandom").unwrap().read_exact(&mut random).unwrap();
        let wanted = 1 + usize::from(random[0] % 60);
        let mut command = linux(path, "256M", &init);
        add_disk(&mut command, "d", &disk, "", "");
        let ended = run_until_mark(&mut command, "flushed ", wanted, DEADLINE);
        assert_eq!(ended.status, None, "it was killed: {ended}");
        let flushed = ended.stdout.matches("flushed ").count();
        let complete = ended.stdout.matches(".\r").count();
        assert!(flushed >= wanted, "{ended}");
        let image = File::open(&disk).unwrap();
        for number in 0..complete {
            let mut found = [0; 4096];
            image.read_exact_at(&mut found, 4096 * number as u64).unwrap();
            let expected: Vec<u8> =
                format!("{number}\n").bytes().cycle().take(found.len()).collect();
            assert!(found == *expected, "block {number} of {flushed}: {ended}");
        }
        println!("killed after {flushed} flushed blocks: all are there");
    }
}

/// Writes until that fails, and goes on.
const FILL: &str = "
dd if=/dev/zero of=/dev/vda bs=64k oflag=direct && echo all was written
dd if=/dev/vda of=/dev/null bs=64k count=4 iflag=direct && echo reading goes on
dmesg | grep 'I/O error, dev vda'
";

#[test]
fn a_full_host_is_an_error_in_the_guest() {
    let folder = tempfile::tempdir().unwrap();
    let small = folder.path().join("small");
    fs::create_dir(&small).unwrap();
    let small_path = small.display().to_string();
    host(&["mount", "-t", "tmpfs", "-o", "size=4m", "small", &small_path]);
    let disk = image(&small, "disk", 16 << 20);
    let init = initramfs(folder.path(), "fill", &DISK, FILL);
    let ended = boot(|| {
        let mut command = linux(Boot::Direct, "256M", &init);
        add_disk(&mut command, "d", &disk, "", "");
        command
    });
    host(&["umount", &small_path]);
    assert!(ended.stdout.contains("dd: error writing"), "{ended}");
    assert!(ended.stdout.contains("I/O error, dev vda"), "{ended}");
    assert!(!ended.stdout.contains("all was written"), "{ended}");
    assert!(ended.stdout.contains("reading goes on"), "{ended}");
    assert!(ended.stderr.contains("No space left on device"), "{ended}");
}

/// Writes to a disk whose medium fails behind the host's cache: the flush says so.
const FLUSH: &str = "
dd if=/dev/zero of=/dev/vda bs=64k count=128 conv=fsync && echo all is on the medium
dmesg | grep 'I/O error, dev vda'
";

#[test]
fn a_medium_that_fails_is_an_error_in_the_guest() {
    load_on_host(&["drivers/block/loop"]);
    let folder = tempfile::tempdir().unwrap();
    let small = folder.path().join("small");
    fs::create_dir(&small).unwrap();
    let small_path = small.display().to_string();
    host(&["mount", "-t", "tmpfs", "-o", "size=2m", "small", &small_path]);
    // A block device whose writes end in EIO: the file below it has no room.
    let backing = image(&small, "backing", 16 << 20);
    let device = host(&["losetup", "-f"]).trim().to_owned();
    host(&["losetup", &device, &backing.display().to_string()]);
    let init = initramfs(folder.path(), "flush", &DISK, FLUSH);
    for cache in ["writeback", "none", "writethrough"] {
        let ended = boot(|| {
            let mut command = linux(Boot::Direct, "256M", &init);
            add_disk(&mut command, "d", Path::new(&device), &format!(",cache={cache}"), "");
            command
        });
        assert!(ended.stdout.contains("I/O error, dev vda"), "{cache}: {ended}");
        assert!(!ended.stdout.contains("all is on the medium"), "{cache}: {ended}");
        assert!(ended.stderr.contains("the guest is told"), "{cache}: {ended}");
    }
    host(&["losetup", "-d", &device]);
    host(&["umount", &small_path]);
}
