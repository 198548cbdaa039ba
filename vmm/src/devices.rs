//! The devices of the machine. Each sees bytes and says what should happen.

pub mod debug_exit;
pub mod ged;
pub mod i8042;
pub mod ioapic;
pub mod post;
pub mod pvpanic;
pub mod serial;
