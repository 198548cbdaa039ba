//! `microvm run`: a folder becomes a machine, and a command runs in it.
//!
//! Needs a /dev/kvm that runs kernel code natively, and root on a machine with FUSE: the nested lab
//! is one.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use regression::busybox::host;
use regression::products::{VIRTIOFSD, busybox, is_full, kernel, module, product, virtiofsds};
use regression::program::{Ended, Guest, run, run_signalled};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};

/// A lab takes minutes for a file of 1 GiB.
const DEADLINE: Duration = Duration::from_secs(500);

/// A root folder: a shell, and little else.
fn root() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let bin = root.path().join("bin");
    fs::create_dir(&bin).unwrap();
    fs::copy(busybox(), bin.join("busybox")).unwrap();
    for name in host(&["--list"]).lines().filter(|name| *name != "busybox") {
        symlink("busybox", bin.join(name)).unwrap();
    }
    fs::write(root.path().join("no-program"), "text").unwrap();
    root
}

/// `microvm run`, for options to be added.
fn microvm() -> Command {
    microvm_by(Path::new(VIRTIOFSD))
}

fn microvm_by(virtiofsd: &Path) -> Command {
    let mut command = Command::new(product("microvm"));
    command.args(["run", "--kernel"]).arg(kernel()).arg("--virtiofsd").arg(virtiofsd);
    command
}

/// Runs a shell's script in a root, with these options.
fn sh(root: &Path, options: &[&str], script: &str, input: &[u8]) -> Ended {
    sh_by(Path::new(VIRTIOFSD), root, options, script, input)
}

fn sh_by(virtiofsd: &Path, root: &Path, options: &[&str], script: &str, input: &[u8]) -> Ended {
    let mut command = microvm_by(virtiofsd);
    command.args(options).arg(root).args(["--", "sh", "-c", script]);
    run(&mut command, input, DEADLINE)
}

/// What processes and files of ours there are.
fn leftovers() -> Vec<String> {
    let name = |process: PathBuf| fs::read_to_string(process.join("comm")).ok();
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| name(entry.unwrap().path()));
    let processes = processes.filter(|name| name.starts_with("virtiofsd"));
    let files = fs::read_dir(std::env::temp_dir()).unwrap();
    let files = files.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    processes.chain(files.filter(|name| name.starts_with("microvm-"))).collect()
}

#[test]
fn a_command_s_files_and_status_are_as_without_a_machine() {
    let root = root();
    // Not text, and no newline at the end.
    let script = "printf 'a\\000\\377\\r\\nb'; printf 'no\\tnews' >&2; exit 7";
    let mut command = microvm();
    command.arg(root.path()).args(["sh", "-c", script]).stdin(Stdio::null());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert_eq!((output.stdout, output.stderr), (b"a\0\xff\r\nb".into(), b"no\tnews".into()));
    assert_eq!(leftovers(), Vec::<String>::new());
}

#[test]
fn what_is_no_text_reaches_the_command_as_it_is() {
    let (root, place) = (root(), tempfile::tempdir().unwrap());
    let odd = OsStr::from_bytes(b"a\xff,,b=\xfe");
    let sockets = place.path().join(odd);
    fs::create_dir(&sockets).unwrap();
    let log = sockets.join("log");
    let mut command = microvm();
    command.env("TMPDIR", &sockets).env("OWN", odd).arg("--kernel-log").arg(&log);
    command.args(["--env", "OWN", "--env"]).arg(OsStr::from_bytes(b"GIVEN=\xfd"));
    command.arg(root.path()).args(["sh", "-c", "printf %s \"$OWN:$GIVEN:$1\"", "sh"]);
    command.arg(OsStr::from_bytes(b"\xfc")).stdin(Stdio::null());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(output.stdout, [odd.as_bytes(), b":\xfd:\xfc"].concat(), "{output:?}");
    assert!(fs::read_to_string(&log).unwrap().contains("Linux version"));
    // The sockets are gone, the log stays.
    assert_eq!(fs::read_dir(&sockets).unwrap().count(), 1);
}

/// The host's in /boot, or the one that was fetched where the program was built.
#[test]
fn a_kernel_is_found_that_nobody_gave() {
    let root = root();
    let mut command = Command::new(product("microvm"));
    command.args(["run", "--virtiofsd", VIRTIOFSD]).arg(root.path()).args(["echo", "ran"]);
    let ended = run(&mut command, b"", DEADLINE);
    assert_eq!((ended.status, ended.stdout.as_str()), (Some(0), "ran\n"), "{ended}");
}

#[test]
fn what_a_kernel_lacks_is_named() {
    let root = root();
    let check = |modules: &Path, named: &str| {
        let ended = sh(root.path(), &["--modules", modules.to_str().unwrap()], "true", b"");
        assert_eq!(ended.status, Some(125), "{ended}");
        assert!(ended.stderr.contains(named), "{ended}");
    };
    // A kernel whose modules are listed, and that has all others built in.
    for (lacking, option) in [("virtiofs", "CONFIG_VIRTIO_FS"), ("overlay", "CONFIG_OVERLAY_FS")] {
        let folder = tempfile::tempdir().unwrap();
        let names = ["virtio_mmio", "virtio_console", "virtiofs", "overlay"];
        let there = names.iter().filter(|name| **name != lacking);
        let list: String = there.map(|name| format!("kernel/{name}.ko\n")).collect();
        fs::write(folder.path().join("modules.builtin"), list).unwrap();
        fs::write(folder.path().join("modules.dep"), "").unwrap();
        check(folder.path(), &format!("has no {lacking}: use one that is built with {option}"));
    }
    // One of which nobody knows until it runs.
    let folder = tempfile::tempdir().unwrap();
    for name in [
        "drivers/virtio/virtio_ring",
        "drivers/virtio/virtio",
        "drivers/virtio/virtio_mmio",
        "drivers/char/virtio_console",
        "fs/fuse/fuse",
        "fs/fuse/virtiofs",
    ] {
        let file = module(name);
        fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
    }
    check(folder.path(), "the kernel lacks CONFIG_OVERLAY_FS");
    // Nothing is known of this one's devices: all there is to show is what it says.
    fs::remove_file(folder.path().join("virtio_mmio.ko")).unwrap();
    check(folder.path(), "CONFIG_VIRTIO_MMIO");
}

#[test]
fn a_kernel_s_last_words_are_told_and_no_more() {
    let (root, place) = (root(), tempfile::tempdir().unwrap());
    let log = place.path().join("log");
    fs::write(&log, "an earlier run\n").unwrap();
    let dies = "echo c > /proc/sysrq-trigger";
    let ended = sh(root.path(), &["--kernel-log", log.to_str().unwrap()], dies, b"");
    assert_eq!(ended.status, Some(125), "{ended}");
    let panic = "Kernel panic - not syncing: sysrq";
    assert!(ended.stderr.contains(panic) && !ended.stderr.contains("an earlier run"), "{ended}");
    let kept = fs::read_to_string(&log).unwrap();
    assert!(kept.starts_with("an earlier run\n") && kept.contains(panic), "{kept}");
    // More than anybody wants to read.
    let ended = sh(root.path(), &[], &format!("seq 100001 111000 >/dev/ttyS0; {dies}"), b"");
    assert_eq!(ended.status, Some(125), "{ended}");
    assert!(ended.stderr.contains(panic) && ended.stderr.contains("guest: 111000"), "{ended}");
    assert!(!ended.stderr.contains("guest: 100001"), "{ended}");
}

#[test]
fn input_reaches_the_command_to_its_end_both_ways_at_once() {
    let root = root();
    let input: Vec<u8> = (0..3_000_000_u32).map(|n| (n / 7).to_le_bytes()[0] & 0x7f).collect();
    let ended = sh(root.path(), &[], "cat", &input);
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.as_bytes() == input, "{} bytes", ended.stdout.len());
    // Who reads nothing does not stop anything.
    let ended = sh(root.path(), &[], "exec <&-; sleep 1; echo done", &input);
    assert_eq!((ended.status, ended.stdout.as_str()), (Some(0), "done\n"), "{ended}");
}

#[test]
fn a_reader_that_takes_its_time_gets_all_of_it() {
    let root = root();
    let mut command = microvm();
    command.arg(root.path()).args(["sh", "-c", "seq 1 60000; exit 5"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut seen = vec![0; 100];
    output.read_exact(&mut seen).unwrap();
    // The command has long ended by then.
    thread::sleep(Duration::from_secs(4));
    output.read_to_end(&mut seen).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(5));
    let expected: String = (1..=60_000).map(|number| format!("{number}\n")).collect();
    assert!(seen == expected.as_bytes(), "{} bytes of {}", seen.len(), expected.len());
}

#[test]
fn the_command_finds_what_it_was_promised() {
    let root = root();
    let script = "echo $A-$B; pwd; hostname; id -u; ping -c 1 127.0.0.1 >/dev/null && echo lo; \
                  echo x >/dev/null && echo y | cat /dev/stdin; ls /dev/pts/ptmx; df /dev/shm \
                  >/dev/null && echo shm; nproc";
    let options =
        ["--env", "A=1 2", "--env", "B=x=y", "--workdir", "/bin", "--cpus", "2", "--memory=192M"];
    let ended = sh(root.path(), &options, script, b"");
    let expected = "1 2-x=y\n/bin\nmicrovm\n0\nlo\ny\n/dev/pts/ptmx\nshm\n2\n";
    assert_eq!((ended.status, ended.stdout.as_str()), (Some(0), expected), "{ended}");
}

#[test]
fn an_end_that_is_not_the_command_s_own_choice_has_a_shell_s_status() {
    let root = root();
    for (words, status, line) in [
        (&["no-such"][..], 127, "microvm: no-such: "),
        (&["/no-program"], 126, "microvm: /no-program: "),
        (&["sh", "-c", "kill -9 $$"], 137, ""),
        (&["sh", "-c", "sleep 100 & exit 3"], 3, ""),
        (&["sh", "-c", "while :; do echo more; done & exit 4"], 4, ""),
    ] {
        let mut command = microvm();
        command.arg(root.path()).args(words);
        let ended = run(&mut command, b"", DEADLINE);
        assert_eq!(ended.status, Some(status), "{ended}");
        assert!(ended.stderr.contains(line), "{ended}");
    }
    let ended = sh(root.path(), &["--workdir", "/none"], "true", b"");
    assert_eq!(ended.status, Some(127), "{ended}");
    // A reader that has read enough ends who writes.
    let mut command = microvm();
    command.arg(root.path()).args(["yes"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0; 100]).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(128 + 13));
}

#[test]
fn a_signal_is_the_command_s() {
    let root = root();
    let script = "trap 'echo got it; exit 5' TERM; echo ready; while :; do sleep 0.1; done";
    let mut command = microvm();
    command.arg(root.path()).args(["sh", "-c", script]);
    let ended = run_signalled(&mut command, "ready", "TERM", DEADLINE);
    assert_eq!((ended.status, ended.stdout.as_str()), (Some(5), "ready\ngot it\n"), "{ended}");
}

/// Tries to write to its root by every way that there is.
const VANDAL: &str = "
echo new > /new; rm /no-program; cat /new
mkdir /again; mount -t virtiofs root /again; echo vandal > /again/vandal; rm /again/no-program
mount -o remount,rw /again; echo vandal > /again/vandal; ls /again
";

#[test]
fn a_root_stays_as_it_was_unless_it_is_writable() {
    virtiofsds().iter().for_each(|virtiofsd| check_root(virtiofsd));
}

fn check_root(virtiofsd: &Path) {
    let root = root();
    let ended = sh_by(virtiofsd, root.path(), &[], VANDAL, b"");
    assert!(ended.stdout.starts_with("new\n") && ended.stdout.contains("no-program"), "{ended}");
    assert!(ended.stderr.contains("Read-only file system"), "{ended}");
    let names = || {
        let names = fs::read_dir(root.path()).unwrap();
        let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(), ["bin", "no-program"]);
    let ended = sh_by(virtiofsd, root.path(), &["--writable"], "echo new > /new", b"");
    assert_eq!(ended.status, Some(0), "{ended}");
    assert_eq!(fs::read(root.path().join("new")).unwrap(), b"new\n");
    assert!(names().iter().any(|name| name == "no-program"));
}

/// QEMU's, which older distributions have where others have the one in Rust.
#[test]
fn a_virtiofsd_is_known_by_what_it_says() {
    let (root, place) = (root(), tempfile::tempdir().unwrap());
    let virtiofsd = place.path().join("virtiofsd");
    let check = || {
        let ended = sh_by(&virtiofsd, root.path(), &[], VANDAL, b"");
        assert!(ended.stdout.starts_with("new\n"), "{ended}");
        assert!(ended.stderr.contains("Read-only file system"), "{ended}");
        assert!(!root.path().join("vandal").exists());
    };
    fs::copy(VIRTIOFSD, &virtiofsd).unwrap();
    check();
    // The one in Rust as it was before it had --readonly, which would end it.
    for newer in virtiofsds().iter().skip(1) {
        let newer = newer.display();
        let older = format!(
            "#!/bin/sh\ncase \"$*\" in\n--version) echo virtiofsd 1.12.0;;\n\
             *--readonly*) exit 2;;\n*) exec {newer} \"$@\";;\nesac\n"
        );
        fs::remove_file(&virtiofsd).unwrap();
        fs::write(&virtiofsd, older).unwrap();
        fs::set_permissions(&virtiofsd, fs::Permissions::from_mode(0o755)).unwrap();
        check();
    }
}

#[test]
fn a_folder_that_is_hidden_is_not_to_be_more_than_it_was() {
    let (root, volume) = (root(), tempfile::tempdir().unwrap());
    let path = volume.path().to_str().unwrap();
    host(&["mount", "-t", "tmpfs", "-o", "nosuid,nodev,noexec", "none", path]);
    let mut command = microvm();
    command.args(["--volume", &format!("{path}:/volume:ro")]);
    command.arg(root.path()).args(["sh", "-c", "echo ready; read line"]);
    let mut guest = Guest::start(&mut command);
    guest.wait_for("ready", DEADLINE);
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", last_virtiofsd(&guest)));
    guest.write(b"\n");
    let ended = guest.end(DEADLINE);
    host(&["umount", path]);
    assert_eq!(ended.status, Some(0), "{ended}");
    let mounts = mounts.unwrap();
    assert!(mounts.contains(" / ro,nosuid,nodev,noexec,"), "{mounts}");
}

/// Small files, and bytes of the large one: what is asked for takes long in a lab.
fn amount() -> (usize, usize) {
    if is_full() { (10_000, 1 << 30) } else { (1_000, 32 << 20) }
}

#[test]
fn volumes_carry_many_files_and_a_large_one() {
    virtiofsds().iter().for_each(|virtiofsd| check_volumes(virtiofsd));
}

fn check_volumes(virtiofsd: &Path) {
    let (count, size) = amount();
    let (root, volume) = (root(), tempfile::tempdir().unwrap());
    let many = volume.path().join("many");
    fs::create_dir(&many).unwrap();
    for number in 0..count {
        fs::write(many.join(format!("{number:05}")), number.to_string().repeat(50)).unwrap();
    }
    let mut big = File::create(volume.path().join("big")).unwrap();
    let piece: Vec<u8> = (0..1 << 20).map(|n: u32| (n / 251).to_le_bytes()[0]).collect();
    (0..size >> 20).for_each(|_| big.write_all(&piece).unwrap());
    drop(big);
    let script = "cd /volume && find many -type f | sort | xargs cat | md5sum && md5sum < big \
                  && cp -r many copies && cp big copy && echo x > /fixed/x";
    let [volumes, fixed] =
        ["/volume", "/fixed:ro"].map(|guest| format!("{}:{guest}", volume.path().display()));
    let options = ["--memory", "384M", "--volume", &volumes, "--volume", &fixed];
    let ended = sh_by(virtiofsd, root.path(), &options, script, b"");
    // The last step is refused.
    assert_eq!(ended.status, Some(1), "{ended}");
    assert!(ended.stderr.contains("Read-only file system"), "{ended}");
    let sums = |names: [&str; 2]| {
        let script = format!(
            "cd {} && find {} -type f | sort | xargs cat | md5sum && md5sum < {}",
            volume.path().display(),
            names[0],
            names[1]
        );
        host(&["sh", "-c", &script])
    };
    assert_eq!(ended.stdout, sums(["many", "big"]));
    assert_eq!(ended.stdout, sums(["copies", "copy"]));
}

#[test]
fn volumes_have_any_name_and_lie_within_each_other() {
    let (root, place) = (root(), tempfile::tempdir().unwrap());
    let folder = |name: &str, text: &str| {
        let folder = place.path().join(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("text"), text).unwrap();
        folder.into_os_string().into_string().unwrap()
    };
    let odd = folder("a\\b, c", "right");
    folder("ab", "wrong");
    folder("ab, c", "wrong");
    let inner = folder("inner", "inner");
    fs::create_dir(place.path().join("a\\b, c/in")).unwrap();
    let options = [format!("{inner}:/v/in:ro"), format!("{odd}:/v:ro")];
    let options = ["--volume", &options[0], "--volume", &options[1]];
    let script = "cat /v/text /v/in/text; mkdir /w; mount -t virtiofs volume0 /w; echo >/w/vandal";
    let ended = sh(root.path(), &options, script, b"");
    assert_eq!((ended.status, ended.stdout.as_str()), (Some(1), "rightinner"), "{ended}");
    assert!(ended.stderr.contains("Read-only file system"), "{ended}");
}

/// What processes and files of ours there are after a moment.
fn leftovers_soon() -> Vec<String> {
    let since = Instant::now();
    while !leftovers().is_empty() && since.elapsed() < Duration::from_secs(5) {
        thread::sleep(Duration::from_millis(50));
    }
    leftovers()
}

#[test]
fn who_is_killed_leaves_no_process_behind() {
    let (root, volume) = (root(), tempfile::tempdir().unwrap());
    for milliseconds in [20, 60, 150, 400, 5000] {
        let mut command = microvm();
        command.arg("--volume").arg(format!("{}:/volume:ro", volume.path().display()));
        command.arg(root.path()).args(["sleep", "100"]);
        let mut child = command.spawn().unwrap();
        thread::sleep(Duration::from_millis(milliseconds));
        child.kill().unwrap();
        child.wait().unwrap();
        // Its folder of sockets is there if it was killed before the machine was connected.
        let left = leftovers_soon();
        assert!(!left.iter().any(|name| name.starts_with("virtiofsd")), "{milliseconds}: {left:?}");
        for name in left {
            fs::remove_dir_all(std::env::temp_dir().join(name)).unwrap();
        }
    }
}

#[test]
fn a_virtiofsd_that_dies_under_load_leaves_nobody_waiting() {
    let (root, volume) = (root(), tempfile::tempdir().unwrap());
    let big = File::create(volume.path().join("big")).unwrap();
    big.set_len(64 << 20).unwrap();
    let script = "for n in 1 2 3 4 5 6; do
                      (while dd if=/volume/big of=/dev/null bs=16k iflag=direct skip=$n 2>/tmp/$n
                      do echo one; done) &
                  done; wait; cat /tmp/[1-6] | grep -c Input/output; exit 9";
    let mut command = microvm();
    command.args(["--cpus", "2", "--volume"]).arg(format!("{}:/volume", volume.path().display()));
    command.arg(root.path()).args(["sh", "-c", &format!("mkdir -p /tmp; {script}")]);
    let mut guest = Guest::start(&mut command);
    guest.wait_for("one", DEADLINE);
    kill_last_virtiofsd(&guest);
    let ended = guest.end(Duration::from_secs(60));
    assert_eq!(ended.status, Some(9), "{ended}");
    assert!(ended.stdout.ends_with("6\n"), "{ended}");
}

/// The root's came first; each has a process in a namespace of its own.
fn last_virtiofsd(guest: &Guest) -> String {
    let last_child = |pid: &str| {
        let children = host(&["sh", "-c", &format!("cat /proc/{pid}/task/*/children")]);
        children.split_ascii_whitespace().last().unwrap().to_owned()
    };
    last_child(&last_child(&guest.pid().to_string()))
}

fn kill_last_virtiofsd(guest: &Guest) {
    host(&["kill", "-9", &last_virtiofsd(guest)]);
}

#[test]
fn a_virtiofsd_that_dies_is_an_error_in_the_guest() {
    virtiofsds().iter().for_each(|virtiofsd| check_death(virtiofsd));
}

fn check_death(virtiofsd: &Path) {
    let (root, volume) = (root(), tempfile::tempdir().unwrap());
    let script = "while dd if=/dev/zero of=/volume/x bs=64k count=64 2>/tmp/said; do echo one; done
                  grep error /tmp/said; echo lives; exit 9";
    let mut command = microvm_by(virtiofsd);
    command.arg("--volume").arg(format!("{}:/volume", volume.path().display()));
    command.arg(root.path()).args(["sh", "-c", &format!("mkdir -p /tmp; {script}")]);
    let mut guest = Guest::start(&mut command);
    guest.wait_for("one\none\n", DEADLINE);
    kill_last_virtiofsd(&guest);
    let ended = guest.end(DEADLINE);
    assert_eq!(ended.status, Some(9), "{ended}");
    assert!(ended.stdout.contains("Input/output error\nlives"), "{ended}");
    assert!(ended.stderr.contains("'volume0': virtiofsd"), "{ended}");
    // Nobody can: its socket is gone.
    assert!(!ended.stderr.contains("tart it"), "{ended}");
    assert_eq!(leftovers(), Vec::<String>::new());
}

/// A terminal: who looks at its screen and types, and what is on it.
struct Screen {
    ours: File,
    theirs: OwnedFd,
}

impl Screen {
    fn new(rows: u16, columns: u16) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let ours = openpt(flags).unwrap();
        unlockpt(&ours).unwrap();
        let theirs = ioctl_tiocgptpeer(&ours, flags).unwrap();
        let screen = Self { ours: ours.into(), theirs };
        screen.resize(rows, columns);
        screen
    }

    fn resize(&self, ws_row: u16, ws_col: u16) {
        tcsetwinsize(&self.ours, Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    }

    /// Its mode, in all that people would notice.
    fn mode(&self) -> String {
        format!("{:?}", tcgetattr(&self.theirs).unwrap())
    }

    /// Starts `microvm run` of a shell's script on it.
    fn start(&self, root: &Path, script: &str) -> Child {
        let mut command = microvm();
        command.arg(root).args(["sh", "-c", script]).env("TERM", "vt100");
        let end = || Stdio::from(self.theirs.try_clone().unwrap());
        command.stdin(end()).stdout(end()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Reads until the text is on it; all that was.
    fn read_until(&mut self, text: &str) -> String {
        let mut seen = String::new();
        let mut bytes = [0; 4096];
        while !seen.contains(text) {
            let count = self.ours.read(&mut bytes).unwrap();
            seen += &String::from_utf8_lossy(&bytes[..count]);
        }
        seen
    }
}

#[test]
fn a_terminal_is_the_command_s() {
    let root = root();
    let mut screen = Screen::new(33, 77);
    let before = screen.mode();
    let script = "tty; stty size; echo $TERM; trap 'echo; echo interrupted' INT; \
                  echo elsewhere >&2; echo ready; sleep 100; stty size; \
                  stty -opost; printf 'a\nb'; exit 4";
    let child = screen.start(root.path(), script);
    let first = screen.read_until("ready\r\n");
    screen.resize(10, 20);
    host(&["kill", "-WINCH", &child.id().to_string()]);
    thread::sleep(Duration::from_millis(500));
    screen.ours.write_all(b"\x03").unwrap();
    let second = screen.read_until("\nb");
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(4), "{first}{second}");
    assert_eq!(ended.stderr, b"elsewhere\n");
    assert_eq!(first, "/dev/pts/0\r\n33 77\r\nvt100\r\nready\r\n");
    // Not a byte is changed on the way: the guest's terminal begins new lines, or does not.
    assert_eq!(second, "^C\r\ninterrupted\r\n10 20\r\na\nb");
    assert_eq!(screen.mode(), before);
}

#[test]
fn a_terminal_is_as_before_when_the_machine_fails() {
    let root = root();
    let screen = Screen::new(25, 80);
    let before = screen.mode();
    let ended = screen.start(root.path(), "poweroff -f; sleep 100").wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(125), "{ended:?}");
    assert_eq!(screen.mode(), before);
}

#[test]
fn a_terminal_that_goes_away_hangs_the_command_up() {
    let root = root();
    let mut screen = Screen::new(25, 80);
    let child = screen.start(root.path(), "echo ready; sleep 1000");
    screen.read_until("ready");
    drop(screen);
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(128 + 1));
}

#[test]
fn a_key_s_signal_is_for_all_that_the_command_has_started() {
    let root = root();
    let mut command = microvm();
    command.arg(root.path()).args(["sh", "-c", "echo ready; sleep 1000; echo never"]);
    let ended = run_signalled(&mut command, "ready", "INT", DEADLINE);
    assert_eq!((ended.status, ended.stdout.as_str()), (Some(128 + 2), "ready\n"), "{ended}");
}

#[test]
fn what_is_wrong_is_one_line_and_status_125() {
    let (root, place) = (root(), tempfile::tempdir().unwrap());
    let folder = root.path().to_str().unwrap();
    let short_lived = place.path().join("virtiofsd");
    fs::write(&short_lived, "#!/bin/sh\necho no such luck >&2\nexit 3\n").unwrap();
    fs::set_permissions(&short_lived, fs::Permissions::from_mode(0o755)).unwrap();
    let short_lived = short_lived.to_str().unwrap();
    for (words, named) in [
        (&["--kernel", "/none", folder, "true"][..], "the kernel '/none'"),
        (&["--modules", "/none", folder, "true"], "'/none'"),
        (&["--virtiofsd", "/none", folder, "true"], "virtiofsd '/none'"),
        (&["--memory", "many", folder, "true"], "many"),
        (&["--cpus", "0", folder, "true"], "-smp"),
        (&["--boot-trace", "/tmp", folder, "true"], "-boot-trace '/tmp'"),
        (&["--virtiofsd", short_lived, folder, "true"], "no such luck\nmicrovm: virtiofsd of '"),
        (
            &["--virtiofsd", short_lived, folder, "true"],
            "before its machine came: exit status: 3\n",
        ),
        (&[folder, "poweroff", "-f"], "the guest ended before the command did: power off"),
        (
            &[folder, "sh", "-c", "echo c > /proc/sysrq-trigger"],
            "Kernel panic - not syncing: sysrq",
        ),
    ] {
        let mut command = microvm();
        let ended = run(command.args(words), b"", DEADLINE);
        assert_eq!(ended.status, Some(125), "{ended}");
        assert!(ended.stderr.contains(named), "{ended}");
        assert_eq!(leftovers(), Vec::<String>::new(), "{words:?}");
    }
}
