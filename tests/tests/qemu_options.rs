//! Every option of QEMU is known here: taken, or refused by name with a reason.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::process::Command;

use vmm::args;

/// The options that QEMU's own help lists.
fn options() -> BTreeSet<String> {
    let help = Command::new("qemu-system-x86_64").arg("-help").output().unwrap();
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let words = help.lines().filter(|line| line.starts_with('-')).flat_map(|line| {
        let names = line.split(" or ").map(|part| part.split(['[', ' ', '\t', '/']).next());
        names.flatten().filter(|name| name.starts_with('-')).map(str::to_owned)
    });
    words.collect()
}

#[test]
fn no_option_of_qemu_is_unknown() {
    let options = options();
    assert!(options.len() > 80, "{options:?}");
    for option in options {
        // A value that no option takes: what is wrong is the value, or the option is refused.
        let line = [option.as_str(), "@", "-kernel", "k"].map(OsString::from);
        let said = args::parse(line).err().map_or_else(String::new, |error| error.to_string());
        assert!(!said.contains("there is no such option"), "{option}: {said}");
    }
}
