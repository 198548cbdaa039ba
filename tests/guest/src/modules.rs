//! The modules that an initramfs brings along, loaded in the order of their names.

use std::fs::{self, File};
use std::io;

use rustix::io::Errno;
use rustix::system::finit_module;

/// Where they are in the initramfs.
pub const FOLDER: &str = "/modules";

/// Loads them all; one that is loaded already is as good.
pub fn load() -> io::Result<()> {
    let modules = fs::read_dir(FOLDER)?.map(|entry| Ok(entry?.path()));
    let mut modules = modules.collect::<io::Result<Vec<_>>>()?;
    modules.sort_unstable();
    for module in modules {
        match finit_module(File::open(module)?, c"", 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
