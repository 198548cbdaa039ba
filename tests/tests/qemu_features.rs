//! Names and bits of CPUs' features: ours and QEMU's.

use std::process::Command;
use std::time::Duration;

use regression::program::{Ended, run};
use vmm::cpuid::{self, Register};

const DEADLINE: Duration = Duration::from_secs(100);

/// The names that `-cpu help` lists.
fn names() -> Vec<String> {
    let ended = run(Command::new("qemu-system-x86_64").args(["-cpu", "help"]), b"", DEADLINE);
    let Some((_, list)) = ended.stdout.split_once("Recognized CPUID flags:") else {
        panic!("{ended}");
    };
    let names: Vec<_> = list.split_ascii_whitespace().map(str::to_owned).collect();
    assert!(names.len() > 200, "{ended}");
    names
}

#[test]
fn every_feature_that_qemu_knows_is_known_by_its_name() {
    let unknown = |name: &String| cpuid::find(name).is_none() && !cpuid::is_in_msr(name);
    let unknown: Vec<_> = names().into_iter().filter(unknown).collect();
    assert_eq!(unknown, [""; 0]);
}

/// QEMU with all features at once: it warns of each that its emulator does not have, and says which
/// bit that is.
fn warnings(names: &[String]) -> Ended {
    let features: String = names.iter().map(|name| format!(",+{name}")).collect();
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-M", "microvm,acpi=off", "-accel", "tcg", "-nodefaults", "-display", "none"]);
    command.args(["-S", "-qmp", "stdio", "-cpu", &format!("qemu64{features}")]);
    run(&mut command, b"{'execute':'qmp_capabilities'}{'execute':'quit'}", DEADLINE)
}

#[test]
fn features_are_the_bits_that_qemu_says() {
    let names: Vec<_> = names().into_iter().filter(|name| cpuid::find(name).is_some()).collect();
    let ended = warnings(&names);
    let mut seen = 0;
    for line in ended.stderr.lines() {
        // As in `CPUID.07H:EBX.hle [bit 4]`.
        let Some((_, bit)) = line.split_once("requested feature: CPUID.") else { continue };
        let parts: Vec<_> =
            bit.split(['H', ':', ' ', ']']).filter(|part| !part.is_empty()).collect();
        let [leaf, place, "[bit", number] = parts[..] else { panic!("{line}") };
        // Bits of registers that XSAVE saves have no names.
        let Some((register, name)) = place.split_once('.') else { continue };
        let feature = cpuid::find(name).unwrap_or_else(|| panic!("{line}"));
        let register = match register {
            "EAX" => Register::Eax,
            "EBX" => Register::Ebx,
            "ECX" => Register::Ecx,
            _ => Register::Edx,
        };
        let leaf = u32::from_str_radix(leaf, 16).unwrap();
        let mask = 1 << number.parse::<u32>().unwrap();
        assert_eq!((feature.word.leaf, feature.word.register), (leaf, register), "{line}");
        assert_eq!(feature.mask & mask, mask, "{line}");
        seen += 1;
    }
    assert!(seen > 80, "{ended}");
}
