//! What is known of a guest that died: where, doing what, and the likely cause.

use std::fmt::Write;
use std::ptr;

use abi::post;
use kvm_bindings::{KVM_INTERNAL_ERROR_EMULATION, kvm_regs, kvm_sregs};

use super::{Error, Vcpu};
use crate::accel;
use crate::console;
use crate::crew::{Crew, Progress};
use crate::devices::ioapic::Messages;
use crate::memory::GuestRam;

/// CR0: protected mode. EFER: long mode is active.
const CR0_PE: u64 = 1;
const EFER_LMA: u64 = 1 << 10;
/// Bytes of the longest instruction.
const INSTRUCTION_MAX: usize = 15;

/// What Linux prints before it restarts, by whatever way.
const RESTARTS: [&str; 2] = ["reboot: Restarting system", "reboot: machine restart"];

impl Vcpu {
    /// KVM_EXIT_INTERNAL_ERROR.
    pub(super) fn internal_error<M: Messages + 'static>(&self, crew: &Crew<'_, M>) -> Error {
        // SAFETY: the page is mapped as long as `self.fd` lives.
        let details = unsafe { &raw const (*self.run).__bindgen_anon_1.emulation_failure };
        // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR (the caller matched it), and nobody
        // writes to the page outside KVM_RUN.
        let failure = unsafe { ptr::read_volatile(details) };
        let emulation = failure.suberror == KVM_INTERNAL_ERROR_EMULATION;
        let what = match emulation {
            true => "KVM gave up on the guest: it cannot emulate an instruction".into(),
            false => format!("KVM gave up on the guest: internal error {}", failure.suberror),
        };
        let cause = match (emulation, accel::has_virtualization()) {
            (false, _) => "",
            (true, false) => {
                "; this /dev/kvm interprets kernel code (the CPU shows neither VMX nor SVM) and \
                 does not know every instruction: Linux does not run here"
            }
            (true, true) => "; the guest probably runs something that is no code",
        };
        Error::GaveUp(self.describe(&what, cause, crew))
    }

    /// KVM_EXIT_FAIL_ENTRY.
    pub(super) fn fail_entry<M: Messages + 'static>(
        &self,
        reason: u64,
        crew: &Crew<'_, M>,
    ) -> Error {
        let what = format!("the CPU refuses to enter the guest (reason {reason:#x})");
        Error::GaveUp(self.describe(&what, "", crew))
    }

    /// KVM_RUN itself failed.
    pub(super) fn run_error<M: Messages + 'static>(
        &self,
        error: kvm_ioctls::Error,
        crew: &Crew<'_, M>,
    ) -> Error {
        Error::GaveUp(self.describe(&format!("running the guest: {error}"), "", crew))
    }

    /// A triple fault resets the machine, and nothing else would tell of it. Some kernels restart
    /// by one on purpose: those say so before.
    pub(super) fn tell_of_triple_fault<M: Messages + 'static>(&self, crew: &Crew<'_, M>) {
        let last = crew.board.com1.last_line();
        if RESTARTS.iter().any(|said| last.contains(said)) {
            return;
        }
        let cause = match (last.is_empty(), crew.progress().in_kernel) {
            (_, false) => "; the firmware died: is this a BIOS for QEMU's microvm?",
            (true, true) => {
                "; the kernel died before its first output: is it for this CPU, whole, and has it \
                 enough memory? earlyprintk=ttyS0 shows more"
            }
            (false, true) => "; if that was a restart (reboot=t), all is well",
        };
        let what = "a triple fault resets the guest";
        console::say(&self.describe(what, cause, crew));
    }

    /// One line of where the CPU is, for who wonders why nothing happens.
    pub(super) fn report<M: Messages + 'static>(&self, crew: &Crew<'_, M>) {
        let (place, stage) = (self.place(), stage(crew.progress()));
        let Self { id, recent, .. } = self;
        console::say(&format!("CPU {id}{place}{stage}; last exits: {recent}"));
    }

    /// A line with `what` and the likely `cause`, and lines with what is known.
    fn describe<M: Messages + 'static>(
        &self,
        what: &str,
        cause: &str,
        crew: &Crew<'_, M>,
    ) -> String {
        let mut text = String::from(what);
        text.push_str(&self.place());
        text.push_str(&stage(crew.progress()));
        text.push_str(cause);
        if let (Ok(regs), Ok(sregs)) = (self.fd.get_regs(), self.fd.get_sregs()) {
            text.push_str(&registers(&regs, &sregs));
        }
        let bytes = self.instruction(crew.ram);
        if !bytes.is_empty() {
            text.push_str("\n  instruction:");
            for byte in bytes {
                let _ = write!(text, " {byte:02x}");
            }
        }
        let _ = write!(text, "\n  last exits of CPU {}: {}", self.id, self.recent);
        let last = crew.board.com1.last_line();
        if !last.is_empty() {
            let _ = write!(text, "\n  last line on COM1: {last}");
        }
        text
    }

    /// ` at rip 0x.. in .. mode`.
    fn place(&self) -> String {
        let (Ok(regs), Ok(sregs)) = (self.fd.get_regs(), self.fd.get_sregs()) else {
            return String::new();
        };
        if is_reset(&regs, &sregs) {
            return String::new();
        }
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
        if is_reset(&regs, &sregs) {
            return Vec::new();
        }
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

/// Whether the registers are those of a CPU that was just reset: KVM on AMD resets a CPU at a
/// triple fault before anybody can look.
fn is_reset(regs: &kvm_regs, sregs: &kvm_sregs) -> bool {
    regs.rip == 0xfff0 && sregs.cs.selector == 0xf000
}

fn registers(regs: &kvm_regs, sregs: &kvm_sregs) -> String {
    if is_reset(regs, sregs) {
        return "\n  registers: KVM has reset them".into();
    }
    let kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, rflags, .. } = regs;
    let kvm_sregs { cr0, cr2, cr3, cr4, efer, .. } = sregs;
    format!(
        "\n  registers: rax={rax:#x} rbx={rbx:#x} rcx={rcx:#x} rdx={rdx:#x} rsi={rsi:#x} \
         rdi={rdi:#x} rsp={rsp:#x} rbp={rbp:#x} rflags={rflags:#x}\n  control: cr0={cr0:#x} \
         cr2={cr2:#x} cr3={cr3:#x} cr4={cr4:#x} efer={efer:#x} idt={:#x}+{:#x}",
        sregs.idt.base, sregs.idt.limit
    )
}

/// `, after the stage '..'`.
fn stage(progress: Progress) -> String {
    match progress.last.and_then(post::name) {
        Some(name) => format!(", after the stage '{name}'"),
        None if progress.in_kernel => ", in the kernel".into(),
        None => ", before the firmware's first sign".into(),
    }
}
