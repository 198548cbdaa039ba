//! The entries, and what the boot protocol promises about the registers there.
#![expect(unsafe_code, reason = "assembly entries")]

use core::fmt;

use crate::hardware::{self, Console};

/// What [`EntryState::entry`] holds after the PVH entry, which is a 32-bit one.
pub const PVH: u64 = 0x50;

core::arch::global_asm!(include_str!("start.S"), ENTRY_PVH = const PVH, options(att_syntax));

unsafe extern "C" {
    fn payload_triple_fault() -> !;
}

/// The registers as the loader left them; start.S pushes them in this order, last first.
#[repr(C)]
pub struct EntryState {
    /// 32, 64 or [`PVH`].
    pub entry: u64,
    efer: u64,
    cr4: u64,
    cr0: u64,
    ss: u64,
    es: u64,
    ds: u64,
    cs: u64,
    /// `struct hvm_start_info`, at the PVH entry.
    pub rbx: u64,
    rbp: u64,
    rdi: u64,
    /// The zero page.
    pub rsi: u64,
    rflags: u64,
}

/// The descriptor table register: a limit and a base.
#[repr(C, packed)]
struct TableRegister {
    limit: u16,
    base: u64,
}

/// Called by start.S, once, with the loader's registers and GDT.
#[unsafe(no_mangle)]
extern "C" fn payload_main(state: &EntryState, gdt: &TableRegister) -> ! {
    let gdt = TableRegister { limit: gdt.limit, base: gdt.base };
    crate::facts::report(state, gdt.descriptors(state.selectors()))
}

impl TableRegister {
    /// The descriptors of these selectors.
    fn descriptors(&self, selectors: [u64; 2]) -> Option<[u64; 2]> {
        // In 32-bit mode only the lower half was stored.
        let base = self.base & 0xffff_ffff;
        let table = hardware::physical(base, u64::from(self.limit) + 1)?;
        let [code, data] = selectors
            .map(|selector| abi::bytes::get_u64(table, usize::try_from(selector & !7).ok()?));
        Some([code?, data?])
    }
}

impl EntryState {
    /// The selectors of code and data: Linux prescribes `__BOOT_CS` and `__BOOT_DS`, PVH none.
    fn selectors(&self) -> [u64; 2] {
        if self.entry == PVH { [self.cs, self.ds] } else { [0x10, 0x18] }
    }

    /// The promises of boot.rst, or of Xen's pvh.markdown, that were not kept, `ok` when all were.
    pub fn verdict(&self, descriptors: Option<[u64; 2]>) -> impl fmt::Display + use<> {
        const CODE_32: u64 = 0x00cf_9a00_0000_ffff;
        const CODE_64: u64 = 0x00af_9a00_0000_ffff;
        const DATA: u64 = 0x00cf_9200_0000_ffff;
        const ACCESSED: u64 = 1 << 40;
        let long = self.entry == 64;
        let paging = self.cr0 >> 31 & 1 == 1;
        let long_active = self.efer >> 10 & 1 == 1;
        let code = if long { CODE_64 } else { CODE_32 };
        let flat = descriptors.is_some_and(|[cs, ds]| {
            // The limit does not count in 64-bit mode, all else does.
            cs & !ACCESSED == code && ds & !ACCESSED == DATA
        });
        let [cs, ds] = self.selectors();
        // PVH says nothing of these registers: EBX has the start info.
        let zeroed = long || self.entry == PVH || [self.rbx, self.rbp, self.rdi] == [0; 3];
        Verdict([
            (self.cr0 & 1 == 1, "protection off"),
            (paging == long, "paging"),
            (long_active == long, "long mode"),
            (self.rflags >> 9 & 1 == 0, "interrupts on"),
            (self.cs == cs, "cs"),
            ([self.ds, self.es, self.ss] == [ds; 3], "ds, es or ss"),
            (flat, "descriptors"),
            (zeroed, "ebx, ebp or edi"),
            (self.cr4 >> 5 & 1 == u64::from(long) || self.cr4 == 0, "cr4"),
        ])
    }
}

struct Verdict([(bool, &'static str); 9]);

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut broken = self.0.iter().filter(|(kept, _)| !kept).peekable();
        if broken.peek().is_none() {
            return f.write_str("ok");
        }
        broken.try_for_each(|(_, what)| write!(f, "[{what}]"))
    }
}

/// Leaves as the command line's `leave=` says; by default through isa-debug-exit with `code`.
pub fn leave(command_line: &str, code: u8) -> ! {
    use abi::{layout, ports};
    use core::fmt::Write as _;
    let how = command_line.split_whitespace().find_map(|word| word.strip_prefix("leave="));
    match how {
        Some("i8042") => hardware::out8(ports::I8042_COMMAND, ports::I8042_RESET),
        Some("ged-reset") => hardware::mmio_write8(
            layout::GED_REGISTERS + layout::GED_RESET,
            layout::GED_RESET_VALUE,
        ),
        Some("power-off") => power_off(),
        Some("power-button") => {
            while hardware::mmio_read32(layout::GED) & layout::GED_POWER_BUTTON == 0 {
                core::hint::spin_loop();
            }
            power_off();
        }
        Some("panic") => hardware::out8(ports::PVPANIC, 1),
        // SAFETY: there is nothing to keep; that is the point.
        Some("triple-fault") => unsafe { payload_triple_fault() },
        Some("halt") => {}
        Some("invalid-opcode-port") => hardware::out8(ports::POST, 0xff),
        _ => hardware::debug_exit(code),
    }
    let _ = writeln!(Console, "left={}", how.unwrap_or_default());
    hardware::halt()
}

fn power_off() {
    let control = abi::layout::GED_REGISTERS + abi::layout::GED_SLEEP_CONTROL;
    // SLP_EN and sleep type 5 (ACPI 6.5, 4.8.4.2).
    hardware::mmio_write8(control, 1 << 5 | 5 << 2);
}
