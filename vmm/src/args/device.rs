//! `-device`: what can be added to the machine.

use std::ffi::OsString;

use abi::ports;

use super::{Opt, Properties, Request, Result, Seen, drive, help, netdev, port, vhost_user};
use crate::config::{Balloon, DebugExit, PvPanic, Virtio};
use crate::devices::pvpanic::{CRASH_LOADED, PANICKED};
use crate::virtio::slots;

/// A kind of device, for who lists them.
pub struct Kind {
    /// QEMU's name.
    pub name: &'static str,
    /// The bus that it is on.
    pub bus: &'static str,
    /// What it is.
    pub description: &'static str,
    /// Its properties: name and type.
    pub properties: &'static [(&'static str, &'static str)],
    add: fn(&mut Seen, &Opt, &mut Properties) -> Result<()>,
}

/// All kinds.
pub const KINDS: [Kind; 13] = [
    Kind {
        name: "isa-debug-exit",
        bus: "ISA",
        description: "a write of V ends the process with status V*2+1",
        properties: &[("iobase", "uint32"), ("iosize", "uint32")],
        add: add_debug_exit,
    },
    Kind {
        name: "pvpanic",
        bus: "ISA",
        description: "the guest's kernel tells of its panic",
        properties: &[("ioport", "uint16"), ("events", "uint8")],
        add: add_pvpanic,
    },
    Kind {
        name: "virtio-blk-device",
        bus: "virtio-bus",
        description: "a disk, as /dev/vda, /dev/vdb in the order of the command line",
        properties: &drive::PROPERTIES,
        add: drive::add,
    },
    Kind {
        name: "virtio-net-device",
        bus: "virtio-bus",
        description: "a network card, as eth0",
        properties: &netdev::PROPERTIES,
        add: netdev::add,
    },
    Kind {
        name: "vhost-user-fs-device",
        bus: "virtio-bus",
        description: "a folder of the host, by virtiofsd; mount -t virtiofs TAG",
        properties: &vhost_user::FS_PROPERTIES,
        add: vhost_user::add_fs,
    },
    Kind {
        name: "vhost-user-vsock-device",
        bus: "virtio-bus",
        description: "sockets between guest and host, by vhost-device-vsock",
        properties: &vhost_user::VSOCK_PROPERTIES,
        add: vhost_user::add_vsock,
    },
    Kind {
        name: "vhost-vsock-device",
        bus: "virtio-bus",
        description: "sockets between guest and host (AF_VSOCK)",
        properties: &[("guest-cid", "uint64")],
        add: add_vsock,
    },
    Kind {
        name: "virtio-serial-device",
        bus: "virtio-bus",
        description: "what virtconsole and virtserialport are on",
        properties: &[("max_ports", "uint32")],
        add: port::add_bus,
    },
    Kind {
        name: "virtconsole",
        bus: "virtio-serial-bus",
        description: "a console, as hvc0",
        properties: &port::PROPERTIES,
        add: port::add_console,
    },
    Kind {
        name: "virtserialport",
        bus: "virtio-serial-bus",
        description: "a wire between programs, as /dev/vportNpM and /dev/virtio-ports/NAME",
        properties: &port::PROPERTIES,
        add: port::add_port,
    },
    Kind {
        name: "virtio-balloon-device",
        bus: "virtio-bus",
        description: "memory that the guest gives back, by QMP's balloon or by itself",
        properties: &[("deflate-on-oom", "bool"), ("free-page-reporting", "bool")],
        add: add_balloon,
    },
    Kind {
        name: "virtio-rng-device",
        bus: "virtio-bus",
        description: "the host's entropy, as /dev/hwrng",
        properties: &[("rng", "link<rng-backend>")],
        add: add_rng,
    },
    Kind {
        name: "i8042",
        bus: "ISA",
        description: "the keyboard controller's reset line, which is there anyway",
        properties: &[],
        add: |_, _, _| Ok(()),
    },
];

/// What else QEMU has, and why it is not here: the beginning of names, and the reason.
const REFUSED: [(&[&str], &str); 6] = [
    (&["vfio-"], "the host's devices cannot be passed through, by design: this machine has no PCI"),
    (&["virtio-", "vhost-"], "-device help lists the virtio devices that are"),
    (&["isa-debugcon"], "use -serial: the firmware prints on COM1"),
    (&["isa-serial"], "COM1 is there anyway, and is the only one"),
    (&["usb-", "qemu-xhci", "nec-usb", "piix3-usb"], "this machine has no USB"),
    (
        &["pci", "pxb", "e1000", "rtl8139", "nvme", "ahci", "VGA", "ramfb"],
        "this machine has no PCI",
    ),
];

/// `-device DRIVER[,PROPERTY=VALUE..]`.
pub(super) fn take(seen: &mut Seen, option: &Opt, value: OsString) -> Result<()> {
    let mut properties = option.properties(value)?;
    let driver = properties.driver()?;
    if driver == "help" {
        seen.print = Some(Request::Print(help::devices()));
        return properties.finish();
    }
    let Some(kind) = KINDS.iter().find(|kind| kind.name == driver) else {
        let why = |(names, why): &(&[&str], &'static str)| {
            names.iter().any(|name| driver.starts_with(name)).then_some(*why)
        };
        let why = REFUSED.iter().find_map(why).unwrap_or("-device help lists what is");
        return Err(option.error(format!("'{driver}' is not here: {why}")));
    };
    // An id is for devices that something refers to.
    properties.take("id");
    (kind.add)(seen, option, &mut properties)?;
    properties.finish()
}

fn add_debug_exit(seen: &mut Seen, option: &Opt, properties: &mut Properties) -> Result<()> {
    // QEMU's defaults for the two numbers.
    let iobase = properties.number("iobase", u64::from(u16::MAX))?.unwrap_or(0x501);
    let iosize = properties.number("iosize", 4)?.unwrap_or(2);
    if iosize == 0 {
        return Err(option.error("isa-debug-exit: iosize must be 1 to 4"));
    }
    let device = DebugExit { iobase: port(iobase), iosize: port(iosize) };
    match seen.config.debug_exit.replace(device) {
        Some(_) => Err(option.error("isa-debug-exit: give it once")),
        None => Ok(()),
    }
}

fn add_vsock(seen: &mut Seen, option: &Opt, properties: &mut Properties) -> Result<()> {
    // 0 to 2 are the hypervisor's, the local machine's and the host's, the last one is any's.
    let cid = properties.number("guest-cid", u64::from(u32::MAX) - 1)?.filter(|cid| *cid > 2);
    let Some(cid) = cid else {
        return Err(option.error("vhost-vsock-device: give its guest-cid=, from 3 up"));
    };
    if vhost_user::has_vsock(&seen.config) {
        return Err(option.error("vhost-vsock-device: the guest has sockets already"));
    }
    seen.config.virtio.push(Virtio::Vsock(cid));
    Ok(())
}

fn add_balloon(seen: &mut Seen, option: &Opt, properties: &mut Properties) -> Result<()> {
    if seen.config.virtio.iter().any(|device| matches!(device, Virtio::Balloon(_))) {
        return Err(option.error("virtio-balloon-device: give it once"));
    }
    seen.config.virtio.push(Virtio::Balloon(Balloon {
        deflate_on_oom: properties.switch("deflate-on-oom")?.unwrap_or(false),
        free_page_reporting: properties.switch("free-page-reporting")?.unwrap_or(false),
    }));
    Ok(())
}

/// Its backend is looked up when all options are known: their order does not matter.
fn add_rng(seen: &mut Seen, _: &Opt, properties: &mut Properties) -> Result<()> {
    let backend = properties.take("rng");
    seen.rngs.push((seen.config.virtio.len(), backend));
    seen.config.virtio.push(Virtio::Rng(RANDOM.into()));
    Ok(())
}

/// The host's entropy: what rng-builtin is, and rng-random by default.
const RANDOM: &str = "/dev/urandom";

/// `-object rng-builtin,id=ID` or `-object rng-random,id=ID[,filename=FILE]`.
pub(super) fn take_rng_object(seen: &mut Seen, option: &Opt, value: OsString) -> Result<()> {
    let mut properties = option.properties(value)?;
    let kind = properties.positional("qom-type")?;
    let Some(id) = properties.take("id") else {
        return Err(option.error(format!("{kind}: give it an id=")));
    };
    let file = match kind.as_str() {
        "rng-random" => properties.take("filename").unwrap_or_else(|| RANDOM.into()),
        "rng-builtin" => RANDOM.into(),
        _ => return Err(option.error(format!("{kind} is not here: use rng-builtin or rng-random"))),
    };
    if seen.rng_objects.insert(id.clone(), file.into()).is_some() {
        return Err(option.error(format!("id={id} is there already")));
    }
    properties.finish()
}

/// Gives the devices their backends, and counts them.
pub(super) fn connect(seen: &mut Seen) -> Result<()> {
    let option = super::option("-device");
    drive::connect(seen, &option)?;
    netdev::connect(seen, &option)?;
    vhost_user::connect(seen, &option)?;
    port::connect(seen, &option)?;
    for (index, backend) in std::mem::take(&mut seen.rngs) {
        let Some(id) = backend else { continue };
        let missing = || option.error(format!("virtio-rng-device: there is no -object id={id}"));
        let file = seen.rng_objects.get(&id).ok_or_else(missing)?;
        if let Some(device) = seen.config.virtio.get_mut(index) {
            *device = Virtio::Rng(file.clone());
        }
    }
    let (count, slots) = (seen.config.virtio.len(), slots::COUNT as usize);
    if count > slots {
        let problem = format!("{count} virtio devices: the machine has slots for {slots}");
        return Err(option.error(problem));
    }
    Ok(())
}

fn add_pvpanic(seen: &mut Seen, option: &Opt, properties: &mut Properties) -> Result<()> {
    // QEMU's default port; by default all events.
    let ioport = properties.number("ioport", u64::from(u16::MAX))?.unwrap_or(ports::PVPANIC.into());
    let all = u64::from(PANICKED | CRASH_LOADED);
    let events = properties.number("events", all)?.unwrap_or(all);
    let device = PvPanic { ioport: port(ioport), events: events.to_le_bytes()[0] };
    match seen.config.pvpanic.replace(device) {
        Some(_) => Err(option.error("pvpanic: give it once")),
        None => Ok(()),
    }
}

/// A number that was checked to be one.
fn port(number: u64) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}
