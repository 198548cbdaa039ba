//! Fuzzes `targets::fw_cfg_dma`.
#![cfg_attr(fuzzing, no_main)]

microvm_fuzz::program!(fw_cfg_dma);
