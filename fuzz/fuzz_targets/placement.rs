//! Fuzzes `targets::placement`.
#![cfg_attr(fuzzing, no_main)]

microvm_fuzz::program!(placement);
