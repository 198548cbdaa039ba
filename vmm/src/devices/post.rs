//! The POST code port: the guest says how far it has come.

use crate::bus::{Action, Device};

/// The port.
pub struct Post;

impl Device for Post {
    fn name(&self) -> &'static str {
        "POST codes"
    }

    fn read(&self, _: u64, _: &mut [u8]) {}

    fn write(&self, _: u64, data: &[u8]) -> Action {
        data.first().map_or(Action::None, |code| Action::Post(*code))
    }
}
