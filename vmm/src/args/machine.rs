//! `-M`, `-accel`, `-m`, `-smp`: the machine itself.

use std::ffi::OsString;

use super::{Opt, Request, Result, Seen, help};
use crate::config::{Irqchip, KernelCache};

/// Properties of the machine that change nothing here, with the values that are true of it.
/// Any other value asks for a device that is not here.
pub(super) const PROPERTIES: [(&str, &[&str]); 10] = [
    ("pit", &["off", "auto"]),
    ("rtc", &["off", "auto"]),
    ("pcie", &["off", "auto"]),
    ("ioapic2", &["off", "auto"]),
    ("usb", &["off"]),
    ("smm", &["off", "auto"]),
    ("graphics", &["off"]),
    ("accel", &["kvm"]),
    ("vmport", &["off", "auto"]),
    // They choose between ways of QEMU that the guest cannot tell apart here.
    ("x-option-roms", &["on", "off"]),
];

pub(super) fn take_machine(seen: &mut Seen, option: &Opt, value: OsString) -> Result<()> {
    let mut properties = option.properties(value)?;
    // The type may be missing: there is one.
    match properties.implied("type").as_deref().unwrap_or("microvm") {
        "help" => seen.print = Some(Request::Print(help::machines())),
        "microvm" if properties.has_alone("help") => {
            seen.print = Some(Request::Print(help::machine_properties()));
        }
        "microvm" => {}
        other => {
            return Err(option.error(format!("'{other}' is not here: the machine is microvm")));
        }
    }
    if seen.print.is_some() {
        return Ok(());
    }
    while let Some((key, value)) = properties.take_first() {
        // QEMU takes a lone key as key=on.
        take_property(seen, option, &key, &value.unwrap_or_else(|| "on".into()))?;
    }
    Ok(())
}

/// A property of the machine.
pub(super) fn take_property(seen: &mut Seen, option: &Opt, key: &str, value: &str) -> Result<()> {
    let on = || match value {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(option.error(format!("{key}={value}: give on or off"))),
    };
    match key {
        "firmware" => seen.config.bios = Some(option.path(value.into())?),
        "kernel" => seen.config.kernel = Some(option.path(value.into())?),
        "initrd" => seen.config.initrd = Some(option.path(value.into())?),
        "append" => seen.config.append = value.into(),
        "acpi" if value == "auto" => seen.config.acpi = true,
        "acpi" => seen.config.acpi = on()?,
        "kernel-irqchip" | "kernel_irqchip" if value == "split" => {
            seen.config.irqchip = Some(Irqchip::Split);
        }
        "kernel-irqchip" | "kernel_irqchip" | "pic" if value != "auto" => {
            // The 8259s are KVM's: there are none of ours.
            seen.config.irqchip = Some(if on()? { Irqchip::Kernel } else { Irqchip::Split });
        }
        "pic" => {}
        "auto-kernel-cmdline" => seen.config.auto_kernel_cmdline = on()?,
        "kernel-cache" if value == "auto" => seen.config.kernel_cache = KernelCache::Auto,
        "kernel-cache" => {
            seen.config.kernel_cache = if on()? { KernelCache::On } else { KernelCache::Off };
        }
        "isa-serial" => seen.config.isa_serial = on()?,
        _ if seen.memory.take_property(option, key, value)? => {}
        _ => {
            let Some((_, allowed)) = PROPERTIES.iter().find(|(name, _)| *name == key) else {
                let problem = format!("'{key}' is not a property of this microvm; remove it");
                return Err(option.error(problem));
            };
            if !allowed.contains(&value) {
                let what = allowed.join(" or ");
                let problem = format!("{key}={value} is not here: only {key}={what} is");
                return Err(option.error(problem));
            }
        }
    }
    Ok(())
}

pub(super) fn take_accel(seen: &mut Seen, option: &Opt, value: OsString) -> Result<()> {
    let mut properties = option.properties(value)?;
    match properties.positional("accelerator")?.as_str() {
        "kvm" => properties.finish(),
        "help" => {
            seen.print = Some(Request::DescribeKvm);
            Ok(())
        }
        other => Err(option.error(format!("'{other}' is not here: use -accel kvm"))),
    }
}

/// CPUs at the most: APIC ids are a byte, and the last one addresses all.
pub const CPUS_MAX: u64 = 254;

/// CPUs from `4`, `cpus=4` or the parts of a topology, which multiply to them. All are cores of one
/// package, whatever the parts; there is no hotplug, so `maxcpus` is the same number.
pub(super) fn cpus(option: &Opt, value: OsString) -> Result<u8> {
    let mut properties = option.properties(value)?;
    let (mut cpus, mut maxcpus, mut parts) = (None, None, 1u64);
    while let Some((key, value)) = properties.take_first() {
        let (key, text) = match value {
            Some(value) => (key, value),
            None => ("cpus".into(), key),
        };
        let bad = || option.error(format!("{key}={text}: give a number from 1 up"));
        let number = text.parse::<u64>().ok().filter(|n| *n > 0).ok_or_else(bad)?;
        match key.as_str() {
            "cpus" => cpus = Some(number),
            "maxcpus" => maxcpus = Some(number),
            "sockets" | "dies" | "cores" | "threads" | "clusters" => {
                parts = parts.saturating_mul(number);
            }
            _ => return Err(option.error(format!("'{key}' is not a property that is here"))),
        }
    }
    let count = cpus.or(maxcpus).unwrap_or(parts);
    if maxcpus.is_some_and(|maxcpus| maxcpus != count) {
        return Err(option.error("CPUs cannot be added later: leave maxcpus out"));
    }
    if count % parts != 0 {
        return Err(option.error(format!("{count} CPUs cannot be made of {parts}")));
    }
    match u8::try_from(count) {
        Ok(cpus) if count <= CPUS_MAX => Ok(cpus),
        _ => Err(option.error(format!("{count} CPUs are too many: {CPUS_MAX} is the most"))),
    }
}
