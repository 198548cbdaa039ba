//! `-drive` and `-blockdev`, and the disks that show them.

use std::ffi::OsString;
use std::path::PathBuf;

use super::{Opt, Properties, Result, Seen};
use crate::config::{Disk, DiskCache, Virtio};

/// An image with a name, of which a disk can be made.
pub(super) struct Drive {
    id: String,
    disk: Disk,
    used: bool,
    // A node below another may be left without a disk of its own.
    node: bool,
}

/// Properties of the device: name and type.
pub(super) const PROPERTIES: [(&str, &str); 11] = [
    ("drive", "str"),
    ("serial", "str"),
    ("num-queues", "uint16"),
    ("queue-size", "uint16"),
    ("logical_block_size", "size"),
    ("physical_block_size", "size"),
    ("share-rw", "bool"),
    ("write-cache", "OnOffAuto"),
    ("bootindex", "int32"),
    ("werror", "BlockdevOnError"),
    ("rerror", "BlockdevOnError"),
];

/// `-drive id=ID,file=FILE,format=raw,if=none[,..]`.
pub(super) fn take_drive(seen: &mut Seen, option: &Opt, value: OsString) -> Result<()> {
    let mut properties = option.properties(value)?;
    let interface = properties.take("if");
    if let Some(other) = interface.filter(|interface| interface != "none") {
        let problem = format!("if={other}: say if=none, and -device virtio-blk-device,drive=ID");
        return Err(option.error(problem));
    }
    let id = match properties.take("id").or_else(|| properties.take("node-name")) {
        Some(id) => id,
        None => return Err(option.error("give it an id=, and -device virtio-blk-device,drive=ID")),
    };
    let mut disk = Disk { path: path(&mut properties, option, "file")?, ..Disk::default() };
    disk.is_raw = take_format(&mut properties, option, "format")?;
    disk.cache = take_cache(&mut properties, option)?;
    disk.read_only = match properties.switch("readonly")? {
        Some(read_only) => read_only,
        None => properties.switch("read-only")?.unwrap_or(false),
    };
    take_rest(&mut properties, option, &mut disk)?;
    for (key, harmless) in [("media", "disk"), ("snapshot", "off"), ("copy-on-read", "off")] {
        take_only(&mut properties, option, key, &[harmless])?;
    }
    // Which of a bus's places a drive has, where there are buses.
    properties.take("index");
    take_policies(&mut properties, option)?;
    properties.finish()?;
    add_drive(seen, option, Drive { id, disk, used: false, node: false })
}

/// `-blockdev driver=raw,node-name=N,file.driver=file,file.filename=F`, or `file=` another node,
/// `driver=file,node-name=N,filename=F`; or the same in JSON.
pub(super) fn take_blockdev(seen: &mut Seen, option: &Opt, value: OsString) -> Result<()> {
    let mut properties = option.properties(value)?;
    let driver = properties.driver()?;
    let Some(id) = properties.take("node-name") else {
        return Err(option.error("give it a node-name="));
    };
    let mut disk = match (driver.as_str(), properties.take("file")) {
        ("raw", Some(node)) => take_node(seen, option, &node)?,
        ("raw", None) => {
            match properties.take("file.driver").as_deref() {
                Some("file" | "host_device") | None => {}
                Some(other) => return Err(refuse_driver(option, other)),
            }
            let path = path(&mut properties, option, "file.filename")?;
            let mut disk = Disk { path, ..Disk::default() };
            take_layer(&mut properties, option, &mut disk, "file.")?;
            disk
        }
        ("file" | "host_device", None) => {
            Disk { path: path(&mut properties, option, "filename")?, ..Disk::default() }
        }
        (other, _) => return Err(refuse_driver(option, other)),
    };
    disk.is_raw = true;
    take_layer(&mut properties, option, &mut disk, "")?;
    properties.finish()?;
    add_drive(seen, option, Drive { id, disk, used: false, node: driver != "raw" })
}

fn refuse_driver(option: &Opt, driver: &str) -> super::Error {
    let how = "raw, file or host_device (qemu-img convert -O raw makes a raw image)";
    option.error(format!("driver={driver} is not here: use {how}"))
}

/// The disk of a node that is below another.
fn take_node(seen: &mut Seen, option: &Opt, node: &str) -> Result<Disk> {
    let drive = seen.drives.iter_mut().find(|drive| drive.id == node);
    let drive = drive.ok_or_else(|| option.error(format!("there is no node-name={node}")))?;
    drive.used = true;
    Ok(drive.disk.clone())
}

/// What may be said of each layer of nodes: the stricter counts.
fn take_layer(
    properties: &mut Properties,
    option: &Opt,
    disk: &mut Disk,
    prefix: &str,
) -> Result<()> {
    let key = |name: &str| format!("{prefix}{name}");
    disk.read_only |= properties.switch(&key("read-only"))?.unwrap_or(false);
    disk.cache.direct |= properties.switch(&key("cache.direct"))?.unwrap_or(false);
    disk.cache.flush &= !properties.switch(&key("cache.no-flush"))?.unwrap_or(false);
    properties.switch(&key("auto-read-only"))?;
    take_tuning(properties, option, disk, prefix)
}

/// What a drive and a node have in common.
fn take_tuning(
    properties: &mut Properties,
    option: &Opt,
    disk: &mut Disk,
    prefix: &str,
) -> Result<()> {
    let key = |name: &str| format!("{prefix}{name}");
    // All of them are done by a thread for each queue: what counts is the outcome.
    take_only(properties, option, &key("aio"), &["threads", "native", "io_uring"])?;
    take_only(properties, option, &key("detect-zeroes"), &["off"])?;
    let discard =
        take_only(properties, option, &key("discard"), &["ignore", "off", "unmap", "on"])?;
    if let Some(discard) = discard {
        disk.discard = matches!(discard.as_str(), "unmap" | "on");
    }
    match take_only(properties, option, &key("locking"), &["auto", "on", "off"])?.as_deref() {
        None => {}
        Some(locking) => disk.locking = locking != "off",
    }
    Ok(())
}

fn take_rest(properties: &mut Properties, option: &Opt, disk: &mut Disk) -> Result<()> {
    take_tuning(properties, option, disk, "")?;
    take_tuning(properties, option, disk, "file.")
}

/// A value that must be one of `known`.
fn take_only(
    properties: &mut Properties,
    option: &Opt,
    key: &str,
    known: &[&str],
) -> Result<Option<String>> {
    match properties.take(key) {
        Some(value) if !known.contains(&value.as_str()) => {
            Err(option.error(format!("{key}={value} is not here: use {}", known.join(" or "))))
        }
        value => Ok(value),
    }
}

/// Errors are reported to the guest, always.
fn take_policies(properties: &mut Properties, option: &Opt) -> Result<()> {
    for key in ["werror", "rerror"] {
        take_only(properties, option, key, &["report", "auto"])?;
    }
    Ok(())
}

fn path(properties: &mut Properties, option: &Opt, key: &str) -> Result<PathBuf> {
    match properties.take(key).filter(|path| !path.is_empty()) {
        Some(path) => Ok(path.into()),
        None => Err(option.error(format!("give its {key}="))),
    }
}

/// Whether the format is said to be raw.
fn take_format(properties: &mut Properties, option: &Opt, key: &str) -> Result<bool> {
    match properties.take(key).as_deref() {
        None => Ok(false),
        Some("raw") => Ok(true),
        Some(other) => {
            let how = "qemu-img convert -O raw makes a raw image";
            Err(option.error(format!("{key}={other} is not here: {how}")))
        }
    }
}

/// `cache=`, or what it stands for one by one.
fn take_cache(properties: &mut Properties, option: &Opt) -> Result<DiskCache> {
    let cache = |writeback, direct, flush| DiskCache { writeback, direct, flush };
    let mut cache = match properties.take("cache").as_deref() {
        None | Some("writeback") => cache(true, false, true),
        Some("none" | "off") => cache(true, true, true),
        Some("writethrough") => cache(false, false, true),
        Some("directsync") => cache(false, true, true),
        Some("unsafe") => cache(true, false, false),
        Some(other) => {
            let known = "writeback, none, writethrough, directsync, unsafe";
            return Err(option.error(format!("cache={other} is none of {known}")));
        }
    };
    cache.writeback = properties.switch("cache.writeback")?.unwrap_or(cache.writeback);
    cache.direct = properties.switch("cache.direct")?.unwrap_or(cache.direct);
    cache.flush = !properties.switch("cache.no-flush")?.unwrap_or(!cache.flush);
    Ok(cache)
}

fn add_drive(seen: &mut Seen, option: &Opt, drive: Drive) -> Result<()> {
    if seen.drives.iter().any(|other| other.id == drive.id) {
        return Err(option.error(format!("id={} is there already", drive.id)));
    }
    seen.drives.push(drive);
    Ok(())
}

/// Bytes of a serial number.
const SERIAL_MAX: usize = 20;
const QUEUES_MAX: u64 = 64;
const QUEUE_SIZE_MAX: u64 = 1024;
const BLOCK_SIZE_MAX: u64 = 2 << 20;

/// Adds the device; its drive is looked up when all options are known.
pub(super) fn add(seen: &mut Seen, option: &Opt, properties: &mut Properties) -> Result<()> {
    let Some(drive) = properties.take("drive") else {
        return Err(option.error("virtio-blk-device: give its drive="));
    };
    let mut disk =
        Disk { serial: properties.take("serial").unwrap_or_default(), ..Disk::default() };
    if disk.serial.len() > SERIAL_MAX {
        let problem = format!("serial={}: at most {SERIAL_MAX} bytes", disk.serial);
        return Err(option.error(problem));
    }
    // 65535 is QEMU's "as many as fit", which it takes for one here.
    let queues = properties.number("num-queues", u16::MAX.into())?.filter(|n| *n != 0xffff);
    disk.queues = narrow(queues.unwrap_or(1));
    if disk.queues == 0 || u64::from(disk.queues) > QUEUES_MAX {
        return Err(option.error(format!("num-queues: give 1 to {QUEUES_MAX}")));
    }
    let size = properties.number("queue-size", QUEUE_SIZE_MAX)?.unwrap_or(256);
    if size < 4 || !size.is_power_of_two() {
        let problem = format!("queue-size={size}: give a power of two from 4 to {QUEUE_SIZE_MAX}");
        return Err(option.error(problem));
    }
    disk.queue_size = narrow(size);
    take_block_sizes(properties, option, &mut disk)?;
    disk.share = properties.switch("share-rw")?.unwrap_or(false);
    // Without it, or with `on`, the drive's counts.
    let cached = take_only(properties, option, "write-cache", &["auto", "on", "off"])?;
    disk.cache.writeback = cached.as_deref() != Some("off");
    properties.take("bootindex");
    take_policies(properties, option)?;
    seen.disks.push((seen.config.virtio.len(), drive));
    seen.config.virtio.push(Virtio::Block(disk));
    Ok(())
}

fn take_block_sizes(properties: &mut Properties, option: &Opt, disk: &mut Disk) -> Result<()> {
    let mut size = |key: &str, default: u32| -> Result<u32> {
        let size = properties.number(key, BLOCK_SIZE_MAX)?.filter(|size| *size != 0);
        let size = size.unwrap_or(default.into());
        match size >= 512 && size.is_power_of_two() {
            true => Ok(u32::try_from(size).unwrap_or(default)),
            false => Err(option.error(format!("{key}={size}: give a power of two from 512 on"))),
        }
    };
    disk.logical_block_size = size("logical_block_size", 512)?;
    disk.physical_block_size = size("physical_block_size", disk.logical_block_size)?;
    if disk.physical_block_size < disk.logical_block_size {
        return Err(option.error("physical_block_size: not below logical_block_size"));
    }
    Ok(())
}

/// A number that was checked to be one.
fn narrow(number: u64) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

/// Gives the disks their drives.
pub(super) fn connect(seen: &mut Seen, option: &Opt) -> Result<()> {
    for (index, id) in std::mem::take(&mut seen.disks) {
        let drive = seen.drives.iter_mut().find(|drive| drive.id == id);
        let missing = || option.error(format!("virtio-blk-device: there is no -drive id={id}"));
        let drive = drive.ok_or_else(missing)?;
        if std::mem::replace(&mut drive.used, true) {
            let problem = format!("virtio-blk-device: drive={id} has a device already");
            return Err(option.error(problem));
        }
        if let Some(Virtio::Block(device)) = seen.config.virtio.get_mut(index) {
            let mut cache = drive.disk.cache;
            cache.writeback &= device.cache.writeback;
            let Disk { path, is_raw, read_only, discard, locking, .. } = drive.disk.clone();
            *device = Disk { path, is_raw, read_only, discard, locking, cache, ..device.clone() };
        }
    }
    match seen.drives.iter().find(|drive| !drive.used && !drive.node) {
        Some(Drive { id, .. }) => {
            let problem = format!("nothing uses id={id}: add -device virtio-blk-device,drive={id}");
            Err(super::option("-drive").error(problem))
        }
        None => Ok(()),
    }
}
