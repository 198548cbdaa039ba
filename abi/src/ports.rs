//! I/O ports: every one of them, once.

/// The first 8259 interrupt controller's command port; its data port follows.
pub const PIC_PRIMARY: u16 = 0x20;
/// The second 8259 interrupt controller's command port; its data port follows.
pub const PIC_SECONDARY: u16 = 0xa0;
/// The 8042 keyboard controller's data port.
pub const I8042_DATA: u16 = 0x60;
/// The 8042 keyboard controller's command and status port.
pub const I8042_COMMAND: u16 = 0x64;
/// The 8042 command that pulses the reset line.
pub const I8042_RESET: u8 = 0xfe;
/// The real-time clock's index port; its data port follows.
pub const CMOS: u16 = 0x70;
/// POST codes: a byte that says how far start-up has come (see [`crate::post`]).
pub const POST: u16 = 0x80;
/// QEMU's isa-debug-exit at its customary place (`iobase=0xf4`): writing `v` ends QEMU with
/// status `(v << 1) | 1`.
pub const DEBUG_EXIT: u16 = 0xf4;
/// The debug console at its customary place (QEMU's `-device isa-debugcon,iobase=0x402`): what is
/// written is shown, and it reads as 0xe9 where there is one.
pub const DEBUG_CONSOLE: u16 = 0x402;
/// The pvpanic device at its customary place (QEMU's `-device pvpanic`).
pub const PVPANIC: u16 = 0x505;
/// COM1, a 16550A UART of eight registers.
pub const COM1: u16 = 0x3f8;
/// The interrupt line of COM1.
pub const COM1_IRQ: u32 = 4;
/// fw_cfg's 16-bit selector register.
pub const FW_CFG_SELECTOR: u16 = 0x510;
/// fw_cfg's 8-bit data register.
pub const FW_CFG_DATA: u16 = 0x511;
/// fw_cfg's DMA address register, high half, big-endian.
pub const FW_CFG_DMA_HIGH: u16 = 0x514;
/// fw_cfg's DMA address register, low half, big-endian; writing it starts the transfer.
pub const FW_CFG_DMA_LOW: u16 = 0x518;
/// Which of the second 8259's inputs are levels and which edges, a bit each (ELCR2).
pub const ELCR_SECONDARY: u16 = 0x4d1;
/// The address register of PCI configuration mechanism 1 (PCI 3.0, 3.2.2.3.2).
pub const PCI_ADDRESS: u16 = 0xcf8;
/// The data register of PCI configuration mechanism 1.
pub const PCI_DATA: u16 = 0xcfc;
