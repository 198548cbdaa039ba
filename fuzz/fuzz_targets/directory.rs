//! Fuzzes `targets::directory`.
#![cfg_attr(fuzzing, no_main)]

microvm_fuzz::program!(directory);
