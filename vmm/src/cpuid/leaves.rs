//! CPUID leaves: what each of them answers.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// A register of CPUID's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// 32 bits of CPUID's answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// EAX of the question.
    pub leaf: u32,
    /// ECX of the question; 0 where it does not matter.
    pub subleaf: u32,
    /// The register of the answer.
    pub register: Register,
}

impl Word {
    /// The register of a leaf's subleaf.
    pub const fn new(leaf: u32, subleaf: u32, register: Register) -> Self {
        Self { leaf, subleaf, register }
    }
}

/// All answers. A leaf that is not there answers 0.
#[derive(Clone, Debug)]
pub struct Leaves(Vec<kvm_cpuid_entry2>);

impl Leaves {
    /// The leaves that KVM listed.
    pub fn new(entries: &[kvm_cpuid_entry2]) -> Self {
        Self(entries.to_vec())
    }

    /// Whether they are a CPU's of AMD, or of Hygon, who make them alike.
    pub fn is_amd(&self) -> bool {
        // The first letters of the vendor: "Auth"enticAMD, "Hygo"nGenuine.
        self.get(0, 0).is_some_and(|entry| [0x6874_7541, 0x6f67_7948].contains(&entry.ebx))
    }

    /// For KVM; `None` when there are more than it takes.
    pub fn to_kvm(&self) -> Option<CpuId> {
        CpuId::from_entries(&self.0).ok()
    }

    /// The last of the basic leaves.
    pub fn last(&self) -> u32 {
        self.get(0, 0).map_or(0, |entry| entry.eax)
    }

    /// One subleaf.
    pub fn get(&self, leaf: u32, subleaf: u32) -> Option<&kvm_cpuid_entry2> {
        self.0.iter().find(|entry| (entry.function, entry.index) == (leaf, subleaf))
    }

    /// One subleaf, to change it.
    pub fn get_mut(&mut self, leaf: u32, subleaf: u32) -> Option<&mut kvm_cpuid_entry2> {
        self.0.iter_mut().find(|entry| (entry.function, entry.index) == (leaf, subleaf))
    }

    /// All subleaves of a leaf, to change them.
    pub fn all_mut(&mut self, leaf: u32) -> impl Iterator<Item = &mut kvm_cpuid_entry2> {
        self.0.iter_mut().filter(move |entry| entry.function == leaf)
    }

    /// One register.
    pub fn register(&self, word: Word) -> u32 {
        let Some(entry) = self.get(word.leaf, word.subleaf) else { return 0 };
        match word.register {
            Register::Eax => entry.eax,
            Register::Ebx => entry.ebx,
            Register::Ecx => entry.ecx,
            Register::Edx => entry.edx,
        }
    }

    /// Sets bits of a register, and clears others. A leaf that is not there stays so.
    pub fn change(&mut self, word: Word, set: u32, clear: u32) {
        let Some(entry) = self.get_mut(word.leaf, word.subleaf) else { return };
        let register = match word.register {
            Register::Eax => &mut entry.eax,
            Register::Ebx => &mut entry.ebx,
            Register::Ecx => &mut entry.ecx,
            Register::Edx => &mut entry.edx,
        };
        *register = *register & !clear | set;
    }

    /// Puts a leaf without subleaves there, in place of what was.
    pub fn put(&mut self, leaf: u32, [eax, ebx, ecx, edx]: [u32; 4]) {
        self.retain(|entry| entry.function != leaf);
        let entry = kvm_cpuid_entry2 { function: leaf, eax, ebx, ecx, edx, ..Default::default() };
        self.0.push(entry);
    }

    /// Puts subleaves from 0 on there, in place of what was.
    pub fn put_subleaves(&mut self, leaf: u32, subleaves: &[[u32; 4]]) {
        self.retain(|entry| entry.function != leaf);
        self.0.extend((0..).zip(subleaves).map(|(index, [eax, ebx, ecx, edx])| kvm_cpuid_entry2 {
            function: leaf,
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: *eax,
            ebx: *ebx,
            ecx: *ecx,
            edx: *edx,
            ..Default::default()
        }));
    }

    /// Takes away what is not to be kept.
    pub fn retain(&mut self, keep: impl FnMut(&kvm_cpuid_entry2) -> bool) {
        self.0.retain(keep);
    }
}
