//! Our BIOS on a host that maps the image below 4 GiB and nowhere else.
//!
//! No VMM here does so: the test makes a machine of its own, of RAM, the image, and ports with
//! nothing behind them.
#![expect(unsafe_code, reason = "guest memory becomes KVM's memory slots")]

use abi::range::Range;
use abi::{layout, ports, post};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VmFd};
use regression::products::product;
use vmm::memory::GuestRam;

const RAM: u64 = 2 << 20;
/// What the firmware leaves when there is no fw_cfg device: by then all its code runs.
const NO_FW_CFG: u8 = 10;

/// Gives the guest the first `size` bytes of `memory`, at `address`.
fn map(vm: &VmFd, slot: u32, memory: &GuestRam, address: u64, size: u64) {
    let region = kvm_userspace_memory_region {
        slot,
        guest_phys_addr: address,
        memory_size: size,
        userspace_addr: memory.slots()[0].host,
        ..Default::default()
    };
    // SAFETY: the test keeps the memory longer than the VM, and reads it only when no CPU runs.
    unsafe { vm.set_user_memory_region(region) }.unwrap();
}

#[test]
fn the_image_copies_itself_to_the_f_segment() {
    let bios = std::fs::read(product("bios-microvm.bin")).unwrap();
    let ram = GuestRam::new(RAM, None).unwrap();
    let image = GuestRam::new(RAM, None).unwrap();
    image.write(0, &bios).unwrap();
    let kvm = Kvm::new().unwrap();
    let vm = kvm.create_vm().unwrap();
    vm.set_tss_address(usize::try_from(layout::KVM_TSS).unwrap()).unwrap();
    map(&vm, 0, &ram, 0, RAM);
    map(&vm, 1, &image, layout::BIOS_HIGH.start(), layout::BIOS_SIZE);
    let mut cpu = vm.create_vcpu(0).unwrap();
    // Without it the CPU has no long mode.
    cpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap()).unwrap();
    let mut posts = Vec::new();
    let code = loop {
        match cpu.run().unwrap() {
            VcpuExit::IoIn(_, data) => data.fill(0xff),
            VcpuExit::IoOut(ports::POST, data) => posts.push(data[0]),
            VcpuExit::IoOut(ports::DEBUG_EXIT, data) => break data[0],
            VcpuExit::IoOut(..) => {}
            other => panic!("after POST codes {posts:x?}: {other:?}"),
        }
    };
    assert_eq!(code, NO_FW_CFG);
    assert_eq!(posts, [post::FIRMWARE_START, post::FIRMWARE_FAILED]);
    // The tables that the CPU translates addresses with, for one, are the copy's.
    let tables = Range::new(layout::BIOS_LOW.start(), 3 * layout::PAGE).unwrap();
    let mut copied = vec![0; usize::try_from(tables.len()).unwrap()];
    ram.read(tables.start(), &mut copied).unwrap();
    assert_eq!(copied, bios[..copied.len()]);
}
