//! Pid 1 of the lab's Linux: loads KVM, runs one command, reports its status.
//!
//! What to do stands in files (see [`guest::lab`]); the last line on the third serial port says
//! how it went.

use std::ffi::{CStr, OsStr};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, ExitCode, Stdio};

use guest::console::{Mode, open_port};
use guest::lab;
use guest::mounts::mount_kernel;
use rustix::io::Errno;
use rustix::mount::{mount_bind_recursive, mount_move};
use rustix::process::{Pid, WaitOptions, WaitStatus, chdir, chroot};
use rustix::system::{RebootCommand, finit_module, reboot};
use rustix::termios::tcdrain;

/// Where the root is mounted.
const ROOT: &str = "/.root";
const NO_PARAMETERS: &CStr = c"";

fn main() -> ExitCode {
    let mounted = mount_all();
    // Without this port nobody outside would learn anything: the kernel's panic must do.
    let Ok(mut status_port) = open_port(lab::STATUS_PORT, Mode::Raw) else {
        return ExitCode::FAILURE;
    };
    let line = match mounted.and_then(|()| run(&mut status_port)) {
        Ok(status) => format!("\n{}{status}\n", lab::STATUS),
        Err(error) => format!("\n{}{error}\n", lab::ERROR),
    };
    // Should the line not come through, the host sees the lab end without a status.
    let _ = status_port.write_all(line.as_bytes());
    let _ = tcdrain(&status_port);
    rustix::fs::sync();
    let _ = reboot(RebootCommand::PowerOff);
    ExitCode::FAILURE
}

fn mount_all() -> io::Result<()> {
    for (fs_type, target) in
        [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys"), ("devpts", "/dev/pts")]
    {
        mount_kernel(fs_type, target).map_err(|error| context(error, &["mounting ", target]))?;
    }
    // For those who count exits or trace; a kernel may be built without them.
    let _ = mount_kernel("debugfs", "/sys/kernel/debug");
    let _ = mount_kernel("tracefs", "/sys/kernel/tracing");
    // No tmpfs anywhere: the root is one, and a mount would hide what was carried.
    leave_rootfs().map_err(|error| context(error, &["mounting a root below the kernel's"]))
}

/// Takes the kernel's first root, which no namespace can leave, from below: the same files, as a
/// mount, like any machine's root.
fn leave_rootfs() -> io::Result<()> {
    fs::create_dir(ROOT)?;
    mount_bind_recursive("/", ROOT)?;
    chdir(ROOT)?;
    mount_move(".", "/")?;
    chroot(".")?;
    Ok(chdir("/")?)
}

fn run(status_port: &mut impl Write) -> io::Result<i32> {
    for module in read(lab::MODULES)?.split(|&byte| byte == b'\n').filter(|m| !m.is_empty()) {
        load_module(OsStr::from_bytes(module))?;
    }
    let mut command = prepare()?;
    let program = command.get_program().to_os_string();
    status_port.write_all(format!("\n{}\n", lab::READY).as_bytes())?;
    let child = command
        .spawn()
        .map_err(|error| context(error, &["running ", &program.to_string_lossy()]))?;
    let status = wait_for(i32::try_from(child.id()).ok().and_then(Pid::from_raw))?;
    // The command's last bytes may still be in the drivers' buffers.
    for port in [lab::STDOUT_PORT, lab::STDERR_PORT] {
        tcdrain(File::open(port)?)?;
    }
    Ok(status)
}

fn load_module(path: &OsStr) -> io::Result<()> {
    let named = |error| context(error, &["loading ", &path.to_string_lossy()]);
    let file = File::open(path).map_err(named)?;
    match finit_module(&file, NO_PARAMETERS, 0) {
        // Built into this kernel, or loaded by another's wish.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(named(error.into())),
    }
}

fn prepare() -> io::Result<Command> {
    let items = read(lab::COMMAND)?;
    let mut items = lab::split_items(&items).map(OsStr::from_bytes);
    let program = items.next().ok_or_else(|| io::Error::other("no command"))?;
    let mut command = Command::new(program);
    command.args(items).env_clear();
    for variable in lab::split_items(&read(lab::ENVIRONMENT)?) {
        let mut halves = variable.splitn(2, |&byte| byte == b'=').map(OsStr::from_bytes);
        if let (Some(name), Some(value)) = (halves.next(), halves.next()) {
            command.env(name, value);
        }
    }
    let directory = read(lab::DIRECTORY)?;
    command.current_dir(OsStr::from_bytes(directory.trim_ascii_end()));

    let wanted = read(lab::STDIN)?;
    let terminal = wanted == lab::STDIN_TERMINAL.as_bytes();
    let mode = if terminal { Mode::Terminal } else { Mode::Raw };
    let stdout = open_port(lab::STDOUT_PORT, mode)?;
    let stdin = if wanted == lab::STDIN_NULL.as_bytes() {
        Stdio::null()
    } else {
        stdout.try_clone()?.into()
    };
    command.stdin(stdin).stdout(stdout).stderr(open_port(lab::STDERR_PORT, Mode::Raw)?);
    Ok(command)
}

/// Waits for the command, burying every orphan that dies before it.
fn wait_for(command: Option<Pid>) -> io::Result<i32> {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if Some(pid) == command => {
                if let Some(status) = exit_status(status) {
                    return Ok(status);
                }
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The shell's way to put an end into one number.
fn exit_status(status: WaitStatus) -> Option<i32> {
    status.exit_status().or_else(|| Some(128 + status.terminating_signal()?))
}

fn read(path: &str) -> io::Result<Vec<u8>> {
    fs::read(path).map_err(|error| context(error, &["reading ", path]))
}

fn context(error: io::Error, doing: &[&str]) -> io::Error {
    io::Error::other(format!("{}: {error}", doing.concat()))
}
