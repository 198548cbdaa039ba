//! Fuzzes `targets::pvh`.
#![cfg_attr(fuzzing, no_main)]

microvm_fuzz::program!(pvh);
