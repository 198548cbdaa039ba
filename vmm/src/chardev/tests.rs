//! Every kind of character device, with somebody at its other end.

use std::io::{PipeReader, Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use proptest::prelude::*;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use super::*;
use crate::control::RunState;

/// Far above what anything here takes.
const DEADLINE: Duration = Duration::from_secs(30);

fn start(config: &config::Chardev) -> (Chardev, Receiver<Vec<u8>>, Arc<Control>) {
    let mut chardev = Chardev::open(config, "-serial").unwrap();
    let control = Arc::new(Control::new(RunState::Running, false));
    let (sender, input) = channel();
    let sender = Mutex::new(sender);
    let taker = move |bytes: &[u8]| sender.lock().unwrap().send(bytes.to_vec()).unwrap();
    chardev.start(Arc::new(taker), &control).unwrap();
    (chardev, input, control)
}

/// All input until there is so much of it.
fn collect(input: &Receiver<Vec<u8>>, length: usize) -> Vec<u8> {
    let mut seen = Vec::new();
    while seen.len() < length {
        seen.extend(input.recv_timeout(DEADLINE).unwrap());
    }
    seen
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < DEADLINE, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn read_exactly(mut reader: impl Read, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    reader.read_exact(&mut bytes).unwrap();
    bytes
}

/// Bytes in which each place can be told from its neighbours.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 + i / 251).to_le_bytes()[0]).collect()
}

fn piped() -> (PipeReader, Output) {
    let (reader, writer) = io::pipe().unwrap();
    (reader, Output::file(File::from(std::os::fd::OwnedFd::from(writer))))
}

#[test]
fn null_takes_everything() {
    let (chardev, _, _) = start(&config::Chardev::Null);
    chardev.output().put(b"x");
    assert!(chardev.output().is_written() && !chardev.output().is_full());
}

#[test]
fn a_file_is_cut_off_or_appended_to() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    for (append, expected) in [(false, "one"), (true, "oneone"), (false, "one")] {
        let (chardev, _, _) = start(&config::Chardev::File { path: path.clone(), append });
        chardev.output().put(b"one");
        drop(chardev);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
    }
    let config = config::Chardev::File { path: folder.path().join("no/out"), append: false };
    let error = Chardev::open(&config, "-serial").map(drop).unwrap_err().to_string();
    assert!(error.starts_with("-serial: opening '") && error.contains("no/out"), "{error}");
}

#[test]
fn a_file_that_is_full_takes_what_comes_when_there_is_room() {
    // What cannot grow is full; it has room again where it is overwritten.
    let file = memfd_create("full", MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&file, 4).unwrap();
    fcntl_add_seals(&file, SealFlags::GROW).unwrap();
    let file = File::from(file);
    let output = Output::file(file.try_clone().unwrap());
    for bytes in [b"kept", b"lost", b"this"] {
        output.put(bytes);
    }
    (&file).seek(SeekFrom::Start(0)).unwrap();
    output.put(b"more");
    (&file).seek(SeekFrom::Start(0)).unwrap();
    assert_eq!(read_exactly(&file, 4), b"more");
}

#[test]
fn whoever_looks_for_a_listener_is_no_client() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = listen(&path).unwrap();
    let (doing, _) = listen(&path).map(drop).unwrap_err();
    assert_eq!(doing, "another process listens there");
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().map(drop).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    drop(listener);
    listen(&path).unwrap();
}

#[test]
fn a_server_that_sends_its_client_away_is_not_come_back_to_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let _chardev = start(&config::Chardev::Client { path, reconnect_s: Some(1) });
    drop(listener.accept().unwrap());
    let start = Instant::now();
    drop(listener.accept().unwrap());
    assert!(start.elapsed() >= Duration::from_millis(900), "{:?}", start.elapsed());
}

#[test]
fn a_pair_of_pipes_leads_both_ways() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipe");
    for suffix in ["in", "out"] {
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let name = path.with_extension(suffix);
        rustix::fs::mknodat(rustix::fs::CWD, &name, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    }
    let (chardev, input, _) = start(&config::Chardev::Pipe(path.clone()));
    let open = |suffix: &str| {
        OpenOptions::new().read(true).write(true).open(path.with_extension(suffix)).unwrap()
    };
    open("in").write_all(b"keys").unwrap();
    assert_eq!(collect(&input, 4), b"keys");
    chardev.output().put(b"text");
    assert_eq!(read_exactly(open("out"), 4), b"text");
}

#[test]
fn a_pty_keeps_for_who_comes_what_fits_and_waits_for_who_is_there() {
    let (chardev, input, _) = start(&config::Chardev::Pty { label: "l".into() });
    let output = chardev.output();
    output.put(b"early\n");
    let open = || OpenOptions::new().read(true).write(true).open(chardev.pty().unwrap()).unwrap();
    let mut terminal = open();
    terminal.write_all(b"k\r\x03\n").unwrap();
    assert_eq!(collect(&input, 4), b"k\r\x03\n", "it is raw");
    assert_eq!(read_exactly(&terminal, 6), b"early\n");
    // Somebody is there and does not read.
    let bytes = pattern(300_000);
    bytes.chunks(100).for_each(|bytes| output.put(bytes));
    assert!(output.is_full());
    assert_eq!(read_exactly(&terminal, bytes.len()), bytes);
    wait_until("there is room again", || !output.is_full());
    // Nobody is there.
    drop(terminal);
    bytes.chunks(100).for_each(|bytes| output.put(bytes));
    wait_until("what does not fit is dropped", || !output.is_full());
    let kept = read_exactly(open(), 4000);
    assert_eq!(kept, bytes[..4000]);
}

fn server(path: &Path, wait: bool) -> config::Chardev {
    config::Chardev::Server { path: path.into(), wait }
}

#[test]
fn a_socket_serves_one_client_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let (chardev, input, _) = start(&server(&path, false));
    let output = chardev.output();
    output.put(b"nobody hears this");
    for round in 0..3 {
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(b"hello").unwrap();
        assert_eq!(collect(&input, 5), b"hello", "{round}");
        let bytes = pattern(1_000_000);
        output.put(&bytes);
        assert_eq!(read_exactly(&client, bytes.len()), bytes, "{round}");
        // It has nothing more to say, but listens.
        client.shutdown(std::net::Shutdown::Write).unwrap();
        output.put(b"more");
        assert_eq!(read_exactly(&client, 4), b"more", "{round}");
        output.put(&bytes);
        assert!(output.is_full());
        drop(client);
        wait_until("what was for who has gone is dropped", || !output.is_full());
    }
    drop(chardev);
    assert!(!path.exists());
}

#[test]
fn a_machine_waits_for_a_client_and_for_everybody_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let (_chardev, _, control) = start(&server(&path, true));
    assert_eq!(control.run_state(), RunState::Prelaunch);
    control.hold();
    let _client = UnixStream::connect(&path).unwrap();
    control.release();
    wait_until("it runs", || control.run_state() == RunState::Running);
    let stopped = Control::new(RunState::Prelaunch, false);
    stopped.hold();
    stopped.release();
    assert_eq!(stopped.run_state(), RunState::Prelaunch, "-S");
    assert!(stopped.resume());
}

#[test]
fn a_client_comes_back_if_it_is_to() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let client = |reconnect_s| config::Chardev::Client { path: path.clone(), reconnect_s };
    let error = Chardev::open(&client(None), "-serial").map(drop).unwrap_err().to_string();
    assert!(error.starts_with("-serial: connecting to '"), "{error}");
    let (chardev, input, _) = start(&client(Some(1)));
    let output = chardev.output();
    let listener = listen(&path).unwrap();
    for round in 0..2 {
        let mut server = listener.accept().unwrap().0;
        server.write_all(b"hello").unwrap();
        assert_eq!(collect(&input, 5), b"hello", "{round}");
        output.put(b"text");
        assert_eq!(read_exactly(&server, 4), b"text", "{round}");
    }
}

#[test]
fn a_terminal_gets_every_byte_however_they_are_put() {
    let (controller, name) = pty::open().unwrap();
    let terminal = OpenOptions::new().read(true).write(true).open(name).unwrap();
    let output = Output::file(terminal);
    let bytes = pattern(200_000);
    let (singly, together) = bytes.split_at(60_000);
    singly.chunks(1).for_each(|byte| output.put(byte));
    together.chunks(1000).for_each(|bytes| output.put(bytes));
    assert!(output.is_full());
    let mut seen = Vec::new();
    input::read_all(&*controller, |piece| {
        seen.extend_from_slice(piece);
        seen.len() < bytes.len()
    });
    assert!(seen == bytes);
}

#[test]
fn output_that_is_gone_is_forgotten() {
    let (reader, output) = piped();
    output.put(&vec![0; 1 << 20]);
    assert!(output.is_full());
    let (sender, told) = channel();
    let sender = Mutex::new(sender);
    output.on_change(Arc::new(move || sender.lock().unwrap().send(()).unwrap()));
    drop(reader);
    told.recv_timeout(DEADLINE).unwrap();
    assert!(!output.is_full());
    output.put(b"y");
    output.finish_unless(|| false);
}

#[test]
fn who_goes_in_the_midst_of_a_write_is_known_to_have_gone() {
    let output = Output::new("test", None);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let target = Target::guest(ours);
    output.connect(target.clone());
    let (sender, told) = channel();
    let sender = Mutex::new(sender);
    output.on_change(Arc::new(move || sender.lock().unwrap().send(()).unwrap()));
    drop(theirs);
    // The writer is the first to see it, and its caller may hold locks.
    output.put(b"x");
    assert!(told.try_recv().is_err());
    output.disconnect(&target);
    told.try_recv().unwrap();
}

#[test]
fn a_reader_that_stands_still_stops_neither_the_writer_nor_the_end() {
    let (reader, output) = piped();
    let bytes = vec![b'x'; 20 << 20];
    bytes.chunks(1 << 20).for_each(|bytes| output.put(bytes));
    // Beyond all measure, whoever brings more waits until somebody calls.
    let calls = std::cell::Cell::new(0);
    output.wait_unless(|| calls.replace(calls.get() + 1) == 2);
    assert_eq!(calls.get(), 3);
    let start = Instant::now();
    output.finish_unless(|| true);
    assert!(start.elapsed() < Duration::from_secs(1), "a second request ends it at once");
    let (slow, patient) = piped();
    patient.put(&bytes);
    let start = Instant::now();
    patient.finish_unless(|| false);
    assert!(start.elapsed() >= Duration::from_secs(2), "a reader has its time");
    drop((reader, slow));
}

#[test]
fn the_end_waits_for_a_reader_that_reads() {
    let (reader, output) = piped();
    let bytes = pattern(2 << 20);
    output.put(&bytes);
    std::thread::scope(|scope| {
        let seen = scope.spawn(|| read_exactly(reader, bytes.len()));
        output.finish_unless(|| false);
        assert_eq!(seen.join().unwrap(), bytes);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever the pieces are in which bytes come and go, all arrive, in order.
    #[test]
    fn a_slow_reader_gets_every_byte_in_order(
        writes in prop::collection::vec(1usize..9000, 1..120),
        reads in prop::collection::vec(1usize..20_000, 1..20),
        pause_us in 0u64..300,
    ) {
        let (mut reader, output) = piped();
        let bytes = pattern(writes.iter().sum());
        let seen = std::thread::scope(|scope| {
            let seen = scope.spawn(|| {
                let mut seen = Vec::new();
                for length in reads.iter().cycle() {
                    let mut piece = vec![0; *length];
                    let count = reader.read(&mut piece).unwrap();
                    seen.extend_from_slice(&piece[..count]);
                    if seen.len() >= bytes.len() {
                        break;
                    }
                    std::thread::sleep(Duration::from_micros(pause_us));
                }
                seen
            });
            let mut rest = &bytes[..];
            for length in &writes {
                let (piece, after) = rest.split_at(*length);
                output.put(piece);
                rest = after;
            }
            seen.join().unwrap()
        });
        prop_assert!(seen == bytes);
    }
}
