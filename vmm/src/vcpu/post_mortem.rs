//! What is known of a guest that KVM gave up on, in one line.

use std::fmt::Write;
use std::ptr;

use abi::post;
use kvm_bindings::KVM_INTERNAL_ERROR_EMULATION;

use super::{Error, Vcpu};
use crate::accel;
use crate::crew::Progress;
use crate::memory::GuestRam;

/// CR0: protected mode. EFER: long mode is active.
const CR0_PE: u64 = 1;
const EFER_LMA: u64 = 1 << 10;
/// Bytes of the longest instruction.
const INSTRUCTION_MAX: usize = 15;

impl Vcpu {
    /// KVM_EXIT_INTERNAL_ERROR.
    pub(super) fn internal_error(&self, ram: &GuestRam, progress: Progress) -> Error {
        // SAFETY: the page is mapped as long as `self.fd` lives.
        let details = unsafe { &raw const (*self.run).__bindgen_anon_1.emulation_failure };
        // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR (the caller matched it), and nobody
        // writes to the page outside KVM_RUN.
        let failure = unsafe { ptr::read_volatile(details) };
        let emulation = failure.suberror == KVM_INTERNAL_ERROR_EMULATION;
        let mut line = String::from("KVM gave up on the guest: ");
        let _ = match emulation {
            true => write!(line, "it cannot emulate an instruction"),
            false => write!(line, "internal error {}", failure.suberror),
        };
        line.push_str(&self.place());
        let bytes = self.instruction(ram);
        if !bytes.is_empty() {
            let _ = write!(line, ", bytes");
            for byte in bytes {
                let _ = write!(line, " {byte:02x}");
            }
        }
        line.push_str(&stage(progress));
        if emulation {
            line.push_str(match accel::has_virtualization() {
                false => {
                    "; this /dev/kvm interprets kernel code (the CPU shows neither VMX nor SVM) \
                     and does not know every instruction: Linux does not run here"
                }
                true => "; the guest probably runs something that is no code",
            });
        }
        Error::GaveUp(line)
    }

    /// KVM_EXIT_FAIL_ENTRY.
    pub(super) fn fail_entry(&self, reason: u64, progress: Progress) -> Error {
        let (place, stage) = (self.place(), stage(progress));
        Error::GaveUp(format!(
            "the CPU refuses to enter the guest (reason {reason:#x}){place}{stage}"
        ))
    }

    /// KVM_RUN itself failed.
    pub(super) fn run_error(&self, error: kvm_ioctls::Error, progress: Progress) -> Error {
        let (place, stage) = (self.place(), stage(progress));
        Error::GaveUp(format!("running the guest: {error}{place}{stage}"))
    }

    /// ` at rip 0x.. in .. mode`.
    fn place(&self) -> String {
        let (Ok(regs), Ok(sregs)) = (self.fd.get_regs(), self.fd.get_sregs()) else {
            return String::new();
        };
        let mode = match (sregs.cr0 & CR0_PE != 0, sregs.efer & EFER_LMA != 0, sregs.cs.l) {
            (false, ..) => "real",
            (_, true, 1) => "64-bit",
            (_, true, _) => "compatibility",
            _ => "protected",
        };
        format!(" at {:#x}:{:#x} in {mode} mode", sregs.cs.selector, regs.rip)
    }

    /// The bytes at the instruction pointer, if they are RAM.
    fn instruction(&self, ram: &GuestRam) -> Vec<u8> {
        let (Ok(regs), Ok(sregs)) = (self.fd.get_regs(), self.fd.get_sregs()) else {
            return Vec::new();
        };
        let linear = match sregs.cs.l {
            1 => regs.rip,
            _ => sregs.cs.base.wrapping_add(regs.rip) & 0xffff_ffff,
        };
        let physical = match self.fd.translate_gva(linear) {
            Ok(translation) if translation.valid == 1 => translation.physical_address,
            _ => return Vec::new(),
        };
        // The BIOS image is RAM at its alias below 1 MiB.
        let physical = match physical.checked_sub(abi::layout::BIOS_HIGH.start()) {
            Some(offset) if offset < abi::layout::BIOS_SIZE => {
                abi::layout::BIOS_LOW.start() + offset
            }
            _ => physical,
        };
        let mut bytes = [0; INSTRUCTION_MAX];
        ram.read(physical, &mut bytes).map_or(Vec::new(), |()| bytes.to_vec())
    }
}

/// `, after the stage '..'`.
fn stage(progress: Progress) -> String {
    match progress.last.and_then(post::name) {
        Some(name) => format!(", after the stage '{name}'"),
        None if progress.in_kernel => ", in the kernel".into(),
        None => ", before the firmware's first sign".into(),
    }
}
