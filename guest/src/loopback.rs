//! 127.0.0.1, which programs that talk to themselves expect.
#![expect(unsafe_code, reason = "interfaces are turned on by an ioctl")]

use std::io;

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, ioctl};
use rustix::net::{AddressFamily, SocketType, socket};

/// `SIOCSIFFLAGS` (Linux, include/uapi/linux/sockios.h).
const SET_FLAGS: Opcode = 0x8914;
/// `IFF_UP | IFF_RUNNING`.
const UP: i16 = 0x41;

/// `struct ifreq` with flags.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: i16,
    rest: [u8; 22],
}

/// Turns the loopback interface on; a kernel without a network has none.
pub fn up() -> io::Result<()> {
    let socket = match socket(AddressFamily::INET, SocketType::DGRAM, None) {
        Err(Errno::AFNOSUPPORT) => return Ok(()),
        socket => socket?,
    };
    let mut name = [0; 16];
    name[..2].copy_from_slice(b"lo");
    let request = Request { name, flags: UP, rest: [0; 22] };
    // SAFETY: the operation reads a `struct ifreq`, 40 bytes, which `request` is one of.
    let setter = unsafe { Setter::<SET_FLAGS, _>::new(request) };
    // SAFETY: as above: the setter hands over a pointer to those bytes, and nothing else.
    match unsafe { ioctl(&socket, setter) } {
        Err(Errno::NODEV) => Ok(()),
        result => Ok(result?),
    }
}
