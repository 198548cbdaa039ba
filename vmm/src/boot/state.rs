//! What a CPU is when the guest's first instruction runs, as a value.

use abi::range::Range;

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The selector.
    pub selector: u16,
    /// The first address.
    pub base: u64,
    /// The last offset, in bytes.
    pub limit: u32,
    /// The type field, with the S bit (16) for code and data.
    pub kind: u8,
    /// Default operand size 32 (D/B).
    pub bits_32: bool,
    /// 64-bit code (L).
    pub bits_64: bool,
}

/// A segment's S bit: code or data, not a system segment.
pub const CODE_OR_DATA: u8 = 0x10;
/// Types (Intel SDM volume 3, 3.4.5.1 and 3.5): accessed data, accessed code, busy TSS.
pub const DATA: u8 = CODE_OR_DATA | 0x3;
/// See [`DATA`].
pub const CODE: u8 = CODE_OR_DATA | 0xb;
/// See [`DATA`].
pub const BUSY_TSS: u8 = 0xb;

impl Segment {
    /// As a descriptor table holds it.
    pub fn descriptor(&self) -> u64 {
        let granular = self.limit > 0xf_ffff;
        let limit = u64::from(if granular { self.limit >> 12 } else { self.limit });
        let flags =
            u64::from(granular) << 3 | u64::from(self.bits_32) << 2 | u64::from(self.bits_64) << 1;
        let access = u64::from(self.kind) | 0x80;
        limit & 0xffff
            | (self.base & 0xff_ffff) << 16
            | access << 40
            | (limit >> 16 & 0xf) << 48
            | flags << 52
            | (self.base >> 24 & 0xff) << 56
    }
}

/// A descriptor table register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Where the table is.
    pub base: u64,
    /// Its last offset.
    pub limit: u16,
}

/// Registers; what is not named is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// The first instruction, relative to CS.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// Where a PVH kernel finds its start info.
    pub rbx: u64,
    /// Where Linux finds its boot parameters.
    pub rsi: u64,
    /// The code segment.
    pub cs: Segment,
    /// DS, ES, SS, FS, GS.
    pub data: Segment,
    /// The task register.
    pub tr: Segment,
    /// The GDT register.
    pub gdt: Table,
    /// Control register 0.
    pub cr0: u64,
    /// The page tables.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Extended features.
    pub efer: u64,
}

/// Flags with nothing but the bit that is always 1.
const RFLAGS: u64 = 2;
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
/// CR0 after reset: caches off, ET.
const CR0_RESET: u64 = 0x6000_0010;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

const TR_SELECTOR: u16 = 0x20;

impl Cpu {
    /// After a reset (Intel SDM volume 3, table 10-1): real mode, at the reset vector.
    pub const RESET: Self = Self {
        rip: 0xfff0,
        rflags: RFLAGS,
        rbx: 0,
        rsi: 0,
        cs: real_segment(0xf000, 0xffff_0000, CODE),
        data: real_segment(0, 0, DATA),
        tr: real_segment(0, 0, BUSY_TSS),
        gdt: Table { base: 0, limit: 0xffff },
        cr0: CR0_RESET,
        cr3: 0,
        cr4: 0,
        efer: 0,
    };

    /// Protected mode without paging, flat segments, the GDT of a direct boot.
    pub fn protected(rip: u64) -> Self {
        let flat = |selector, kind| Segment {
            selector,
            base: 0,
            limit: u32::MAX,
            kind,
            bits_32: true,
            bits_64: false,
        };
        Self {
            rip,
            cs: flat(abi::linux::BOOT_CS, CODE),
            data: flat(abi::linux::BOOT_DS, DATA),
            tr: Segment { limit: 0x67, bits_32: false, ..flat(TR_SELECTOR, BUSY_TSS) },
            gdt: Table { base: abi::layout::GDT.start(), limit: GDT_LIMIT },
            cr0: CR0_PE | CR0_ET,
            ..Self::RESET
        }
    }

    /// Long mode on the page tables of a direct boot, flat segments.
    pub fn long(rip: u64) -> Self {
        let protected = Self::protected(rip);
        Self {
            cs: Segment { bits_32: false, bits_64: true, ..protected.cs },
            cr0: CR0_PE | CR0_ET | CR0_PG,
            cr3: abi::layout::PAGE_TABLES.start(),
            cr4: CR4_PAE,
            efer: EFER_LME | EFER_LMA,
            ..protected
        }
    }

    /// The GDT that these segments are from: null, unused, code, data, and a TSS of two entries.
    pub fn gdt_bytes(&self) -> [u8; GDT_ENTRIES * 8] {
        let entries = [0, 0, self.cs.descriptor(), self.data.descriptor(), self.tr.descriptor(), 0];
        let mut bytes = [0; GDT_ENTRIES * 8];
        for (to, entry) in bytes.chunks_exact_mut(8).zip(entries) {
            to.copy_from_slice(&entry.to_le_bytes());
        }
        bytes
    }
}

const GDT_ENTRIES: usize = 6;
const GDT_LIMIT: u16 = 47;
const _: () = assert!(GDT_LIMIT as usize == GDT_ENTRIES * 8 - 1);

const fn real_segment(selector: u16, base: u64, kind: u8) -> Segment {
    Segment { selector, base, limit: 0xffff, kind, bits_32: false, bits_64: false }
}

/// How the guest starts: the CPU, and what was put where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitState {
    /// The first CPU.
    pub cpu: Cpu,
    /// What was placed in guest memory, by name.
    pub placed: Vec<(&'static str, Range)>,
    /// Whether the kernel's first instruction is the guest's first.
    pub direct: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_the_well_known_ones() {
        let long = Cpu::long(0);
        assert_eq!(long.cs.descriptor(), 0x00af_9b00_0000_ffff);
        assert_eq!(long.data.descriptor(), 0x00cf_9300_0000_ffff);
        let protected = Cpu::protected(0);
        assert_eq!(protected.cs.descriptor(), 0x00cf_9b00_0000_ffff);
        assert_eq!(protected.tr.descriptor(), 0x0000_8b00_0000_0067);
        let low = Segment { base: 0x1234_5678, ..protected.tr };
        assert_eq!(low.descriptor(), 0x1200_8b34_5678_0067);
    }

    #[test]
    fn the_reset_state_is_at_the_reset_vector() {
        let cpu = Cpu::RESET;
        assert_eq!(cpu.cs.base + cpu.rip, abi::layout::RESET_VECTOR);
        assert_eq!((cpu.cr0, cpu.cr4, cpu.efer), (0x6000_0010, 0, 0));
    }

    #[test]
    fn selectors_lead_to_their_descriptors() {
        let cpu = Cpu::long(0x100_0200);
        let gdt = cpu.gdt_bytes();
        for segment in [cpu.cs, cpu.data, cpu.tr] {
            let entry = abi::bytes::get_u64(&gdt, segment.selector.into());
            assert_eq!(entry, Some(segment.descriptor()));
        }
        assert_eq!((cpu.cr0 & (CR0_PE | CR0_PG), cpu.cr4), (CR0_PE | CR0_PG, CR4_PAE));
    }
}
