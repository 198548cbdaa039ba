//! Pid 1 of a guest that `microvm run` starts.
//!
//! It mounts the folders that the host shares, starts one command, carries bytes between that and
//! the host, and says how it ended. Nothing here panics: what goes wrong is a line for the host.

mod command;
mod loopback;
mod orders;
mod port;
mod relay;
mod root;

use std::io;
use std::process::ExitCode;

use rustix::system::{RebootCommand, reboot};

use orders::Orders;
use port::Port;

fn main() -> ExitCode {
    if command::is_wanted() {
        return command::become_it();
    }
    if let Err(error) = boot() {
        // The console: nobody can be told otherwise.
        eprintln!("microvm-init: {error}");
    }
    rustix::fs::sync();
    // The end of pid 1 is the kernel's panic, which is an end, too.
    let _ = reboot(RebootCommand::PowerOff);
    ExitCode::FAILURE
}

fn boot() -> io::Result<()> {
    root::mount_kernel(root::OWN)?;
    root::load_modules()?;
    let mut port = Port::open()?;
    match prepare().and_then(|orders| relay::Relay::start(&orders)) {
        Ok(relay) => relay.run(&mut port),
        Err(error) => port.fail(&error),
    }
}

fn prepare() -> io::Result<Orders> {
    let orders = Orders::read()?;
    root::mount_root(orders.writable)?;
    root::switch()?;
    // From here on a link in the image leads to where the command will see it lead.
    root::mount_kernel(&root::KERNEL)?;
    root::make_links()?;
    root::mount_volumes(&orders.volumes)?;
    loopback::up()?;
    rustix::system::sethostname(b"microvm")?;
    Ok(orders)
}

/// Says of an error what was being done.
fn context(error: impl Into<io::Error>, doing: &str) -> io::Error {
    io::Error::other(format!("{doing}: {}", error.into()))
}
