//! A model-specific register of every CPU, as the firmware left it.
//!
//! To start a CPU is to reset it, and QEMU's emulator forgets some registers over that. So the
//! others are asked where they wait, in real mode, halted, by a non-maskable interrupt. CPUs that
//! nobody started answer under QEMU's emulator, under KVM they do not.

use core::fmt;

use abi::bytes::get_u64;

use crate::hardware;

/// The local APIC's interrupt command register, and an NMI to all CPUs but this one (Intel SDM
/// volume 3, 11.6.1).
const INTERRUPT_COMMAND: u64 = 0xfee0_0300;
const NMI_TO_OTHERS: u32 = 0xc_4400;
/// Real mode's vector of the NMI.
const NMI_VECTOR: u16 = 2 * 4;
/// The handler, and what it works with: free memory behind the BIOS data area.
const HANDLER: u16 = 0x600;
const NUMBER: u16 = 0x640;
const NEXT: u16 = 0x644;
const ANSWERS: u16 = 0x648;
const VALUES: u16 = 0x650;
/// Cycles after which no more answers are waited for.
const PATIENCE: u64 = 1 << 28;

/// Real-mode code: stores the register NUMBER at the place that NEXT points to, and halts.
const CODE: [u8; 35] = {
    let [[n0, n1], [p0, p1], [a0, a1]] =
        [NUMBER.to_le_bytes(), NEXT.to_le_bytes(), ANSWERS.to_le_bytes()];
    [
        0x31, 0xc0, // xor ax, ax
        0x8e, 0xd8, // mov ds, ax
        0x66, 0x8b, 0x0e, n0, n1, // mov ecx, [NUMBER]
        0x0f, 0x32, // rdmsr
        0xbf, 0x08, 0x00, // mov di, 8
        0xf0, 0x0f, 0xc1, 0x3e, p0, p1, // lock xadd [NEXT], di
        0x66, 0x89, 0x05, // mov [di], eax
        0x66, 0x89, 0x55, 0x04, // mov [di + 4], edx
        0xf0, 0xff, 0x06, a0, a1,   // lock inc word [ANSWERS]
        0xf4, // hlt
        0xeb, 0xfd, // jmp to the hlt
    ]
};

/// The register `number` of this CPU, then of those of `others` that answer.
pub fn registers(number: u32, others: usize) -> Registers {
    hardware::write_low(HANDLER, &CODE);
    hardware::write_low(NUMBER, &number.to_le_bytes());
    hardware::write_low(NEXT, &VALUES.to_le_bytes());
    hardware::write_low(ANSWERS, &[0; 2]);
    let [low, high] = HANDLER.to_le_bytes();
    hardware::write_low(NMI_VECTOR, &[low, high, 0, 0]);
    hardware::mmio_write32(INTERRUPT_COMMAND, NMI_TO_OTHERS);
    let end = hardware::cycles() + PATIENCE;
    let mut answers = 0;
    while answers < others && hardware::cycles() < end {
        // An emulator that runs one CPU at a time goes on to the next by it.
        core::hint::spin_loop();
        answers = hardware::read_low(ANSWERS).into();
    }
    Registers { own: hardware::read_msr(number), answers }
}

/// Prints the values, comma-separated.
pub struct Registers {
    own: u64,
    answers: usize,
}

impl fmt::Display for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.own)?;
        let values = hardware::physical(VALUES.into(), 8 * self.answers as u64);
        let values = values.unwrap_or_default().chunks_exact(8);
        values.map(|value| get_u64(value, 0).unwrap_or(0)).try_for_each(|v| write!(f, ",{v:#x}"))
    }
}
