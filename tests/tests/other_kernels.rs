//! Kernels that are not Linux but speak its boot protocol.

use std::time::Duration;

use regression::machine::{choose_entry, qemu};
use regression::products::{IPXE, MEMTEST, fetched};
use regression::program::run_until_mark;

/// Ten times what a loaded machine takes.
const DEADLINE: Duration = Duration::from_secs(100);

const MACHINES: [&str; 4] = ["microvm", "microvm,acpi=off", "pc", "q35"];

/// Runs the kernel until it has printed `mark`.
fn check(variable: &str, machine: &str, entry: Option<&str>, append: &str, mark: &str) {
    let mut command = qemu(machine, "128M", &fetched(variable), append);
    entry.into_iter().for_each(|entry| choose_entry(&mut command, entry));
    let ended = run_until_mark(&mut command, mark, 1, DEADLINE);
    assert!(ended.stdout.contains(mark), "{machine}, {entry:?}: {ended}");
}

/// It has a 16-bit entry alone, and prints by the BIOS's int 10h, which leads to the serial port.
#[test]
fn ipxe_starts_and_is_heard_through_the_bios() {
    for machine in MACHINES {
        check(IPXE, machine, None, "", "Open Source Network Boot Firmware");
    }
}

#[test]
fn memtest_starts_to_test_by_every_entry() {
    for machine in MACHINES {
        for entry in [None, Some("16"), Some("32"), Some("64")] {
            // The pause is a loop that is counted where there is no timer that it knows: half a
            // minute under emulation.
            check(MEMTEST, machine, entry, "console=ttyS0,115200 nopause", "Status: Testing");
        }
    }
}
