//! A virtual CPU: its registers at the start, and its run loop.
#![expect(unsafe_code, reason = "reading kvm_run's union, and an ioctl that kvm-ioctls lacks")]

mod post_mortem;
mod recent;

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::ptr;

use abi::bytes::{get_u32, get_u64};
use kvm_bindings::{
    CpuId, Msrs, kvm_dtable, kvm_msr_entry, kvm_regs, kvm_run, kvm_segment, kvm_sregs,
};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};

use crate::accel::{self, broken};
use crate::boot::{CODE_OR_DATA, Cpu, InitState, Segment, Table};
use crate::bus::Action;
use crate::control::{Request, Verdict};
use crate::crew::Crew;
use crate::devices::ioapic::Messages;
use crate::signals::Interruptible;
use crate::trace::{Event, Exit};
use recent::Recent;

/// How a run of the guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest powered off.
    PowerOff,
    /// The guest reset the machine, by this.
    Reset(&'static str),
    /// The guest ended the process with this status.
    Exit(u8),
    /// Something outside ended it.
    Requested(Request),
    /// The guest's kernel gave up.
    Panicked,
    /// The firmware said that it cannot go on.
    FirmwareFailed,
}

/// Why a CPU cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// KVM refused something.
    #[error(transparent)]
    Kvm(#[from] accel::Error),
    /// KVM gave up on the guest.
    #[error("{0}")]
    GaveUp(String),
    /// There is no thread for it.
    #[error("starting a CPU's thread: {0}")]
    Thread(std::io::Error),
}

/// The reason of a reset that no device asked for.
pub const TRIPLE_FAULT: &str = "a triple fault";

/// MTRRdefType: its number, and its value for "on, and everything is write-back".
const MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ON_WRITE_BACK: u64 = 1 << 11 | 6;
/// IA32_MISC_ENABLE: its number, and its bit for fast string operations.
const MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;

/// EFER and MSR_KVM_SYSTEM_TIME_NEW: what a trace is told of.
pub const EARLY_MSRS: [u32; 2] = [EFER, KVM_SYSTEM_TIME];
const EFER: u32 = 0xc000_0080;
const KVM_SYSTEM_TIME: u32 = 0x4b56_4d01;
/// EFER: system calls are on.
const EFER_SCE: u64 = 1;

/// A virtual CPU.
pub struct Vcpu {
    id: u8,
    fd: VcpuFd,
    recent: Recent,
    // The page that KVM and this program share, mapped as long as `fd` lives.
    run: *mut kvm_run,
}

// SAFETY: the page belongs to the CPU's descriptor, which may be used by one thread after another.
unsafe impl Send for Vcpu {}

impl Vcpu {
    /// CPU number `id`.
    pub fn new(vm: &VmFd, id: u8) -> Result<Self, Error> {
        let mut fd = vm.create_vcpu(id.into()).map_err(broken("creating a CPU"))?;
        let run = ptr::from_mut(fd.get_kvm_run());
        Ok(Self { id, fd, recent: Recent::default(), run })
    }

    /// Its number.
    pub fn id(&self) -> u8 {
        self.id
    }

    /// Says what CPUID answers; before anything that depends on it.
    pub fn set_cpuid(&mut self, cpuid: &CpuId) -> Result<(), Error> {
        Ok(self.fd.set_cpuid2(cpuid).map_err(broken("setting CPUID"))?)
    }

    /// Loads what every CPU has: the model-specific registers that a kernel expects set.
    pub fn load_msrs(&mut self, direct: bool) -> Result<(), Error> {
        let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
        let mut msrs = vec![entry(MTRR_DEF_TYPE, MTRR_ON_WRITE_BACK)];
        if direct {
            msrs.push(entry(MISC_ENABLE, FAST_STRINGS));
        }
        // A CPU without one of them does without.
        if let Ok(msrs) = Msrs::from_entries(&msrs) {
            self.fd.set_msrs(&msrs).map_err(broken("setting MSRs"))?;
        }
        Ok(())
    }

    /// Loads the boot CPU's registers for `state`; the others wait until they are started.
    pub fn load(&mut self, state: &InitState) -> Result<(), Error> {
        if state.cpu == Cpu::RESET {
            // KVM's CPUs begin so.
            return Ok(());
        }
        let mut sregs = self.fd.get_sregs().map_err(broken("reading registers"))?;
        fill_sregs(&mut sregs, &state.cpu);
        self.fd.set_sregs(&sregs).map_err(broken("setting registers"))?;
        let Cpu { rip, rflags, rbx, rsi, .. } = state.cpu;
        let regs = kvm_regs { rip, rflags, rbx, rsi, ..Default::default() };
        self.fd.set_regs(&regs).map_err(broken("setting registers"))?;
        Ok(())
    }

    /// Runs the guest until something ends that; `None` when another CPU did.
    pub fn run<M: Messages + 'static>(&mut self, crew: &Crew<'_, M>) -> Result<Option<End>, Error> {
        // SAFETY: the page is mapped as long as `self.fd` lives.
        let immediate_exit = unsafe { &raw mut (*self.run).immediate_exit };
        // SAFETY: as above; `self` outlives this value.
        let _interruptible = unsafe { Interruptible::new(immediate_exit) };
        loop {
            match crew.checkpoint() {
                Verdict::Go => {}
                Verdict::Leave => return Ok(None),
                Verdict::Obey(request) => return Ok(Some(End::Requested(request))),
                Verdict::Report => {
                    self.report(crew);
                    continue;
                }
            }
            let action = self.step(crew)?;
            if let Some(end) = crew.act(action) {
                return Ok(Some(end));
            }
        }
    }

    /// Runs the guest until it leaves KVM, and answers it.
    fn step<M: Messages + 'static>(&mut self, crew: &Crew<'_, M>) -> Result<Action, Error> {
        let (ports, mmio) = (&crew.board.ports, &crew.board.mmio);
        match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                crew.count(Exit::IoOut, || ports.name_at(port.into()));
                self.recent.push(Exit::IoOut, port.into(), data);
                let writes = data.chunks(io_width(self.run));
                let action = write_each(writes, |data| ports.write(port.into(), data));
                crew.mark_output(port);
                return Ok(action);
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                crew.count(Exit::IoIn, || ports.name_at(port.into()));
                let width = io_width(self.run);
                data.chunks_mut(width).for_each(|data| ports.read(port.into(), data));
                self.recent.push(Exit::IoIn, port.into(), data);
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                crew.count(Exit::MmioWrite, || mmio.name_at(address));
                self.recent.push(Exit::MmioWrite, address, data);
                return Ok(mmio.write(address, data));
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                crew.count(Exit::MmioRead, || mmio.name_at(address));
                mmio.read(address, data);
                self.recent.push(Exit::MmioRead, address, data);
            }
            Ok(VcpuExit::IoapicEoi(vector)) => {
                crew.count(Exit::Eoi, || "I/O APIC");
                crew.board.end_of_interrupt(vector);
                self.recent.push(Exit::Eoi, vector.into(), &[]);
            }
            Ok(VcpuExit::X86Wrmsr(write)) => {
                crew.count(Exit::Msr, || "CPU");
                let (index, value) = (write.index, write.data);
                self.write_msr(index, value);
                self.recent.push(Exit::Msr, index.into(), &value.to_le_bytes());
                if let Some(event) = early_event(index, value) {
                    crew.mark_first(event);
                }
            }
            Ok(VcpuExit::Shutdown) => {
                self.tell_of_triple_fault(crew);
                return Ok(Action::Reset(TRIPLE_FAULT));
            }
            Ok(VcpuExit::Intr) => {}
            Ok(VcpuExit::InternalError) => {
                return Err(self.internal_error(crew));
            }
            Ok(VcpuExit::FailEntry(reason, _)) => return Err(self.fail_entry(reason, crew)),
            Ok(other) => {
                return Err(Error::GaveUp(format!("an exit that is not known here: {other:?}")));
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                crew.count(Exit::Signal, || "stop");
                // What woke it was written down before: the next checkpoint finds it.
                self.fd.set_kvm_immediate_exit(0);
            }
            Err(error) => return Err(self.run_error(error, crew)),
        }
        Ok(Action::None)
    }

    /// Does what the guest's WRMSR would have done, had nobody wanted to know of it.
    fn write_msr(&mut self, index: u32, data: u64) {
        let entry = kvm_msr_entry { index, data, ..Default::default() };
        let is_set = Msrs::from_entries(&[entry]).is_ok_and(|msr| self.fd.set_msrs(&msr) == Ok(1));
        // SAFETY: the page is mapped as long as `self.fd` lives.
        let error = unsafe { &raw mut (*self.run).__bindgen_anon_1.msr.error };
        // SAFETY: the exit reason is KVM_EXIT_X86_WRMSR (the caller matched it), and nobody else
        // writes to this part of the page outside KVM_RUN. Not zero, it has KVM inject #GP.
        unsafe { ptr::write_volatile(error, u8::from(!is_set)) };
    }

    /// The rate of the time-stamp counter in kHz, if KVM knows it.
    pub fn tsc_khz(&self) -> Option<u32> {
        self.fd.get_tsc_khz().ok()
    }

    /// KVM's count of this CPU's `name`, `exits` for one, from its binary statistics.
    pub fn kvm_count(&self, name: &str) -> Option<u64> {
        // _IO(KVMIO, 0xce), Linux 5.14.
        const KVM_GET_STATS_FD: libc::Ioctl = 0xaece_u16 as libc::Ioctl;
        // SAFETY: the call takes no argument and returns a new descriptor, or an error.
        let fd = unsafe { libc::ioctl(self.fd.as_raw_fd(), KVM_GET_STATS_FD) };
        if fd < 0 {
            return None;
        }
        // SAFETY: the descriptor was just made, for us.
        read_count(&unsafe { File::from_raw_fd(fd) }, name)
    }
}

/// Finds the statistic `name` (Linux, Documentation/virt/kvm/api.rst, KVM_GET_STATS_FD).
fn read_count(stats: &File, name: &str) -> Option<u64> {
    const HEADER: usize = 24;
    const DESCRIPTOR: usize = 16;
    let mut header = [0; HEADER];
    stats.read_exact_at(&mut header, 0).ok()?;
    let field = |at| get_u32(&header, at).and_then(|value| usize::try_from(value).ok());
    let (name_size, count) = (field(4)?, field(8)?);
    let (descriptors_at, data_at) = (field(16)?, field(20)?);
    let size = DESCRIPTOR.checked_add(name_size)?;
    let mut descriptors = vec![0; size.checked_mul(count.min(1024))?];
    stats.read_exact_at(&mut descriptors, descriptors_at as u64).ok()?;
    let wanted = descriptors.chunks_exact(size).find(|descriptor| {
        let found = descriptor.get(DESCRIPTOR..).and_then(|n| n.strip_prefix(name.as_bytes()));
        found.is_some_and(|rest| rest.starts_with(b"\0"))
    })?;
    let mut value = [0; 8];
    let at = data_at as u64 + u64::from(get_u32(wanted, 8)?);
    stats.read_exact_at(&mut value, at).ok()?;
    get_u64(&value, 0)
}

/// Bytes of one access of the port instruction that KVM returned for: a string instruction makes
/// many of them.
fn io_width(run: *mut kvm_run) -> usize {
    // SAFETY: the page is mapped: the caller's `VcpuFd` lives.
    let size = unsafe { &raw const (*run).__bindgen_anon_1.io.size };
    // SAFETY: the exit reason is KVM_EXIT_IO (the caller matched it), and nobody writes to this
    // part of the page outside KVM_RUN.
    let width = unsafe { ptr::read_volatile(size) };
    usize::from(width.max(1))
}

/// What a write of one of [`EARLY_MSRS`] says of the kernel.
fn early_event(index: u32, value: u64) -> Option<Event> {
    match index {
        EFER if value & EFER_SCE != 0 => Some(Event::KernelStart),
        KVM_SYSTEM_TIME => Some(Event::KvmClock),
        _ => None,
    }
}

/// Writes one after the other, until one asks for something.
fn write_each<'a>(
    mut writes: impl Iterator<Item = &'a [u8]>,
    mut write: impl FnMut(&[u8]) -> Action,
) -> Action {
    writes.find_map(|data| Some(write(data)).filter(|a| *a != Action::None)).unwrap_or(Action::None)
}

fn fill_sregs(sregs: &mut kvm_sregs, cpu: &Cpu) {
    sregs.cs = segment(&cpu.cs);
    let data = segment(&cpu.data);
    (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
    sregs.tr = segment(&cpu.tr);
    sregs.gdt = table(&cpu.gdt);
    // No interrupt may come before the kernel has its own table.
    sregs.idt = table(&Table { base: 0, limit: 0 });
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer);
}

fn segment(segment: &Segment) -> kvm_segment {
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: segment.kind & 0xf,
        present: 1,
        s: u8::from(segment.kind & CODE_OR_DATA != 0),
        db: u8::from(segment.bits_32),
        l: u8::from(segment.bits_64),
        g: u8::from(segment.limit > 0xf_ffff),
        ..Default::default()
    }
}

fn table(table: &Table) -> kvm_dtable {
    kvm_dtable { base: table.base, limit: table.limit, ..Default::default() }
}
