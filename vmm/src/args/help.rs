//! What `-help` and its kin print, and why an option is refused.

use super::device::{KINDS, Kind};
use super::machine::PROPERTIES;
use crate::cpuid;

/// Options of QEMU that ask for something that is not here, by what they are about.
const REFUSED: [(&str, &[&str]); 13] = [
    (
        "there is one kind of disk: -drive id=ID,file=FILE,format=raw,if=none -device \
         virtio-blk-device,drive=ID",
        &[
            "-hda",
            "-hdb",
            "-hdc",
            "-hdd",
            "-cdrom",
            "-sd",
            "-mtdblock",
            "-fda",
            "-fdb",
            "-snapshot",
            "-iscsi",
            "-pflash",
        ],
    ),
    (
        "folders are shared by virtiofsd: -device vhost-user-fs-device, or microvm run",
        &["-virtfs", "-fsdev"],
    ),
    ("use -serial: the firmware prints on COM1", &["-debugcon"]),
    ("use -qmp", &["-qmp-pretty"]),
    ("there is no debugger stub: QEMU's -accel tcg has one", &["-s", "-gdb", "-singlestep"]),
    ("device trees are not for x86", &["-dtb"]),
    (
        "a machine's state is not saved or moved, by design: start it anew, that is quick",
        &["-incoming", "-loadvm", "-only-migratable", "-dump-vmstate", "-compat"],
    ),
    (
        "there is no display, sound, keyboard or USB: use -serial",
        &[
            "-audio",
            "-audio-help",
            "-audiodev",
            "-full-screen",
            "-k",
            "-portrait",
            "-rotate",
            "-soundhw",
            "-spice",
            "-usb",
            "-usbdevice",
            "-vnc",
            "-win2k-hack",
            "-echr",
        ],
    ),
    (
        "the machine's tables are its own: leave it out",
        &["-acpitable", "-smbios", "-boot", "-option-rom", "-set", "-uuid", "-tpmdev"],
    ),
    (
        "it belongs to QEMU's emulator",
        &[
            "-icount",
            "-plugin",
            "-seed",
            "-dfilter",
            "-xen-domid",
            "-xen-attach",
            "-xen-domid-restrict",
            "-accel-tcg",
            "-enable-sync-profile",
        ],
    ),
    (
        "start it so: with setsid, setpriv, chroot, systemd-run or a shell's &",
        &["-daemonize", "-runas", "-chroot", "-add-fd"],
    ),
    ("use perf kvm, or -boot-trace", &["-trace", "-msg"]),
    ("the command line is all there is", &["-readconfig", "-preconfig"]),
];

/// Why the option `name` is refused.
pub(super) fn refusal(name: &str) -> String {
    match REFUSED.iter().find(|(_, names)| names.contains(&name)) {
        Some((why, _)) => format!("not supported: {why}"),
        None => "there is no such option; -help lists them".into(),
    }
}

pub(super) fn version() -> String {
    format!("microvm version {}\n", env!("CARGO_PKG_VERSION"))
}

pub(super) fn machines() -> String {
    "Supported machines are:\nmicrovm              microvm (i386) (default)\n".into()
}

/// The model, and the features in lines, as QEMU prints them.
pub(super) fn cpus() -> String {
    const WIDTH: usize = 75;
    let mut text = String::from(
        "Available CPUs:\nx86 host                  the host's CPU, as KVM offers it (default)\n\
         x86 max                   the same\n\nRecognized CPUID flags:\n",
    );
    let mut line = String::new();
    for name in cpuid::names() {
        if line.len() + 1 + name.len() > WIDTH {
            text += &format!(" {line}\n");
            line.clear();
        }
        line += &format!(" {name}");
    }
    text + &format!(" {line}\n")
}

/// As QEMU lists them.
pub(super) fn devices() -> String {
    let line = |kind: &Kind| {
        let Kind { name, bus, description, properties, .. } = kind;
        let properties: Vec<_> = properties.iter().map(|(name, _)| *name).collect();
        let with = if properties.is_empty() { "" } else { "; properties: " };
        let properties = properties.join(", ");
        format!("name \"{name}\", bus {bus}, desc \"{description}\"{with}{properties}\n")
    };
    KINDS.iter().map(line).collect()
}

pub(super) fn machine_properties() -> String {
    let mut text = String::from("microvm options:\n");
    for (name, values) in [
        ("acpi", "on (default), off, auto"),
        ("kernel-irqchip", "on (default), split: the I/O APIC is in this program, not in KVM"),
        ("pic", "on, off: the 8259s of kernel-irqchip=on"),
        ("isa-serial", "on (default), off"),
        ("auto-kernel-cmdline", "on (default), off: virtio_mmio.device= without ACPI"),
        (
            "kernel-cache",
            "off (default), on: a bzImage is unpacked once, on the host; auto: if possible",
        ),
        ("huge-pages", "on (default), off: guest RAM in pages of 4 KiB, less of it and slower"),
        ("firmware", "FILE, as -bios"),
        ("kernel", "FILE, as -kernel"),
        ("initrd", "FILE, as -initrd"),
        ("append", "TEXT, as -append"),
    ] {
        text.push_str(&format!("  {name}={values}\n"));
    }
    text.push_str("These are taken with the values that are true of this machine:\n");
    for (name, values) in PROPERTIES {
        text.push_str(&format!("  {name}={}\n", values.join(", ")));
    }
    text
}

pub(super) fn objects() -> String {
    "List of user creatable objects:\n  memory-backend-file\n  memory-backend-memfd\n  \
     memory-backend-ram\n"
        .into()
}

pub(super) fn usage() -> String {
    format!("{}{}", version(), USAGE)
}

const USAGE: &str = "\
usage: microvm [options]
       microvm run [OPTIONS] ROOTFS [--] COMMAND [ARGUMENTS]

Boots a kernel in a QEMU microvm machine on KVM: through a BIOS (-bios) or directly.
With run, boots a folder and runs a command in it: microvm run --help.

the machine:
  -M microvm[,...]  the machine; -M help lists, -M microvm,help shows its properties
  -kernel FILE      a bzImage or an ELF kernel (PVH)
  -initrd FILE      the initial RAM disk
  -append TEXT      the kernel's command line
  -bios FILE        a BIOS image of 64 KiB to 1 MiB; it is offered the kernel by fw_cfg
  -L DIR            where else -bios is looked for
  -m SIZE           guest RAM: 64 (MiB), 512M, 1G, size=1G; 128M by default
  -object memory-backend-memfd|memory-backend-file|memory-backend-ram,id=ID,size=SIZE[,...]
                    what guest RAM is made of, for -M memory-backend=ID or -numa node,memdev=ID
  -mem-path PATH    guest RAM in this file, or in a file without a name in this folder
  -mem-prealloc     fill guest RAM in before the guest starts
  -smp N            virtual CPUs, 1 to 254
  -cpu host[,+FEATURE][,-FEATURE][,FEATURE=on|off][,enforce]
                    the CPU; -cpu help lists the features
  -accel kvm        the accelerator; -accel help says what this host's /dev/kvm is
  -device NAME[,PROPERTY=VALUE..]
                    adds a device; -device help lists them
  -drive id=ID,file=FILE,format=raw,if=none[,..]
                    a disk for -device virtio-blk-device,drive=ID; also -blockdev
  -netdev tap,id=ID,ifname=NAME,script=no,downscript=no
                    a network for -device virtio-net-device,netdev=ID; fd=N is an open tap
  -object rng-builtin|rng-random,id=ID
                    entropy for -device virtio-rng-device,rng=ID
  -fw_cfg [name=]opt/NAME,string=TEXT|file=FILE
                    a file that the guest finds in fw_cfg

its console:
  -serial WHERE     COM1: stdio, mon:stdio (Ctrl-A X quits), null, file:FILE, pty, pipe:PATH,
                    unix:PATH[,server=on][,wait=off], chardev:ID
  -nographic        COM1 on the terminal (mon:stdio) unless -serial or -nodefaults is given
  -chardev stdio|null|file|pty|pipe|socket,id=ID,..
                    something for -serial and -mon to use

its life:
  -S                wait for QMP's cont
  -no-reboot        a guest's reset ends the process, with status 0
  -no-shutdown      a guest's power off leaves the process to QMP
  -action reboot=reset|shutdown,shutdown=poweroff|pause,panic=exit-failure|shutdown|pause|none
                    what resets, power off and panics do
  -qmp stdio|unix:PATH,server=on,wait=off
                    speaks QMP there; also -mon chardev=ID,mode=control
  -run-with async-teardown=off
                    the process ends when KVM has taken the machine apart, and no earlier
  -pidfile FILE     has the process's number while it runs
  -name NAME        the guest's name, for QMP; process=NAME names the process
  -D FILE           messages go there too
  -boot-trace FILE  when what happened, as JSON
  SIGTERM presses the power button; a second one ends the process.

  -enable-kvm -nodefaults -no-user-config -display none -monitor none -vga none -net none
                    taken, and true of this machine anyway
  -help -version
";
