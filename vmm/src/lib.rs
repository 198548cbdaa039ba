//! A KVM virtual machine monitor for QEMU's `microvm` machine.
//!
//! `argv -> Config -> Machine`: [`args`] reads the command line into a [`config::Config`],
//! [`machine::Machine`] sets a virtual machine up from it and runs it, and [`run`] goes round
//! that until the guest is done.
//!
//! Invariants:
//! - Only `memory`, `vcpu`, `machine` and `accel` name `kvm_ioctls`.
//! - A device sees bytes and returns an [`bus::Action`]; it knows neither KVM nor the machine.
//! - Every way to boot returns a [`boot::InitState`]; the vCPU loads it.
//! - What the guest does is never an error of this program: it is answered, or it ends the guest.

pub mod accel;
pub mod acpi;
pub mod args;
pub mod board;
pub mod boot;
pub mod bus;
pub mod chardev;
pub mod config;
pub mod console;
pub mod control;
pub mod cpuid;
pub mod crew;
pub mod devices;
pub mod farewell;
pub mod fw_cfg;
pub mod image;
pub mod kernel_cache;
pub mod machine;
pub mod memory;
pub mod outside;
pub mod pidfile;
pub mod qmp;
pub mod run;
pub mod signals;
pub mod trace;
pub mod vcpu;
pub mod virtio;
pub mod workload;
