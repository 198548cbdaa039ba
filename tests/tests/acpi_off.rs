//! Disks on machines without ACPI, under a kernel that is told of them in words.
//!
//! Distributions' kernels are not: they leave out CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES. Our small
//! kernel (docs/guest-kernel.config) has it, and has its drivers built in.
//!
//! Needs a /dev/kvm that runs kernel code natively: the host's, or the nested lab's.

use std::fs;
use std::path::Path;
use std::time::Duration;

use regression::busybox::{check_disk, initramfs_without_modules, root_disk};
use regression::machine::{Boot, microvm_with, with_kernel};
use regression::products::guest_kernel;
use regression::program::{Ended, retried, run};

const DEADLINE: Duration = Duration::from_secs(90);

/// Mounts the root disk, wherever among the others it is, and goes on as its init.
const SWITCH: &str = "
dmesg | grep -c 'ACPI: RSDP'
for d in vda vdb vdc; do echo $d $(cat /sys/block/$d/size) $(cat /sys/block/$d/serial); done
mount -t ext4 /dev/vdb /root && exec switch_root /root /sbin/init";

/// Writes files on the first boot and finds them on the second. A machine without ACPI cannot be
/// switched off by its guest: the end is a restart, here as under QEMU.
const FILES: &str = "
mount -o remount,rw /
if [ -e /sums ]; then echo boot-again; else
  for n in 1 2 3; do dd if=/dev/urandom of=/file$n bs=1M count=3 2>/dev/null; done
  sha256sum /file* > /sums
  sync
fi
echo 3 > /proc/sys/vm/drop_caches
sha256sum -c /sums && echo sums-are-right
echo cpus $(nproc)
mount -o remount,ro /
sync
reboot -f
sleep 1000
";

fn boot(machine: &str, path: Boot, cpus: &str, init: &Path, disks: &[&Path]) -> Ended {
    let ended = retried(|| {
        let command = microvm_with(machine, path, "256M");
        let mut command = with_kernel(command, &guest_kernel(), "console=ttyS0 quiet reboot=t");
        command.arg("-initrd").arg(init).args(["-smp", cpus, "-no-reboot"]);
        for (number, image) in disks.iter().enumerate() {
            let drive = format!("id=d{number},file={},format=raw,if=none", image.display());
            let device = format!("virtio-blk-device,drive=d{number},serial=disk{number}");
            command.args(["-drive", &drive, "-device", &device]);
        }
        run(&mut command, b"", DEADLINE)
    });
    assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""), "{ended}");
    ended
}

/// The same with ACPI: that this kernel boots there, too, is what makes the other case one of ACPI.
#[test]
fn three_disks_come_in_order_and_keep_their_files_with_and_without_acpi() {
    for (machine, tables) in [("microvm,acpi=off", "0"), ("microvm", "1")] {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let init = initramfs_without_modules(folder, "switch", SWITCH);
        let root = root_disk(folder, 48, FILES);
        let [first, last] = [3_u64, 5].map(|mib| {
            let path = folder.join(format!("disk{mib}"));
            fs::File::create(&path).unwrap().set_len(mib << 20).unwrap();
            path
        });
        let machines = [(Boot::Firmware, "1"), (Boot::Direct, "1"), (Boot::Firmware, "4")];
        for (number, (path, cpus)) in machines.into_iter().enumerate() {
            let ended = boot(machine, path, cpus, &init, &[&first, &root, &last]);
            let seen: Vec<&str> = ended.stdout.lines().map(str::trim_end).collect();
            let cpus = format!("cpus {cpus}");
            for line in [tables, "vda 6144 disk0", "vdb 98304 disk1", "vdc 10240 disk2", &cpus] {
                assert!(seen.contains(&line), "{machine}: {line}: {ended}");
            }
            assert!(seen.contains(&"sums-are-right"), "{ended}");
            assert_eq!(seen.contains(&"boot-again"), number > 0, "{ended}");
            check_disk(&root).unwrap_or_else(|problem| panic!("{problem}{ended}"));
        }
    }
}
