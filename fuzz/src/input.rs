//! How bytes become inputs: every value in its turn, zeroes when they run out.
//!
//! The order of the fields is the order of the bytes, and nothing is read from the end, so that
//! inputs can be written by hand (`seeds`).

use arbitrary::{Arbitrary, Unstructured};

/// The input.
pub struct Input<'a>(Unstructured<'a>);

impl<'a> Input<'a> {
    /// All of it.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(Unstructured::new(bytes))
    }

    /// Integers, and structures and arrays of them.
    pub fn take<T: Arbitrary<'a>>(&mut self) -> T {
        // Integers never fail: they are filled up with zeroes.
        self.0.arbitrary().expect("only integers are asked for")
    }

    /// One of several.
    pub fn choose<T: Copy, const N: usize>(&mut self, choices: [T; N]) -> T {
        choices[usize::from(self.take::<u8>()) % N]
    }

    /// Bytes with their 16-bit length in front.
    pub fn bytes(&mut self) -> &'a [u8] {
        let length = usize::from(self.take::<u16>()).min(self.0.len());
        self.0.bytes(length).unwrap_or_default()
    }

    /// What is left.
    pub fn rest(&mut self) -> &'a [u8] {
        self.0.bytes(self.0.len()).unwrap_or_default()
    }

    /// Values until the end.
    pub fn list<T: Arbitrary<'a>>(mut self) -> impl Iterator<Item = T> {
        std::iter::from_fn(move || (!self.0.is_empty()).then(|| self.take()))
    }

    /// Whether there is nothing left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A number near the ends of what a size can be, or any other: `bits` says which.
pub fn odd_size(choice: u8, any: u32, honest: u32) -> u32 {
    match choice % 8 {
        0..=2 => honest,
        3 => 0,
        4 => u32::MAX,
        5 => honest.wrapping_add(any % 512).wrapping_sub(256),
        6 => any % (1 << 16),
        _ => any,
    }
}
