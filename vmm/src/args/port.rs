//! `-device virtio-serial-device`: a bus, its consoles and other ports.

use super::{Opt, Properties, Result, Seen, chardev};
use crate::config::{Chardev, Port, Virtio};

/// QEMU's properties of a port.
pub(super) const PROPERTIES: [(&str, &str); 3] =
    [("chardev", "str"), ("name", "str"), ("nr", "uint32")];

/// The highest number of a port, as in QEMU.
const NUMBER_MAX: u16 = 30;
/// Bytes of a name that fit a driver's buffer with room to spare.
const NAME_MAX: usize = 255;

/// Adds the bus.
pub(super) fn add_bus(seen: &mut Seen, option: &Opt, properties: &mut Properties) -> Result<()> {
    if bus(seen).is_some() {
        return Err(option.error("virtio-serial-device: give it once"));
    }
    // There is room for all ports that are there.
    properties.number("max_ports", u64::from(NUMBER_MAX) + 1)?;
    seen.config.virtio.push(Virtio::Serial(Vec::new()));
    Ok(())
}

/// Adds a console.
pub(super) fn add_console(seen: &mut Seen, option: &Opt, found: &mut Properties) -> Result<()> {
    add(seen, option, found, true)
}

/// Adds a port that is no console.
pub(super) fn add_port(seen: &mut Seen, option: &Opt, found: &mut Properties) -> Result<()> {
    add(seen, option, found, false)
}

fn add(seen: &mut Seen, option: &Opt, found: &mut Properties, is_console: bool) -> Result<()> {
    let name = found.take("name").unwrap_or_default();
    let port = Port { number: 0, name, is_console, chardev: Chardev::Null };
    let driver = if is_console { "virtconsole" } else { "virtserialport" };
    let error = |problem: &str| option.error(format!("{driver}: {problem}"));
    let number = found.number("nr", NUMBER_MAX.into())?;
    let Some(ports) = bus(seen) else {
        return Err(error("needs -device virtio-serial-device before it"));
    };
    let is_taken = |number: &u16| ports.iter().any(|port| port.number == *number);
    // Port 0 is a console's: older drivers know no other.
    let mut free = (u16::from(!is_console)..=NUMBER_MAX).filter(|number| !is_taken(number));
    let number = match number.and_then(|number| u16::try_from(number).ok()) {
        Some(0) if !is_console => return Err(error("nr=0 is a console's: leave nr= out")),
        Some(number) if is_taken(&number) => return Err(error("its nr= is taken: leave it out")),
        Some(number) => number,
        None => free.next().ok_or_else(|| error("all ports of the bus are taken"))?,
    };
    if port.name.len() > NAME_MAX || port.name.contains('\0') {
        return Err(error("its name= has at most 255 bytes, and no NUL"));
    }
    let Some(chardev) = found.take("chardev") else {
        return Err(error("give its chardev="));
    };
    ports.push(Port { number, ..port });
    seen.ports.push(chardev);
    Ok(())
}

fn bus(seen: &mut Seen) -> Option<&mut Vec<Port>> {
    seen.config.virtio.iter_mut().find_map(|device| match device {
        Virtio::Serial(ports) => Some(ports),
        _ => None,
    })
}

/// Gives the ports the character devices that they name.
pub(super) fn connect(seen: &mut Seen, option: &Opt) -> Result<()> {
    let ids = std::mem::take(&mut seen.ports);
    let found = ids.iter().map(|id| chardev::find(seen, option, id)).collect::<Result<Vec<_>>>()?;
    for (port, chardev) in bus(seen).into_iter().flatten().zip(found) {
        port.chardev = chardev;
    }
    Ok(())
}
