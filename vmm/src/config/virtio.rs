//! Virtio devices, as the command line asks for them.

use std::path::PathBuf;

use super::Chardev;

/// A virtio device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Virtio {
    /// The entropy device, and the file that it reads.
    Rng(PathBuf),
    /// A disk.
    Block(Disk),
    /// A network card.
    Net(Net),
    /// The memory balloon.
    Balloon(Balloon),
    /// The bus of consoles and other ports, and what is on it.
    Serial(Vec<Port>),
    /// Sockets between guest and host, by the host's kernel, and the guest's context identifier.
    Vsock(u64),
    /// Sockets between guest and host, by a vhost-device-vsock, and its socket.
    UserVsock(PathBuf),
    /// A folder of the host, by a virtiofsd.
    Fs(Fs),
}

/// A port of the guest: a console, or a wire between two programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its number on the bus.
    pub number: u16,
    /// Its name, or nothing.
    pub name: String,
    /// Whether it is a console.
    pub is_console: bool,
    /// Where it leads.
    pub chardev: Chardev,
}

impl Port {
    /// The option that asks for one.
    pub const fn option(&self) -> &'static str {
        if self.is_console { "-device virtconsole" } else { "-device virtserialport" }
    }
}

/// A shared folder: who serves it, and how the guest sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fs {
    /// The socket of the virtiofsd.
    pub socket: PathBuf,
    /// The name by which the guest mounts it, at most 36 bytes.
    pub tag: String,
    /// Entries of each queue, a power of two.
    pub queue_size: u16,
}

/// The memory balloon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balloon {
    /// The guest takes memory out of it rather than run out of memory.
    pub deflate_on_oom: bool,
    /// The guest tells of memory that it does not use.
    pub free_page_reporting: bool,
}

impl Virtio {
    /// QEMU's name of it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Rng(_) => "virtio-rng-device",
            Self::Block(_) => "virtio-blk-device",
            Self::Net(_) => "virtio-net-device",
            Self::Balloon(_) => "virtio-balloon-device",
            Self::Serial(_) => "virtio-serial-device",
            Self::Fs(_) => "vhost-user-fs-device",
            Self::Vsock(_) => "vhost-vsock-device",
            Self::UserVsock(_) => "vhost-user-vsock-device",
        }
    }
}

/// A network card: a tap of the host, and the device that shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Net {
    /// The tap.
    pub tap: TapSource,
    /// The address of the card.
    pub mac: [u8; 6],
    /// The largest packet that the guest is to send, if it is told.
    pub mtu: Option<u16>,
    /// What the device offers of checksums and segments (VIRTIO 1.2, section 5.1.3).
    pub features: u64,
    /// Entries of the queue of what the guest receives, a power of two.
    pub receive_size: u16,
    /// Entries of the queue of what it sends, a power of two.
    pub transmit_size: u16,
}

/// Where a tap comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TapSource {
    /// The interface of this name, or a new one; without a name the kernel finds one.
    Name(String),
    /// A descriptor that this process was started with.
    Descriptor(i32),
}

/// A disk: its image, and the device that shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The image: a file, or a block device of the host.
    pub path: PathBuf,
    /// It is said to be raw; if not, what looks like another format is refused.
    pub is_raw: bool,
    /// The guest cannot write.
    pub read_only: bool,
    /// How the host's page cache is used.
    pub cache: DiskCache,
    /// What the guest discards is given back to the host.
    pub discard: bool,
    /// The image is locked against other processes.
    pub locking: bool,
    /// Others may write to it at the same time.
    pub share: bool,
    /// The serial number, at most 20 bytes.
    pub serial: String,
    /// Queues.
    pub queues: u16,
    /// Entries of a queue, a power of two.
    pub queue_size: u16,
    /// Bytes that the guest reads and writes at the least: a power of two from 512 on.
    pub logical_block_size: u32,
    /// Bytes that the medium writes at the least: a power of two, not below the logical one.
    pub physical_block_size: u32,
}

/// How the host's page cache is used for a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskCache {
    /// Writes may wait there until the guest flushes; the guest may change that.
    pub writeback: bool,
    /// It is passed by.
    pub direct: bool,
    /// A flush has an effect.
    pub flush: bool,
}

impl Default for Disk {
    /// QEMU's defaults.
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            is_raw: false,
            read_only: false,
            cache: DiskCache::default(),
            discard: false,
            locking: true,
            share: false,
            serial: String::new(),
            queues: 1,
            queue_size: 256,
            logical_block_size: 512,
            physical_block_size: 512,
        }
    }
}

impl Default for DiskCache {
    /// QEMU's `cache=writeback`.
    fn default() -> Self {
        Self { writeback: true, direct: false, flush: true }
    }
}
