//! /dev/kvm: opening it, and finding out what it is.
//!
//! Some cloud machines have a /dev/kvm that interprets a guest's kernel code (PVM on a CPU
//! without VMX and SVM). Small programs run there, Linux does not.
#![expect(unsafe_code, reason = "the probe's memory slot")]

use std::arch::x86_64::__cpuid;
use std::fmt;
use std::io;
use std::time::Instant;

use kvm_bindings::{kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VmFd};

use crate::memory::GuestRam;

/// Why there is no KVM.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such device.
    #[error("/dev/kvm: there is none: load kvm_intel or kvm_amd, or run where KVM is")]
    Missing,
    /// The user may not use it.
    #[error("/dev/kvm: no permission: add your user to the device's group (usually kvm)")]
    Permission,
    /// It cannot be opened.
    #[error("/dev/kvm: {0}")]
    Open(io::Error),
    /// It does not do as it should.
    #[error("/dev/kvm: {doing}: {why}")]
    Broken {
        /// What was being done.
        doing: &'static str,
        /// Its reason.
        why: kvm_ioctls::Error,
    },
}

/// An error of KVM while `doing` something.
pub(crate) fn broken(doing: &'static str) -> impl Fn(kvm_ioctls::Error) -> Error {
    move |why| Error::Broken { doing, why }
}

/// Opens /dev/kvm.
pub fn open() -> Result<Kvm, Error> {
    Kvm::new().map_err(|error| {
        let error = io::Error::from_raw_os_error(error.errno());
        match error.kind() {
            io::ErrorKind::NotFound => Error::Missing,
            io::ErrorKind::PermissionDenied => Error::Permission,
            // ENODEV or ENXIO: a device node without a driver.
            _ if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) => Error::Missing,
            _ => Error::Open(error),
        }
    })
}

/// Creating a VM is interrupted when the process gets a signal meanwhile; that is no failure.
const CREATE_TRIES: u32 = 5;

/// Creates a VM.
pub(crate) fn create_vm(kvm: &Kvm) -> Result<VmFd, Error> {
    let mut tries = 1;
    loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR && tries < CREATE_TRIES => tries += 1,
            result => return result.map_err(broken("creating a virtual machine")),
        }
    }
}

/// Whether the host's CPU has what KVM needs to run kernel code on it. Without it, a /dev/kvm
/// interprets. No system call.
pub fn has_virtualization() -> bool {
    let vmx = __cpuid(1).ecx & 1 << 5 != 0;
    let svm = __cpuid(0x8000_0000).eax > 0x8000_0000 && __cpuid(0x8000_0001).ecx & 1 << 2 != 0;
    vmx || svm
}

/// Whether the host's CPU is Intel's (or made after them), where KVM needs pages of its own in
/// the guest.
pub(crate) fn is_intel() -> bool {
    // "Genu", "Cent" (Centaur), "  Sh" (Zhaoxin).
    [0x756e_6547, 0x746e_6543, 0x6853_2020].contains(&__cpuid(0).ebx)
}

/// What a /dev/kvm is.
pub enum Description {
    /// It runs kernel code on the CPU: nanoseconds an instruction took.
    Native(f64),
    /// It interprets kernel code: nanoseconds an instruction took.
    Interpreted(f64),
    /// It is not there or does not work.
    Unavailable(Error),
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Native(ns) => write!(f, "kvm: native ({ns:.1} ns a kernel instruction)"),
            Self::Interpreted(ns) => write!(
                f,
                "kvm: interpreted ({ns:.0} ns a kernel instruction: small programs run, Linux \
                 does not)"
            ),
            Self::Unavailable(error) => write!(f, "kvm: unavailable ({error})"),
        }
    }
}

/// From here on, an instruction was interpreted: the slowest emulated CPU needs a tenth of it,
/// the quickest interpreter four times as much.
const INTERPRETED_NS: f64 = 100.0;

/// Runs a loop of kernel instructions in a VM of its own, and times it.
pub fn describe() -> Description {
    match time_instruction() {
        Ok(ns) if ns < INTERPRETED_NS => Description::Native(ns),
        Ok(ns) => Description::Interpreted(ns),
        Err(error) => Description::Unavailable(error),
    }
}

/// Rounds of the loop, two instructions each.
const ROUNDS: u16 = 4000;

/// Real mode: `out 0x80, al; mov cx, ROUNDS; again: dec cx; jnz again; out 0x80, al; hlt`.
const LOOP: [u8; 11] = {
    let [low, high] = ROUNDS.to_le_bytes();
    [0xe6, 0x80, 0xb9, low, high, 0x49, 0x75, 0xfd, 0xe6, 0x80, 0xf4]
};
/// Where the loop is.
const CODE: u64 = 0x1000;

fn time_instruction() -> Result<f64, Error> {
    let kvm = open()?;
    let out_of_memory = |_| Error::Open(io::ErrorKind::OutOfMemory.into());
    let ram = GuestRam::new(2 << 20, None).map_err(out_of_memory)?;
    ram.write(CODE, &LOOP).map_err(out_of_memory)?;
    let vm = create_vm(&kvm)?;
    for slot in ram.slots() {
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: slot.guest.start(),
            memory_size: slot.guest.len(),
            userspace_addr: slot.host,
        };
        // SAFETY: the memory is `ram`'s, which outlives `vm`: it was made before.
        unsafe { vm.set_user_memory_region(region) }.map_err(broken("giving it memory"))?;
    }
    let mut vcpu = vm.create_vcpu(0).map_err(broken("creating a CPU"))?;
    let mut sregs = vcpu.get_sregs().map_err(broken("reading registers"))?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs).map_err(broken("setting registers"))?;
    let regs = kvm_regs { rip: CODE, rflags: 2, ..Default::default() };
    vcpu.set_regs(&regs).map_err(broken("setting registers"))?;

    let mut run = || match vcpu.run() {
        Ok(VcpuExit::IoOut(..)) => Ok(()),
        Ok(_) => Err(broken("running the probe")(kvm_ioctls::Error::new(libc::EIO))),
        Err(error) => Err(broken("running the probe")(error)),
    };
    // The first run ends before the loop, with the page faults behind it.
    run()?;
    let start = Instant::now();
    run()?;
    let elapsed = u32::try_from(start.elapsed().as_nanos()).unwrap_or(u32::MAX);
    Ok(f64::from(elapsed) / f64::from(2 * u32::from(ROUNDS)))
}
