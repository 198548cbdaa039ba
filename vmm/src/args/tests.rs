//! Command lines and what becomes of them.

use super::*;
use proptest::prelude::*;

mod documented;

fn run(line: &[&str]) -> Config {
    match parse(line.iter().map(OsString::from)) {
        Ok(Request::Run(config)) => *config,
        other => panic!("{line:?}: {other:?}"),
    }
}

fn refused(line: &[&str]) -> String {
    match parse(line.iter().map(OsString::from)) {
        Err(error) => error.to_string(),
        Ok(other) => panic!("{line:?}: {other:?}"),
    }
}

fn with(more: &[&str]) -> Config {
    run(&[&["-kernel", "k"], more].concat())
}

#[test]
fn the_article_s_command_line_works() {
    let config = run(&[
        "-M",
        "microvm",
        "-bios",
        "bios-microvm.bin",
        "-kernel",
        "vmlinuz",
        "-append",
        "earlyprintk=ttyS0 console=ttyS0,115200,8n1",
        "-enable-kvm",
        "-cpu",
        "host",
        "-m",
        "1G",
        "-smp",
        "1",
        "-nodefaults",
        "-no-user-config",
        "-nographic",
        "-serial",
        "mon:stdio",
    ]);
    let expected = Config {
        bios: Some("bios-microvm.bin".into()),
        kernel: Some("vmlinuz".into()),
        append: "earlyprintk=ttyS0 console=ttyS0,115200,8n1".into(),
        memory: 1 << 30,
        serial: Chardev::MON_STDIO,
        ..Config::default()
    };
    assert_eq!(config, expected);
}

#[test]
fn both_dashes_and_any_order() {
    assert_eq!(run(&["--kernel", "k", "--append", "-x --y"]).append, "-x --y");
    assert_eq!(run(&["-append", "", "-no-reboot", "-kernel", "-k"]).kernel, Some("-k".into()));
}

#[test]
fn serial_follows_qemu_s_defaults() {
    assert_eq!(with(&[]).serial, Chardev::Null);
    assert_eq!(with(&["-display", "none"]).serial, Chardev::Null);
    assert_eq!(with(&["-nographic"]).serial, Chardev::MON_STDIO);
    assert_eq!(with(&["-nographic", "-nodefaults"]).serial, Chardev::Null);
    assert_eq!(with(&["-nographic", "-serial", "null"]).serial, Chardev::Null);
    assert_eq!(with(&["-serial", "stdio"]).serial, Chardev::STDIO);
    assert_eq!(
        with(&["-serial", "file:a,b"]).serial,
        Chardev::File { path: "a,b".into(), append: false }
    );
}

#[test]
fn a_console_leads_where_qemu_s_spellings_say() {
    let server = |wait| Chardev::Server { path: "p".into(), wait };
    let client = |reconnect_s| Chardev::Client { path: "p".into(), reconnect_s };
    let file = |append| Chardev::File { path: "p".into(), append };
    let stdio = |signals, escapes| Chardev::Stdio { signals, escapes };
    for (serial, expected) in [
        ("none", Chardev::Null),
        ("pty", Chardev::Pty { label: "serial0".into() }),
        ("pipe:p", Chardev::Pipe("p".into())),
        ("unix:p", client(None)),
        ("unix:p,server=on", server(true)),
        ("unix:p,server", server(true)),
        ("unix:p,server,nowait", server(false)),
        ("unix:p,server=on,wait=off", server(false)),
        ("unix:p,reconnect=3", client(Some(3))),
    ] {
        assert_eq!(with(&["-serial", serial]).serial, expected, "{serial}");
    }
    for (chardev, expected) in [
        ("stdio", stdio(true, false)),
        ("stdio,signal=off", stdio(false, false)),
        ("stdio,mux=on,signal=off", Chardev::MON_STDIO),
        ("stdio,mux=on", stdio(true, true)),
        ("null", Chardev::Null),
        ("file,path=p", file(false)),
        ("file,path=p,append=on", file(true)),
        ("file,path=p,append=off,mux=off", file(false)),
        ("pty", Chardev::Pty { label: "c".into() }),
        ("pipe,path=p", Chardev::Pipe("p".into())),
        ("socket,path=p,server=on,wait=off", server(false)),
        ("socket,path=p,server=on", server(true)),
        ("socket,path=p,reconnect=0", client(None)),
    ] {
        let chardev = format!("{chardev},id=c");
        let config = with(&["-serial", "chardev:c", "-chardev", &chardev]);
        assert_eq!(config.serial, expected, "{chardev}");
    }
}

#[test]
fn a_console_that_is_not_here_is_refused_with_what_to_do() {
    let network = "there are no network sockets here: use unix:PATH \
                   (-chardev socket,path=PATH), and socat to lead it on";
    for (serial, expected) in [
        ("tcp::4444,server", format!("'tcp::4444,server': {network}")),
        ("udp:h:1", format!("'udp:h:1': {network}")),
        ("telnet:h:1", format!("'telnet:h:1': {network}")),
        ("vc:80Cx24C", "'vc:80Cx24C': there is no display: use pty".into()),
        (
            "/dev/ttyS0",
            "'/dev/ttyS0': the host's serial ports are not here: use pty, and socat to lead it on"
                .into(),
        ),
        ("unix:", "the path must come first".into()),
        ("unix:p,server,reconnect=1", "reconnect= is for a client: leave it out".into()),
        ("unix:p,frob=1", "'frob' is not a property that is here".into()),
        ("chardev:x", "there is no -chardev id=x".into()),
    ] {
        let line = ["-kernel", "k", "-serial", serial];
        assert_eq!(refused(&line), format!("-serial: {expected}"));
    }
    for (chardev, expected) in [
        ("socket,id=c,host=h,port=1", format!("socket: {network}")),
        ("udp,id=c,port=1", format!("udp: {network}")),
        ("vc,id=c", "vc: there is no display: use pty".into()),
        (
            "serial,id=c,path=/dev/ttyS0",
            "serial: the host's serial ports are not here: use pty, and socat to lead it on".into(),
        ),
        (
            "braille,id=c",
            "'braille' is not here: use stdio, null, file, pty, pipe or socket".into(),
        ),
        ("file,id=c", "file: give its path=".into()),
        ("pty", "pty: give it an id=".into()),
        ("pty,id=c,mux=on", "pty: mux=on is for stdio: leave it out".into()),
        ("pty,id=c", "nothing here uses c: remove it".into()),
    ] {
        assert_eq!(
            refused(&["-kernel", "k", "-chardev", chardev]),
            format!("-chardev: {expected}")
        );
    }
}

#[test]
fn fw_cfg_files_are_taken() {
    let config = with(&["-fw_cfg", "name=opt/a,string=x,,y", "-fw_cfg", "opt/b,file=/f"]);
    assert_eq!(config.fw_cfg[0].name, "opt/a");
    assert_eq!(config.fw_cfg[0].contents, Contents::Text("x,y".into()));
    assert_eq!(config.fw_cfg[1].contents, Contents::File("/f".into()));
}

#[test]
fn the_end_may_wait_for_the_machine_s() {
    for (words, expected) in [
        (&[][..], true),
        (&["-run-with", "async-teardown=off"], false),
        (&["-run-with", "async-teardown=on"], true),
        (&["-run-with", "async-teardown=off", "-async-teardown"], true),
    ] {
        assert_eq!(with(words).async_teardown, expected, "{words:?}");
    }
    assert_eq!(
        refused(&["-kernel", "k", "-run-with", "chroot=d"]),
        "-run-with: 'chroot' is not a property that is here"
    );
}

#[test]
fn debug_exit_has_qemu_s_defaults() {
    let device = with(&["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]).debug_exit.unwrap();
    assert_eq!((device.iobase, device.iosize), (0xf4, 4));
    let device = with(&["-device", "isa-debug-exit"]).debug_exit.unwrap();
    assert_eq!((device.iobase, device.iosize), (0x501, 2));
}

#[test]
fn harmless_properties_are_taken() {
    with(&["-M", "microvm,x-option-roms=off,pit=off,pic=off,rtc=off,isa-serial=on,acpi=on"]);
    with(&["-machine", "type=microvm,acpi,auto-kernel-cmdline=off,accel=kvm"]);
    let config = run(&["-M", "microvm,firmware=b.bin"]);
    assert_eq!(config.bios, Some("b.bin".into()));
}

#[test]
fn texts_are_printed() {
    for line in [
        &["-help"][..],
        &["--version"],
        &["-M", "help"],
        &["-device", "help"],
        &["-h"],
        &["-cpu", "help"],
    ] {
        let request = parse(line.iter().map(OsString::from)).unwrap();
        assert!(matches!(request, Request::Print(text) if text.ends_with('\n')), "{line:?}");
    }
    let Ok(Request::Print(text)) = parse(["-cpu", "help"].map(OsString::from)) else { panic!() };
    assert!(text.lines().all(|line| line.len() <= 76) && text.contains(" avx512vnni "), "{text}");
    let request = parse(["-accel", "help"].map(OsString::from)).unwrap();
    assert_eq!(request, Request::DescribeKvm);
}

#[test]
fn refusals_name_the_option_and_what_to_do() {
    for (line, expected) in [
        (&["-kernel"][..], "-kernel: a value must follow"),
        (&[], "-kernel: nothing to boot: give -kernel FILE, -bios FILE or both"),
        (&["vmlinuz"], "vmlinuz: options begin with a dash; a kernel is given by -kernel FILE"),
        (&["-"], "-: options begin with a dash; a kernel is given by -kernel FILE"),
        (&["-frobnicate"], "-frobnicate: there is no such option; -help lists them"),
        (
            &["-hda", "x"],
            "-hda: not supported: there is one kind of disk: -drive \
             id=ID,file=FILE,format=raw,if=none -device virtio-blk-device,drive=ID",
        ),
        (
            &["-drive", "file=x,if=virtio"],
            "-drive: if=virtio: say if=none, and -device virtio-blk-device,drive=ID",
        ),
        (&["-drive", "file=x"], "-drive: give it an id=, and -device virtio-blk-device,drive=ID"),
        (
            &["-drive", "file=x,id=d,format=qcow2"],
            "-drive: format=qcow2 is not here: qemu-img convert -O raw makes a raw image",
        ),
        (
            &["-drive", "file=x,id=d,werror=stop"],
            "-drive: werror=stop is not here: use report or auto",
        ),
        (
            &["-kernel", "k", "-drive", "file=x,id=d"],
            "-drive: nothing uses id=d: add -device virtio-blk-device,drive=d",
        ),
        (
            &["-kernel", "k", "-device", "virtio-blk-device,drive=d"],
            "-device: virtio-blk-device: there is no -drive id=d",
        ),
        (&["-M", "q35"], "-M: 'q35' is not here: the machine is microvm"),
        (&["-M", "microvm,acpi=perhaps"], "-M: acpi=perhaps: give on or off"),
        (&["-M", "microvm,pit=on"], "-M: pit=on is not here: only pit=off or auto is"),
        (&["-M", "microvm,frob=1"], "-M: 'frob' is not a property of this microvm; remove it"),
        (&["-M", "type="], "-M: '' is not here: the machine is microvm"),
        (&["-accel", "tcg"], "-accel: 'tcg' is not here: use -accel kvm"),
        (&["-smp", "255"], "-smp: 255 CPUs are too many: 254 is the most"),
        (&["-smp", "1,maxcpus=2"], "-smp: CPUs cannot be added later: leave maxcpus out"),
        (&["-smp", "3,cores=2"], "-smp: 3 CPUs cannot be made of 2"),
        (&["-smp", "0"], "-smp: cpus=0: give a number from 1 up"),
        (
            &["-serial", "braille"],
            "-serial: 'braille' is none of stdio, mon:stdio, null, file:FILE, pty, unix:PATH, \
             pipe:PATH, chardev:ID",
        ),
        (&["-display", "gtk"], "-display: 'gtk' is not here: only 'none' is"),
        (
            &["-device", "vfio-pci"],
            "-device: 'vfio-pci' is not here: the host's devices cannot be passed through, by \
             design: this machine has no PCI",
        ),
        (
            &["-device", "isa-debug-exit,iobase=0x10000"],
            "-device: iobase=0x10000: give a number up to 0xffff",
        ),
        (&["-device", "isa-debug-exit,irq=1"], "-device: 'irq' is not a property that is here"),
        (
            &["-fw_cfg", "name=etc/x,string=y"],
            "-fw_cfg: etc/x: names of your own begin with opt/, as in opt/org.example/x",
        ),
        (&["-fw_cfg", "name=opt/x"], "-fw_cfg: opt/x: give either string=TEXT or file=FILE"),
        (&["-bios", ""], "-bios: a file name must follow"),
        (&["-bios", "b", "-initrd", "i"], "-initrd: needs a kernel: add -kernel FILE"),
        (&["-bios", "b", "-append", "x"], "-append: needs a kernel: add -kernel FILE"),
    ] {
        assert_eq!(refused(line), expected);
    }
}

proptest! {
    #[test]
    fn no_command_line_makes_it_panic(
        words in prop::collection::vec("-?-?[a-zA-Z_]{0,4}[=,:0-9]{0,3}[a-z]{0,5}", 0..8),
        option in prop::sample::select(
            vec![
                "-M", "-m", "-smp", "-cpu", "-device", "-fw_cfg", "-serial", "-chardev", "-drive",
                "-blockdev", "-netdev",
            ],
        ),
    ) {
        let line = [option.to_string()].into_iter().chain(words);
        let _ = parse(line.map(OsString::from));
    }
}
