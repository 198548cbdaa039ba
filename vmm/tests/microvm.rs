//! The `microvm` binary on /dev/kvm, with guests of a few instructions.

mod guests;

use guests::{Code, Guest, Outcome, wait};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use std::io::{Read, Write};
use std::process::Stdio;

const EXIT: [&str; 4] = ["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-m", "8M"];

fn run_bios(code: &Code, more: &[&str]) -> Outcome {
    let guest = Guest::new();
    guest.add("bios", &code.bios(0x1_0000));
    guest.run(&[&["-bios", "@bios", "-serial", "stdio"], more, &EXIT].concat())
}

fn run_bios_with_input(code: &Code, serial: &str, input: &[u8]) -> Outcome {
    let guest = Guest::new();
    guest.add("bios", &code.bios(0x1_0000));
    let arguments = [&["-bios", "@bios", "-serial", serial][..], &EXIT].concat();
    guest.run_with_input(&arguments, input)
}

fn check(outcome: &Outcome, code: i32, stdout: &str) {
    let Outcome { stderr, .. } = outcome;
    assert_eq!((outcome.code(), outcome.stdout.as_str()), (code, stdout), "stderr: {stderr}");
}

fn fails(arguments: &[&str], expected: &str) {
    let guest = Guest::new();
    guest.add("text", &[b' '; 600]);
    let outcome = guest.run(arguments);
    let line = outcome.stderr.replace(guest.path("").to_str().unwrap(), "");
    assert_eq!((outcome.code(), line.as_str()), (1, expected));
}

#[test]
fn a_bios_starts_at_the_reset_vector() {
    check(&run_bios(&Code::default().print("hello").exit(33), &[]), 33, "hello");
}

fn run_cpus(cpus: &str, first: &Code, others: &Code) -> Outcome {
    let guest = Guest::new();
    guest.add("bios", &first.bios_with_others(others));
    guest.run(&[&["-bios", "@bios", "-serial", "stdio", "-smp", cpus], &EXIT[..]].concat())
}

/// `hlt`, for ever.
const HALT: [u8; 3] = [0xf4, 0xeb, 0xfd];

#[test]
fn every_cpu_starts_when_it_is_told_to() {
    // DS = 0; lock inc byte [0x500].
    let others = Code::default().raw(&[0x31, 0xc0, 0x8e, 0xd8, 0xf0, 0xfe, 0x06, 0, 5]).raw(&HALT);
    for (cpus, count) in [("2", 1), ("4", 3), ("sockets=2,cores=3", 5), ("64", 63)] {
        // DS = 0; wait until the byte at 0x500 is `count`.
        let wait = [0x31, 0xc0, 0x8e, 0xd8, 0xa0, 0, 5, 0x3c, count, 0x75, 0xf9];
        let first = Code::default().start_others().raw(&wait).print("all").exit(5);
        check(&run_cpus(cpus, &first, &others), 5, "all");
    }
}

#[test]
fn any_cpu_ends_the_guest_while_the_others_run_or_wait() {
    let others = Code::default().print("b").exit(7);
    let waits = Code::default().start_others().raw(&HALT);
    check(&run_cpus("2", &waits, &others), 7, "b");
    let runs = Code::default().start_others().raw(&[0xeb, 0xfe]);
    check(&run_cpus("2", &runs, &others), 7, "b");
    // CPUs that nobody started.
    check(&run_cpus("8", &Code::default().print("a").exit(9), &others), 9, "a");
}

/// A subleaf, a register, a mask and the bits that are to be there.
type Answer = ((u32, u32), u8, u32, u32);
const EAX: u8 = 0;
const ECX: u8 = 1;
const EDX: u8 = 2;
const EBX: u8 = 3;
const ALL: u32 = u32::MAX;
/// Leaf 1, ECX: x2APIC, TSC deadline, hypervisor.
const FLAGS: u32 = 1 << 31 | 1 << 24 | 1 << 21;

#[test]
fn cpuid_answers_what_the_command_line_asks_for() {
    let cases: [(&[&str], &[Answer]); 7] = [
        (&[], &[((1, 0), ECX, FLAGS, FLAGS), ((0x8000_0007, 0), EDX, 1 << 8, 0)]),
        // KVM's signature; the rate of the APIC's bus.
        (&[], &[((0x4000_0000, 0), EBX, ALL, 0x4b4d_564b), ((0x4000_0000, 0), EAX, ALL, RATES)]),
        (&[], &[((RATES, 0), EBX, ALL, 1_000_000)]),
        (&["-cpu", "host,-x2apic,-tsc-deadline"], &[((1, 0), ECX, FLAGS, 1 << 31)]),
        (
            &["-cpu", "max,hypervisor=off,kvmclock=off"],
            &[((1, 0), ECX, 1 << 31, 0), ((0x4000_0001, 0), EAX, 1 << 3 | 1, 0)],
        ),
        (
            &["-smp", "3"],
            &[
                ((1, 0), EBX, 0xff00_0000, 0),
                ((1, 0), EDX, 1 << 28, 1 << 28),
                ((0xb, 0), ECX, ALL, 0x100),
                ((0xb, 1), EAX, ALL, 2),
                ((0xb, 1), EBX, ALL, 3),
                ((0xb, 1), ECX, ALL, 0x201),
                ((0xb, 1), EDX, ALL, 0),
            ],
        ),
        (
            &["-smp", "254"],
            &[((1, 0), EBX, 0xff00_0000, 0), ((0xb, 1), EAX, ALL, 8), ((0xb, 1), EBX, ALL, 254)],
        ),
    ];
    for (arguments, answers) in cases {
        let code = answers.iter().fold(Code::default(), |code, (leaf, register, mask, bits)| {
            code.cpuid(*leaf, *register, *mask, *bits)
        });
        check(&run_bios(&code.print("as asked").exit(33), arguments), 33, "as asked");
    }
}

/// The leaf with the rates of the clocks.
const RATES: u32 = 0x4000_0010;

#[test]
fn a_feature_that_the_host_does_not_have_is_a_warning_or_an_error() {
    let code = Code::default().print("on").exit(33);
    let missing = "host doesn't support requested feature: CPUID.01H:EDX.ia64 [bit 30]";
    for (cpu, status, stdout, stderr) in [
        ("host,+ia64", 33, "on", format!("microvm: warning: {missing}\n")),
        ("host,+ia64,-ia64", 33, "on", String::new()),
        ("host,+ia64,check=off", 33, "on", String::new()),
        (
            "host,ia64,enforce",
            1,
            "",
            format!("microvm: -cpu: enforce: {missing}: remove it, or enforce\n"),
        ),
    ] {
        let outcome = run_bios(&code, &["-cpu", cpu]);
        check(&outcome, status, stdout);
        assert_eq!(outcome.stderr, stderr, "{cpu}");
    }
}

#[test]
fn a_bios_of_every_size_is_aliased_below_1_mib() {
    for size in [0x1_0000, 0x2_0000, 0x4_0000, 0x10_0000] {
        let guest = Guest::new();
        // DS = 0xf000: read what the alias has of the last 64 KiB.
        let code = Code::default().raw(&[0xb8, 0x00, 0xf0, 0x8e, 0xd8, 0xa0, 0x34, 0x12]);
        let mut image = code.put().exit(5).bios(size);
        image[size - 0x1_0000 + 0x1234] = b'a';
        guest.add("bios", &image);
        let outcome = guest.run(&[&["-bios", "@bios", "-serial", "stdio"], &EXIT[..]].concat());
        check(&outcome, 5, "a");
    }
}

#[test]
fn image_and_alias_are_one_writable_memory() {
    // DS = 0xf000: write to the alias, read from the image: mov byte [0x1234], 'w';
    // mov al, cs:[0x1234].
    let code = Code::default()
        .raw(&[0xb8, 0x00, 0xf0, 0x8e, 0xd8, 0xc6, 0x06, 0x34, 0x12, b'w'])
        .raw(&[0x2e, 0xa0, 0x34, 0x12]);
    check(&run_bios(&code.put().exit(1), &[]), 1, "w");
}

#[test]
fn fw_cfg_answers_string_instructions() {
    // mov ax, 0; mov dx, 0x510; out dx, ax; inc dx; mov cx, 4; mov es, ax; mov di, 0x500;
    // rep insb; mov dx, 0x3f8; mov ds, ax; mov si, 0x500; mov cx, 4; rep outsb
    let code = Code::default()
        .raw(&[0xb8, 0, 0, 0xba, 0x10, 0x05, 0xef, 0x42, 0xb9, 4, 0, 0x8e, 0xc0])
        .raw(&[0xbf, 0x00, 0x05, 0xf3, 0x6c, 0xba, 0xf8, 0x03, 0x8e, 0xd8])
        .raw(&[0xbe, 0x00, 0x05, 0xb9, 4, 0, 0xf3, 0x6e]);
    check(&run_bios(&code.exit(3), &[]), 3, "QEMU");
}

#[test]
fn a_bzimage_is_entered_in_64_bit_mode() {
    let guest = Guest::new();
    // RSI is the zero page, from which comes a byte of "HdrS"; a REX prefix exists in 64-bit
    // mode only: mov al, [rsi + 0x202]; mov r8b, al; inc al; mov al, r8b.
    let code = Code::default()
        .raw(&[0x8a, 0x86, 0x02, 0x02, 0, 0, 0x41, 0x88, 0xc0, 0xfe, 0xc0, 0x44, 0x88, 0xc0]);
    guest.add("kernel", &code.put().exit(7).bzimage());
    let outcome = guest.run(&[&["-kernel", "@kernel", "-serial", "stdio"], &EXIT[..]].concat());
    check(&outcome, 7, "H");
}

#[test]
fn an_elf_kernel_is_entered_by_pvh() {
    let guest = Guest::new();
    // EBX is the start info, whose first byte is 0x78: mov al, [ebx].
    guest.add("kernel", &Code::default().raw(&[0x8a, 0x03]).put().exit(7).elf());
    let outcome = guest.run(&[&["-kernel", "@kernel", "-serial", "stdio"], &EXIT[..]].concat());
    check(&outcome, 7, "x");
}

#[test]
fn sleep_and_reset_registers_end_the_guest() {
    for (register, value, no_reboot) in [(0x00, 0x34, false), (0x02, 0x42, true)] {
        let guest = Guest::new();
        // mov byte [0xfea002xx], value
        let store = [0xc6, 0x05, register, 0x02, 0xa0, 0xfe, value, 0xeb, 0xfe];
        guest.add("kernel", &Code::default().print("z").raw(&store).elf());
        let mut arguments = vec!["-kernel", "@kernel", "-serial", "stdio", "-m", "8M"];
        arguments.extend(no_reboot.then_some("-no-reboot"));
        check(&guest.run(&arguments), 0, "z");
    }
}

#[test]
fn a_reset_starts_the_machine_again() {
    // Prints; then 'r' resets and everything else exits: cmp al, 'r'; jne +6; reset; hang.
    let code = Code::default()
        .print("A")
        .get()
        .raw(&[0x3c, b'r', 0x75, 6])
        .out(0x64, 0xfe)
        .raw(&[0xeb, 0xfe])
        .exit(9);
    let guest = Guest::new();
    guest.add("bios", &code.bios(0x1_0000));
    let mut command = guest.command(&[&["-bios", "@bios", "-serial", "stdio"], &EXIT[..]].concat());
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    for key in b"rrrq" {
        let mut sign = [0];
        child.stdout.as_mut().unwrap().read_exact(&mut sign).unwrap();
        assert_eq!(&sign, b"A");
        child.stdin.as_mut().unwrap().write_all(&[*key]).unwrap();
    }
    check(&wait(child), 9, "");
}

#[test]
fn a_jump_to_the_bios_of_a_direct_boot_resets() {
    // As Linux does when it reboots: 32-bit code sets 16-bit segments up, leaves protected mode
    // and jumps. Here a far jump through a GDT of its own: lgdt [gdtr]; ljmp 8:16-bit code.
    let at = |offset: u32| (0x20_0000 + offset).to_le_bytes();
    let mut code = Code::default().print("J").raw(&[0x0f, 0x01, 0x15]).raw(&at(0x80));
    // Copy the 16-bit part to 0x1000: mov esi, ..; mov edi, 0x1000; mov ecx, 32; rep movsb.
    code =
        code.raw(&[0xbe]).raw(&at(0xa0)).raw(&[0xbf, 0, 0x10, 0, 0, 0xb9, 32, 0, 0, 0, 0xf3, 0xa4]);
    code = code.raw(&[0xea, 0, 0x10, 0, 0, 8, 0]);
    code.0.resize(0x80, 0xf4);
    code = code.raw(&[15, 0]).raw(&at(0x90));
    code.0.resize(0x98, 0);
    code = code.raw(&[0xff, 0xff, 0, 0, 0, 0x9b, 0, 0]);
    // mov eax, cr0; and al, 0xfe; mov cr0, eax; ljmp 0xf000:0xfff0.
    code =
        code.raw(&[0x0f, 0x20, 0xc0, 0x24, 0xfe, 0x0f, 0x22, 0xc0, 0xea, 0xf0, 0xff, 0x00, 0xf0]);
    let guest = Guest::new();
    guest.add("kernel", &code.elf());
    let arguments = ["-kernel", "@kernel", "-serial", "stdio", "-m", "8M", "-no-reboot"];
    check(&guest.run(&arguments), 0, "J");
}

#[test]
fn no_reboot_ends_at_a_reset() {
    let code = Code::default().print("A").out(0x64, 0xfe);
    check(&run_bios(&code, &["-no-reboot"]), 0, "A");
}

#[test]
fn no_input_is_lost() {
    // Echoes until 'q': get; cmp al, 'q'; je out; put; jmp back.
    let echo = Code::default().get().0;
    let back = (256 - (echo.len() + 4 + 5 + 2)).to_le_bytes()[0];
    let code = Code(echo).raw(&[0x3c, b'q', 0x74, 7]).put().raw(&[0xeb, back]).exit(1);
    let text: String = ('a'..='p').cycle().take(3000).collect();
    let outcome = run_bios_with_input(&code, "stdio", format!("{text}q").as_bytes());
    check(&outcome, 1, &text);
}

#[test]
fn a_failed_firmware_is_an_error() {
    let code = Code::default().out(0x80, 0x10).print("why").out(0x80, 0xef).raw(&[0xeb, 0xfe]);
    let outcome = run_bios(&code, &[]);
    check(&outcome, 1, "why");
    assert_eq!(outcome.stderr, "microvm: the firmware gave up: why\n");
}

/// Code 0xef means that only to our firmware, which has said before that it runs.
#[test]
fn a_foreign_bios_may_write_any_code() {
    let code = Code::default().out(0x80, 0xef).out(0x80, 0x0d).exit(3);
    check(&run_bios(&code, &[]), 3, "");
}

#[test]
fn after_the_kernel_s_entry_port_0x80_is_a_delay() {
    let code = Code::default().out(0x80, 0x30).out(0x80, 0xef).out(0x80, 0).exit(3);
    check(&run_bios(&code, &[]), 3, "");
}

#[test]
fn the_trace_has_every_stage() {
    let guest = Guest::new();
    let code = Code::default().out(0x80, 0x10).out(0x80, 0x30).out(0x80, 0xe0).exit(3);
    guest.add("bios", &code.bios(0x1_0000));
    let arguments = [&["-bios", "@bios", "-boot-trace", "@trace"], &EXIT[..]].concat();
    check(&guest.run(&arguments), 3, "");
    let text = std::fs::read(guest.path("trace")).unwrap();
    let trace: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let boot = &trace["boots"][0];
    let marks: Vec<_> = boot["marks"].as_array().unwrap().iter().map(|m| &m["code"]).collect();
    assert_eq!(marks, [0x10, 0x30, 0xe0]);
    assert_eq!(boot["marks"][2]["exits"], 3);
    assert_eq!((&boot["path"], &trace["exit"]["status"]), (&"firmware".into(), &3.into()));
    assert_eq!(trace["exits"]["io_out"]["POST codes"], 3);
    assert!(boot["kvm_exits"].as_u64().unwrap() >= 4);
    let times = [
        &trace["start_ns"],
        &boot["setup_end_ns"],
        &boot["first_run_ns"],
        &boot["marks"][0]["ns"],
        &trace["exit"]["ns"],
    ]
    .map(|time| time.as_u64().unwrap());
    assert!(times.is_sorted(), "{times:?}");
}

/// Says that it runs, then halts for good.
fn halting() -> Code {
    Code::default().print("up").raw(&[0xfa, 0xf4, 0xeb, 0xfd])
}

#[test]
fn a_signal_ends_a_halted_guest_and_the_trace_is_written() {
    let guest = Guest::new();
    guest.add("bios", &halting().bios(0x1_0000));
    let arguments = ["-bios", "@bios", "-serial", "stdio", "-boot-trace", "@trace"];
    let mut child = guest.command(&arguments).spawn().unwrap();
    let mut up = [0; 2];
    child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
    let id = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(id, rustix::process::Signal::HUP).unwrap();
    assert_eq!(wait(child).code(), -1);
    let trace = std::fs::read_to_string(guest.path("trace")).unwrap();
    assert!(trace.contains("a signal") && trace.contains("129"), "{trace}");
}

#[test]
fn ctrl_a_x_quits_a_halted_guest() {
    let guest = Guest::new();
    guest.add("bios", &halting().bios(0x1_0000));
    let mut command = guest.command(&["-bios", "@bios", "-serial", "mon:stdio"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 2]).unwrap();
    child.stdin.as_mut().unwrap().write_all(b"abc\x01hdef\x01x").unwrap();
    let outcome = wait(child);
    check(&outcome, 0, "");
    assert!(outcome.stderr.contains("C-a x"), "{}", outcome.stderr);
}

#[test]
fn the_terminal_is_given_back() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&controller).unwrap();
    unlockpt(&controller).unwrap();
    let name = ptsname(&controller, Vec::new()).unwrap();
    let open = || {
        let file = std::fs::OpenOptions::new().read(true).write(true).open(name.to_str().unwrap());
        file.unwrap()
    };
    let terminal = open();
    let before = tcgetattr(&terminal).unwrap();
    tcsetattr(&terminal, OptionalActions::Now, &before).unwrap();
    let mut keys = std::fs::File::from(controller);
    for (serial, end, code) in
        [("mon:stdio", Some(&b"\x01x"[..]), 0), ("stdio", None, -2), ("mon:stdio", None, -2)]
    {
        let guest = Guest::new();
        guest.add("bios", &halting().bios(0x1_0000));
        let mut command = guest.command(&["-bios", "@bios", "-serial", serial]);
        let mut child = command.stdin(Stdio::from(open())).spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 2]).unwrap();
        let during = tcgetattr(&terminal).unwrap();
        assert_ne!(format!("{:?}", during.local_modes), format!("{:?}", before.local_modes));
        match end {
            Some(end) => keys.write_all(end).unwrap(),
            None => {
                let id = rustix::process::Pid::from_child(&child);
                rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
            }
        }
        assert_eq!(wait(child).code(), code, "{serial}");
        let after = tcgetattr(&terminal).unwrap();
        assert_eq!(format!("{after:?}"), format!("{before:?}"), "{serial}");
    }
}

#[test]
fn a_guest_goes_on_when_nobody_listens() {
    let guest = Guest::new();
    guest.add("bios", &Code::default().print("hello").exit(33).bios(0x1_0000));
    let arguments = [&["-bios", "@bios", "-serial", "stdio"], &EXIT[..]].concat();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let outcome = wait(guest.command(&arguments).stdout(writer).spawn().unwrap());
    assert_eq!(outcome.code(), 33);
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
}

#[test]
fn output_can_go_to_a_file() {
    let guest = Guest::new();
    guest.add("bios", &Code::default().print("hello").exit(1).bios(0x1_0000));
    let serial = format!("file:{}", guest.path("out").display());
    guest.run(&[&["-bios", "@bios", "-serial", &serial], &EXIT[..]].concat());
    assert_eq!(std::fs::read_to_string(guest.path("out")).unwrap(), "hello");
}

#[test]
fn what_cannot_be_done_is_one_line() {
    fails(
        &["-kernel", "@missing"],
        "microvm: -kernel 'missing': No such file or directory (os error 2)\n",
    );
    fails(
        &["-kernel", "@text"],
        "microvm: -kernel 'text': it has no HdrS magic, so it is no bzImage; give a bzImage \
         (vmlinuz) or an ELF vmlinux with a PVH note\n",
    );
    fails(
        &["-bios", "@text"],
        "microvm: -bios 'text': 600 bytes; a BIOS image has a multiple of 64 KiB, up to 1 MiB\n",
    );
    fails(
        &["-bios", "/dev/zero"],
        "microvm: -bios '/dev/zero': not a regular file; copy it to one\n",
    );
    fails(&["-frobnicate"], "microvm: -frobnicate: there is no such option; -help lists them\n");
}

#[test]
fn accel_help_is_one_line() {
    let outcome = Guest::new().run(&["-accel", "help"]);
    assert_eq!((outcome.code(), outcome.stdout.lines().count()), (0, 1));
    let known = ["kvm: native", "kvm: interpreted (", "kvm: unavailable ("];
    assert!(known.iter().any(|start| outcome.stdout.starts_with(start)), "{}", outcome.stdout);
}
