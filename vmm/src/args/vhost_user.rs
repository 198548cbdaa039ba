//! Devices that another process serves: folders of the host, and sockets.

use super::{Opt, Properties, Result, Seen, chardev};
use crate::config::{Chardev, Config, Fs, MemorySource, Pages, Virtio};

/// QEMU's properties of `vhost-user-fs-device`.
pub(super) const FS_PROPERTIES: [(&str, &str); 4] = [
    ("chardev", "str"),
    ("num-request-queues", "uint16"),
    ("queue-size", "uint16"),
    ("tag", "str"),
];

/// Bytes of the tag in the device's configuration.
const TAG_MAX: usize = 36;
const QUEUE_SIZE_MAX: u64 = 1024;

/// QEMU's properties of `vhost-user-vsock-device`.
pub(super) const VSOCK_PROPERTIES: [(&str, &str); 1] = [("chardev", "str")];

/// Adds a folder; its chardev is looked up when all options are known.
pub(super) fn add_fs(seen: &mut Seen, option: &Opt, properties: &mut Properties) -> Result<()> {
    let error = |problem: String| option.error(format!("vhost-user-fs-device: {problem}"));
    let Some(chardev) = properties.take("chardev") else {
        return Err(error("give its chardev=, of a -chardev socket to virtiofsd".into()));
    };
    let tag = properties.take("tag").filter(|tag| !tag.is_empty());
    let Some(tag) = tag else {
        return Err(error("give its tag=, by which the guest mounts it".into()));
    };
    if tag.len() > TAG_MAX {
        return Err(error(format!("tag={tag}: at most {TAG_MAX} bytes")));
    }
    let queues = properties.number("num-request-queues", u16::MAX.into())?.unwrap_or(1);
    if queues != 1 {
        return Err(error(format!("num-request-queues={queues}: there is one")));
    }
    let size = properties.number("queue-size", QUEUE_SIZE_MAX)?.unwrap_or(128);
    if size < 2 || !size.is_power_of_two() {
        let problem = format!("queue-size={size}: give a power of two from 2 to {QUEUE_SIZE_MAX}");
        return Err(error(problem));
    }
    let twice = |device: &Virtio| matches!(device, Virtio::Fs(other) if other.tag == tag);
    if seen.config.virtio.iter().any(twice) {
        return Err(error(format!("tag={tag} is there already")));
    }
    let queue_size = u16::try_from(size).unwrap_or(u16::MAX);
    seen.sockets.push((seen.config.virtio.len(), chardev));
    seen.config.virtio.push(Virtio::Fs(Fs { socket: "".into(), tag, queue_size }));
    Ok(())
}

/// Adds sockets.
pub(super) fn add_vsock(seen: &mut Seen, option: &Opt, properties: &mut Properties) -> Result<()> {
    let error = |problem| option.error(format!("vhost-user-vsock-device: {problem}"));
    let Some(chardev) = properties.take("chardev") else {
        return Err(error("give its chardev=, of a -chardev socket to vhost-device-vsock"));
    };
    if has_vsock(&seen.config) {
        return Err(error("the guest has sockets already"));
    }
    seen.sockets.push((seen.config.virtio.len(), chardev));
    seen.config.virtio.push(Virtio::UserVsock("".into()));
    Ok(())
}

/// Whether the guest has sockets, of which there is one device: by the host's kernel or by another
/// process.
pub(super) fn has_vsock(config: &Config) -> bool {
    config.virtio.iter().any(|device| matches!(device, Virtio::Vsock(_) | Virtio::UserVsock(_)))
}

/// Gives the devices their sockets.
pub(super) fn connect(seen: &mut Seen, option: &Opt) -> Result<()> {
    for (index, id) in std::mem::take(&mut seen.sockets) {
        let found = chardev::find(seen, option, &id)?;
        let Some(device) = seen.config.virtio.get_mut(index) else { continue };
        let name = device.name();
        let (socket, program) = match device {
            Virtio::Fs(fs) => (&mut fs.socket, "virtiofsd"),
            Virtio::UserVsock(socket) => (socket, "vhost-device-vsock"),
            _ => continue,
        };
        let Chardev::Client { path, reconnect_s: None } = found else {
            return Err(option.error(format!(
                "{name}: chardev {id} is to be {program}'s socket: \
                 -chardev socket,id={id},path=PATH (a process that was gone is found by itself)"
            )));
        };
        *socket = path;
    }
    Ok(())
}

/// Another process can only map memory that is shared. It is made so by itself, if no option says
/// of what it is to be.
pub(super) fn share_memory(config: &mut Config) -> Result<()> {
    let by_another = |device: &Virtio| matches!(device, Virtio::Fs(_) | Virtio::UserVsock(_));
    let needs = config.virtio.iter().find(|device| by_another(device)).map(Virtio::name);
    let backend = &mut config.backend;
    let Some(device) = needs.filter(|_| !backend.share) else { return Ok(()) };
    if backend.source != MemorySource::Anonymous || backend.option != "-m" {
        let problem = format!(
            "who serves {device} cannot map this memory: use memory-backend-memfd or share=on"
        );
        return Err(Opt { name: backend.option.as_str().into() }.error(problem));
    }
    backend.source = MemorySource::Memfd { pages: Pages::Usual, seal: true };
    backend.share = true;
    Ok(())
}
