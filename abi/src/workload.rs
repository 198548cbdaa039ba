//! What `microvm run` and the guest's init say to each other.
//!
//! Init finds its orders in a file of its initramfs: records that end with a NUL, each a key, an
//! equals sign and a value. Everything else goes over one port of the virtio serial bus, both ways,
//! in frames: a kind, a zero, the payload's length as a 16-bit little-endian number, the payload.

/// The port's name.
pub const PORT: &str = "microvm.run";
/// The file with the orders.
pub const ORDERS: &str = "/orders";
/// The folder of the kernel modules, which are loaded in the order of their names.
pub const MODULES: &str = "/modules";
/// The tag of the root folder; the volumes' are [`VOLUME_TAG`] and a number from 0 up.
pub const ROOT_TAG: &str = "root";
/// Begins the tag of a volume.
pub const VOLUME_TAG: &str = "volume";

/// The keys of the orders. An argument, a variable and a volume may come many times.
pub mod key {
    /// A word of the command, the program first.
    pub const ARGUMENT: &str = "argument";
    /// `NAME=VALUE` of its environment.
    pub const VARIABLE: &str = "variable";
    /// The folder that it starts in.
    pub const DIRECTORY: &str = "directory";
    /// `1`: its three files are a terminal, whose kind is among the variables.
    pub const TERMINAL: &str = "terminal";
    /// Rows and columns of that terminal at the start, with an `x` between.
    pub const SIZE: &str = "size";
    /// `1`: its standard error is none of the terminal's.
    pub const ERROR_APART: &str = "error-apart";
    /// `1`: what it writes to its root is to stay; if not, a tmpfs takes it.
    pub const WRITABLE: &str = "writable";
    /// Where a volume is to be: `rw:PATH` or `ro:PATH`.
    pub const VOLUME: &str = "volume";
}

/// Bytes before a payload.
pub const HEADER: usize = 4;
/// Bytes of a payload, at the most.
pub const PAYLOAD_MAX: u16 = 16 << 10;
/// Bytes of input that may be under way to the command: those of [`Kind::Input`] that no
/// [`Kind::Taken`] has told of. So neither side has to hold more for it, and other frames pass.
pub const WINDOW: u32 = 64 << 10;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// To the guest: input of the command; an empty one ends it, and hangs a terminal up.
    Input = 1,
    /// To the guest: rows and columns of the terminal, 16 bits each.
    Size = 2,
    /// To the guest: a signal for the command, 8 bits.
    Signal = 3,
    /// To the guest: nobody takes this output any more: a byte, [`Kind::Output`] or
    /// [`Kind::Error`]. The output of a terminal hangs that up.
    Closed = 4,
    /// To the guest: the last frame was heard, and all output before it is where it belongs: the
    /// guest may end. What is on its way when a guest ends is lost.
    Heard = 5,
    /// From the guest: the command has been started. It is the first frame, unless it could not be.
    Begun = 15,
    /// From the guest: standard output, or what the terminal shows.
    Output = 16,
    /// From the guest: standard error.
    Error = 17,
    /// From the guest: so many bytes of input were taken, 32 bits.
    Taken = 18,
    /// From the guest: the command has ended, with this status: 8 bits. It is the last frame, which
    /// the host answers.
    Status = 19,
    /// From the guest: why there is no command: a text. It is the last frame, likewise.
    Failed = 20,
}

impl Kind {
    const ALL: [Self; 11] = [
        Self::Input,
        Self::Size,
        Self::Signal,
        Self::Closed,
        Self::Heard,
        Self::Begun,
        Self::Output,
        Self::Error,
        Self::Taken,
        Self::Status,
        Self::Failed,
    ];

    /// The kind of this number.
    pub fn new(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// The beginning of a frame with `length` bytes of payload, which are [`PAYLOAD_MAX`] at the most.
pub fn header(kind: Kind, length: u16) -> [u8; HEADER] {
    let [low, high] = length.to_le_bytes();
    [kind as u8, 0, low, high]
}

/// The kind and the length of the frame that begins so; `None` for what is no frame.
pub fn parse(header: [u8; HEADER]) -> Option<(Kind, u16)> {
    let [kind, zero, low, high] = header;
    let length = u16::from_le_bytes([low, high]);
    let fits = zero == 0 && length <= PAYLOAD_MAX;
    Kind::new(kind).filter(|_| fits).map(|kind| (kind, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_through_and_nothing_else_does() {
        for kind in Kind::ALL {
            assert_eq!(parse(header(kind, PAYLOAD_MAX)), Some((kind, PAYLOAD_MAX)));
        }
        for wrong in [[0, 0, 1, 0], [1, 1, 1, 0], [1, 0, 1, 0x40], [6, 0, 0, 0]] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }
}
