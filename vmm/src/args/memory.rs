//! `-m`, `-object memory-backend-*`, `-numa`, `-mem-path`: guest RAM.
//!
//! These options speak of each other and come in any order, so they are collected first and
//! understood at the end, as in QEMU.

use std::ffi::OsString;
use std::path::PathBuf;

use super::{Opt, Properties, Request, Result, Seen, help, size};
use crate::config::{Backend, Config, MemorySource, Pages};

/// Guest RAM at the least: below 1 MiB the boot structures, above it a kernel.
const SIZE_MIN: u64 = 2 << 20;
/// Guest RAM at the most: what 40 bits of guest-physical address reach, the least of x86-64.
const SIZE_MAX: u64 = (1 << 40) - (1 << 30);
/// QEMU rounds the size of guest RAM up to a multiple of this.
const SIZE_STEP: u64 = 8192;

/// Objects of QEMU that are not here, and why.
const REFUSED: [(&[&str], &str); 4] = [
    (&["iothread"], "this version has no device that runs in a thread of its own"),
    (&["secret", "secret_keyring", "tls-creds-psk", "tls-creds-x509"], "nothing here asks for one"),
    (&["memory-backend-shm"], "use memory-backend-memfd, which is shared too"),
    (&["memory-backend-epc"], "there is no SGX here"),
];

/// What the options said so far.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    size: Option<u64>,
    maxmem: Option<u64>,
    objects: Vec<Object>,
    /// `-M memory-backend`.
    backend: Option<String>,
    /// `-M mem-merge`.
    merge: Option<bool>,
    /// `-M dump-guest-core`.
    dump: Option<bool>,
    /// `-M huge-pages`.
    huge: Option<bool>,
    node: Option<Node>,
    /// `-mem-path`.
    pub(super) path: Option<PathBuf>,
    /// `-mem-prealloc`.
    pub(super) prealloc: bool,
}

/// An `-object memory-backend-*`.
#[derive(Debug)]
struct Object {
    id: String,
    size: u64,
    source: MemorySource,
    share: bool,
    prealloc: Option<bool>,
    merge: Option<bool>,
    dump: Option<bool>,
    reserve: bool,
}

/// A `-numa node`.
#[derive(Debug)]
struct Node {
    memdev: Option<String>,
    /// The highest of its CPUs, if it names any.
    last_cpu: Option<u64>,
}

impl Wishes {
    /// `-m [size=]SIZE[,maxmem=SIZE][,slots=0]`.
    pub(super) fn take_size(&mut self, option: &Opt, value: OsString) -> Result<()> {
        let mut properties = option.properties(value)?;
        while let Some((key, value)) = properties.take_first() {
            let (key, text) = match value {
                Some(value) => (key, value),
                None => ("size".into(), key),
            };
            let bytes = || {
                size::parse(&text, 1 << 20).ok_or_else(|| {
                    let what = "give MiB, or a number with K, M, G or T";
                    option.error(format!("'{text}' is no size: {what}"))
                })
            };
            match key.as_str() {
                "size" => self.size = Some(bytes()?),
                "maxmem" => self.maxmem = Some(bytes()?),
                "slots" if text == "0" => {}
                "slots" => {
                    return Err(option.error("memory cannot be plugged in: leave slots out"));
                }
                _ => return Err(option.error(format!("'{key}' is not a property that is here"))),
            }
        }
        Ok(())
    }

    /// A property of `-M` that is about guest RAM; whether `key` is one.
    pub(super) fn take_property(&mut self, option: &Opt, key: &str, value: &str) -> Result<bool> {
        let switch = || {
            parse_switch(value)
                .ok_or_else(|| option.error(format!("{key}={value}: give on or off")))
        };
        match key {
            "memory-backend" => self.backend = Some(value.into()),
            "mem-merge" => self.merge = Some(switch()?),
            "dump-guest-core" => self.dump = Some(switch()?),
            "huge-pages" => self.huge = Some(switch()?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// `-numa node[,nodeid=0][,memdev=ID][,cpus=FIRST[-LAST]]..`: the one node that there is.
    pub(super) fn take_numa(&mut self, option: &Opt, value: OsString) -> Result<()> {
        let mut properties = option.properties(value)?;
        let kind = properties.positional("type")?;
        if kind != "node" {
            let problem = format!("'{kind}' is not here: the machine has one node of all its CPUs");
            return Err(option.error(problem));
        }
        let mut node = Node { memdev: None, last_cpu: None };
        while let Some((key, value)) = properties.take_first() {
            let text = value.unwrap_or_default();
            match key.as_str() {
                "memdev" => node.memdev = Some(text),
                "nodeid" if text == "0" => {}
                "nodeid" => return Err(option.error("the only node is nodeid=0")),
                "cpus" => node.last_cpu = node.last_cpu.max(Some(last_cpu(option, &text)?)),
                "mem" => {
                    let instead = "-object memory-backend-ram,id=m,size=SIZE and memdev=m";
                    return Err(option.error(format!("mem={text} is not here: use {instead}")));
                }
                _ => return Err(option.error(format!("'{key}' is not a property that is here"))),
            }
        }
        if self.node.replace(node).is_some() {
            return Err(option.error("the machine has one node: give it once"));
        }
        Ok(())
    }

    /// Decides, now that all options are known.
    pub(super) fn settle(mut self, config: &mut Config) -> Result<()> {
        let option = |name: &str| Opt { name: name.into() };
        if let Some(node) = &self.node
            && let Some(cpu) = node.last_cpu.filter(|cpu| *cpu >= config.cpus.into())
        {
            let problem = format!("there is no CPU {cpu}: -smp gives {}", config.cpus);
            return Err(option("-numa").error(problem));
        }
        let object = self.used_object()?;
        // No size and 0 are QEMU's default.
        let size = self.size.filter(|size| *size > 0);
        let by_machine = self.backend.is_some().then_some(object.as_ref()).flatten();
        config.memory = match (size, by_machine) {
            (None, Some(object)) => checked_size(&option("-object"), object.size)?,
            (size, _) => checked_size(&option("-m"), size.unwrap_or(config.memory))?,
        };
        if let Some(maxmem) = self.maxmem.filter(|maxmem| *maxmem != config.memory) {
            let (maxmem, size) = (show(maxmem), show(config.memory));
            let problem = format!("maxmem={maxmem}: memory cannot be plugged in: give {size}");
            return Err(option("-m").error(problem));
        }
        if let Some(object) = object.as_ref().filter(|object| object.size != config.memory) {
            let (id, size, ram) = (&object.id, show(object.size), show(config.memory));
            let problem = format!("{id} has {size} and the machine {ram}: give both the same size");
            return Err(option("-object").error(problem));
        }
        config.backend = self.backend(object);
        Ok(())
    }

    /// The object that guest RAM is made of, if there is one. One that nothing names is refused:
    /// it would take memory, and is most likely a forgotten `-M memory-backend`.
    fn used_object(&mut self) -> Result<Option<Object>> {
        let option = |name: &str| Opt { name: name.into() };
        let memdev = self.node.as_ref().and_then(|node| node.memdev.clone());
        let (name, id) = match (&self.backend, memdev) {
            (Some(_), Some(_)) => {
                return Err(option("-numa").error("memdev and -M memory-backend: give one of them"));
            }
            (Some(id), None) => ("-M", Some(id.clone())),
            (None, id) => ("-numa", id),
        };
        let mut used = None;
        if let Some(id) = id {
            let Some(at) = self.objects.iter().position(|object| object.id == id) else {
                let example = "-object memory-backend-memfd,size=SIZE,id=";
                let problem = format!("there is no object '{id}': add {example}{id}");
                return Err(option(name).error(problem));
            };
            if self.path.is_some() {
                let problem =
                    format!("{name} takes guest memory from '{id}': leave one of them out");
                return Err(option("-mem-path").error(problem));
            }
            used = Some(self.objects.swap_remove(at));
        }
        match self.objects.first() {
            Some(Object { id, .. }) => {
                let problem = format!("nothing uses '{id}': add -M memory-backend={id}");
                Err(option("-object").error(problem))
            }
            None => Ok(used),
        }
    }

    fn backend(self, object: Option<Object>) -> Backend {
        let default = Backend::default();
        // QEMU makes the machine-wide switches the objects' defaults.
        let merge = self.merge.unwrap_or(default.merge);
        let dump = self.dump.unwrap_or(default.dump);
        let huge = self.huge.unwrap_or(default.huge);
        match (object, self.path) {
            (Some(object), _) => Backend {
                option: format!("-object {}", object.id),
                source: object.source,
                share: object.share,
                prealloc: object.prealloc.unwrap_or(self.prealloc),
                merge: object.merge.unwrap_or(merge),
                dump: object.dump.unwrap_or(dump),
                huge,
                reserve: object.reserve,
            },
            (None, Some(path)) => Backend {
                option: "-mem-path".into(),
                source: MemorySource::File(path),
                prealloc: self.prealloc,
                merge,
                dump,
                huge,
                reserve: true,
                ..default
            },
            (None, None) => Backend { prealloc: self.prealloc, merge, dump, huge, ..default },
        }
    }
}

/// `-object TYPE,id=ID,..`.
pub(super) fn take_object(seen: &mut Seen, option: &Opt, value: OsString) -> Result<()> {
    let text = option.text(value)?;
    if text.starts_with('{') {
        return Err(option.error("JSON is not read here: give TYPE,id=ID,size=SIZE"));
    }
    let mut properties = Properties::new(&option.name, &text);
    let kind = match properties.take("qom-type") {
        Some(kind) => kind,
        None => properties.positional("type")?,
    };
    if kind == "help" {
        seen.print = Some(Request::Print(help::objects()));
        return Ok(());
    }
    if let Some((_, why)) = REFUSED.iter().find(|(kinds, _)| kinds.contains(&kind.as_str())) {
        return Err(option.error(format!("'{kind}' is not here: {why}")));
    }
    let object = match kind.as_str() {
        "memory-backend-ram" => ram(&mut properties),
        "memory-backend-memfd" => memfd(&mut properties),
        "memory-backend-file" => file(&mut properties),
        other => Err(option.error(format!("'{other}' is not here; -object help lists what is"))),
    }?;
    properties.finish()?;
    if seen.memory.objects.iter().any(|other| other.id == object.id) {
        return Err(option.error(format!("there are two objects '{}'", object.id)));
    }
    seen.memory.objects.push(object);
    Ok(())
}

fn ram(properties: &mut Properties) -> Result<Object> {
    let share = take_switch(properties, "share")?.unwrap_or(false);
    // What is shared needs a file that another process can be given.
    let shared = MemorySource::Memfd { pages: Pages::Usual, seal: true };
    object(properties, if share { shared } else { MemorySource::Anonymous }, share)
}

fn memfd(properties: &mut Properties) -> Result<Object> {
    let share = take_switch(properties, "share")?.unwrap_or(true);
    let seal = take_switch(properties, "seal")?.unwrap_or(true);
    let huge = take_switch(properties, "hugetlb")?.unwrap_or(false);
    let pages = match take_size(properties, "hugetlbsize")? {
        Some(_) if !huge => {
            return Err(properties.error("hugetlbsize needs hugetlb=on: add it".into()));
        }
        Some(size) if size != 0 && !size.is_power_of_two() => {
            return Err(properties.error(format!("hugetlbsize={size}: give a power of two")));
        }
        None | Some(0) if huge => Pages::Huge,
        None => Pages::Usual,
        Some(size) => Pages::HugeOf(size),
    };
    object(properties, MemorySource::Memfd { pages, seal }, share)
}

fn file(properties: &mut Properties) -> Result<Object> {
    let share = take_switch(properties, "share")?.unwrap_or(false);
    let Some(path) = properties.take("mem-path").filter(|path| !path.is_empty()) else {
        return Err(properties.error("mem-path is missing: add mem-path=FILE".into()));
    };
    // The guest must be able to write; there is no persistent memory here.
    for key in ["readonly", "pmem"] {
        if take_switch(properties, key)? == Some(true) {
            return Err(properties.error(format!("{key}=on is not here: leave it out")));
        }
    }
    // A permission to lose the contents at the end, which nothing here needs.
    take_switch(properties, "discard-data")?;
    object(properties, MemorySource::File(path.into()), share)
}

/// What all kinds have.
fn object(properties: &mut Properties, source: MemorySource, share: bool) -> Result<Object> {
    let id = id(properties)?;
    let Some(size) = take_size(properties, "size")? else {
        return Err(properties.error(format!("{id}: size is missing: add size=SIZE")));
    };
    let prealloc = take_switch(properties, "prealloc")?;
    let reserve = take_switch(properties, "reserve")?.unwrap_or(true);
    if prealloc == Some(true) && !reserve {
        return Err(properties.error("prealloc=on and reserve=off exclude each other".into()));
    }
    if !reserve && matches!(source, MemorySource::Memfd { pages, .. } if pages != Pages::Usual) {
        let why = "huge pages that run out end the guest: leave reserve=off out";
        return Err(properties.error(why.into()));
    }
    let (merge, dump) = (take_switch(properties, "merge")?, take_switch(properties, "dump")?);
    // It does not change what the memory is: one thread fills it.
    if properties.number("prealloc-threads", u32::MAX.into())? == Some(0) {
        return Err(properties.error("prealloc-threads=0: give a number from 1 up".into()));
    }
    // It names what a migration would send.
    take_switch(properties, "x-use-canonical-path-for-ramblock-id")?;
    match properties.take("policy").as_deref() {
        None | Some("default") => {}
        Some(other) => {
            let problem = format!("policy={other} is not here: start microvm by numactl");
            return Err(properties.error(problem));
        }
    }
    Ok(Object { id, size, source, share, prealloc, merge, dump, reserve })
}

fn id(properties: &mut Properties) -> Result<String> {
    let Some(id) = properties.take("id") else {
        return Err(properties.error("id is missing: add id=NAME".into()));
    };
    let is_good = id.starts_with(|c: char| c.is_ascii_alphabetic())
        && id.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    if !is_good {
        let problem = format!("id={id}: give a letter, then letters, digits, '-', '.' and '_'");
        return Err(properties.error(problem));
    }
    Ok(id)
}

fn take_switch(properties: &mut Properties, key: &str) -> Result<Option<bool>> {
    let Some(text) = properties.take(key) else { return Ok(None) };
    match parse_switch(&text) {
        Some(value) => Ok(Some(value)),
        None => Err(properties.error(format!("{key}={text}: give on or off"))),
    }
}

/// QEMU's words for a switch.
fn parse_switch(text: &str) -> Option<bool> {
    match text {
        "on" | "yes" | "true" | "y" => Some(true),
        "off" | "no" | "false" | "n" => Some(false),
        _ => None,
    }
}

fn take_size(properties: &mut Properties, key: &str) -> Result<Option<u64>> {
    let Some(text) = properties.take(key) else { return Ok(None) };
    match size::parse(&text, 1) {
        Some(bytes) => Ok(Some(bytes)),
        None => Err(properties
            .error(format!("{key}={text} is no size: give bytes, or a number with K, M, G or T"))),
    }
}

/// The higher end of `N` or `N-M`.
fn last_cpu(option: &Opt, text: &str) -> Result<u64> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => Ok(last),
        _ => Err(option.error(format!("cpus={text}: give a CPU's number, or FIRST-LAST"))),
    }
}

/// Whole steps, not too few and not too many.
fn checked_size(option: &Opt, bytes: u64) -> Result<u64> {
    if bytes < SIZE_MIN {
        return Err(option.error(format!("{} is too little: give at least 2M", show(bytes))));
    }
    if bytes > SIZE_MAX {
        return Err(option.error(format!("{} is too much: give at most 1023G", show(bytes))));
    }
    Ok(bytes.next_multiple_of(SIZE_STEP))
}

/// A size as an option takes it.
fn show(bytes: u64) -> String {
    let units = [(30, 'G'), (20, 'M'), (10, 'K')];
    match units.iter().find(|(shift, _)| bytes != 0 && bytes.trailing_zeros() >= *shift) {
        Some((shift, suffix)) => format!("{}{suffix}", bytes >> shift),
        None => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests;
