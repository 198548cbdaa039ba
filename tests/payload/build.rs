//! Links the freestanding bzImage by its script; host builds need nothing.

use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Set by `--cfg=firmware`, which xtask passes for freestanding builds.
    if std::env::var_os("CARGO_CFG_FIRMWARE").is_none() {
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("bzimage.ld");
    println!("cargo::rerun-if-changed={}", script.display());
    println!("cargo::rustc-link-arg-bins=-T{}", script.display());
    let load = abi::layout::HIGH_RAM_START;
    println!("cargo::rustc-link-arg-bins=--defsym=LOAD_ADDRESS={load:#x}");
    for arg in ["--gc-sections", "--no-dynamic-linker", "--build-id=none", "--no-eh-frame-hdr"] {
        println!("cargo::rustc-link-arg-bins={arg}");
    }
}
