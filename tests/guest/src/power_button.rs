//! The power button, as the kernel's input device.

use std::fs::{self, File};
use std::io::{self, Read};

/// Where input devices are.
const FOLDER: &str = "/dev/input";
/// `struct input_event` (Linux, include/uapi/linux/input.h): a time of 16 bytes, type, code, value.
const EVENT_SIZE: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
const PRESSED: i32 = 1;

/// Opens the button: the machine's only input device.
pub fn open() -> io::Result<File> {
    for entry in fs::read_dir(FOLDER)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("event") {
            return File::open(entry.path());
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "there is no input device"))
}

/// Returns when it is pressed.
pub fn wait(button: &mut File) -> io::Result<()> {
    let mut event = [0; EVENT_SIZE];
    loop {
        button.read_exact(&mut event)?;
        if is_press(&event) {
            return Ok(());
        }
    }
}

fn is_press(event: &[u8; EVENT_SIZE]) -> bool {
    let [.., t0, t1, c0, c1, v0, v1, v2, v3] = *event;
    (u16::from_le_bytes([t0, t1]), u16::from_le_bytes([c0, c1])) == (EV_KEY, KEY_POWER)
        && i32::from_le_bytes([v0, v1, v2, v3]) == PRESSED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_power_key_going_down_is_a_press() {
        for (tail, expected) in [
            ([1, 0, 116, 0, 1, 0, 0, 0], true),
            ([1, 0, 116, 0, 0, 0, 0, 0], false),
            ([1, 0, 30, 0, 1, 0, 0, 0], false),
            ([0; 8], false),
        ] {
            let mut event = [0xff; EVENT_SIZE];
            event[16..].copy_from_slice(&tail);
            assert_eq!(is_press(&event), expected, "{tail:?}");
        }
    }
}
