//! `-cpu host`: features and other properties of the CPU, as QEMU has them.

use std::ffi::OsString;

use super::{Opt, Request, Result, Seen, help};
use crate::config::{Cpu, OnMissing};
use crate::cpuid;

/// Properties that change nothing here, with the values that are true of the CPU anyway.
const TRUE_ANYWAY: [(&str, &[&str]); 11] = [
    ("host-cache-info", &["on"]),
    ("l3-cache", &["on"]),
    ("host-phys-bits", &["on"]),
    ("host-phys-bits-limit", &["0"]),
    ("cpuid-0xb", &["on"]),
    ("full-cpuid-auto-level", &["on"]),
    ("fill-mtrr-mask", &["on"]),
    ("lmce", &["off"]),
    ("kvm-no-smi-migration", &["on", "off"]),
    ("kvm-pv-enforce-cpuid", &["off"]),
    ("start-powered-off", &["off"]),
];

/// Properties of QEMU that are not here, and why.
const REFUSED: [(&str, &[&str]); 5] = [
    (
        "the guest sees the host's CPU: remove it",
        &["vendor", "family", "model", "stepping", "model-id", "ucode-rev", "phys-bits"],
    ),
    (
        "the last leaves are KVM's: remove it",
        &["level", "level-func7", "xlevel", "min-level", "min-xlevel", "min-xlevel2"],
    ),
    ("the time-stamp counter counts at the host's rate: remove it", &["tsc-frequency", "tsc-freq"]),
    (
        "-smp alone says which CPUs there are: remove it",
        &["apic-id", "thread-id", "core-id", "die-id", "socket-id", "node-id"],
    ),
    ("last branch records are not here: remove it", &["lbr-fmt"]),
];

/// Reads a model and its properties; the last `-cpu` counts.
pub(super) fn take(seen: &mut Seen, option: &Opt, value: OsString) -> Result<()> {
    let mut properties = option.properties(value)?;
    match properties.positional("model")?.as_str() {
        // Under KVM the two are the same.
        "host" | "max" => {}
        "help" | "?" => {
            seen.print = Some(Request::Print(help::cpus()));
            return Ok(());
        }
        other => return Err(option.error(format!("'{other}' is not here: use -cpu host"))),
    }
    // As QEMU does it: first what has a value, in order, then all with a plus, then all with a
    // minus.
    let (mut set, mut plus, mut minus) = (Vec::new(), Vec::new(), Vec::new());
    while let Some((key, value)) = properties.take_first() {
        match (key.strip_prefix('+'), key.strip_prefix('-'), value) {
            (_, _, Some(value)) => set.push((key, value)),
            (Some(name), _, None) => plus.push((name.to_owned(), "on".into())),
            (_, Some(name), None) => minus.push((name.to_owned(), "off".into())),
            (None, None, None) => set.push((key, "on".into())),
        }
    }
    let mut cpu = Cpu::default();
    for (name, value) in set.into_iter().chain(plus).chain(minus) {
        take_property(&mut cpu, option, &name, &value)?;
    }
    seen.config.cpu = cpu;
    Ok(())
}

fn take_property(cpu: &mut Cpu, option: &Opt, name: &str, value: &str) -> Result<()> {
    let key = &*name.replace('_', "-");
    let switch = || match value {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(option.error(format!("{name}={value}: give on or off"))),
    };
    if let Some(feature) = cpuid::find(key) {
        let on = switch()?;
        cpu.features.retain(|(known, _)| *known != feature);
        cpu.features.push((feature, on));
        return Ok(());
    }
    match key {
        "kvm" => cpu.kvm = switch()?,
        "vmware-cpuid-freq" => cpu.rates = switch()?,
        "pmu" => cpu.counters = switch()?,
        "migratable" => cpu.migratable = switch()?,
        // Of the two, `enforce=on` counts.
        "check" if cpu.missing == OnMissing::Refuse => drop(switch()?),
        "check" => cpu.missing = if switch()? { OnMissing::Warn } else { OnMissing::Ignore },
        "enforce" if switch()? => cpu.missing = OnMissing::Refuse,
        "enforce" => {}
        "tcg-cpuid" => drop(switch()?),
        _ => return take_other(option, key, value),
    }
    Ok(())
}

/// Takes what is true anyway; refuses the rest.
fn take_other(option: &Opt, name: &str, value: &str) -> Result<()> {
    if let Some((_, allowed)) = TRUE_ANYWAY.iter().find(|(known, _)| *known == name) {
        if allowed.contains(&value) {
            return Ok(());
        }
        let only = allowed.join(" or ");
        return Err(option.error(format!("{name}={value} is not here: only {name}={only} is")));
    }
    let why = match REFUSED.iter().find(|(_, names)| names.contains(&name)) {
        Some((why, _)) => why,
        None if cpuid::is_in_msr(name) => "it is a bit of an MSR, and those are KVM's: remove it",
        None if name.starts_with("hv-") => {
            "Hyper-V's interface is not here, Linux uses KVM's: remove it"
        }
        None => "there is no such feature or property; -cpu help lists them",
    };
    Err(option.error(format!("'{name}': {why}")))
}

#[cfg(test)]
mod tests {
    use super::super::{OsString, parse};
    use super::*;

    fn cpu(text: &str) -> Cpu {
        match parse(["-kernel", "k", "-cpu", text].map(OsString::from)) {
            Ok(Request::Run(config)) => config.cpu,
            other => panic!("{text}: {other:?}"),
        }
    }

    fn check(text: &str, features: &[(&str, bool)]) {
        let seen: Vec<_> = cpu(text).features.iter().map(|(f, on)| (f.name, *on)).collect();
        assert_eq!(seen, features, "{text}");
    }

    #[test]
    fn features_are_set_in_every_spelling() {
        check("host", &[]);
        check("max,avx=off", &[("avx", false)]);
        check("host,+sse4_1,-avx512f", &[("sse4.1", true), ("avx512f", false)]);
        check("host,invtsc,x2apic=no,", &[("invtsc", true), ("x2apic", false)]);
        check(
            "host,kvm_pv_unhalt=true,kvmclock=n",
            &[("kvm-pv-unhalt", true), ("kvmclock", false)],
        );
    }

    /// What QEMU 7.2 makes of these lines.
    #[test]
    fn a_minus_wins_over_a_plus_and_that_over_a_value() {
        check("host,-avx,+avx", &[("avx", false)]);
        check("host,+avx,-avx", &[("avx", false)]);
        check("host,-avx,avx=on", &[("avx", false)]);
        check("host,+avx,avx=off", &[("avx", true)]);
        check("host,avx=off,avx=on", &[("avx", true)]);
        check("host,sse3=on,pni=off", &[("pni", false)]);
    }

    #[test]
    fn other_properties_are_taken() {
        assert_eq!(cpu("host,migratable=on,kvm=on,pmu,check,host-cache-info"), Cpu::default());
        assert_eq!(cpu("host,l3-cache=on,enforce=off,tcg-cpuid=off,lmce=off"), Cpu::default());
        let all_off = Cpu {
            features: vec![],
            kvm: false,
            rates: false,
            counters: false,
            migratable: false,
            missing: OnMissing::Ignore,
        };
        let text = "host,-kvm,vmware_cpuid_freq=off,-pmu,migratable=false,check=off";
        assert_eq!(cpu(text), all_off);
        for text in ["host,enforce", "host,enforce,check=off", "host,check=off,+enforce"] {
            assert_eq!(cpu(text).missing, OnMissing::Refuse, "{text}");
        }
    }

    #[test]
    fn the_last_option_counts() {
        let line = ["-kernel", "k", "-cpu", "host,-avx,pmu=off", "-cpu", "host"];
        let Ok(Request::Run(config)) = parse(line.map(OsString::from)) else { panic!("{line:?}") };
        assert_eq!(config.cpu, Cpu::default());
    }

    #[test]
    fn refusals_name_the_property_and_say_what_to_do() {
        for (text, expected) in [
            ("qemu64", "'qemu64' is not here: use -cpu host"),
            ("host,+x", "'x': there is no such feature or property; -cpu help lists them"),
            ("host,+", "'': there is no such feature or property; -cpu help lists them"),
            ("host,+avx=on", "'+avx': there is no such feature or property; -cpu help lists them"),
            ("host,avx=maybe", "avx=maybe: give on or off"),
            ("host,kvm=", "kvm=: give on or off"),
            ("host,mds-no=on", "'mds-no': it is a bit of an MSR, and those are KVM's: remove it"),
            ("host,-vmx-ept", "'vmx-ept': it is a bit of an MSR, and those are KVM's: remove it"),
            (
                "host,hv_relaxed",
                "'hv-relaxed': Hyper-V's interface is not here, Linux uses KVM's: remove it",
            ),
            (
                "host,host-cache-info=off",
                "host-cache-info=off is not here: only host-cache-info=on is",
            ),
            ("host,phys-bits=40", "'phys-bits': the guest sees the host's CPU: remove it"),
            (
                "host,tsc-frequency=1",
                "'tsc-frequency': the time-stamp counter counts at the host's rate: remove it",
            ),
        ] {
            let error = parse(["-kernel", "k", "-cpu", text].map(OsString::from)).unwrap_err();
            assert_eq!(error.to_string(), format!("-cpu: {expected}"));
        }
    }
}
