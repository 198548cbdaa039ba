//! A tap: a network interface of the host whose other end is a file (Linux,
//! Documentation/networking/tuntap.rst).
#![expect(unsafe_code, reason = "taps are set up by ioctls, and move guest memory in place")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{FdFlags, fcntl_setfd};

use crate::config::TapSource;
use crate::virtio::Buffers;

/// Bytes of the header before each frame: `struct virtio_net_hdr_mrg_rxbuf`.
pub const HEADER: usize = 12;

/// `IFF_VNET_HDR`: frames have the header.
const VNET_HEADER: u16 = 0x4000;
/// `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`: whole frames, with the header and nothing else before.
const FLAGS: u16 = 0x0002 | 0x1000 | VNET_HEADER;

/// What frames from the tap may leave to who gets them (Linux, `TUN_F_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads(pub u32);

impl Offloads {
    /// Checksums are not filled in.
    pub const CHECKSUM: u32 = 1;
    /// TCP over IPv4 is not cut into segments.
    pub const TSO4: u32 = 2;
    /// TCP over IPv6 is not cut into segments.
    pub const TSO6: u32 = 4;
    /// Nor where it carries congestion marks.
    pub const ECN: u32 = 8;
    /// UDP is not cut into fragments.
    pub const UFO: u32 = 16;
}

/// Why there is no tap.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device that makes taps.
    #[error("-netdev tap: /dev/net/tun{hint}")]
    Open {
        /// What may help.
        hint: &'static str,
        /// The host's reason.
        source: io::Error,
    },
    /// The interface.
    #[error("-netdev tap,ifname={name}{hint}")]
    Attach {
        /// Its name.
        name: String,
        /// What may help.
        hint: &'static str,
        /// The host's reason.
        source: io::Error,
    },
    /// A descriptor that was handed over.
    #[error("-netdev tap,fd={0}: no open descriptor of a tap or macvtap")]
    NotATap(i32),
    /// One whose frames are not whole, or have another header.
    #[error("-netdev tap,fd={0}: open it with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR")]
    OtherFrames(i32),
}

/// The host's end.
pub struct Tap {
    file: File,
}

impl Tap {
    /// Opens the tap that `source` names.
    pub fn open(source: &TapSource) -> Result<Self, Error> {
        let tap = match source {
            TapSource::Name(name) => Self::attach(name)?,
            TapSource::Descriptor(fd) => Self::take(*fd)?,
        };
        let mut size = i32::try_from(HEADER).unwrap_or(0);
        // A kernel that knows headers knows their size.
        tap.control(libc::TUNSETVNETHDRSZ, (&raw mut size).cast()).map_err(open_error)?;
        Ok(tap)
    }

    /// What behaves like a tap's file, for tests: one message is one frame.
    pub fn of(file: File) -> Self {
        Self { file }
    }

    fn attach(name: &str) -> Result<Self, Error> {
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(flags);
        let file = options.open("/dev/net/tun").map_err(open_error)?;
        let tap = Self { file };
        let mut request = Request::new(name);
        request.flags = FLAGS;
        tap.control(libc::TUNSETIFF, (&raw mut request).cast()).map_err(|source| {
            let hint = match source.raw_os_error() {
                Some(libc::EPERM) => {
                    " (root makes one for you: ip tuntap add dev NAME mode tap user USER vnet_hdr)"
                }
                Some(libc::EBUSY) => " (another process uses it)",
                Some(libc::EINVAL) => " (an interface of this name is no tap, or of another mode)",
                _ => "",
            };
            Error::Attach { name: name.into(), hint, source }
        })?;
        Ok(tap)
    }

    fn take(fd: i32) -> Result<Self, Error> {
        // The first three are the process's own, and all that it opens by itself are closed when
        // it becomes another program: one that was given to it is not.
        let is_given = fd > 2 && {
            // SAFETY: asks for the flags of a number, open or not.
            let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
            flags >= 0 && flags & libc::FD_CLOEXEC == 0
        };
        if !is_given {
            return Err(Error::NotATap(fd));
        }
        // SAFETY: the descriptor is open, the user has given it away, and nobody has taken it yet:
        // it is marked below.
        let tap = Self { file: File::from(unsafe { OwnedFd::from_raw_fd(fd) }) };
        fcntl_setfd(&tap.file, FdFlags::CLOEXEC).map_err(|_| Error::NotATap(fd))?;
        let mut request = Request::new("");
        tap.control(libc::TUNGETIFF, (&raw mut request).cast()).map_err(|_| Error::NotATap(fd))?;
        if request.flags & FLAGS != FLAGS {
            return Err(Error::OtherFrames(fd));
        }
        let flags = fcntl_getfl(&tap.file).map_err(|_| Error::NotATap(fd))?;
        fcntl_setfl(&tap.file, flags | OFlags::NONBLOCK).map_err(|_| Error::NotATap(fd))?;
        Ok(tap)
    }

    fn control(&self, request: libc::Ioctl, argument: *mut libc::c_void) -> io::Result<()> {
        // SAFETY: the callers give a valid argument of the request's type.
        match unsafe { libc::ioctl(self.file.as_raw_fd(), request, argument) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    /// From now on frames may leave so much to the guest.
    pub fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let set = |flags: u32| {
            let flags = libc::c_ulong::from(flags);
            // SAFETY: the argument of this request is a number.
            match unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD, flags) } {
                -1 => Err(io::Error::last_os_error()),
                _ => Ok(()),
            }
        };
        // Kernels from 4.14 on knew no UFO for a while; a guest that is not given any is content.
        set(offloads.0).or_else(|_| set(offloads.0 & !Offloads::UFO))
    }

    /// Reads the next frame, header included, into `room`, and what does not fit there into
    /// `overflow`; its bytes.
    pub fn receive(&self, room: &Buffers<'_>, overflow: &mut [u8]) -> io::Result<usize> {
        let mut pieces = room.iovecs();
        pieces
            .push(libc::iovec { iov_base: overflow.as_mut_ptr().cast(), iov_len: overflow.len() });
        let count = i32::try_from(pieces.len()).unwrap_or(i32::MAX);
        // SAFETY: the pieces are guest memory, which is mapped as long as `room` lives and which
        // nothing of Rust's refers to, and `overflow`.
        let read = unsafe { libc::readv(self.file.as_raw_fd(), pieces.as_ptr(), count) };
        usize::try_from(read).map_err(|_| io::Error::last_os_error())
    }

    /// Sends a frame, header included.
    pub fn send(&self, frame: &Buffers<'_>) -> io::Result<()> {
        let pieces = frame.iovecs();
        let count = i32::try_from(pieces.len()).unwrap_or(i32::MAX);
        // SAFETY: as in `receive`.
        match unsafe { libc::writev(self.file.as_raw_fd(), pieces.as_ptr(), count) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn open_error(source: io::Error) -> Error {
    let hint = match source.kind() {
        io::ErrorKind::NotFound => " (modprobe tun makes it)",
        io::ErrorKind::PermissionDenied => " (your user may not open it)",
        _ => "",
    };
    Error::Open { hint, source }
}

/// `struct ifreq`, as far as taps use it.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: u16,
    unused: [u8; 22],
}

impl Request {
    fn new(name: &str) -> Self {
        let mut request = Self { name: [0; libc::IFNAMSIZ], flags: 0, unused: [0; 22] };
        // The last byte stays a NUL.
        let room = request.name.len() - 1;
        request.name.iter_mut().take(room).zip(name.bytes()).for_each(|(to, from)| *to = from);
        request
    }
}
