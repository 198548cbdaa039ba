//! What the first processes of a guest need: mounts, console, marks, facts.
//!
//! Two static programs are built from this crate. `init` is pid 1 of the guest under test: it
//! prints what it sees as `key=value` lines and leaves. `lab-init` is pid 1 of the lab's Linux:
//! it loads KVM, runs one command and hands its exit status out. Neither panics: an error of
//! pid 1 is a line on the console, because what a kernel says about a dead init helps nobody.

pub mod console;
pub mod disk;
pub mod durable;
pub mod facts;
pub mod firmware_times;
pub mod lab;
pub mod load;
pub mod mark;
pub mod modules;
pub mod mounts;
pub mod power_button;
pub mod stream;
pub mod tree_hash;
