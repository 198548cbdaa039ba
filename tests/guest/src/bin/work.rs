//! Work for a guest's devices, to be called by scripts.
//!
//! The other end of a connection, on the host, calls it too.

use std::fs::OpenOptions;
use std::process::ExitCode;
use std::time::Instant;

use guest::durable;
use guest::load::{self, Pattern};
use guest::stream::{Address, receive, send};
use rustix::fs::{FallocateFlags, fallocate};

const USAGE: &str = "\
usage: guest-work send ADDRESS MIB SEED      sends to who listens there
       guest-work receive ADDRESS MIB        listens there, and receives
       guest-work disk DEVICE PATTERN DEPTH REQUESTS
                                             asks a disk: random-read, read, write
       guest-work durable DEVICE WRITERS     writes blocks, and says which are flushed
       guest-work zero DEVICE OFFSET LENGTH keep|unmap
                                             makes bytes zeroes; a disk may forget them or not
       guest-work ping HOST:PORT ROUNDS      sends a byte to who echoes there, and waits
       guest-work echo HOST:PORT             sends back what comes there
An ADDRESS is tcp:HOST:PORT, vsock:CID:PORT or, on the host, hybrid:PATH:PORT.
";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match run(&words.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!("guest-work: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<String, String> {
    let address = |text: &str| Address::parse(text).ok_or_else(|| USAGE.to_owned());
    let number = |text: &str| text.parse::<u64>().map_err(|_| USAGE.to_owned());
    let text = |error: std::io::Error| error.to_string();
    match words {
        ["send", to, mib, seed] => {
            let mut stream = address(to)?.connect().map_err(text)?;
            let start = Instant::now();
            let sum = send(&mut *stream, number(mib)? << 20, number(seed)?).map_err(text)?;
            Ok(format!("sent {sum}\ntook {} ns", start.elapsed().as_nanos()))
        }
        ["receive", at, mib] => {
            let mut stream = address(at)?.accept().map_err(text)?;
            let start = Instant::now();
            let sum = receive(&mut *stream, number(mib)? << 20).map_err(text)?;
            Ok(format!("received {sum}\ntook {} ns", start.elapsed().as_nanos()))
        }
        ["disk", device, pattern, depth, requests] => {
            let pattern = Pattern::parse(pattern).ok_or_else(|| USAGE.to_owned())?;
            let (depth, requests) = (number(depth)?, number(requests)?);
            let time = load::disk(device, pattern, depth, requests).map_err(text)?;
            Ok(format!("took {} ns", time.as_nanos()))
        }
        ["durable", device, writers] => {
            let writers = number(writers)?.min(64);
            let told = |number| println!("flushed {number}.");
            durable::write(device, usize::try_from(writers).unwrap_or(1), told).map_err(text)?;
            Ok("the disk is full".into())
        }
        ["zero", device, offset, length, how @ ("keep" | "unmap")] => {
            let keep = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
            let unmap = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let flags = if *how == "keep" { keep } else { unmap };
            let file = OpenOptions::new().write(true).open(device).map_err(text)?;
            let (offset, length) = (number(offset)?, number(length)?);
            fallocate(file, flags, offset, length).map_err(|error| text(error.into()))?;
            Ok("zeroed".into())
        }
        ["ping", address, rounds] => {
            let time = load::ping(address, number(rounds)?).map_err(text)?;
            Ok(format!("took {} ns", time.as_nanos()))
        }
        ["echo", address] => load::echo(address).map(|()| "done".into()).map_err(text),
        _ => Err(USAGE.to_owned()),
    }
}
