//! The harness of the whole-system tests: products, programs, facts.
//!
//! `cargo xtask test` builds what the tests need, chooses where each can run (lab.md in `docs/`
//! says what a ground is), and says where everything is through the environment. A test that
//! lacks something fails and names it; none is skipped.
#![forbid(unsafe_code)]

pub mod acpi;
pub mod aml;
pub mod busybox;
pub mod disk;
pub mod facts;
pub mod machine;
pub mod matrix;
pub mod medium;
pub mod offer;
pub mod products;
pub mod program;
pub mod trial;
