//! What a user is told: one line with what is wrong and what to do; status 1.

use std::process::Command;
use std::time::Duration;

use regression::products::product;
use regression::program::{Ended, run};

const DEADLINE: Duration = Duration::from_secs(30);

fn microvm(arguments: &[&str]) -> Ended {
    run(Command::new(product("microvm")).args(arguments), b"", DEADLINE)
}

/// One line on standard error, which holds all of `words`; status 1.
fn check(arguments: &[&str], words: &[&str]) {
    let ended = microvm(arguments);
    assert_eq!(ended.status, Some(1), "{ended}");
    assert_eq!(ended.stderr.lines().count(), 1, "{ended}");
    assert!(ended.stderr.starts_with("microvm: "), "{ended}");
    // The cause at the end is told once.
    let mut parts = ended.stderr.trim_end().rsplit(": ");
    assert_ne!(parts.next(), parts.next(), "{ended}");
    for word in words {
        assert!(ended.stderr.contains(word), "{word:?} is missing: {ended}");
    }
}

#[test]
fn an_option_that_is_not_ours_is_named() {
    check(&["-M", "microvm", "-frobnicate"], &["-frobnicate"]);
    check(&["-M", "pc"], &["pc", "microvm"]);
    check(&["-accel", "tcg"], &["tcg", "kvm"]);
    check(&["-device", "vfio-pci,host=01:00.0"], &["vfio-pci"]);
    check(&["-incoming", "tcp:0:4444"], &["-incoming"]);
    check(&["-m", "lots"], &["-m", "lots"]);
    check(&["-smp", "0"], &["-smp"]);
    check(&["-fw_cfg", "name=opt/x"], &["-fw_cfg"]);
    check(&["-kernel"], &["-kernel"]);
}

#[test]
fn a_file_that_is_missing_or_no_kernel_is_named() {
    check(&["-M", "microvm", "-kernel", "/nonexistent/vmlinuz"], &["/nonexistent/vmlinuz"]);
    let text = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(text.path(), "#!/bin/sh\n".repeat(1000)).unwrap();
    let path = text.path().to_str().unwrap();
    check(&["-M", "microvm", "-kernel", path], &[path, "bzImage"]);
    check(&["-M", "microvm", "-bios", path, "-kernel", path], &[path]);
    check(&["-M", "microvm"], &["-kernel"]);
    let bios = product("bios-microvm.bin");
    check(&["-bios", bios.to_str().unwrap(), "-kernel", "/"], &["/"]);
}

/// Opening a pipe waits for its other end: it must be refused before that.
#[test]
fn a_pipe_is_refused_and_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let path = pipe.to_str().unwrap();
    let payload = product("payload.bzImage");
    check(&["-kernel", path], &[path, "regular file"]);
    check(&["-bios", path], &[path, "regular file"]);
    check(&["-kernel", payload.to_str().unwrap(), "-initrd", path], &[path, "regular file"]);
}

/// What a file is shows in its bytes: a bzImage may be called vmlinux.
#[test]
fn an_elf_that_cannot_be_entered_is_told_why_and_a_name_means_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vmlinux");
    let mut elf = std::fs::read(product("payload.elf")).unwrap();
    let note = elf.windows(4).position(|bytes| bytes == b"Xen\0").unwrap();
    elf[note] = b'Y';
    std::fs::write(&path, elf).unwrap();
    let kernel = path.to_str().unwrap();
    check(&["-kernel", kernel], &[kernel, "no PVH entry note", "CONFIG_PVH=y", "bzImage"]);
    std::fs::copy(product("payload.bzImage"), &path).unwrap();
    // It gets as far as to the next mistake.
    check(&["-kernel", kernel, "-initrd", "/nonexistent/initrd"], &["/nonexistent/initrd"]);
}

#[test]
fn what_the_host_refuses_is_told_once() {
    let payload = product("payload.bzImage");
    let kernel = payload.to_str().unwrap();
    let gone = "/nonexistent/x";
    for option in [
        ["-qmp", "unix:/nonexistent/x,server"],
        ["-qmp", "unix:/nonexistent/x"],
        ["-pidfile", gone],
        ["-D", gone],
        ["-serial", "file:/nonexistent/x"],
        ["-serial", "unix:/nonexistent/x,server"],
        ["-serial", "unix:/nonexistent/x"],
        ["-serial", "pipe:/nonexistent/x"],
        ["-boot-trace", gone],
        ["-initrd", gone],
        ["-bios", gone],
        ["-mem-path", gone],
    ] {
        let line =
            ["-m", "64M", "-kernel", kernel, "-append", "leave=power-off", option[0], option[1]];
        check(&line, &[option[0], gone]);
    }
    let twice = ["-m", "64M", "-kernel", kernel, "-device", "isa-debug-exit,iobase=0x3f8"];
    check(&twice, &["-device: isa-debug-exit at 0x3f8 overlaps COM1"]);
    let device = ["-device", "virtio-rng-device,rng=r"];
    let object = ["-object", "rng-random,id=r,filename=/nonexistent/x"];
    let line = [&["-m", "64M", "-kernel", kernel][..], &device, &object].concat();
    check(&line, &["-device virtio-rng-device", gone]);
    let device = ["-device", "vhost-user-fs-device,chardev=c,tag=myfs"];
    let chardev = ["-chardev", "socket,id=c,path=/nonexistent/x"];
    let line = [&["-m", "64M", "-kernel", kernel][..], &device, &chardev].concat();
    let advice = "start it first, with --socket-path=/nonexistent/x";
    check(&line, &["-device vhost-user-fs-device: no virtiofsd at", gone, advice]);
}

#[test]
fn a_socket_takes_no_file_s_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("precious");
    std::fs::write(&path, "data").unwrap();
    let (kernel, qmp) = (product("payload.bzImage"), format!("unix:{},server", path.display()));
    let ended = microvm(&["-m", "64M", "-kernel", kernel.to_str().unwrap(), "-qmp", &qmp]);
    assert_eq!(ended.status, Some(1), "{ended}");
    assert!(ended.stderr.contains("no socket is there"), "{ended}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "data");
}

/// A header that no loader can follow is refused before the machine is made, on both paths.
#[test]
fn a_kernel_with_a_broken_header_is_told_what_is_broken() {
    let bios = product("bios-microvm.bin");
    for (at, bytes, said) in [
        (0x206, &[1u8, 2][..], "boot protocol 2.01 is older than 2.02"),
        (0x1f4, &[0, 0, 1, 0], "it is cut off"),
    ] {
        let mut image = std::fs::read(product("payload.bzImage")).unwrap();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        let kernel = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(kernel.path(), image).unwrap();
        let path = kernel.path().to_str().unwrap();
        check(&["-kernel", path], &[path, said]);
        check(&["-bios", bios.to_str().unwrap(), "-kernel", path], &[path, said]);
    }
}

#[test]
fn help_and_version_go_to_standard_output() {
    for (arguments, word) in [
        (&["-help"][..], "-kernel"),
        (&["-version"], "microvm"),
        (&["-M", "help"], "microvm"),
        (&["-accel", "help"], "kvm: "),
    ] {
        let ended = microvm(arguments);
        assert_eq!(ended.status, Some(0), "{ended}");
        assert!(ended.stdout.contains(word) && ended.stderr.is_empty(), "{ended}");
    }
}
