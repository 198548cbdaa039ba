//! Registers that every CPU must have alike.
//!
//! A kernel starts the other CPUs itself, and finds them as reset left them. Two registers must not
//! stay so. IA32_FEATURE_CONTROL is the firmware's to set and to lock, before a kernel may use VMX;
//! a host that offers VMX says its value in a file. The default memory type is set on pc and q35,
//! where kernels otherwise leave the PAT alone; on microVMs it stays as reset left it, on all CPUs
//! alike.
//!
//! Source: Intel SDM volume 3, 9.4 (start of other CPUs), 12.11.2.1 (IA32_MTRR_DEF_TYPE), 25.7
//! (IA32_FEATURE_CONTROL).

use abi::bytes::get_u32;
use abi::fw_cfg::key;
use pci::chipset::Chipset;

use crate::directory::Place;
use crate::error::Error;
use crate::fw_cfg::FwCfg;
use crate::machine::{Machine, Msr};

const FEATURE_CONTROL: u32 = 0x3a;
const MTRR_DEFAULT: u32 = 0x2ff;
/// The MTRRs count; what none of them covers is write-back.
const MTRR_WRITE_BACK: u32 = 1 << 11 | 6;

/// Sets the registers where there is something to set.
pub fn set_up_cpus<M: Machine>(fw_cfg: &mut FwCfg<'_, M>) -> Result<(), Error> {
    let file = fw_cfg.known().feature_control;
    // Where start.S looked for no chipset, there is none.
    if file.is_none() && fw_cfg.machine().host_bridge() == 0 {
        return Ok(());
    }
    set_up(fw_cfg, file)
}

// Cold: it stays out of the way of what microVMs run through.
#[cold]
#[inline(never)]
fn set_up<M: Machine>(fw_cfg: &mut FwCfg<'_, M>, file: Option<Place>) -> Result<(), Error> {
    let mut list = [Msr::END; 3];
    let [first, second, _] = &mut list;
    let mut free = first;
    let chipset = Chipset::of(fw_cfg.machine().host_bridge());
    if chipset.is_some() && fw_cfg.machine().has_mtrrs() {
        *free = Msr { number: MTRR_DEFAULT, low: MTRR_WRITE_BACK, high: 0 };
        free = second;
    }
    if let Some(file) = file {
        let mut value = [0; 8];
        fw_cfg.read(file.selector, &mut value)?;
        let [low, high] = [0, 4].map(|at| get_u32(&value, at).unwrap_or(0));
        *free = Msr { number: FEATURE_CONTROL, low, high };
    }
    // A host without the item has one CPU to be sure of.
    let mut cpus = [0; 2];
    fw_cfg.read(key::NB_CPUS, &mut cpus)?;
    let others = u32::from(u16::from_le_bytes(cpus)).saturating_sub(1);
    match fw_cfg.machine().set_msrs(&list, others) {
        None => Err(Error::MsrRefused),
        Some(answers) if answers == others => Ok(()),
        Some(answers) => Err(Error::CpusSilent(answers, others)),
    }
}
