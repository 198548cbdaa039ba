//! Reads QEMU's log: one line an instruction, one line a device access.

use std::io::BufRead;

use anyhow::{Context, Result, bail};

use super::stub;

/// QEMU's bits of a translation block's flags (target/i386/cpu.h): CS is 32-bit, protection is
/// on, CS is 64-bit.
const FLAG_CS32: u64 = 1 << 4;
const FLAG_PROTECTED: u64 = 1 << 7;
const FLAG_CS64: u64 = 1 << 15;

/// Devices that KVM serves in the kernel when it has an interrupt chip and a timer.
const IN_KERNEL: [&str; 6] = ["apic-msi", "ioapic", "kvm-pit", "pit", "pic", "elcr"];

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Device accesses that reach user space.
    pub exits: u32,
    /// In 16-, 32- and 64-bit code.
    pub instructions: [u64; 3],
}

impl Counts {
    /// Instructions in every mode.
    pub fn total(&self) -> u64 {
        self.instructions.iter().sum()
    }
}

/// Counts up to the stub kernel's first instruction, and reads the log to its end.
pub fn count(mut log: impl BufRead) -> Result<Counts> {
    let mut counts = Counts::default();
    let mut reached = false;
    let mut line = Vec::new();
    loop {
        line.clear();
        if log.read_until(b'\n', &mut line).context("reading QEMU's log")? == 0 {
            break;
        }
        if reached {
            continue;
        }
        let text = String::from_utf8_lossy(&line);
        if let Some((address, flags)) = instruction(&text) {
            reached = stub::is_entry(address);
            if !reached {
                counts.instructions[mode(flags)] += 1;
            }
        } else if let Some(device) = access(&text) {
            counts.exits += u32::from(!IN_KERNEL.iter().any(|name| device.starts_with(name)));
        }
    }
    if !reached {
        bail!("the stub kernel was never entered");
    }
    Ok(counts)
}

/// The address and flags in `Trace 0: 0x7f.. [CS-BASE/ADDRESS/FLAGS/..]`.
fn instruction(line: &str) -> Option<(u64, u64)> {
    let (_, fields) = line.strip_prefix("Trace ")?.split_once('[')?;
    let mut fields = fields.split('/');
    let (_, address, flags) = (fields.next()?, fields.next()?, fields.next()?);
    Some((u64::from_str_radix(address, 16).ok()?, u64::from_str_radix(flags, 16).ok()?))
}

/// The device's name in `memory_region_ops_write .. name 'fwcfg'`.
fn access(line: &str) -> Option<&str> {
    let (_, name) = line.strip_prefix("memory_region_ops_")?.rsplit_once("name '")?;
    name.split('\'').next()
}

fn mode(flags: u64) -> usize {
    match flags {
        _ if flags & FLAG_CS64 != 0 => 2,
        _ if flags & FLAG_PROTECTED != 0 && flags & FLAG_CS32 != 0 => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESET: &str = "Trace 0: 0x7f1d [00000000ffff0000/00000000fffffff0/00000040/ff000201] \n";
    const LONG: &str = "Trace 0: 0x7f1d [0000000000000000/00000000000f3000/0000c0b0/ff000201] \n";
    const FW_CFG: &str =
        "memory_region_ops_write cpu 0 mr 0x55 addr 0x518 value 0xeb28 size 4 name 'fwcfg.dma'\n";

    #[test]
    fn counts_stop_at_the_kernel() {
        let entry = "Trace 0: 0x7f1d [0000000000000000/0000000001000200/0000c0b0/ff000201] \n";
        let pic = "memory_region_ops_write cpu 0 mr 0x55 addr 0x20 value 0x1 size 1 name 'pic'\n";
        let log = [RESET, LONG, FW_CFG, pic, LONG, entry, LONG, FW_CFG].concat();
        let counts = count(log.as_bytes()).unwrap();
        assert_eq!(counts, Counts { exits: 1, instructions: [1, 0, 2] });
    }

    #[test]
    fn a_kernel_that_never_runs_is_an_error() {
        assert!(count([RESET, FW_CFG, "Trace of something else\n"].concat().as_bytes()).is_err());
        assert!(count(&b""[..]).is_err());
    }
}
