//! Locks that keep two machines from writing to one image.
//!
//! They are QEMU's (its block/file-posix.c), so that a QEMU and this program respect each other:
//! for what a user does with an image it holds a byte of the file from 100 on, for what it lets
//! nobody else do a byte from 200 on, all of them shared; whoever finds the other's byte held goes
//! away. The locks belong to the open file and go with it.
#![expect(unsafe_code, reason = "open file description locks have no safe form")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

const USED: i64 = 100;
const UNSHARED: i64 = 200;
/// What users do, as offsets of their bytes.
const READ: i64 = 0;
const WRITE: i64 = 1;

/// Locks `file` for a guest that reads it and, if `writes`, writes to it; others may write to it
/// at the same time if `shared`. False when somebody else is in the way.
pub fn lock(file: &File, writes: bool, shared: bool) -> bool {
    let mut held = vec![USED + READ];
    let mut in_the_way = vec![UNSHARED + READ];
    if writes {
        held.push(USED + WRITE);
        in_the_way.push(UNSHARED + WRITE);
    }
    if !shared {
        held.push(UNSHARED + WRITE);
        in_the_way.push(USED + WRITE);
    }
    // Held first, then looked at: of two that come at once, at least one sees the other. A file
    // system without locks has none in the way, as in QEMU.
    held.iter().for_each(|byte| drop(control(file, libc::F_OFD_SETLK, libc::F_RDLCK, *byte)));
    let is_free = |byte: &i64| {
        control(file, libc::F_OFD_GETLK, libc::F_WRLCK, *byte)
            .map_or(true, |found| found == libc::F_UNLCK)
    };
    in_the_way.iter().all(is_free)
}

/// Does something about the lock of one byte; the kind of lock that is there, where that is asked.
fn control(file: &File, command: i32, kind: i32, byte: i64) -> io::Result<i32> {
    let narrow = |number: i32| i16::try_from(number).map_err(|_| io::ErrorKind::InvalidInput);
    let mut lock = libc::flock {
        l_type: narrow(kind)?,
        l_whence: narrow(libc::SEEK_SET)?,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open, and `lock` is a valid structure that outlives the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(lock.l_type.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writers_are_alone_and_readers_are_not() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(path.path()).unwrap();
        let [a, b, c] = [open(), open(), open()];
        assert!(lock(&a, false, false));
        assert!(lock(&b, false, false), "two readers");
        assert!(!lock(&c, true, false), "a writer among readers");
        drop((a, b, c));
        let [a, b, c] = [open(), open(), open()];
        assert!(lock(&a, true, true));
        assert!(lock(&b, true, true), "writers that share");
        assert!(!lock(&c, true, false), "one that does not");
        drop((a, b, c));
        let [a, b] = [open(), open()];
        assert!(lock(&a, true, false));
        assert!(!lock(&b, false, false), "a reader beside a writer");
    }
}
