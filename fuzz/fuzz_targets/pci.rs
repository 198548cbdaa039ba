//! Fuzzes `targets::pci`.
#![cfg_attr(fuzzing, no_main)]

microvm_fuzz::program!(pci);
