//! The firmware's fw_cfg client against the VMM's fw_cfg device, without a VM.
//!
//! The firmware's boot logic runs on the host, its ports and memory are the VMM's; what it leaves
//! in guest memory is compared byte for byte with what a direct boot leaves there.
#![expect(unsafe_code, reason = "guest memory as a slice, which the firmware's seam lends")]

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use abi::fw_cfg::DmaAccess;
use abi::range::Range;
use abi::{layout, ports};
use firmware::kernel::Launch;
use firmware::machine::{Machine, Msr};
use vmm::args::{self, Request};
use vmm::boot::{self, Source};
use vmm::bus::Device;
use vmm::config::Config;
use vmm::fw_cfg::FwCfg;
use vmm::image::Images;
use vmm::memory::GuestRam;

/// Where the adapter puts DMA descriptors and small buffers: RAM that the firmware does not use.
const DESCRIPTOR: u64 = 0x1000;
const BUFFER: u64 = 0x40_0000;

/// The firmware's machine, made of the VMM's parts.
struct Parts {
    fw_cfg: FwCfg,
    ram: Arc<GuestRam>,
    posts: Vec<u8>,
}

impl Parts {
    fn transfer(&mut self, control: u32, range: Range) -> u32 {
        let length = u32::try_from(range.len()).unwrap();
        let access = DmaAccess { control, length, address: range.start() };
        self.ram.write(DESCRIPTOR, &access.encode()).unwrap();
        let address = u32::try_from(DESCRIPTOR).unwrap();
        self.fw_cfg.write(offset(ports::FW_CFG_DMA_LOW), &address.to_be_bytes());
        let mut answer = [0; 4];
        self.ram.read(DESCRIPTOR, &mut answer).unwrap();
        u32::from_be_bytes(answer)
    }
}

fn offset(port: u16) -> u64 {
    u64::from(port - ports::FW_CFG_SELECTOR)
}

impl Machine for Parts {
    fn in8(&mut self, port: u16) -> u8 {
        let mut byte = [0];
        self.fw_cfg.read(offset(port), &mut byte);
        byte[0]
    }

    fn in32(&mut self, port: u16) -> u32 {
        let mut bytes = [0; 4];
        self.fw_cfg.read(offset(port), &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn out8(&mut self, port: u16, value: u8) {
        assert_eq!(port, ports::POST);
        self.posts.push(value);
    }

    fn out16(&mut self, port: u16, value: u16) {
        self.fw_cfg.write(offset(port), &value.to_le_bytes());
    }

    fn out32(&mut self, port: u16, _: u32) {
        panic!("write of port {port:#x}");
    }

    fn tsc(&mut self) -> u64 {
        0
    }

    fn tsc_khz(&mut self) -> Option<u32> {
        None
    }

    fn print(&mut self, line: std::fmt::Arguments<'_>) {
        println!("{line}");
    }

    fn host_bridge(&self) -> u32 {
        0
    }

    fn has_mtrrs(&mut self) -> bool {
        panic!("CPUID");
    }

    fn set_msrs(&mut self, list: &[Msr; 3], _: u32) -> Option<u32> {
        panic!("the host asks for no registers: {list:?}");
    }

    fn dma(&mut self, control: u32, buffer: &mut [u8]) -> u32 {
        let range = Range::new(BUFFER, buffer.len() as u64).unwrap();
        self.ram.write(range.start(), buffer).unwrap();
        let status = self.transfer(control, range);
        self.ram.read(range.start(), buffer).unwrap();
        status
    }

    fn dma_at(&mut self, control: u32, range: Range) -> u32 {
        self.transfer(control, range)
    }

    fn memory(&mut self, range: Range) -> &mut [u8] {
        let slots = self.ram.slots();
        let slot = slots.iter().find(|slot| slot.guest.contains(range)).expect("RAM");
        let start = slot.host + (range.start() - slot.guest.start());
        let length = usize::try_from(range.len()).unwrap();
        // SAFETY: the range lies in a slot, which is mapped while `self.ram` lives; the borrow of
        // `self` keeps it from being lent twice, and the device runs only within our own calls.
        unsafe { core::slice::from_raw_parts_mut(start as *mut u8, length) }
    }
}

/// A kernel of protocol 2.12 that prefers 16 MiB; nothing in it runs.
fn kernel() -> Vec<u8> {
    let mut image = vec![0; 1024];
    for (at, bytes) in [
        (0x1f1, &b"\x01"[..]),
        (0x1fe, b"\x55\xaa\xeb\x66HdrS\x0c\x02"),
        (0x211, b"\x01"),
        (0x22c, &0x7fff_ffffu32.to_le_bytes()),
        (0x230, &0x20_0000u32.to_le_bytes()),
        (0x234, b"\x01\x15\x01\x00"),
        (0x238, &2047u32.to_le_bytes()),
        (0x258, &0x100_0000u64.to_le_bytes()),
        (0x260, &0x40_0000u32.to_le_bytes()),
    ] {
        image[at..at + bytes.len()].copy_from_slice(bytes);
    }
    image.extend((0..70_001u32).map(|i| i.to_le_bytes()[0] ^ 0x5a));
    image
}

fn config(folder: &Path, bios: bool, more: &[&str]) -> Config {
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        std::fs::File::create(&path).unwrap().write_all(bytes).unwrap();
        path.into_os_string()
    };
    let mut arguments: Vec<OsString> =
        ["-M", "microvm", "-append", "console=ttyS0 x"].map(OsString::from).into();
    arguments.extend(["-kernel".into(), file("kernel", &kernel())]);
    arguments.extend(["-initrd".into(), file("initrd", &[0xa7; 5_555])]);
    arguments.extend(more.iter().map(OsString::from));
    if bios {
        arguments.extend(["-bios".into(), file("bios", &[0xf4; 0x1_0000])]);
    }
    match args::parse(arguments).unwrap() {
        Request::Run(config) => *config,
        _ => panic!("a machine"),
    }
}

/// Guest memory after the VMM's part of the boot, and the device if there is a firmware.
fn prepare(config: &Config) -> (Arc<GuestRam>, Option<FwCfg>) {
    let images = Images::open(config).unwrap();
    let bios = images.bios.as_ref().map(|bios| bios.size());
    let ram = Arc::new(GuestRam::new(config.memory, bios).unwrap());
    let acpi = vmm::acpi::Tables::new(config);
    let source = Source { config, images: &images, acpi: config.acpi.then_some(&acpi) };
    let (_, items) = boot::prepare(&source, &ram).unwrap();
    let fw_cfg = items.map(|items| FwCfg::new(items, ram.clone()));
    (ram, fw_cfg)
}

fn bytes(ram: &GuestRam, range: Range) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(range.len()).unwrap()];
    ram.read(range.start(), &mut bytes).unwrap();
    bytes
}

#[test]
fn firmware_and_direct_boot_leave_the_same_bytes_in_memory() {
    for memory in ["64M", "2048M", "3G"] {
        let folder = tempfile::tempdir().unwrap();
        let (direct, none) = prepare(&config(folder.path(), false, &["-m", memory]));
        assert!(none.is_none(), "no firmware, no fw_cfg");
        let (ram, fw_cfg) = prepare(&config(folder.path(), true, &["-m", memory]));
        let mut machine = Parts { fw_cfg: fw_cfg.unwrap(), ram, posts: Vec::new() };
        let launch = firmware::boot::boot(&mut machine).unwrap();
        assert!(matches!(launch, Launch::Linux { entry: 0x100_0200, .. }), "{launch:?}");

        for (name, range) in [
            ("BIOS data area", layout::BDA),
            ("zero page", layout::BOOT_PARAMS),
            ("command line", Range::between(0x2_0000, 0x2_0010)),
            ("ACPI tables", layout::ACPI_TABLES),
            ("kernel", Range::between(0x100_0000, 0x100_0000 + 70_001)),
        ] {
            let [mut by_firmware, direct] = [&machine.ram, &direct].map(|ram| bytes(ram, range));
            if range == layout::BOOT_PARAMS {
                hide_16_bit_fields(&mut by_firmware, &direct);
            }
            let at = by_firmware.iter().zip(&direct).position(|(a, b)| a != b);
            assert_eq!(at, None, "{memory}: the {name} differs");
        }
    }
}

/// What may differ: the heap of 16-bit setup code (`heap_end_ptr`, and the flag that it counts),
/// which QEMU's fw_cfg patches in and nobody reads by another entry.
fn hide_16_bit_fields(page: &mut [u8], other: &[u8]) {
    for at in [0x211, 0x224, 0x225] {
        page[at] = other[at];
    }
}

#[test]
fn every_stage_is_marked_and_the_initrd_arrives_whole() {
    let folder = tempfile::tempdir().unwrap();
    let (ram, fw_cfg) = prepare(&config(folder.path(), true, &["-m", "64M"]));
    let mut machine = Parts { fw_cfg: fw_cfg.unwrap(), ram, posts: Vec::new() };
    firmware::boot::boot(&mut machine).unwrap();
    assert_eq!(machine.posts, [0x10, 0x20, 0x30]);
    // The initrd lies at the top of RAM, whole.
    let initrd = bytes(&machine.ram, Range::new((64 << 20) - 0x2000, 5_555).unwrap());
    assert!(initrd.iter().all(|byte| *byte == 0xa7));
}

#[test]
fn the_user_s_files_reach_the_firmware() {
    let folder = tempfile::tempdir().unwrap();
    for (value, expected) in [("32", true), ("64", true), ("7", false)] {
        let file = format!("name=opt/org.microvm/entry,string={value}");
        let (ram, fw_cfg) = prepare(&config(folder.path(), true, &["-fw_cfg", &file]));
        let mut machine = Parts { fw_cfg: fw_cfg.unwrap(), ram, posts: Vec::new() };
        assert_eq!(firmware::boot::boot(&mut machine).is_ok(), expected, "{value}");
    }
}
