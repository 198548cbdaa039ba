//! Folders of the host in guests, by QEMU's virtiofsd.
//!
//! Needs a /dev/kvm that runs kernel code natively, and root on a machine with FUSE: the nested lab
//! is one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use regression::busybox::{FOLDERS, host, initramfs};
use regression::machine::{Boot, microvm};
use regression::products::{VIRTIOFSD, kernel, virtiofsds};
use regression::program::{Guest, run};

const DEADLINE: Duration = Duration::from_secs(180);
/// Small files that the guest reads, and writes.
const FILES: usize = 500;

/// A folder of the host and the daemon that serves it.
struct Folder {
    place: tempfile::TempDir,
    daemon: Child,
}

impl Folder {
    fn new() -> Self {
        Self::by(Path::new(VIRTIOFSD))
    }

    fn by(virtiofsd: &Path) -> Self {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join("shared")).unwrap();
        let daemon = start(virtiofsd, place.path());
        Self { place, daemon }
    }

    fn shared(&self) -> PathBuf {
        self.place.path().join("shared")
    }

    /// As the article has it: the queue's size, the tag, and no word of memory.
    fn command(&self, boot: Boot, initramfs: &Path, append: &str) -> Command {
        let mut command = microvm(boot, "256M", &kernel(), append);
        let chardev = format!("socket,id=char0,path={}", socket(self.place.path()).display());
        command.args(["-chardev", &chardev, "-device"]);
        command.arg("vhost-user-fs-device,queue-size=1024,chardev=char0,tag=myfs");
        command.arg("-initrd").arg(initramfs);
        command
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

fn socket(place: &Path) -> PathBuf {
    place.join("socket")
}

/// Starts a daemon; it is there when its socket is.
fn start(virtiofsd: &Path, place: &Path) -> Child {
    let _ = fs::remove_file(socket(place));
    let mut command = Command::new(virtiofsd);
    command.arg(format!("--socket-path={}", socket(place).display()));
    // As the article has it, which the one in Rust takes too.
    command.args(["-o", &format!("source={}", place.join("shared").display())]);
    let daemon = command.stdin(Stdio::null()).spawn();
    let daemon = daemon.unwrap_or_else(|e| panic!("{}: {e}", virtiofsd.display()));
    let since = Instant::now();
    while !socket(place).exists() {
        assert!(since.elapsed() < DEADLINE, "virtiofsd makes no socket");
        thread::sleep(Duration::from_millis(10));
    }
    daemon
}

const READER_AND_WRITER: &str = "
mkdir /tmp/shared; mount -t virtiofs myfs /tmp/shared || echo failed: mount
cd /tmp/shared/many
echo read $(cat * | md5sum)
cd ..
mkdir back
for file in many/*; do cp $file back/; done
dd if=/dev/urandom of=big bs=1M count=20 2>/dev/null
echo wrote $(md5sum < big)
ln -s big link; mv big renamed; rm link
cd /
umount /tmp/shared || echo failed: umount
";

#[test]
fn a_folder_is_read_and_written() {
    let scratch = tempfile::tempdir().unwrap();
    let init = initramfs(scratch.path(), "folder", &FOLDERS, READER_AND_WRITER);
    let ways = virtiofsds()
        .into_iter()
        .flat_map(|virtiofsd| [Boot::Firmware, Boot::Direct].map(|boot| (boot, virtiofsd.clone())));
    for (boot, virtiofsd) in ways {
        let folder = Folder::by(&virtiofsd);
        let many = folder.shared().join("many");
        fs::create_dir(&many).unwrap();
        for number in 0..FILES {
            fs::write(many.join(format!("{number:05}")), vec![b'x'; number * 7]).unwrap();
        }
        let sum = |names: &str| {
            let text = host(&["sh", "-c", &format!("cat {names} | md5sum")]);
            text.split_whitespace().next().unwrap().to_owned()
        };
        let read = sum(&format!("{}/*", many.display()));
        let ended = run(&mut folder.command(boot, &init, "console=ttyS0 quiet"), b"", DEADLINE);
        assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""), "{ended}");
        assert!(!ended.stdout.contains("failed"), "{ended}");
        assert!(ended.stdout.contains(&format!("read {read}")), "{ended}");
        assert_eq!(sum(&format!("{}/back/*", folder.shared().display())), read);
        let wrote = sum(&format!("{}/renamed", folder.shared().display()));
        assert!(ended.stdout.contains(&format!("wrote {wrote}")), "{ended}");
        assert!(!folder.shared().join("link").exists());
    }
}

/// Copies until that fails, and goes on living.
const COPIER: &str = "
mkdir /tmp/shared; mount -t virtiofs myfs /tmp/shared || echo failed: mount
echo copying
while dd if=/dev/zero of=/tmp/shared/copy bs=64k count=64 2>/said; do :; done
tail -n 1 /said
ls /tmp/shared 2>&1
umount -l /tmp/shared
echo still-here
";

#[test]
fn a_daemon_that_dies_is_an_error_in_the_guest_and_no_more() {
    let scratch = tempfile::tempdir().unwrap();
    let init = initramfs(scratch.path(), "copier", &FOLDERS, COPIER);
    let mut folder = Folder::new();
    let mut guest = Guest::start(&mut folder.command(Boot::Direct, &init, "console=ttyS0 quiet"));
    guest.wait_for("copying", DEADLINE);
    thread::sleep(Duration::from_millis(300));
    folder.daemon.kill().unwrap();
    let ended = guest.end(DEADLINE);
    assert_eq!(ended.status, Some(0), "{ended}");
    assert!(ended.stderr.contains("vhost-user-fs-device 'myfs': virtiofsd at"), "{ended}");
    assert!(
        ended.stdout.contains("Input/output error") && ended.stdout.contains("still-here"),
        "{ended}"
    );
}

/// Reads until that fails, and mounts anew: once while nobody serves the folder, and then until
/// somebody does.
const REMOUNTER: &str = "
mkdir /tmp/shared; mount -t virtiofs myfs /tmp/shared || echo failed: mount
for life in 1 2; do
  echo serving $life
  while cat /tmp/shared/text >/dev/null 2>/said; do :; done
  grep -o 'Input/output error' /said
  umount /tmp/shared || echo failed: umount
  mount -t virtiofs myfs /tmp/shared && ls /tmp/shared 2>/dev/null && echo failed: nobody is there
  umount /tmp/shared
  echo refused $life
  until mount -t virtiofs myfs /tmp/shared && cat /tmp/shared/text 2>/dev/null; do
    umount /tmp/shared
    sleep 0.1
  done
  echo $life >> /tmp/shared/new
done
umount /tmp/shared || echo failed: umount
";

#[test]
fn a_folder_is_mounted_anew_when_its_daemon_was_started_again() {
    let scratch = tempfile::tempdir().unwrap();
    let init = initramfs(scratch.path(), "remounter", &FOLDERS, REMOUNTER);
    for virtiofsd in virtiofsds() {
        let mut folder = Folder::by(&virtiofsd);
        fs::write(folder.shared().join("text"), "some text\n").unwrap();
        let mut command = folder.command(Boot::Direct, &init, "console=ttyS0 quiet");
        let mut guest = Guest::start(&mut command);
        for life in [1, 2] {
            guest.wait_for(&format!("serving {life}"), DEADLINE);
            folder.daemon.kill().unwrap();
            folder.daemon.wait().unwrap();
            guest.wait_for(&format!("refused {life}"), DEADLINE);
            folder.daemon = start(&virtiofsd, folder.place.path());
        }
        let ended = guest.end(DEADLINE);
        assert_eq!(ended.status, Some(0), "{ended}");
        assert!(!ended.stdout.contains("failed"), "{ended}");
        for (text, times) in [("Input/output error", 2), ("some text", 2)] {
            assert_eq!(ended.stdout.matches(text).count(), times, "{ended}");
        }
        assert_eq!(fs::read_to_string(folder.shared().join("new")).unwrap(), "1\n2\n");
        for line in ["Start it again, and mount anew", "start it first", "it is served again"] {
            assert_eq!(ended.stderr.matches(line).count(), 2, "{ended}");
        }
    }
}

const READER: &str = "
mkdir /tmp/shared; mount -t virtiofs myfs /tmp/shared || echo failed: mount
cat /tmp/shared/text
cat /tmp/shared/text > /tmp/shared/copy
umount /tmp/shared
";

/// What QEMU needs for a daemon.
#[test]
fn memory_that_an_object_shares_is_the_daemon_s_too() {
    let scratch = tempfile::tempdir().unwrap();
    let init = initramfs(scratch.path(), "reader", &FOLDERS, READER);
    let folder = Folder::new();
    fs::write(folder.shared().join("text"), "some text\n").unwrap();
    let mut command = folder.command(Boot::Firmware, &init, "console=ttyS0 quiet");
    command.args(["-object", "memory-backend-memfd,id=mem,size=256M,share=on"]);
    command.args(["-numa", "node,memdev=mem"]);
    let ended = run(&mut command, b"", DEADLINE);
    assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""), "{ended}");
    assert!(ended.stdout.contains("some text") && !ended.stdout.contains("failed"), "{ended}");
    assert_eq!(fs::read_to_string(folder.shared().join("copy")).unwrap(), "some text\n");
}

/// Mounts, and restarts the machine once.
const RESTARTER: &str = "
mkdir /tmp/shared; mount -t virtiofs myfs /tmp/shared || echo failed: mount
echo life $(cat /tmp/shared/lives)
echo x >> /tmp/shared/lives
sync
[ $(wc -l < /tmp/shared/lives) -gt 2 ] || reboot -f
";

#[test]
fn a_restarted_guest_finds_its_folder_again() {
    let scratch = tempfile::tempdir().unwrap();
    let init = initramfs(scratch.path(), "restarter", &FOLDERS, RESTARTER);
    let folder = Folder::new();
    fs::write(folder.shared().join("lives"), "x\n").unwrap();
    let ended =
        run(&mut folder.command(Boot::Firmware, &init, "console=ttyS0 quiet"), b"", DEADLINE);
    assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""), "{ended}");
    assert!(ended.stdout.contains("life x x"), "{ended}");
    assert_eq!(fs::read_to_string(folder.shared().join("lives")).unwrap(), "x\nx\nx\n");
}
