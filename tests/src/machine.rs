//! Command lines of the two VMMs: ours and QEMU.

use std::path::Path;
use std::process::Command;

use crate::products::product;

/// How the kernel is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boot {
    /// Through `bios-microvm.bin`, by the entry it chooses.
    Firmware,
    /// Through `bios-microvm.bin`, by the 32-bit entry.
    Firmware32,
    /// Through `bios-microvm.bin`, by the 16-bit entry.
    Firmware16,
    /// Straight from the VMM.
    Direct,
}

impl Boot {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Firmware, Self::Firmware32, Self::Firmware16, Self::Direct];

    fn apply(self, command: &mut Command) {
        if self != Self::Direct {
            command.arg("-bios").arg(product("bios-microvm.bin"));
        }
        let entry = match self {
            Self::Firmware | Self::Direct => return,
            Self::Firmware32 => "name=opt/org.microvm/entry,string=32",
            Self::Firmware16 => "name=opt/org.microvm/entry,string=16",
        };
        command.args(["-fw_cfg", entry]);
    }
}

/// Our VMM with the options that every test wants.
pub fn microvm(boot: Boot, memory: &str, kernel: &Path, append: &str) -> Command {
    with_kernel(microvm_with("microvm", boot, memory), kernel, append)
}

/// The same with this machine, and without a kernel.
pub fn microvm_with(machine: &str, boot: Boot, memory: &str) -> Command {
    let mut command = Command::new(product("microvm"));
    command.args(["-M", machine, "-enable-kvm", "-cpu", "host", "-m", memory]);
    command.args(["-nodefaults", "-no-user-config", "-nographic", "-serial", "stdio"]);
    command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
    boot.apply(&mut command);
    command
}

/// QEMU under emulation with a deterministic clock, with our BIOS.
///
/// An instruction takes 16 ns of the guest's time. With the 1 ns of the lab, Linux runs sixteen
/// times as many instructions wherever it waits for a device, and boots up to three times as long.
pub fn qemu(machine: &str, memory: &str, kernel: &Path, append: &str) -> Command {
    with_kernel(qemu_with(machine, memory), kernel, append)
}

/// The same without a kernel.
pub fn qemu_with(machine: &str, memory: &str) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-M", machine, "-accel", "tcg", "-icount", "shift=4,sleep=off", "-m", memory]);
    command.args(["-nodefaults", "-no-user-config", "-nographic", "-serial", "stdio"]);
    command.args(["-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
    command.arg("-bios").arg(product("bios-microvm.bin"));
    command
}

/// The file by which the firmware is told which entry to take.
pub fn choose_entry(command: &mut Command, entry: &str) {
    command.args(["-fw_cfg", &format!("name=opt/org.microvm/entry,string={entry}")]);
}

/// Adds a kernel and its command line.
pub fn with_kernel(mut command: Command, kernel: &Path, append: &str) -> Command {
    command.arg("-kernel").arg(kernel).args(["-append", append]);
    command
}
