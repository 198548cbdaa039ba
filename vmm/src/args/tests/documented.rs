//! Command lines that QEMU's documentation and its users have for `-M microvm`.
//!
//! Sources: QEMU, docs/system/i386/microvm.rst; microvm.nix; Kata Containers; the article that is
//! the origin of this project. Each is taken whole, or stops at an option that is not here yet, by
//! a line that names it.

use super::*;

/// What becomes of a command line.
enum Outcome {
    /// It is taken.
    Taken,
    /// It stops at this option.
    StopsAt(&'static str),
}

use Outcome::{StopsAt, Taken};

fn check(line: &str, expected: &Outcome) {
    let words = line.split_whitespace().map(|word| OsString::from(word.replace('~', " ")));
    match (parse(words), expected) {
        (Ok(Request::Run(_)), Taken) => {}
        (Err(error), StopsAt(option)) => {
            assert!(error.to_string().starts_with(&format!("{option}: ")), "{line}\n{error}");
        }
        (outcome, _) => panic!("{line}\n{outcome:?}"),
    }
}

/// The lines; a `~` stands for a space within a word.
const LINES: &[(&str, Outcome)] = &[
    // The article: the BIOS, and the BIOS by its machine property.
    (
        "-M microvm -bios b -kernel k -append console=ttyS0 -enable-kvm -cpu host -m 1G -smp 1 \
          -nodefaults -no-user-config -nographic -serial mon:stdio",
        Taken,
    ),
    ("-machine microvm,firmware=b,accel=kvm -kernel k -m 1G -display none -serial stdio", Taken),
    // microvm.rst, the first example, without its disk and network, and with them.
    (
        "-M microvm -enable-kvm -cpu host -m 512m -smp 2 -kernel vmlinux \
          -append earlyprintk=ttyS0~console=ttyS0~root=/dev/vda -nodefaults -no-user-config \
          -nographic -serial stdio",
        Taken,
    ),
    (
        "-M microvm -enable-kvm -cpu host -m 512m -smp 2 -kernel vmlinux -append root=/dev/vda \
          -nodefaults -no-user-config -nographic -serial stdio \
          -drive id=test,file=test.img,format=raw,if=none -device virtio-blk-device,drive=test \
          -netdev tap,id=tap0,script=no,downscript=no -device virtio-net-device,netdev=tap0",
        Taken,
    ),
    (
        "-M microvm -kernel k -netdev tap,id=n,fd=3,vhost=off -device \
          virtio-net-device,netdev=n,mac=02:00:00:00:00:01,host_mtu=9000,csum=off",
        Taken,
    ),
    (
        "-M microvm -kernel k -drive id=test,file=t.img,format=raw,if=none,cache=none,aio=native \
          -device virtio-blk-device,drive=test,serial=s,num-queues=2",
        Taken,
    ),
    (
        "-M microvm -kernel k -blockdev driver=file,node-name=f,filename=x \
          -blockdev driver=raw,node-name=d,file=f,read-only=on -device virtio-blk-device,drive=d",
        Taken,
    ),
    (
        "-M microvm -kernel k -blockdev \
          {\"driver\":\"raw\",\"node-name\":\"d\",\"file\":{\"driver\":\"file\",\
          \"filename\":\"x\"}} \
          -device {\"driver\":\"virtio-blk-device\",\"drive\":\"d\"}",
        Taken,
    ),
    (
        "-M microvm -kernel k -drive id=d,file=x,format=qcow2,if=none \
          -device virtio-blk-device,drive=d",
        StopsAt("-drive"),
    ),
    // microvm.rst, the minimal machine: its console is virtio.
    (
        "-M microvm,x-option-roms=off,pit=off,pic=off,isa-serial=off,rtc=off -enable-kvm -cpu host \
          -m 512m -smp 2 -kernel vmlinux -append console=hvc0 -nodefaults -no-user-config \
          -nographic -chardev stdio,id=virtiocon0 -device virtio-serial-device \
          -device virtconsole,chardev=virtiocon0",
        Taken,
    ),
    // microvm.rst, shutting down: a triple fault that ends the process.
    ("-M microvm -kernel k -append reboot=t -no-reboot -nographic", Taken),
    ("-M microvm -kernel k -action reboot=shutdown,panic=exit-failure -nographic", Taken),
    // Other spellings of the same.
    (
        "-accel kvm -M microvm,acpi=off,auto-kernel-cmdline=on -cpu max -m size=512M,maxmem=512M \
          -smp cpus=2,maxcpus=2 -kernel k -initrd i -append x -serial null",
        Taken,
    ),
    (
        "-M microvm -m 1G -kernel k -object memory-backend-memfd,id=mem,size=1G,share=on \
          -numa node,memdev=mem",
        Taken,
    ),
    (
        "-M microvm,memory-backend=mem -m 1G -kernel k \
          -object memory-backend-file,id=mem,size=1G,mem-path=/dev/shm,share=on",
        Taken,
    ),
    (
        "-M microvm -kernel k -chardev socket,id=char0,path=/tmp/v \
          -device vhost-user-fs-device,queue-size=1024,chardev=char0,tag=myfs",
        Taken,
    ),
    (
        "-M microvm -kernel k -m 1G -object memory-backend-memfd,id=mem,size=1G,share=on \
          -numa node,memdev=mem -chardev socket,id=char0,path=/tmp/v \
          -device vhost-user-fs-device,chardev=char0,tag=myfs",
        Taken,
    ),
    // virtiofsd could not map that memory.
    (
        "-M microvm -kernel k -m 1G -object memory-backend-ram,id=mem,size=1G \
          -numa node,memdev=mem -chardev socket,id=char0,path=/tmp/v \
          -device vhost-user-fs-device,chardev=char0,tag=myfs",
        StopsAt("-object mem"),
    ),
    (
        "-M microvm -kernel k -chardev pty,id=c -device vhost-user-fs-device,chardev=c,tag=t",
        StopsAt("-device"),
    ),
    (
        "-M microvm -kernel k -chardev socket,id=c,path=/v -device vhost-user-fs-device,chardev=c",
        StopsAt("-device"),
    ),
    ("-M microvm -kernel k -device vhost-vsock-device,guest-cid=3", Taken),
    (
        "-M microvm -kernel k -chardev socket,id=c,reconnect=0,path=/v \
         -device vhost-user-vsock-device,chardev=c",
        Taken,
    ),
    (
        "-M microvm -kernel k -object memory-backend-ram,id=mem,size=128M -numa node,memdev=mem \
         -chardev socket,id=c,path=/v -device vhost-user-vsock-device,chardev=c",
        StopsAt("-object mem"),
    ),
    ("-M microvm -kernel k -device vhost-user-vsock-device", StopsAt("-device")),
    (
        "-M microvm -kernel k -chardev pty,id=c -device vhost-user-vsock-device,chardev=c",
        StopsAt("-device"),
    ),
    (
        "-M microvm -kernel k -chardev socket,id=c,path=/v -device vhost-vsock-device,guest-cid=3 \
         -device vhost-user-vsock-device,chardev=c",
        StopsAt("-device"),
    ),
    ("-M microvm -kernel k -device vhost-vsock-device,guest-cid=2", StopsAt("-device")),
    ("-M microvm -kernel k -device virtio-balloon-device,free-page-reporting=on", Taken),
    ("-M microvm -kernel k -netdev user,id=n,hostfwd=tcp::2222-:22", StopsAt("-netdev")),
    // microvm.nix: control, names, the keyboard's reset line, the transport's version.
    (
        "-name guest -M microvm,accel=kvm:tcg,acpi=on,mem-merge=on,pit=off,pic=off,pcie=off \
          -kernel k",
        StopsAt("-M"),
    ),
    (
        "-name guest -M microvm,accel=kvm,acpi=on,mem-merge=on,pit=off,pic=off,pcie=off -m 512 \
          -smp 4 -nodefaults -no-user-config -no-reboot -kernel k -initrd i \
          -chardev stdio,id=stdio,signal=off -device i8042 -append x -nographic \
          -serial chardev:stdio -qmp unix:control.sock,server,nowait",
        Taken,
    ),
    ("-M microvm -global virtio-mmio.force-legacy=false -global microvm.acpi=off -kernel k", Taken),
    ("-M microvm -global virtio-mmio.force-legacy=true -kernel k", StopsAt("-global")),
    // Debug devices.
    ("-M microvm -kernel k -device isa-debug-exit,iobase=0xf4,iosize=4 -device pvpanic", Taken),
    ("-M microvm -kernel k -device isa-debugcon,iobase=0x402,chardev=d", StopsAt("-device")),
    ("-M microvm -kernel k -debugcon stdio", StopsAt("-debugcon")),
    ("-M microvm -kernel k -fw_cfg name=opt/org.example/x,string=y -fw_cfg opt/z,file=f", Taken),
    // The process.
    (
        "-M microvm -kernel k -S -qmp stdio -monitor none -pidfile p -D log -L dir \
          -name guest=g,process=p,debug-threads=on -rtc base=utc -overcommit mem-lock=off \
          -run-with async-teardown=on",
        Taken,
    ),
    (
        "-M microvm -kernel k -chardev socket,id=mon,path=s,server=on,wait=off \
          -mon chardev=mon,mode=control",
        Taken,
    ),
    // Consoles (QEMU, qemu-options.hx; the old spelling of libvirt and of many scripts).
    ("-M microvm -kernel k -nographic -serial pty", Taken),
    ("-M microvm -kernel k -serial unix:/tmp/c,server,nowait -monitor none", Taken),
    ("-M microvm -kernel k -chardev pty,id=charserial0 -serial chardev:charserial0", Taken),
    (
        "-M microvm -kernel k -chardev socket,id=c,path=/tmp/c,server=on,wait=off \
          -serial chardev:c",
        Taken,
    ),
    ("-M microvm -kernel k -chardev file,id=c,path=log,append=on -serial chardev:c", Taken),
    ("-M microvm -kernel k -chardev stdio,mux=on,id=c,signal=off -serial chardev:c", Taken),
    (
        "-M microvm -kernel k -chardev stdio,mux=on,id=c -serial chardev:c -mon chardev=c",
        StopsAt("-mon"),
    ),
    ("-M microvm -kernel k -serial tcp::4444,server", StopsAt("-serial")),
    ("-M microvm -kernel k -serial /dev/ttyS0", StopsAt("-serial")),
    ("-M microvm -kernel k -serial vc", StopsAt("-serial")),
    ("-M microvm -kernel k -sandbox on", StopsAt("-sandbox")),
    ("-M microvm -kernel k -s", StopsAt("-s")),
    ("-M microvm -kernel k -gdb tcp::1234", StopsAt("-gdb")),
    ("-M microvm -kernel k -dtb d", StopsAt("-dtb")),
    ("-M microvm -kernel k -daemonize", StopsAt("-daemonize")),
    ("-M microvm -kernel k -incoming tcp:0:4444", StopsAt("-incoming")),
    ("-M microvm,pcie=on -kernel k", StopsAt("-M")),
    ("-M microvm -kernel k -device vfio-pci,host=01:00.0", StopsAt("-device")),
];

#[test]
fn documented_command_lines_are_taken_or_stop_at_what_is_named() {
    for (line, expected) in LINES {
        check(line, expected);
    }
}
