//! A guest that misuses every virtio device.
//!
//! The devices stop or answer; the others and the VMM go on.

use std::time::Duration;

use regression::facts;
use regression::machine::{Boot, microvm};
use regression::products::product;
use regression::program::run;

const DEADLINE: Duration = Duration::from_secs(240);

#[test]
fn a_hostile_driver_stops_its_device_and_nothing_else() {
    for boot in [Boot::Firmware, Boot::Direct] {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("disk");
        std::fs::write(&image, vec![0x5a; 1 << 20]).unwrap();
        let mut command = microvm(boot, "128M", &product("payload.bzImage"), "hostile");
        let drive = format!("id=d,file={},format=raw,if=none", image.display());
        let console = format!("file,id=c,path={}", folder.path().join("console").display());
        command.args(["-drive", &drive, "-device", "virtio-blk-device,drive=d,num-queues=2"]);
        command.args(["-device", "virtio-rng-device"]);
        command.args(["-chardev", &console, "-device", "virtio-serial-device"]);
        command.args(["-device", "virtconsole,chardev=c"]);
        command.args(["-device", "virtio-balloon-device,free-page-reporting=on"]);
        let ended = run(&mut command, b"", DEADLINE);
        assert_eq!(ended.status, Some(33), "{ended}");
        let facts = facts::parse(&ended.stdout).unwrap_or_else(|| panic!("no facts: {ended}"));
        assert_eq!(facts["hostile"], "ok", "{ended}");
        // Each device says once what was done to it.
        assert_eq!(ended.stderr.lines().count(), 4, "{ended}");
        assert!(ended.stderr.lines().all(|line| line.contains("until the guest resets it")));
        let size = image.metadata().unwrap().len();
        assert_eq!(size, 1 << 20);
    }
}
