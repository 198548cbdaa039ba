//! Fuzzes `targets::setup_header`.
#![cfg_attr(fuzzing, no_main)]

microvm_fuzz::program!(setup_header);
