//! QMP as a client sees it that is not ours: Python's `qemu.qmp`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use regression::machine::{Boot, microvm};
use regression::products::{product, qmp_client};

fn drive(folder: &Path, scenario: &str) -> Command {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("qmp/drive.py");
    let mut command = Command::new("python3");
    command.arg(script).arg(socket(folder)).arg(scenario).env("PYTHONPATH", qmp_client());
    command
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("qmp.sock")
}

/// Starts a machine that waits for `cont`, with a payload that leaves so.
fn start(folder: &Path, boot: Boot, leave: &str, more: &[&str]) -> Child {
    let append = format!("leave={leave}");
    let mut command = microvm(boot, "64M", &product("payload.bzImage"), &append);
    command.args(["-smp", "2", "-S", "-name", "driven", "-device", "pvpanic"]).args(more);
    command.arg("-qmp").arg(format!("unix:{},server,nowait", socket(folder).display()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// The client is content, and the machine ends with `status`, its socket gone.
fn check(boot: Boot, scenario: &str, leave: &str, more: &[&str], status: i32) {
    let folder = tempfile::tempdir().unwrap();
    let mut client = drive(folder.path(), scenario);
    let mut machine = start(folder.path(), boot, leave, more);
    while !socket(folder.path()).exists() {
        assert_eq!(machine.try_wait().unwrap(), None, "the machine ended before its socket was");
        std::thread::yield_now();
    }
    let client = client.output().unwrap();
    if !client.status.success() {
        // It waits for a client that has gone, for good.
        machine.kill().unwrap();
    }
    let ended = machine.wait().unwrap();
    let mut said = String::new();
    machine.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let complaint = String::from_utf8_lossy(&client.stderr);
    assert!(client.status.success(), "{scenario}: {complaint}\nthe machine: {said}");
    assert_eq!(ended.code(), Some(status), "{scenario}: {said}");
    assert!(!socket(folder.path()).exists(), "{scenario}: the socket is left");
}

#[test]
fn a_machine_is_started_stopped_reset_and_told_to_power_off() {
    for boot in [Boot::Firmware, Boot::Direct] {
        check(boot, "life", "power-button", &[], 0);
    }
}

#[test]
fn a_machine_that_is_off_stays_for_its_client() {
    check(Boot::Direct, "rest", "power-off", &["-no-shutdown"], 0);
}

#[test]
fn a_machine_that_panicked_stays_for_its_client() {
    check(Boot::Direct, "panic", "panic", &["-action", "panic=pause"], 0);
}

#[test]
fn a_machine_that_never_ran_quits() {
    check(Boot::Firmware, "quit", "halt", &[], 0);
}
