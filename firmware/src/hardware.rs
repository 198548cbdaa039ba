//! Ports, memory and the heap: the firmware's only access to the machine.
#![expect(unsafe_code, reason = "port I/O and guest-physical memory")]

use core::fmt::Arguments;

use abi::fw_cfg::DmaAccess;
use abi::range::Range;
use abi::{layout, ports};
use firmware::machine::{Machine, Msr};
use uart_16550::{Uart16550, backend::PioBackend};
use x86_64::instructions::hlt;
use x86_64::instructions::port::Port;

use crate::clock;
use crate::console::Console;
use crate::msrs;

/// The machine itself.
pub struct Hardware {
    host_bridge: u32,
    console: Option<Console>,
}

impl Hardware {
    /// The machine. For `rust_main`, which runs once.
    pub fn take(host_bridge: u32) -> Self {
        Self { host_bridge, console: None }
    }

    /// The machine once more, for the last words of a panic: nothing else runs then.
    pub fn take_again() -> Self {
        Self { host_bridge: 0, console: None }
    }
}

impl Machine for Hardware {
    fn in8(&mut self, port: u16) -> u8 {
        // SAFETY: reading a port of the contract (`abi::ports`) has no effect on memory.
        unsafe { Port::new(port).read() }
    }

    fn in32(&mut self, port: u16) -> u32 {
        // SAFETY: as `in8`.
        unsafe { Port::new(port).read() }
    }

    fn out8(&mut self, port: u16, value: u8) {
        // SAFETY: the ports of the contract that take bytes do not touch memory.
        unsafe { Port::new(port).write(value) }
    }

    fn out16(&mut self, port: u16, value: u16) {
        // SAFETY: the only one is fw_cfg's selector, which does not touch memory.
        unsafe { Port::new(port).write(value) }
    }

    fn out32(&mut self, port: u16, value: u32) {
        // SAFETY: only PCI configuration takes 32 bits: BARs and windows go where the memory map
        // has nothing, by `bars`, and bus mastering is left to those who start transfers.
        unsafe { Port::new(port).write(value) }
    }

    fn tsc(&mut self) -> u64 {
        clock::tsc()
    }

    fn tsc_khz(&mut self) -> Option<u32> {
        clock::tsc_khz()
    }

    #[cold]
    fn print(&mut self, line: Arguments<'_>) {
        let mut console = self.console.take().unwrap_or_else(|| Console::open(self));
        console.print(self, line);
        self.console = Some(console);
    }

    fn host_bridge(&self) -> u32 {
        self.host_bridge
    }

    fn dma(&mut self, control: u32, buffer: &mut [u8]) -> u32 {
        let Ok(length) = u32::try_from(buffer.len()) else { return abi::fw_cfg::dma::ERROR };
        // Memory is identity-mapped: a pointer is a guest-physical address.
        let address = buffer.as_mut_ptr() as u64;
        // SAFETY: `buffer` is borrowed mutably until the device is done with it.
        unsafe { transfer(DmaAccess { control, length, address }) }
    }

    fn dma_at(&mut self, control: u32, range: Range) -> u32 {
        let Ok(length) = u32::try_from(range.len()) else { return abi::fw_cfg::dma::ERROR };
        // SAFETY: the planner chose `range` in RAM that nothing of the firmware uses.
        unsafe { transfer(DmaAccess { control, length, address: range.start() }) }
    }

    fn memory(&mut self, range: Range) -> &mut [u8] {
        assert!(range.end() <= layout::IDENTITY_MAPPED, "memory that is not mapped");
        // SAFETY: mapped, by the check above; RAM that nothing else uses, by the contract of
        // `Machine::memory`; the borrow of `self` keeps it from being lent twice.
        unsafe { core::slice::from_raw_parts_mut(pointer(range.start()), length(range)) }
    }

    fn has_mtrrs(&mut self) -> bool {
        msrs::has_mtrrs()
    }

    fn set_msrs(&mut self, list: &[Msr; 3], others: u32) -> Option<u32> {
        msrs::set_msrs(list, others)
    }
}

/// COM1, not yet set up.
pub fn com1() -> Option<Uart16550<PioBackend>> {
    // SAFETY: the port belongs to the firmware until the kernel runs, and only the one `Console`
    // of the machine asks for it.
    unsafe { Uart16550::new_port(ports::COM1) }.ok()
}

/// Stops for good.
pub fn halt() -> ! {
    loop {
        // Interrupts are off and stay off.
        hlt();
    }
}

/// Runs one fw_cfg DMA transfer and returns the control word that the device leaves.
///
/// # Safety
/// 1. The device may read and write `access.length` bytes at `access.address` as the control
///    word says: they are RAM, and no reference but the caller's reaches them.
#[inline(never)]
unsafe fn transfer(access: DmaAccess) -> u32 {
    // As one integer, so that it is aligned and its first word can be read at once.
    let mut descriptor = u128::from_ne_bytes(access.encode());
    let address = (&raw mut descriptor) as u64;
    // The stack is below 64 KiB: the register's low half says all.
    #[expect(clippy::cast_possible_truncation, reason = "the stack is below 4 GiB")]
    let low = (address as u32).swap_bytes();
    // SAFETY: the device writes to the descriptor and to what it names, which is the caller's
    // to lend. Not `nomem`: the compiler must have written the descriptor before, and must
    // reload everything after.
    unsafe {
        core::arch::asm!("out dx, eax", in("dx") ports::FW_CFG_DMA_LOW, in("eax") low,
            options(nostack, preserves_flags));
    }
    loop {
        let control = (&raw const descriptor).cast::<u32>();
        // SAFETY: the descriptor's first four bytes; volatile because a device may still write.
        let control = u32::from_be(unsafe { control.read_volatile() });
        // QEMU and our VMM are done by now; the specification lets a host take its time.
        if control & !abi::fw_cfg::dma::ERROR == 0 {
            return control;
        }
    }
}

fn pointer(address: u64) -> *mut u8 {
    address as *mut u8
}

fn length(range: Range) -> usize {
    usize::try_from(range.len()).unwrap_or_else(|_| panic!("a range beyond 64 bits"))
}
