//! A virtual machine: its set-up from top to bottom, and a run of it.
#![expect(unsafe_code, reason = "guest memory becomes KVM's memory slots")]

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use abi::boot_trace::{self, BootTrace};
use abi::fw_cfg::file;
use abi::layout;
use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X86_USER_SPACE_MSR, KVM_IRQ_ROUTING_MSI, KVM_MEM_READONLY,
    KVM_MSR_EXIT_REASON_FILTER, KvmIrqRouting, kvm_enable_cap, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_msi, kvm_msi, kvm_userspace_memory_region,
};
use kvm_ioctls::{
    Cap, IoEventAddress, Kvm, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd,
};

use crate::accel::{self, broken};
use crate::acpi;
use crate::board::{Board, Plugs};
use crate::boot::{self, InitState};
use crate::bus::Overlap;
use crate::config::{self, Config, Irqchip, OnMissing, PanicAction};
use crate::console;
use crate::control::Control;
use crate::cpuid::{self, Cpuid, Topology};
use crate::crew::Crew;
use crate::devices::ioapic::{Message, Messages};
use crate::devices::serial::Com1;
use crate::fw_cfg::{FwCfg, Item, Items};
use crate::image::Images;
use crate::memory::GuestRam;
use crate::trace::{FILTER_STEP, Timer, Trace, step};
use crate::vcpu::{self, End, Vcpu};
use crate::virtio::{self, registers};

/// What is done while KVM makes the virtual machine.
const CPUID_STEP: &str = "KVM_GET_SUPPORTED_CPUID";
const IMAGES_STEP: &str = "images";

/// Why a machine cannot be set up or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] accel::Error),
    /// The boot.
    #[error(transparent)]
    Boot(#[from] boot::Error),
    /// Two devices at one place.
    #[error("-device")]
    Overlap(#[from] Overlap),
    /// A CPU.
    #[error(transparent)]
    Cpu(#[from] vcpu::Error),
    /// A feature of CPUs that the user insists on.
    #[error("-cpu: enforce: {0}: remove it, or enforce")]
    Feature(cpuid::Missing),
    /// More leaves than KVM takes.
    #[error("/dev/kvm: setting CPUID: its own leaves are too many for it")]
    Leaves,
}

/// A virtual machine, ready to run.
pub struct Machine {
    // In the order of their end: CPUs and VM before the memory that they use.
    cpus: Vec<Vcpu>,
    board: Board<Injector>,
    vm: Arc<VmFd>,
    ram: Arc<GuestRam>,
    // The guest has it mapped.
    _registers: Arc<registers::Page>,
    state: InitState,
    on_panic: PanicAction,
    /// Whether it has run before.
    begun: bool,
    cpuid: Cpuid,
    /// What the firmware writes of its stages, when somebody wants to know.
    stamps: Option<Arc<Mutex<Vec<u8>>>>,
}

impl Machine {
    /// Sets a machine up on `ram`, which has room for the BIOS image. The order of the ioctls
    /// matters by milliseconds: memory before interrupt chips and CPUs, and nothing with event
    /// descriptors before either. So does what is done meanwhile: KVM_CREATE_VM starts a kernel
    /// thread and may sleep for ten milliseconds until that is in its control group (Linux 6.0 on,
    /// without the mount option `favordynmods`), and what needs no virtual machine is done in that
    /// time.
    pub fn new(
        config: &Config,
        images: &Images,
        ram: &Arc<GuestRam>,
        (com1, devices): (&Arc<Com1>, &[Arc<dyn virtio::Device>]),
        trace: &mut Option<Trace>,
    ) -> Result<Self, Error> {
        let kvm = accel::open()?;
        let registers = Arc::default();
        let seen = (!devices.is_empty()).then_some(&registers);
        let timer = Timer::new(trace);
        let ((cpuid, prepared), vm) = beside(
            || {
                let cpuid = timer.time(CPUID_STEP, || describe_cpu(&kvm, &config.cpu));
                (cpuid, timer.time(IMAGES_STEP, || prepare(config, images, ram)))
            },
            || create_vm(&kvm, config, (ram, seen), trace),
        );
        timer.report(trace);
        let (vm, (state, mut items), mut cpuid) = (Arc::new(vm?), prepared?, cpuid?);
        step(trace, "the rest of CPUID and images");
        let mut cpus = create_cpus(&vm, &mut cpuid, config.cpus)?;
        step(trace, "CPUs");

        let stamps = config.boot_trace.as_ref().and(items.as_mut()).map(offer_boot_trace);
        cpus.iter_mut().try_for_each(|cpu| cpu.load_msrs(state.direct))?;
        if let Some(first) = cpus.first_mut() {
            first.load(&state)?;
        }
        let fw_cfg = items.map(|items| FwCfg::new(items, ram.clone()));
        let doorbells = Arc::new(Doorbells(vm.clone()));
        let plugs = Plugs { com1, virtio: devices, registers: &registers, doorbells };
        let board = Board::new(
            config,
            fw_cfg,
            plugs,
            ram,
            Injector { vm: vm.clone(), pulses: Default::default() },
        )?;
        step(trace, "registers and board");
        let (on_panic, ram) = (config.actions.panic, ram.clone());
        let (begun, _registers) = (false, registers);
        Ok(Self { cpus, board, vm, ram, _registers, state, on_panic, begun, cpuid, stamps })
    }

    /// Ends the machine. What KVM knows of it is left: whoever drops that waits until KVM has taken
    /// it apart, if nobody else has it (COM1's interrupt line does, until it leads elsewhere).
    pub fn end(self) -> Arc<VmFd> {
        self.vm
    }

    /// Features of CPUs that the user asked for and the guest does not have.
    pub fn missing_features(&self) -> &[cpuid::Missing] {
        self.cpuid.missing()
    }

    /// Runs the guest to its end. One that was left in a panic may be run on.
    pub fn run(&mut self, control: &Control, trace: &mut Option<Trace>) -> Result<End, Error> {
        let first = !std::mem::replace(&mut self.begun, true);
        if let Some(trace) = trace.as_mut().filter(|_| first) {
            trace.enter_guest(self.state.direct, &self.state.placed);
        }
        let place = (&self.board, &*self.ram);
        let crew = Crew::new(place, control, trace.as_mut(), self.state.direct, self.on_panic);
        let end = crew.run(&mut self.cpus);
        if let Some(trace) = trace {
            self.report(trace);
        }
        let end = end?;
        if matches!(end, End::Requested(_) | End::Panicked) {
            self.tell_of_undriven();
        }
        Ok(end)
    }

    /// Who gave a guest up may have waited for a device that its kernel has no driver for.
    fn tell_of_undriven(&self) {
        for device in self.board.undriven() {
            console::say(&format!(
                "{device}: no driver took it: the kernel needs CONFIG_VIRTIO_MMIO and the device's \
                 driver (or their modules in the initrd), and without ACPI \
                 CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES"
            ));
        }
    }

    /// What is known when the CPUs have stopped.
    fn report(&self, trace: &mut Trace) {
        // Without one CPU's count there is none.
        let count = |name| self.cpus.iter().map(|cpu| cpu.kvm_count(name)).sum();
        trace.kvm_counts(count("exits"), count("pf_fixed"));
        let stamps = self.stamps.as_ref().and_then(|stamps| {
            BootTrace::decode(&stamps.lock().unwrap_or_else(PoisonError::into_inner))
        });
        let tsc_khz = self.cpus.first().and_then(Vcpu::tsc_khz);
        trace.firmware(stamps.map(|stamps| (stamps, tsc_khz)));
    }
}

/// Does both at a time, or one after the other where there is no thread to be had. On one
/// processor, the first begins when the second sleeps.
fn beside<A: Send, B>(first: impl Fn() -> A + Sync, second: impl FnOnce() -> B) -> (A, B) {
    thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, &first);
        let second = second();
        let first = match thread.map(thread::ScopedJoinHandle::join) {
            Ok(Ok(first)) => first,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(_) => first(),
        };
        (first, second)
    })
}

/// Fills guest memory in for the boot.
fn prepare(
    config: &Config,
    images: &Images,
    ram: &GuestRam,
) -> Result<(InitState, Option<Items>), boot::Error> {
    let acpi = config.acpi.then(|| acpi::Tables::new(config));
    boot::prepare(&boot::Source { config, images, acpi: acpi.as_ref() }, ram)
}

/// Makes the virtual machine, with its memory and interrupt chips.
fn create_vm(
    kvm: &Kvm,
    config: &Config,
    (ram, registers): (&GuestRam, Option<&Arc<registers::Page>>),
    trace: &mut Option<Trace>,
) -> Result<VmFd, accel::Error> {
    let vm = accel::create_vm(kvm)?;
    step(trace, "KVM_CREATE_VM");
    if trace.is_some() {
        // Later, a grace period of others would have to end before.
        watch_early_kernel(&vm);
        step(trace, FILTER_STEP);
    }
    if accel::is_intel() {
        place_kvm_pages(&vm)?;
    }
    give_memory(&vm, ram, registers)?;
    step(trace, "KVM memory slots");
    match config.irqchip() {
        Irqchip::Split => split_irqchip(&vm)?,
        Irqchip::Kernel => vm.create_irq_chip().map_err(broken("making its interrupt chips"))?,
    }
    step(trace, "interrupt chip");
    Ok(vm)
}

/// Offers the file that the firmware writes its stamps to; the file's bytes.
fn offer_boot_trace(items: &mut Items) -> Arc<Mutex<Vec<u8>>> {
    let bytes = Arc::new(Mutex::new(vec![0; boot_trace::SIZE]));
    items.add_file(file::BOOT_TRACE, Item::Writable(bytes.clone()));
    bytes
}

/// KVM on Intel needs four pages of the guest's address space for real mode.
fn place_kvm_pages(vm: &VmFd) -> Result<(), accel::Error> {
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .map_err(broken("placing its identity map"))?;
    let tss = usize::try_from(layout::KVM_TSS).unwrap_or(usize::MAX);
    vm.set_tss_address(tss).map_err(broken("placing its TSS"))
}

/// Has KVM tell of what a kernel does early: it turns system calls on (EFER), and takes KVM's
/// clock (both its registers' numbers, Linux, Documentation/virt/kvm/x86/msr.rst). A KVM that
/// cannot (before Linux 5.10) leaves these marks out.
fn watch_early_kernel(vm: &VmFd) {
    let mut cap = kvm_enable_cap { cap: KVM_CAP_X86_USER_SPACE_MSR, ..Default::default() };
    cap.args[0] = KVM_MSR_EXIT_REASON_FILTER.into();
    let watched = |base| MsrFilterRange {
        flags: MsrFilterRangeFlags::WRITE,
        base,
        msr_count: 1,
        // A zero denies, which is an exit.
        bitmap: &[0],
    };
    let ranges = vcpu::EARLY_MSRS.map(watched);
    if vm.enable_cap(&cap).is_ok() {
        let _ = vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &ranges);
    }
}

/// Has KVM map the guest's memory, and, for reading, the registers of virtio devices.
fn give_memory(
    vm: &VmFd,
    ram: &GuestRam,
    registers: Option<&Arc<registers::Page>>,
) -> Result<(), accel::Error> {
    let registers = registers.map(|page| (KVM_MEM_READONLY, page.place()));
    let slots = ram.slots().into_iter().map(|slot| (0, slot)).chain(registers);
    for (number, (flags, slot)) in (0..).zip(slots) {
        let region = kvm_userspace_memory_region {
            slot: number,
            flags,
            guest_phys_addr: slot.guest.start(),
            memory_size: slot.guest.len(),
            userspace_addr: slot.host,
        };
        // SAFETY: the memory is `ram`'s, which is mapped until `ram` is dropped, or `registers`';
        // `Machine` drops its CPUs before both, and a VM without CPUs (COM1's interrupt line or an
        // io_uring may hold it longer) touches no memory: KVM lets go of pages when they are
        // unmapped.
        unsafe { vm.set_user_memory_region(region) }.map_err(broken("giving it memory"))?;
    }
    Ok(())
}

/// Local APICs in the kernel, I/O APIC here.
fn split_irqchip(vm: &VmFd) -> Result<(), accel::Error> {
    let mut cap = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
    cap.args[0] = layout::IOAPIC_PINS.into();
    vm.enable_cap(&cap).map_err(broken("splitting the interrupt chip (Linux 4.4 can)"))
}

fn describe_cpu(kvm: &Kvm, cpu: &config::Cpu) -> Result<Cpuid, Error> {
    let entries =
        kvm.get_supported_cpuid(cpuid::ENTRIES_MAX).map_err(broken("reading its CPUID"))?;
    let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    let cpuid = Cpuid::new(entries.as_slice(), tsc_deadline, cpu);
    match cpuid.missing().first() {
        Some(missing) if cpu.missing == OnMissing::Refuse => Err(Error::Feature(*missing)),
        _ => Ok(cpuid),
    }
}

fn create_cpus(vm: &VmFd, cpuid: &mut Cpuid, cpus: u8) -> Result<Vec<Vcpu>, Error> {
    let create = |id| {
        let mut cpu = Vcpu::new(vm, id)?;
        // All CPUs count at the host's rate.
        if let Some(khz) = cpu.tsc_khz().filter(|_| id == 0) {
            cpuid.set_tsc_khz(khz);
        }
        cpu.set_cpuid(&cpuid.of(Topology { id, cpus }).ok_or(Error::Leaves)?)?;
        Ok(cpu)
    };
    (0..cpus).map(create).collect()
}

const PINS: usize = layout::IOAPIC_PINS as usize;

/// Hands the I/O APIC's messages to KVM. What KVM refuses (a message to nobody, say) is lost, as
/// on hardware.
struct Injector {
    vm: Arc<VmFd>,
    /// For each pin, held from its rise to its fall: of two threads of a device, the second would
    /// raise what is up already, which is no edge, and its interrupt would be lost.
    pulses: [Mutex<()>; PINS],
}

impl Messages for Injector {
    fn send(&self, message: Message) {
        let Message { address, data } = message;
        let _ = self.vm.signal_msi(kvm_msi { address_lo: address, data, ..Default::default() });
    }

    fn watch(&self, levels: &[(u32, Message)]) {
        let routes: Vec<_> = levels.iter().map(|(pin, message)| route(*pin, *message)).collect();
        if let Ok(routes) = KvmIrqRouting::from_entries(&routes) {
            let _ = self.vm.set_gsi_routing(&routes);
        }
    }

    fn pulse(&self, pin: u32) {
        // No device has another pin.
        let Some(pulses) = usize::try_from(pin).ok().and_then(|pin| self.pulses.get(pin)) else {
            return;
        };
        let _pulse = pulses.lock().unwrap_or_else(PoisonError::into_inner);
        for level in [true, false] {
            let _ = self.vm.set_irq_line(pin, level);
        }
    }
}

/// Has KVM take the notifications of virtio drivers.
struct Doorbells(Arc<VmFd>);

impl virtio::Doorbells for Doorbells {
    fn attach(&self, address: u64, value: u32, event: &virtio::Event) -> io::Result<()> {
        let (event, address) = (event.to_event_fd()?, IoEventAddress::Mmio(address));
        Ok(self.0.register_ioevent(&event, &address, value)?)
    }

    fn detach(&self, address: u64, value: u32, event: &virtio::Event) {
        if let Ok(event) = event.to_event_fd() {
            // What was not attached is refused.
            let _ = self.0.unregister_ioevent(&event, &IoEventAddress::Mmio(address), value);
        }
    }
}

fn route(pin: u32, message: Message) -> kvm_irq_routing_entry {
    let Message { address, data } = message;
    let msi = kvm_irq_routing_msi { address_lo: address, data, ..Default::default() };
    kvm_irq_routing_entry {
        gsi: pin,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 { msi },
        ..Default::default()
    }
}
