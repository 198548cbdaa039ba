//! The file that has the process's number while it runs.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process holds it.
    #[error("-pidfile '{0}': another process holds it")]
    Held(PathBuf),
    /// It cannot be written.
    #[error("-pidfile '{path}'")]
    Write {
        /// The file.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
}

/// A file that is locked while the process lives and removed when it ends, as QEMU does.
pub struct PidFile {
    path: PathBuf,
    // Holds the lock.
    file: File,
}

impl PidFile {
    /// Writes the number of this process to `path`.
    pub fn write(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Write { path: path.into(), source };
        let mut options = OpenOptions::new();
        // Cut off only once it is ours.
        options.write(true).create(true).truncate(false).mode(0o600);
        // A pipe that nobody reads is an error, and no wait.
        options.custom_flags(libc::O_NONBLOCK);
        let file = options.open(path).map_err(failed)?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => Error::Held(path.into()),
            TryLockError::Error(source) => failed(source),
        })?;
        file.set_len(0).map_err(failed)?;
        // It goes again if it cannot be written.
        let mut held = Self { path: path.into(), file };
        held.file.write_all(format!("{}\n", std::process::id()).as_bytes()).map_err(failed)?;
        Ok(held)
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Somebody may have removed it already.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_there_as_long_as_it_is_held() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pid");
        fs::write(&path, "a longer number than any: 12345678901234567890").unwrap();
        let held = PidFile::write(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("{}\n", std::process::id()));
        assert!(matches!(PidFile::write(&path), Err(Error::Held(_))));
        drop(held);
        assert!(!path.exists());
        let pipe = folder.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
        assert!(PidFile::write(&pipe).is_err(), "nobody reads it");
        let error = PidFile::write(&path.join("x")).map(drop).unwrap_err().to_string();
        assert!(error.contains("-pidfile"), "{error}");
    }
}
