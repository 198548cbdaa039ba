//! The firmware's logic: everything but the instructions that touch hardware.
//!
//! Reading order: `boot` is the plot; `fw_cfg` reads from the host what `directory` finds; `tables`
//! links ACPI, or `mp_table` stands in for it; `kernel` loads and describes a bzImage, `pvh` an
//! ELF; `log` and `fpdt` tell of it. `machine` is the seam behind which ports and memory are: the
//! binary's `hardware` stands there, or a test.
//! On pc and q35 `chipset` sets up what microVMs do not have: [`pci`] does the buses,
//! `smbios` places the tables. `cpus` is for what all CPUs must have alike.
//! Where things go is decided by [`abi::placement`], which the VMM's direct boot uses too.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod boot;
pub mod chipset;
pub mod cpus;
pub mod directory;
pub mod error;
pub mod fpdt;
pub mod fw_cfg;
pub mod kernel;
pub mod log;
pub mod machine;
pub mod mp_table;
pub mod pvh;
pub mod real_mode;
pub mod smbios;
pub mod tables;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
