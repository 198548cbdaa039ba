//! Fuzzes `targets::table_loader`.
#![cfg_attr(fuzzing, no_main)]

microvm_fuzz::program!(table_loader);
