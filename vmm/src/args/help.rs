//! What `-help` and its kin print, and why an option is refused.

/// Options of QEMU that ask for something that is not here, by what they are about.
const REFUSED: [(&str, &[&str]); 9] = [
    ("PCI and disks: this version has no disks", &["-drive", "-blockdev", "-hda", "-cdrom", "-sd"]),
    ("this version has no network", &["-netdev"]),
    ("character devices are not here: use -serial", &["-chardev", "-debugcon", "-virtfs"]),
    (
        "there is no monitor: Ctrl-A X quits under -serial mon:stdio",
        &["-qmp", "-mon", "-qmp-pretty"],
    ),
    ("there is no debugger stub", &["-s", "-gdb", "-S", "-singlestep"]),
    ("guest memory is given by -m", &["-object", "-numa", "-mem-path", "-mem-prealloc"]),
    ("device trees are not for x86", &["-dtb"]),
    ("there is no saved state", &["-incoming", "-loadvm", "-snapshot"]),
    (
        "not here: remove it",
        &[
            "-action",
            "-audio",
            "-boot",
            "-D",
            "-d",
            "-daemonize",
            "-global",
            "-icount",
            "-k",
            "-L",
            "-msg",
            "-no-acpi",
            "-no-shutdown",
            "-only-migratable",
            "-overcommit",
            "-pidfile",
            "-rtc",
            "-runas",
            "-sandbox",
            "-smbios",
            "-spice",
            "-trace",
            "-usb",
            "-uuid",
            "-vnc",
            "-watchdog-action",
        ],
    ),
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

pub(super) fn devices() -> String {
    "name \"isa-debug-exit\", bus ISA: iobase=PORT,iosize=N\nname \"i8042\", bus ISA: reset line\n"
        .into()
}

pub(super) fn usage() -> String {
    format!("{}{}", version(), USAGE)
}

const USAGE: &str = "\
usage: microvm [options]

Boots a kernel in a QEMU microvm machine on KVM: through a BIOS (-bios) or directly.

  -kernel FILE      a bzImage or an ELF kernel (PVH)
  -initrd FILE      the initial RAM disk
  -append TEXT      the kernel's command line
  -bios FILE        a BIOS image of 64 KiB to 1 MiB; it is offered the kernel by fw_cfg
  -m SIZE           guest RAM: 64 (MiB), 512M, 1G, size=1G; 128M by default
  -smp N            virtual CPUs, 1 to 254
  -serial WHERE     COM1: stdio, mon:stdio (Ctrl-A X quits), null, file:FILE
  -nographic        COM1 on the terminal (mon:stdio) unless -serial or -nodefaults is given
  -no-reboot        a guest reset ends the process, with status 0
  -device isa-debug-exit[,iobase=0xf4][,iosize=4]
                    a write of V to the port ends the process with status V*2+1
  -fw_cfg [name=]opt/NAME,string=TEXT|file=FILE
                    a file that the guest finds in fw_cfg
  -boot-trace FILE  when what happened, as JSON
  -M microvm[,...]  the machine; -M help lists, properties as in QEMU
  -accel kvm        the accelerator; -accel help says what this host's /dev/kvm is
  -cpu host         the CPU
  -enable-kvm -nodefaults -no-user-config -display none -monitor none -name TEXT
                    taken, and true of this machine anyway
  -help -version
";
