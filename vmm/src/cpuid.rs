//! What CPUID tells the guest.
//!
//! KVM's host CPU, what the user wants of it, and the machine's topology.

mod features;
mod leaves;
mod model;
mod topology;
mod xsave;

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use crate::config::Cpu;
pub use features::{Feature, find, is_in_msr, names};
use leaves::Leaves;
pub use leaves::{Register, Word};
pub use model::Missing;
pub use topology::Topology;

/// Entries that KVM may return, with room to grow.
pub const ENTRIES_MAX: usize = 128;

/// Leaves of hypervisors: the first, which names the last and the hypervisor, and the end of all.
const HYPERVISOR_FIRST: u32 = 0x4000_0000;
const HYPERVISOR_END: u32 = 0x4fff_ffff;
/// Rates in kHz, by VMware's convention: EAX of the time-stamp counter, EBX of the APICs' bus.
const RATES: u32 = 0x4000_0010;
/// KVM's APIC timers count nanoseconds.
const APIC_BUS_KHZ: u32 = 1_000_000;

/// What CPUID answers on all CPUs of a machine.
#[derive(Debug)]
pub struct Cpuid {
    leaves: Leaves,
    rates: bool,
    missing: Vec<Missing>,
}

impl Cpuid {
    /// Of what KVM lists, what `cpu` asks for. Whether APIC timers have a TSC deadline mode, KVM
    /// tells elsewhere.
    pub fn new(kvm: &[kvm_cpuid_entry2], tsc_deadline: bool, cpu: &Cpu) -> Self {
        let mut leaves = Leaves::new(kvm);
        let missing = model::apply(&mut leaves, tsc_deadline, cpu);
        if !cpu.counters {
            model::drop_counters(&mut leaves);
        }
        if !cpu.kvm {
            let hypervisor = HYPERVISOR_FIRST..=HYPERVISOR_END;
            leaves.retain(|entry| !hypervisor.contains(&entry.function));
        }
        Self { leaves, rates: cpu.kvm && cpu.rates, missing }
    }

    /// Features that were asked for and are not there.
    pub fn missing(&self) -> &[Missing] {
        &self.missing
    }

    /// Tells the guest how fast its time-stamp counter counts.
    pub fn set_tsc_khz(&mut self, khz: u32) {
        if let Some(first) = self.leaves.get_mut(HYPERVISOR_FIRST, 0).filter(|_| self.rates) {
            first.eax = first.eax.max(RATES);
            self.leaves.put(RATES, [khz, APIC_BUS_KHZ, 0, 0]);
        }
    }

    /// What one CPU answers; `None` when that is more than KVM takes.
    pub fn of(&self, topology: Topology) -> Option<CpuId> {
        let mut leaves = self.leaves.clone();
        topology::describe(&mut leaves, topology);
        leaves.to_kvm()
    }
}

#[cfg(test)]
mod tests;
