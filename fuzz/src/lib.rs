//! Fuzz targets of what the firmware and the VMM are told by strangers.
//!
//! That is the host to the firmware, and the guest to the VMM. A target is a function that takes
//! any bytes, and panics when the firmware does or when what must
//! hold does not. `host` is the machine around the firmware and watches what it does, `check` looks
//! at what a kernel would find, `tables` does the table-loader's work a second time, `seeds` has
//! inputs written by hand. The programs in `fuzz_targets` run a target under the engine; the tests
//! of this file run every committed input through its target, without an engine.

pub mod check;
pub mod config;
pub mod guest;
mod heap;
pub mod host;
pub mod input;
pub mod ram;
pub mod seeds;
pub mod tables;
pub mod targets;

/// The program of a target: the engine's, or one that runs the files that it is given.
#[macro_export]
macro_rules! program {
    ($target:ident) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|bytes: &[u8]| $crate::targets::$target::run(bytes));

        #[cfg(not(fuzzing))]
        fn main() -> std::io::Result<()> {
            for path in std::env::args_os().skip(1) {
                $crate::targets::$target::run(&std::fs::read(path)?);
            }
            Ok(())
        }
    };
}

/// A target.
pub type Target = fn(&[u8]);

/// All targets by their names, which are those of their corpora.
pub const TARGETS: [(&str, Target); 10] = [
    ("directory", targets::directory::run),
    ("table_loader", targets::table_loader::run),
    ("e820", targets::e820::run),
    ("setup_header", targets::setup_header::run),
    ("pvh", targets::pvh::run),
    ("placement", targets::placement::run),
    ("pci", targets::pci::run),
    ("fw_cfg_dma", targets::fw_cfg_dma::run),
    ("virtio_registers", targets::virtio_registers::run),
    ("virtio_queues", targets::virtio_queues::run),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    // One test for all targets: the limit of the firmware's heap is the whole process's.
    #[test]
    fn every_committed_input_and_every_seed_passes() {
        for (name, run) in TARGETS {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
            let mut inputs = 0;
            for entry in fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                // The harness shows the last line when the input fails.
                println!("{}", path.display());
                run(&fs::read(&path).unwrap());
                inputs += 1;
            }
            assert!(inputs > 0, "{} is empty", folder.display());
            for (seed, bytes) in seeds::of(name) {
                println!("{name}: seed {seed}");
                run(&bytes);
            }
        }
    }
}
