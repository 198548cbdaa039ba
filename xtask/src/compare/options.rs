//! `cargo xtask compare --options`: what a kernel's options cost its start.

use anyhow::Result;

use super::candidates::{self, Candidate, Guest};
use super::observe::Observed;
use super::table::milliseconds;
use crate::build;
use crate::kernel::{self, GuestKernel};

/// A kernel or its command line, changed: why one would, options, and words for the command line.
struct Change {
    what: &'static str,
    options: &'static [&'static str],
    append: &'static str,
}

/// What a build with another packer changes, and nothing else.
const fn packed(what: &'static str, options: &'static [&'static str]) -> Change {
    Change { what, options, append: "" }
}

/// The kernel as it is, then one change at a time.
const CHANGES: [Change; 12] = [
    Change { what: "as it is", options: &[], append: "" },
    Change { what: "with kernel messages (no quiet)", options: &[], append: "loglevel=7" },
    Change { what: "mitigations=off", options: &[], append: "mitigations=off" },
    packed("packed by gzip", &["CONFIG_KERNEL_LZ4=n", "CONFIG_KERNEL_GZIP=y"]),
    packed("packed by zstd", &["CONFIG_KERNEL_LZ4=n", "CONFIG_KERNEL_ZSTD=y"]),
    packed("packed by xz", &["CONFIG_KERNEL_LZ4=n", "CONFIG_KERNEL_XZ=y"]),
    Change { what: "no KASLR", options: &["CONFIG_RANDOMIZE_BASE=n"], append: "" },
    Change {
        what: "optimized for size",
        options: &["CONFIG_CC_OPTIMIZE_FOR_PERFORMANCE=n", "CONFIG_CC_OPTIMIZE_FOR_SIZE=y"],
        append: "",
    },
    Change {
        what: "with the ORC unwinder",
        options: &["CONFIG_UNWINDER_GUESS=n", "CONFIG_UNWINDER_ORC=y"],
        append: "",
    },
    Change {
        what: "1000 Hz, ticking when idle",
        options: &[
            "CONFIG_HZ_100=n",
            "CONFIG_HZ_1000=y",
            "CONFIG_NO_HZ_IDLE=n",
            "CONFIG_HZ_PERIODIC=y",
        ],
        append: "",
    },
    Change { what: "no network", options: &["CONFIG_NET=n"], append: "" },
    Change {
        what: "every symbol's name",
        options: &["CONFIG_KALLSYMS=y", "CONFIG_KALLSYMS_ALL=y"],
        append: "",
    },
];

/// Builds a kernel for each change, starts them all, and prints what each differs by.
pub fn run(observe: impl Fn(&[Candidate]) -> Result<Vec<Observed>>) -> Result<()> {
    let initrd = build::build_initramfs()?;
    let mut candidates = Vec::new();
    let mut sizes = Vec::new();
    for (index, change) in CHANGES.iter().enumerate() {
        eprintln!("options: {} of {}: {}", index + 1, CHANGES.len(), change.what);
        let GuestKernel { vmlinux, bzimage, .. } = match change.options {
            [] => kernel::build()?,
            options => kernel::build_with(&format!("guest-kernel-{index}"), options)?,
        };
        sizes.push(std::fs::metadata(&bzimage)?.len());
        for (form, kernel) in [("vmlinux", &vmlinux), ("bzImage", &bzimage)] {
            let guest = Guest { form, kernel, initrd: &initrd };
            let [direct, ..] = &mut candidates::ours(guest)?[..] else { continue };
            direct.append(change.append);
            candidates.push(direct.clone());
        }
    }
    let rows = observe(&candidates)?;
    println!("{HEAD}");
    for ((change, size), pair) in CHANGES.iter().zip(sizes).zip(rows.chunks(2)) {
        let [elf, packed] = pair else { continue };
        println!(
            "{:34}{:>9}{:>9}{:>9}{:>9}{:>9}{:>11}",
            change.what,
            milliseconds(elf.init),
            milliseconds(packed.init),
            elf.to_end.exits.unwrap_or_default(),
            elf.to_end.to_user.unwrap_or_default(),
            elf.pss_kib.unwrap_or_default(),
            size.div_ceil(1000),
        );
    }
    Ok(())
}

const HEAD: &str = "\
virtual ms from exec to init        vmlinux  bzImage    exits   to VMM  PSS KiB bzImage KB";
