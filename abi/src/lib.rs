//! The contract between the firmware and the VMM: layout, ports, wire formats.
//!
//! What one of the two programs must know of the other stands here, once. Everything in this
//! crate is a value or a pure function: no unsafe code, no allocation, no I/O, so that it runs
//! and is tested anywhere.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod bda;
pub mod boot_trace;
pub mod bytes;
pub mod e820;
pub mod fpdt;
pub mod fw_cfg;
pub mod layout;
pub mod linux;
pub mod mp_table;
pub mod pci;
pub mod placement;
pub mod ports;
pub mod post;
pub mod pvh;
pub mod range;
pub mod table_loader;
pub mod workload;
