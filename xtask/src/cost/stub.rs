//! The stub kernel: it leaves by isa-debug-exit with its first instruction.

/// Bytes of the protected-mode part.
const KERNEL_SIZE: usize = 8 << 20;
/// Bytes of the initrd.
pub const INITRD_SIZE: usize = 1 << 20;
/// What kernel and initrd are filled with, so that they can be told from what a BIOS writes.
pub const FILLER: u8 = 0xf4;
/// What the stub writes to isa-debug-exit.
pub const EXIT: u8 = 0x10;

/// Where kernels are loaded: the 32-bit and PVH entries at 1 MiB or where ours prefers to be.
const LOAD: [u64; 2] = [0x10_0000, PREFERRED as u64];
const PREFERRED: u32 = 0x100_0000;
/// Where the setup code goes, and its jump within.
const SETUP: u64 = 0x1_0200;

/// How the kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A bzImage by the entry that the BIOS chooses.
    BzImage,
    /// A bzImage by its 32-bit entry, where the BIOS can be asked for it.
    Bits32,
    /// A bzImage by its 16-bit entry, where the BIOS can be asked for it.
    Bits16,
    /// An ELF by its PVH note.
    Pvh,
}

impl Entry {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::BzImage, Self::Bits32, Self::Bits16, Self::Pvh];

    /// For people, and in the budget.
    pub fn name(self) -> &'static str {
        match self {
            Self::BzImage => "bzImage",
            Self::Bits32 => "32",
            Self::Bits16 => "16",
            Self::Pvh => "PVH",
        }
    }

    /// What `opt/org.microvm/entry` says; nothing by default.
    pub fn choice(self) -> Option<&'static str> {
        match self {
            Self::BzImage | Self::Pvh => None,
            Self::Bits32 => Some("32"),
            Self::Bits16 => Some("16"),
        }
    }
}

/// Whether the instruction at `address` is the kernel's first.
pub fn is_entry(address: u64) -> bool {
    address == SETUP || LOAD.iter().any(|load| address == *load || address == load + 0x200)
}

/// `mov al, EXIT; out 0xf4, al; hlt`, the same in every mode.
const CODE: [u8; 5] = [0xb0, EXIT, 0xe6, 0xf4, 0xf4];

/// The kernel's file.
pub fn kernel(entry: Entry) -> Vec<u8> {
    if entry == Entry::Pvh { elf() } else { bzimage() }
}

/// Protocol 2.12 with a 64-bit entry, relocatable (Linux, Documentation/arch/x86/boot.rst).
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 1024];
    let init_size = u32::try_from(KERNEL_SIZE).unwrap_or(u32::MAX);
    for (at, bytes) in [
        (0x1f1, &b"\x01"[..]),
        (0x1fe, b"\x55\xaa\xeb\x66HdrS\x0c\x02"),
        (0x211, b"\x01"),
        (0x214, &0x10_0000u32.to_le_bytes()),
        (0x22c, &0x7fff_ffffu32.to_le_bytes()),
        (0x230, &0x20_0000u32.to_le_bytes()),
        (0x234, b"\x01\x15\x01\x00"),
        (0x238, &2047u32.to_le_bytes()),
        (0x258, &u64::from(PREFERRED).to_le_bytes()),
        (0x260, &init_size.to_le_bytes()),
        (0x268, &CODE),
    ] {
        image[at..at + bytes.len()].copy_from_slice(bytes);
    }
    image.extend(protected_mode_part());
    image
}

fn protected_mode_part() -> Vec<u8> {
    let mut part = vec![FILLER; KERNEL_SIZE];
    for at in [0, 0x200] {
        part[at..at + CODE.len()].copy_from_slice(&CODE);
    }
    part
}

/// An ELF64 of one segment at [`PREFERRED`] with a PVH note (`XEN_ELFNOTE_PHYS32_ENTRY`).
fn elf() -> Vec<u8> {
    const HEADER: u64 = 64;
    const PROGRAM_HEADER: u64 = 56;
    const NOTE_SIZE: u64 = 20;
    const CONTENT: u64 = 4096;
    let note_at = HEADER + 2 * PROGRAM_HEADER;
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for value in [u64::from(PREFERRED), HEADER, 0] {
        file.extend(value.to_le_bytes());
    }
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 64, 0, 0, 0, 0, 0]);
    let size = KERNEL_SIZE as u64;
    let load = u64::from(PREFERRED);
    for (kind, offset, address, size) in
        [(1u32, CONTENT, load, size), (4u32, note_at, 0, NOTE_SIZE)]
    {
        file.extend(kind.to_le_bytes());
        file.extend(7u32.to_le_bytes());
        for value in [offset, address, address, size, size, 4] {
            file.extend(value.to_le_bytes());
        }
    }
    for value in [4u32, 4, 18] {
        file.extend(value.to_le_bytes());
    }
    file.extend(b"Xen\0");
    file.extend(PREFERRED.to_le_bytes());
    file.resize(usize::try_from(CONTENT).unwrap_or(0), 0);
    file.extend(protected_mode_part());
    file
}
