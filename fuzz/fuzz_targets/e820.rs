//! Fuzzes `targets::e820`.
#![cfg_attr(fuzzing, no_main)]

microvm_fuzz::program!(e820);
