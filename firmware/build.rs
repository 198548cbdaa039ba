//! Links the freestanding image by its script; host builds need nothing.

use std::path::Path;

use abi::layout;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Set by `--cfg=firmware`, which `cargo xtask build-firmware` passes.
    if std::env::var_os("CARGO_CFG_FIRMWARE").is_none() {
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../linker/bios.ld");
    println!("cargo::rerun-if-changed={}", script.display());
    println!("cargo::rustc-link-arg-bins=-T{}", script.display());
    for (symbol, value) in [
        ("BIOS_START", layout::BIOS_LOW.start()),
        ("BIOS_SIZE", layout::BIOS_SIZE),
        ("SMBIOS_ANCHOR", layout::SMBIOS_ANCHOR.start()),
        ("SMBIOS_ANCHOR_END", layout::SMBIOS_ANCHOR.end()),
        ("DATA_START", layout::FIRMWARE_DATA.start()),
        ("DATA_END", layout::FIRMWARE_DATA.end()),
    ] {
        println!("cargo::rustc-link-arg-bins=--defsym={symbol}={value:#x}");
    }
    for arg in [
        "--gc-sections",
        "--no-dynamic-linker",
        "--build-id=none",
        "--no-eh-frame-hdr",
        "--orphan-handling=error",
    ] {
        println!("cargo::rustc-link-arg-bins={arg}");
    }
}
