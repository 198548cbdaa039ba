//! A virtual CPU: its registers at the start, and its run loop.
#![expect(unsafe_code, reason = "reading kvm_run's union, and an ioctl that kvm-ioctls lacks")]

mod post_mortem;

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::ptr;

use abi::bytes::{get_u32, get_u64};
use abi::post;
use kvm_bindings::{
    CpuId, Msrs, kvm_dtable, kvm_msr_entry, kvm_regs, kvm_run, kvm_segment, kvm_sregs,
};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};

use crate::accel::{self, broken};
use crate::board::Board;
use crate::boot::{CODE_OR_DATA, Cpu, InitState, Segment, Table};
use crate::bus::Action;
use crate::devices::ioapic::Messages;
use crate::memory::GuestRam;
use crate::signals::{self, Interruptible, Stop};
use crate::trace::{Exit, Trace};

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
    Stopped(Stop),
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
}

/// MTRRdefType: its number, and its value for "on, and everything is write-back".
const MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ON_WRITE_BACK: u64 = 1 << 11 | 6;
/// IA32_MISC_ENABLE: its number, and its bit for fast string operations.
const MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;

/// A virtual CPU.
pub struct Vcpu {
    fd: VcpuFd,
    // The page that KVM and this program share, mapped as long as `fd` lives.
    run: *mut kvm_run,
    progress: Progress,
}

/// How far start-up has come, by its POST codes.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    last: Option<u8>,
    in_kernel: bool,
}

impl Vcpu {
    /// CPU number `id` with these CPUID leaves.
    pub fn new(vm: &VmFd, id: u8, cpuid: &CpuId) -> Result<Self, Error> {
        let mut fd = vm.create_vcpu(id.into()).map_err(broken("creating a CPU"))?;
        fd.set_cpuid2(cpuid).map_err(broken("setting CPUID"))?;
        let run = ptr::from_mut(fd.get_kvm_run());
        Ok(Self { fd, run, progress: Progress::default() })
    }

    /// Loads the registers for `state`.
    pub fn load(&mut self, state: &InitState) -> Result<(), Error> {
        let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
        let mut msrs = vec![entry(MTRR_DEF_TYPE, MTRR_ON_WRITE_BACK)];
        if state.direct {
            msrs.push(entry(MISC_ENABLE, FAST_STRINGS));
        }
        // A CPU without one of them does without.
        if let Ok(msrs) = Msrs::from_entries(&msrs) {
            self.fd.set_msrs(&msrs).map_err(broken("setting MSRs"))?;
        }
        self.progress.in_kernel = state.direct;
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

    /// Runs the guest until something ends that.
    pub fn run<M: Messages + 'static>(
        &mut self,
        board: &Board<M>,
        ram: &GuestRam,
        trace: &mut Option<Trace>,
    ) -> Result<End, Error> {
        // SAFETY: the page is mapped as long as `self.fd` lives.
        let immediate_exit = unsafe { &raw mut (*self.run).immediate_exit };
        // SAFETY: as above; `self` outlives this value.
        let _interruptible = unsafe { Interruptible::new(immediate_exit) };
        if let Some(trace) = trace {
            trace.first_run();
        }
        loop {
            if let Some(stop) = signals::stop() {
                return Ok(End::Stopped(stop));
            }
            let action = self.step(board, ram, trace)?;
            if let Some(end) = self.act(action, trace) {
                return Ok(end);
            }
        }
    }

    /// Runs the guest until it leaves KVM, and answers it.
    fn step<M: Messages + 'static>(
        &mut self,
        board: &Board<M>,
        ram: &GuestRam,
        trace: &mut Option<Trace>,
    ) -> Result<Action, Error> {
        let (ports, mmio) = (&board.ports, &board.mmio);
        let mut count = |exit, device: &dyn Fn() -> &'static str| {
            if let Some(trace) = trace {
                trace.count(exit, device());
            }
        };
        match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                count(Exit::IoOut, &|| ports.name_at(port.into()));
                let writes = data.chunks(io_width(self.run));
                return Ok(write_each(writes, |data| ports.write(port.into(), data)));
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                count(Exit::IoIn, &|| ports.name_at(port.into()));
                let width = io_width(self.run);
                data.chunks_mut(width).for_each(|data| ports.read(port.into(), data));
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                count(Exit::MmioWrite, &|| mmio.name_at(address));
                return Ok(mmio.write(address, data));
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                count(Exit::MmioRead, &|| mmio.name_at(address));
                mmio.read(address, data);
            }
            Ok(VcpuExit::IoapicEoi(vector)) => {
                count(Exit::Eoi, &|| "I/O APIC");
                board.ioapic.end_of_interrupt(vector);
            }
            Ok(VcpuExit::Shutdown) => return Ok(Action::Reset("a triple fault")),
            Ok(VcpuExit::Intr) => {}
            Ok(VcpuExit::InternalError) => return Err(self.internal_error(ram)),
            Ok(VcpuExit::FailEntry(reason, _)) => return Err(self.fail_entry(reason)),
            Ok(other) => {
                return Err(Error::GaveUp(format!("an exit that is not known here: {other:?}")));
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                count(Exit::Signal, &|| "stop");
            }
            Err(error) => return Err(self.run_error(error)),
        }
        Ok(Action::None)
    }

    fn act(&mut self, action: Action, trace: &mut Option<Trace>) -> Option<End> {
        match action {
            Action::None => None,
            Action::Reset(by) => Some(End::Reset(by)),
            Action::PowerOff => Some(End::PowerOff),
            Action::Exit(status) => Some(End::Exit(status)),
            Action::Post(code) => self.take_post_code(code, trace),
        }
    }

    /// Linux writes the port too, as a delay: once it runs, only its init's code counts.
    fn take_post_code(&mut self, code: u8, trace: &mut Option<Trace>) -> Option<End> {
        if self.progress.in_kernel && code != post::GUEST_INIT {
            return None;
        }
        self.progress.last = Some(code);
        self.progress.in_kernel |= code == post::KERNEL_ENTRY;
        if let Some(trace) = trace {
            trace.mark(code);
        }
        (code == post::FIRMWARE_FAILED).then_some(End::FirmwareFailed)
    }

    /// The rate of the time-stamp counter in kHz, if KVM knows it.
    pub fn tsc_khz(&self) -> Option<u32> {
        self.fd.get_tsc_khz().ok()
    }

    /// KVM's count of this CPU's exits, from its binary statistics.
    pub fn kvm_exits(&self) -> Option<u64> {
        // _IO(KVMIO, 0xce), Linux 5.14.
        const KVM_GET_STATS_FD: libc::Ioctl = 0xaece_u16 as libc::Ioctl;
        // SAFETY: the call takes no argument and returns a new descriptor, or an error.
        let fd = unsafe { libc::ioctl(self.fd.as_raw_fd(), KVM_GET_STATS_FD) };
        if fd < 0 {
            return None;
        }
        // SAFETY: the descriptor was just made, for us.
        read_exits(&unsafe { File::from_raw_fd(fd) })
    }
}

/// Finds the statistic `exits` (Linux, Documentation/virt/kvm/api.rst, KVM_GET_STATS_FD).
fn read_exits(stats: &File) -> Option<u64> {
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
    let exits = descriptors.chunks_exact(size).find(|descriptor| {
        descriptor.get(DESCRIPTOR..).is_some_and(|n| n.starts_with(b"exits\0"))
    })?;
    let mut value = [0; 8];
    let at = data_at as u64 + u64::from(get_u32(exits, 8)?);
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
