//! Quiet before a start that is measured.
//!
//! Once the process of a virtual machine has ended, the host's kernel takes the machine apart, and
//! the next KVM_CREATE_VM would wait for the same locks and grace periods. KVM takes a machine's
//! directory in debugfs away first, and gives back the reference of its module last (Linux 6.1,
//! virt/kvm/kvm_main.c, `kvm_destroy_vm`): so that is what is looked at.

use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result, bail};

/// Where the kernel shows its modules.
const MODULES: &str = "/sys/module";
/// KVM's modules that virtual machines and their descriptors refer to.
const KVM: [&str; 3] = ["kvm_amd", "kvm_intel", "kvm_pvm"];
/// How long KVM may take for that: the slowest machines are busy for a tenth of it.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked.
const GLANCE: Duration = Duration::from_millis(5);
/// What else the end of a process leaves to the kernel's workers (memory, RCU's callbacks) is done
/// by then.
const REST: Duration = Duration::from_millis(100);

/// How many virtual machines and descriptors of them there are; none where KVM is no module.
pub fn machines() -> Result<u64> {
    machines_in(Path::new(MODULES))
}

/// Waits until KVM has no more virtual machines than `others`, and then until the host has come to
/// rest.
pub fn settle(others: u64) -> Result<()> {
    wait(Path::new(MODULES), others, PATIENCE)?;
    thread::sleep(REST);
    Ok(())
}

fn wait(modules: &Path, others: u64, patience: Duration) -> Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        let machines = machines_in(modules)?;
        if machines <= others {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("another virtual machine runs, or an ended one is not gone: end it, try again");
        }
        thread::sleep(GLANCE);
    }
}

fn machines_in(modules: &Path) -> Result<u64> {
    let mut sum = 0;
    for path in KVM.map(|name| modules.join(name).join("refcnt")) {
        if let Ok(text) = fs::read_to_string(&path) {
            let count = text.trim().parse::<u64>();
            sum += count.with_context(|| format!("{}: {text:?}", path.display()))?;
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_is_not_gone_is_waited_for() {
        let folder = std::env::temp_dir().join(format!("xtask-settle-{}", std::process::id()));
        // At once: half a file is no number.
        let set = |count: &str| {
            fs::write(folder.join("new"), count).unwrap();
            fs::rename(folder.join("new"), folder.join("kvm_amd/refcnt")).unwrap();
        };
        assert_eq!(machines_in(&folder).unwrap(), 0);
        fs::create_dir_all(folder.join("kvm_amd")).unwrap();
        set("2\n");
        assert_eq!(machines_in(&folder).unwrap(), 2);
        let long = Duration::from_secs(60);
        wait(&folder, 2, long).unwrap();
        let error = wait(&folder, 1, Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains("not gone"), "{error}");
        thread::scope(|scope| {
            let waiter = scope.spawn(|| wait(&folder, 1, long));
            thread::sleep(GLANCE * 3);
            assert!(!waiter.is_finished());
            set("1\n");
            waiter.join().unwrap().unwrap();
        });
        fs::remove_dir_all(&folder).unwrap();
    }
}
