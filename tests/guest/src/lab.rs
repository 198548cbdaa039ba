//! The contract between `cargo xtask lab` and `lab-init`, which carries it out.
//!
//! xtask packs these files into the lab's initramfs; what comes back is the command's output on
//! two serial ports and its exit status on the third.

/// The command: its arguments, the program's path first, each ended by a NUL.
pub const COMMAND: &str = "/lab/command";
/// The command's environment: `NAME=value`, each ended by a NUL.
pub const ENVIRONMENT: &str = "/lab/environment";
/// The directory to run the command in: a path without a newline.
pub const DIRECTORY: &str = "/lab/directory";
/// How the command gets its input: one of the `STDIN_*` words.
pub const STDIN: &str = "/lab/stdin";
/// Kernel modules to load, a path a line, each after those it needs.
pub const MODULES: &str = "/lab/modules";

/// The command reads nothing: its input is /dev/null.
pub const STDIN_NULL: &str = "null";
/// The command reads the serial port byte for byte; there is no end of file on a wire.
pub const STDIN_RAW: &str = "raw";
/// The command reads a terminal: lines, echo, Ctrl-D.
pub const STDIN_TERMINAL: &str = "terminal";

/// Where the command's input comes from and its output goes.
pub const STDOUT_PORT: &str = "/dev/ttyS0";
/// Where the command's standard error goes.
pub const STDERR_PORT: &str = "/dev/ttyS1";
/// The kernel's console; the status line comes last on it.
pub const STATUS_PORT: &str = "/dev/ttyS2";

/// The line that says that the command is about to start: input sent earlier is lost.
pub const READY: &str = "lab-ready";
/// Begins the line that carries the command's exit status, 128 + the signal for a killed one.
pub const STATUS: &str = "lab-exit-status=";
/// Begins the line that says why the command could not be run at all.
pub const ERROR: &str = "lab-error=";

/// Ends each item with a NUL, the format of [`COMMAND`] and [`ENVIRONMENT`].
pub fn join_items<'a>(items: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut joined = Vec::new();
    for item in items {
        joined.extend_from_slice(item);
        joined.push(0);
    }
    joined
}

/// Takes apart what [`join_items`] joined.
pub fn split_items(joined: &[u8]) -> impl Iterator<Item = &[u8]> {
    joined.split_inclusive(|&byte| byte == 0).map(|item| item.strip_suffix(&[0]).unwrap_or(item))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_survive_a_round_trip() {
        let items: [&[u8]; 4] = [b"/bin/sh", b"-c", b"", b"a b\nc"];
        let joined = join_items(items);
        assert_eq!(split_items(&joined).collect::<Vec<_>>(), items);
        assert_eq!(split_items(&[]).count(), 0);
    }
}
