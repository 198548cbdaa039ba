//! The facts, one `key=value` a line, between two marks.

use core::fmt::{self, Write as _};
use core::hash::Hasher as _;

use abi::bytes::{get_u16, get_u32, get_u64};
use fnv::FnvHasher;

use crate::acpi;
use crate::cpus;
use crate::entry::{self, EntryState};
use crate::fw_cfg;
use crate::generation_id;
use crate::hardware::{self, Console, EXIT_FAILED, EXIT_OK};
use crate::hostile;
use crate::mp_table;
use crate::pvh;

/// Offsets in the zero page (Linux, Documentation/arch/x86/zero-page.rst).
pub mod zero_page {
    pub const RSDP: usize = 0x070;
    pub const EXT_RAMDISK_IMAGE: usize = 0x0c0;
    pub const EXT_RAMDISK_SIZE: usize = 0x0c4;
    pub const E820_ENTRIES: usize = 0x1e8;
    pub const SENTINEL: usize = 0x1ef;
    pub const LOADER: usize = 0x210;
    pub const RAMDISK_IMAGE: usize = 0x218;
    pub const RAMDISK_SIZE: usize = 0x21c;
    pub const COMMAND_LINE: usize = 0x228;
    pub const E820_TABLE: usize = 0x2d0;
}

/// A long command line is cut here: no loader passes more.
const COMMAND_LINE_MAX: u64 = 4096;

/// Prints everything and leaves.
pub fn report(state: &EntryState, descriptors: Option<[u64; 2]>) -> ! {
    let mut own_page = [0; 4096];
    let page = if state.entry == entry::PVH {
        pvh::fill_zero_page(state.rbx, &mut own_page).map(|()| own_page.as_slice())
    } else {
        hardware::physical(state.rsi, 4096)
    };
    let Some(page) = page else {
        let EntryState { rsi, rbx, .. } = state;
        let _ = writeln!(Console, "entry_state=[neither zero page {rsi:#x} nor info {rbx:#x}]");
        hardware::debug_exit(EXIT_FAILED)
    };
    let command_line = command_line(page);
    let mut out = Facts { sound: true };
    out.all(state, descriptors, page, command_line);
    entry::leave(command_line, if out.sound { EXIT_OK } else { EXIT_FAILED })
}

struct Facts {
    sound: bool,
}

impl Facts {
    fn all(
        &mut self,
        state: &EntryState,
        descriptors: Option<[u64; 2]>,
        page: &[u8],
        command_line: &str,
    ) {
        let _ = writeln!(Console, "guest-facts-begin");
        fact("kernel", "payload");
        match RealState::read(page) {
            Some(real) => {
                fact("entry", 16);
                self.check("entry_state", state.verdict(descriptors));
                self.check("real_mode", &real);
                fact("bios_memory", format_args!("{:?}", real.memory));
            }
            None => {
                match state.entry {
                    entry::PVH => fact("entry", "pvh"),
                    bits => fact("entry", bits),
                }
                self.check("entry_state", state.verdict(descriptors));
            }
        }
        match state.entry {
            entry::PVH => fact("start_info", format_args!("{:#x}", state.rbx)),
            _ => fact("zero_page", format_args!("{:#x}", state.rsi)),
        }
        fact("sentinel", page[zero_page::SENTINEL]);
        fact("loader", format_args!("{:#x}", page[zero_page::LOADER]));
        fact("cmdline", command_line);
        self.memory(page);
        self.initrd(page);
        bios_data();
        let told = get_u64(page, zero_page::RSDP).filter(|address| *address != 0);
        // A PVH kernel need not look for what it was not told.
        let found = || if state.entry == entry::PVH { None } else { acpi::find_rsdp() };
        let rsdp = told.or_else(found).unwrap_or(0);
        let cpus = self.acpi(rsdp, page);
        self.check("low_memory", low_memory());
        if let Some(number) = hexadecimal(command_line, "msr=0x") {
            fact("msr", cpus::registers(number, cpus.saturating_sub(1)));
        }
        let asked = |switch| command_line.split_whitespace().any(|word| word == switch);
        if asked("dump") || command_line.is_empty() && fw_cfg::is_asked() {
            acpi::Tables::new(rsdp).dump();
            fw_cfg::dump();
        }
        if asked("slots") {
            fact("virtio_slots", VirtioSlots);
        }
        if asked("hostile") {
            let verdict = hostile::mistreat_all();
            self.check("hostile", verdict);
        }
        if asked("echo") {
            echo();
        }
        if let Some(lines) = hexadecimal(command_line, "print=0x") {
            (0..lines).for_each(|line| fact("line", format_args!("{line:058}")));
        }
        let _ = writeln!(Console, "guest-facts-end");
    }

    fn check(&mut self, key: &str, verdict: impl fmt::Display) {
        let mut seen = StartsWithOk::default();
        let _ = write!(seen, "{verdict}");
        self.sound &= seen.ok();
        fact(key, verdict);
    }

    fn memory(&mut self, page: &[u8]) {
        let _ = write!(Console, "e820=");
        let mut ram = 0;
        for (start, size, kind) in memory_map(page) {
            ram += if kind == 1 { size } else { 0 };
            let _ = write!(Console, "{start:#x}+{size:#x}:{kind},");
        }
        let _ = writeln!(Console);
        fact("memory_kib", ram / 1024);
    }

    fn initrd(&mut self, page: &[u8]) {
        let both = |low, high| {
            let [low, high] = [low, high].map(|at| u64::from(get_u32(page, at).unwrap_or(0)));
            high << 32 | low
        };
        let start = both(zero_page::RAMDISK_IMAGE, zero_page::EXT_RAMDISK_IMAGE);
        let size = both(zero_page::RAMDISK_SIZE, zero_page::EXT_RAMDISK_SIZE);
        fact("initrd", format_args!("{start:#x}+{size:#x}"));
        let hash = (size > 0).then(|| hardware::physical(start, size)).flatten().map(|bytes| {
            let mut hasher = FnvHasher::default();
            hasher.write(bytes);
            hasher.finish()
        });
        match hash {
            Some(hash) => fact("initrd_hash", format_args!("{hash:016x}")),
            None => fact("initrd_hash", "none"),
        }
    }

    /// Returns the count of CPUs.
    fn acpi(&mut self, rsdp: u64, page: &[u8]) -> usize {
        fact("rsdp", format_args!("{rsdp:#x}"));
        if rsdp == 0 {
            fact("acpi", "no");
            let Some(table) = mp_table::find() else { return 0 };
            self.check("mp_table", if table.sound { "ok" } else { "[broken]" });
            fact("mp_table_at", format_args!("{:#x}+{:#x}", table.start, table.size));
            fact("cpus", table.cpus);
            return table.cpus;
        }
        fact("acpi", "yes");
        let tables = acpi::Tables::new(rsdp);
        self.check("acpi_checksums", tables.verdict());
        fact("acpi_tables", tables.list());
        match tables.firmware_times() {
            Some(times) => {
                let forward = times.is_sorted() && times.iter().all(|time| *time > 0);
                self.check("firmware_times", if forward { "ok" } else { "[backwards]" });
            }
            None => fact("firmware_times", "none"),
        }
        let is_reserved = |at: u64, length| {
            memory_map(page).any(|(start, size, kind)| {
                kind != 1 && at >= start && at.saturating_add(length) <= start.saturating_add(size)
            })
        };
        self.check("acpi_places", tables.places(is_reserved));
        fact("cpus", tables.cpus());
        if let Some(address) = tables.generation_id() {
            let number = generation_id::read(address).unwrap_or(0);
            fact("vm_generation_id", format_args!("{number:032x}"));
            let told = generation_id::host_address() == Some(address);
            self.check("vm_generation_id_told", if told { "ok" } else { "[another address]" });
        }
        tables.cpus()
    }
}

/// What start.S found in real mode and left at the start of its zero page.
struct RealState {
    /// CS, DS, ES, SS, FS, GS, SP, FLAGS.
    registers: [u16; 8],
    /// int 12h; int 15h E801, AX and BX; int 15h 88h.
    memory: [u16; 4],
    /// An unknown service failed; the keyboard is empty.
    benign: [u8; 2],
}

impl RealState {
    /// The state; `None` after another entry than the 16-bit one.
    fn read(page: &[u8]) -> Option<Self> {
        let words = |at: usize| get_u16(page, at).unwrap_or(0);
        (page[0] == 16).then(|| Self {
            registers: core::array::from_fn(|i| words(2 + 2 * i)),
            memory: core::array::from_fn(|i| words(18 + 2 * i)),
            benign: [page[26], page[27]],
        })
    }
}

impl fmt::Display for &RealState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [cs, ds, es, ss, fs, gs, sp, flags] = self.registers;
        let segments = [ds, es, ss, fs, gs] == [ds; 5] && cs == ds + 0x20;
        match () {
            () if !segments => write!(f, "[segments {:x?}]", self.registers),
            () if sp < 0x8000 => write!(f, "[stack pointer {sp:#x}]"),
            () if flags >> 9 & 1 == 1 => f.write_str("[interrupts on]"),
            () if self.benign != [1, 1] => write!(f, "[services {:?}]", self.benign),
            () => f.write_str("ok"),
        }
    }
}

/// The memory map's entries: start, size, type.
fn memory_map(page: &[u8]) -> impl Iterator<Item = (u64, u64, u32)> {
    (0..usize::from(page[zero_page::E820_ENTRIES])).map_while(|i| {
        let at = zero_page::E820_TABLE + 20 * i;
        Some((get_u64(page, at)?, get_u64(page, at + 8)?, get_u32(page, at + 16)?))
    })
}

/// Whether interrupt vectors and BIOS data are free of what does not belong there.
fn low_memory() -> &'static str {
    const EBDA_POINTER: usize = 0x40e;
    // Rust has no slice at address 0.
    let bytes = hardware::physical(1, 0x4ff).unwrap_or_default();
    match get_u16(bytes, EBDA_POINTER - 1) {
        _ if bytes.starts_with(b"ELF") => "[the kernel's ELF header]",
        Some(0 | 0x9fc0) => "ok",
        _ => "[the EBDA's address]",
    }
}

fn fact(key: &str, value: impl fmt::Display) {
    let _ = writeln!(Console, "{key}={value}");
}

/// Prints what Linux reads in the BIOS data area: where the EBDA is, and the KiB below it.
fn bios_data() {
    let area = hardware::physical(0x400, 0x100).unwrap_or_default();
    let word = |at| get_u16(area, at).unwrap_or(0);
    fact("ebda", format_args!("{:#x}", u32::from(word(0x0e)) << 4));
    fact("base_memory", word(0x13));
    fact("equipment", format_args!("{:#x}", word(0x10)));
}

/// The number behind a word's prefix on the command line.
fn hexadecimal(command_line: &str, prefix: &str) -> Option<u32> {
    let digits = command_line.split_whitespace().find_map(|word| word.strip_prefix(prefix))?;
    u32::from_str_radix(digits, 16).ok()
}

/// Reads a line from the console and prints it back.
fn echo() {
    let _ = writeln!(Console, "guest-echo-ready");
    let _ = write!(Console, "echo=");
    loop {
        match hardware::read_console() {
            b'\n' | b'\r' => break,
            byte => {
                let _ = Console.write_char(char::from(byte));
            }
        }
    }
    let _ = writeln!(Console);
}

fn command_line(page: &[u8]) -> &'static str {
    let at = get_u32(page, zero_page::COMMAND_LINE).unwrap_or(0);
    let bytes = hardware::physical(at.into(), COMMAND_LINE_MAX).unwrap_or_default();
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    core::str::from_utf8(&bytes[..end]).unwrap_or("[not UTF-8]")
}

/// Notes whether what is written to it is exactly `ok`.
#[derive(Default)]
struct StartsWithOk {
    seen: usize,
    differs: bool,
}

impl StartsWithOk {
    fn ok(&self) -> bool {
        self.seen == 2 && !self.differs
    }
}

impl fmt::Write for StartsWithOk {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.differs |= b"ok".get(self.seen) != Some(&byte);
            self.seen += 1;
        }
        Ok(())
    }
}

/// Version and type of the device in each virtio-mmio slot, from the lowest address on.
struct VirtioSlots;

impl fmt::Display for VirtioSlots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use abi::layout::{VIRTIO_MMIO, VIRTIO_MMIO_STRIDE};
        const COUNT: u64 = 8;
        const MAGIC: u32 = u32::from_le_bytes(*b"virt");
        for slot in 0..COUNT {
            let register = |at| hardware::mmio_read32(VIRTIO_MMIO + slot * VIRTIO_MMIO_STRIDE + at);
            if register(0) == MAGIC {
                write!(f, "{}:{} ", register(4), register(8))?;
            } else {
                f.write_str("none ")?;
            }
        }
        Ok(())
    }
}
