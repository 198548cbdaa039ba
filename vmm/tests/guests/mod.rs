//! Guests of a few instructions, and the `microvm` binary to run them.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// What a run left behind.
pub struct Outcome {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// The exit status, or the signal negated.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| -self.status.signal().unwrap_or(0))
    }
}

/// A directory with a guest in it.
pub struct Guest {
    directory: tempfile::TempDir,
}

impl Guest {
    pub fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn add(&self, name: &str, bytes: &[u8]) -> PathBuf {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    /// `microvm` with these arguments; a word that begins with `@` is a file of this guest's.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_microvm"));
        for argument in arguments {
            match argument.strip_prefix('@') {
                Some(name) => command.arg(self.path(name)),
                None => command.arg(OsStr::new(argument)),
            };
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Outcome {
        wait(self.command(arguments).spawn().unwrap())
    }

    pub fn run_with_input(&self, arguments: &[&str], input: &[u8]) -> Outcome {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        // The guest may end before it has read all: then the rest goes nowhere.
        let writer = std::thread::spawn(move || stdin.write_all(&input).map(|()| stdin));
        let outcome = wait(child);
        drop(writer.join().unwrap());
        outcome
    }
}

/// Far above what any of these guests takes.
const DEADLINE: Duration = Duration::from_secs(60);

pub fn wait(mut child: Child) -> Outcome {
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > DEADLINE {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().unwrap();
    Outcome {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Machine code as it grows. These instructions are the same in 16-, 32- and 64-bit mode.
#[derive(Clone, Default)]
pub struct Code(pub Vec<u8>);

impl Code {
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    /// `mov al, value; out port, al`
    pub fn out(self, port: u8, value: u8) -> Self {
        self.raw(&[0xb0, value, 0xe6, port])
    }

    /// Prints AL.
    pub fn put(self) -> Self {
        self.com1().raw(&[0xee])
    }

    pub fn print(self, text: &str) -> Self {
        let code = self.com1();
        text.bytes().fold(code, |code, byte| code.raw(&[0xb0, byte, 0xee]))
    }

    /// `mov dx, 0x3f8`, by parts: the immediate's size depends on the mode.
    pub fn com1(self) -> Self {
        self.raw(&[0xb2, 0xf8, 0xb6, 0x03])
    }

    /// Ends with this status, which is odd.
    pub fn exit(self, status: u8) -> Self {
        self.out(0xf4, status >> 1).raw(&[0xeb, 0xfe])
    }

    /// Waits for input, then reads it into AL: `mov dl, 0xfd; again: in al, dx; test al, 1;
    /// jz again; mov dl, 0xf8; in al, dx`.
    pub fn get(self) -> Self {
        self.com1().raw(&[0xb2, 0xfd, 0xec, 0xa8, 1, 0x74, 0xfb, 0xb2, 0xf8, 0xec])
    }

    /// Starts all other CPUs at 0xff000, in real mode: x2APIC on (IA32_APIC_BASE), then INIT and
    /// start-up by the interrupt command register (Intel SDM volume 3, 11.12.1 and 9.4.4).
    pub fn start_others(self) -> Self {
        self.raw(&[0x66, 0xb9, 0x1b, 0, 0, 0, 0x0f, 0x32, 0x66, 0x0d, 0, 0x0c, 0, 0, 0x0f, 0x30])
            .raw(&[0x66, 0xb9, 0x30, 8, 0, 0, 0x66, 0x31, 0xd2])
            .raw(&[0x66, 0xb8, 0, 0x45, 0x0c, 0, 0x0f, 0x30])
            .raw(&[0x66, 0xb8, 0xff, 0x46, 0x0c, 0, 0x0f, 0x30])
    }

    /// Goes on if CPUID's answer has these bits in a register (0 EAX, 1 ECX, 2 EDX, 3 EBX), else
    /// ends with status 101: `mov eax, leaf; mov ecx, subleaf; cpuid; and register, mask; cmp
    /// register, bits; je on`. Real mode.
    pub fn cpuid(self, (leaf, subleaf): (u32, u32), register: u8, mask: u32, bits: u32) -> Self {
        self.raw(&[0x66, 0xb8])
            .raw(&leaf.to_le_bytes())
            .raw(&[0x66, 0xb9])
            .raw(&subleaf.to_le_bytes())
            .raw(&[0x0f, 0xa2, 0x66, 0x81, 0xe0 | register])
            .raw(&mask.to_le_bytes())
            .raw(&[0x66, 0x81, 0xf8 | register])
            .raw(&bits.to_le_bytes())
            .raw(&[0x74, 6])
            .exit(101)
    }

    /// A BIOS image of 64 KiB that runs this code, and `others` on the other CPUs.
    pub fn bios_with_others(&self, others: &Self) -> Vec<u8> {
        let mut image = self.bios(0x1_0000);
        image[0xf000..0xf000 + others.0.len()].copy_from_slice(&others.0);
        image
    }

    /// A BIOS image of `size` bytes that runs this code.
    pub fn bios(&self, size: usize) -> Vec<u8> {
        let mut image = vec![0xf4; size];
        let segment = size - 0x1_0000;
        image[segment..segment + self.0.len()].copy_from_slice(&self.0);
        // jmp 0
        image[size - 16..size - 13].copy_from_slice(&[0xe9, 0x0d, 0x00]);
        image
    }

    /// A bzImage whose 64-bit entry is this code.
    pub fn bzimage(&self) -> Vec<u8> {
        let mut image = vec![0; 5 * 512 + 0x200];
        for (at, value) in [
            (0x1f1, &[4][..]),
            (0x1fe, b"\x55\xaa\xeb\x6aHdrS\x0f\x02"),
            (0x211, &[1]),
            (0x22c, &0x7fff_ffffu32.to_le_bytes()),
            (0x230, &0x20_0000u32.to_le_bytes()),
            (0x234, &[1, 21, 3, 0]),
            (0x238, &2047u32.to_le_bytes()),
            (0x258, &0x20_0000u64.to_le_bytes()),
            (0x260, &0x1000u32.to_le_bytes()),
        ] {
            image[at..at + value.len()].copy_from_slice(value);
        }
        image.extend(&self.0);
        image
    }

    /// An ELF file at 2 MiB whose PVH entry is this code.
    pub fn elf(&self) -> Vec<u8> {
        let mut image = vec![0; 0x1000];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"\x7fELF\x02\x01\x01");
        put(16, &[2, 0, 62, 0, 1]);
        put(24, &0x20_0000u64.to_le_bytes());
        put(32, &64u64.to_le_bytes());
        put(52, &[64, 0, 56, 0, 2, 0]);
        for (at, kind, offset, address, size) in
            [(64, 1u32, 0x800u64, 0x20_0000u64, 0x800u64), (120, 4, 0x400, 0, 20)]
        {
            put(at, &kind.to_le_bytes());
            put(at + 8, &offset.to_le_bytes());
            put(at + 24, &address.to_le_bytes());
            put(at + 32, &size.to_le_bytes());
            put(at + 40, &size.to_le_bytes());
        }
        put(0x400, b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0\0\0\x20\0");
        put(0x800, &self.0);
        image
    }
}
