//! The MP table, for a machine without ACPI.

use abi::fw_cfg::key;
use abi::mp_table::{CPUS_MAX, POINTER, TABLE, floating_pointer, size, write_table};
use abi::range::Range;

use crate::error::Error;
use crate::fw_cfg::FwCfg;
use crate::machine::Machine;

/// Describes the CPUs and the I/O APIC to a kernel without ACPI.
pub fn load_mp_table<M: Machine>(fw_cfg: &mut FwCfg<'_, M>) -> Result<(), Error> {
    let mut cpus = [0; 2];
    fw_cfg.read(key::NB_CPUS, &mut cpus)?;
    let cpus = u32::from(u16::from_le_bytes(cpus)).clamp(1, CPUS_MAX);
    let irq0_override = fw_cfg.read_u32(key::IRQ0_OVERRIDE)? != 0;
    let range = Range::new(TABLE, size(cpus, irq0_override)).ok_or(Error::HeapFull(0))?;
    write_table(fw_cfg.machine().memory(range), cpus, irq0_override);
    fw_cfg.machine().memory(POINTER).copy_from_slice(&floating_pointer(TABLE));
    Ok(())
}
