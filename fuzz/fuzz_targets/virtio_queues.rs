//! Fuzzes `targets::virtio_queues`.
#![cfg_attr(fuzzing, no_main)]

microvm_fuzz::program!(virtio_queues);
