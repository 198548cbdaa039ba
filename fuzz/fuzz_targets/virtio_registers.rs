//! Fuzzes `targets::virtio_registers`.
#![cfg_attr(fuzzing, no_main)]

microvm_fuzz::program!(virtio_registers);
