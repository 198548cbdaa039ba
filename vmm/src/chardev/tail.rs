//! The end of what was put out, for who wonders what the guest said last.

use std::collections::VecDeque;

/// Bytes of output that are remembered.
const TAIL_MAX: usize = 256;

/// The last bytes.
#[derive(Default)]
pub(super) struct Tail {
    bytes: VecDeque<u8>,
    written: bool,
}

impl Tail {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.written = true;
        let kept = bytes.get(bytes.len().saturating_sub(TAIL_MAX)..).unwrap_or(bytes);
        let excess = (self.bytes.len() + kept.len()).saturating_sub(TAIL_MAX);
        self.bytes.drain(..excess);
        self.bytes.extend(kept);
    }

    /// Whether there ever was anything.
    pub(super) fn is_written(&self) -> bool {
        self.written
    }

    /// The last line that is not empty, without what a terminal would not show.
    pub(super) fn last_line(&self) -> String {
        let bytes: Vec<u8> = self.bytes.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let mut lines = text.lines().map(|line| line.replace(|c: char| c.is_control(), ""));
        lines.rfind(|line| !line.trim().is_empty()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_the_last_with_something_in_it() {
        let mut tail = Tail::default();
        assert!(!tail.is_written());
        assert_eq!(tail.last_line(), "");
        tail.push(&[b'x'; 1000]);
        tail.push(b"\none\x1b\r\n \n");
        assert_eq!(tail.last_line(), "one");
        tail.push(b"two");
        assert_eq!(tail.last_line(), "two");
        assert!(tail.is_written());
    }
}
