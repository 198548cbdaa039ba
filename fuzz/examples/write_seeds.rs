//! Writes all seeds below the folder that is given, for the engine to start from.

use std::fs;
use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let folder = PathBuf::from(std::env::args_os().nth(1).unwrap_or_else(|| "corpus".into()));
    for (target, _) in microvm_fuzz::TARGETS {
        let corpus = folder.join(target);
        fs::create_dir_all(&corpus)?;
        for (name, bytes) in microvm_fuzz::seeds::of(target) {
            fs::write(corpus.join(name), bytes)?;
        }
    }
    Ok(())
}
