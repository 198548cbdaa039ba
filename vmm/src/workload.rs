//! `microvm run`: a folder becomes a running machine.
//!
//! Around the machine, which is made of a command line like any other ([`machine_options`]), there
//! are a virtiofsd for each folder, an initramfs with our init and the kernel's modules, and the
//! [`session`] that connects this process's files to the command's. All of it is gone when the
//! command has ended; what is needed for the start alone is gone as soon as the machine has it.

mod initramfs;
mod kernel;
mod kernel_log;
pub mod modules;
mod options;
mod session;
mod virtiofsd;

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};

use abi::workload::{PORT, ROOT_TAG, VOLUME_TAG};
use rustix::termios::tcgetwinsize;

use crate::args::{self, Request};
use crate::config::Config;
use crate::run::{self, Outcome, Status};
use crate::{console, signals, virtio};
use kernel_log::KernelLog;
use options::Options;
pub use options::USAGE;
use session::Ending;
pub use session::{Heed, Session};
use virtiofsd::Virtiofsd;

/// The status of `microvm run` when there is none of a command's, as other runners of containers
/// have it.
pub const FAILURE: u8 = 125;

/// Why a command did not run, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line.
    #[error("{0}; microvm run --help")]
    Usage(String),
    /// A file or a socket.
    #[error("{what} '{path}'")]
    File {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// Something of this process's own.
    #[error("{0}")]
    Process(&'static str, #[source] io::Error),
    /// Our init is not there.
    #[error("'{0}' is missing: install it beside this program (cargo xtask build makes both)")]
    NoInit(PathBuf),
    /// No kernel.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    /// A module of it.
    #[error(transparent)]
    Module(#[from] modules::Error),
    /// A folder's daemon.
    #[error(transparent)]
    Virtiofsd(#[from] virtiofsd::Error),
    /// What the machine is made of.
    #[error(transparent)]
    Machine(#[from] args::Error),
    /// The machine.
    #[error(transparent)]
    Run(#[from] run::Error),
    /// The guest's init.
    #[error("the guest: {0}")]
    Guest(String),
    /// The guest ended, and nobody knows of the command.
    #[error("the guest ended before the command did: {reason}; {advice}")]
    NoStatus {
        /// How it ended.
        reason: String,
        /// What to do.
        advice: String,
    },
}

fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { what, path, source }
}

/// What a command line of `microvm run` asks for.
pub enum Wish {
    /// A text for standard output.
    Print(&'static str),
    /// A machine.
    Run(Box<Workload>),
}

/// All that a machine needs to run a command.
pub struct Workload {
    config: Config,
    session: Arc<Session>,
    ending: Receiver<Ending>,
    daemons: Vec<Virtiofsd>,
    /// What the guest's kernel says, for when it says why it failed.
    kernel_log: KernelLog,
    /// What to do then.
    advice: String,
}

/// What the command's files are.
#[derive(Clone, Copy, Debug)]
struct Terminal {
    /// A terminal's.
    is_there: bool,
    /// Rows and columns of it.
    size: [u16; 2],
    /// But not standard error.
    error_apart: bool,
}

impl Terminal {
    /// A terminal is passed on when keys come from it and output goes there, unless this process
    /// is in the background: then it is another's.
    fn found() -> Self {
        let is_there = io::stdin().is_terminal() && io::stdout().is_terminal();
        let size = tcgetwinsize(rustix::stdio::stdout());
        Self {
            is_there: is_there && console::is_in_foreground(),
            size: size.map_or([0; 2], |size| [size.ws_row, size.ws_col]),
            error_apart: !io::stderr().is_terminal(),
        }
    }
}

/// Prepares what `arguments`, those after `run`, ask for.
pub fn prepare(arguments: impl IntoIterator<Item = OsString>) -> Result<Wish, Error> {
    let Some(options) = Options::parse(arguments)? else { return Ok(Wish::Print(USAGE)) };
    // A signal waits until there is a machine to end, and processes around it are not left alone.
    signals::block();
    let kernel = kernel::find(options.kernel.as_deref(), options.modules.as_deref())?;
    let place = tempfile::Builder::new().prefix("microvm-").tempdir();
    let place = place.map_err(|source| Error::Process("making a folder for sockets", source))?;
    let daemons = start_daemons(&options, place.path())?;
    let terminal = Terminal::found();
    initramfs::write(&place.path().join("initrd"), &options, &kernel, terminal)?;
    let kernel_log = KernelLog::new(options.kernel_log.as_deref())?;
    let channel = place.path().join("channel");
    let listener = UnixListener::bind(&channel).map_err(file("making a socket", &channel))?;

    let words = machine_options(&options, &kernel, place.path(), &kernel_log.path());
    let Request::Run(config) = args::parse(words)? else {
        return Err(Error::Usage("a value asks for help of QEMU's options".into()));
    };
    let session = Arc::new(Session::new(terminal.is_there, place));
    let ending = meet(&session, listener)?;
    let (config, advice) = (*config, advice(&kernel));
    Ok(Wish::Run(Box::new(Workload { config, session, ending, daemons, kernel_log, advice })))
}

/// What to do when a machine with this kernel ends too early.
fn advice(kernel: &kernel::Kernel) -> String {
    match &kernel.without {
        Some(release) => format!(
            "there is no lib/modules/{release} beside '{}' or on this host: if the kernel has \
             modules, give --modules DIR",
            kernel.path.display()
        ),
        None => "--kernel-log FILE keeps what it said".into(),
    }
}

/// A virtiofsd for the root, and one for each volume.
fn start_daemons(options: &Options, place: &Path) -> Result<Vec<Virtiofsd>, Error> {
    let program = virtiofsd::find(options.virtiofsd.as_deref())?;
    let root = (options.root.as_path(), !options.writable);
    let volumes = options.volumes.iter().map(|volume| (volume.host.as_path(), volume.read_only));
    let folders = std::iter::once(root).chain(volumes).enumerate();
    let start =
        |(number, (folder, read_only))| program.serve(folder, read_only, &place.join(tag(number)));
    Ok(folders.map(start).collect::<Result<_, _>>()?)
}

/// The tag, and the socket's name, of the root and the volumes that follow it.
fn tag(number: usize) -> String {
    match number.checked_sub(1) {
        None => ROOT_TAG.into(),
        Some(volume) => format!("{VOLUME_TAG}{volume}"),
    }
}

/// The machine, as a command line: what QEMU would be given.
fn machine_options(
    options: &Options,
    kernel: &kernel::Kernel,
    place: &Path,
    log: &Path,
) -> Vec<OsString> {
    let cache = if options.kernel_cache { "microvm,kernel-cache=auto" } else { "microvm" };
    // What a kernel says costs time; what it says when it dies is told whatever the level.
    let level = if options.kernel_log.is_some() { "" } else { " quiet loglevel=1" };
    let append = format!("console=ttyS0 panic=-1{level}");
    let mut words: Vec<OsString> =
        ["-M", cache, "-nodefaults", "-no-reboot", "-m"].map(OsString::from).into();
    words.push(options.memory.clone());
    words.extend(["-smp".into(), options.cpus.clone()]);
    words.extend(["-kernel".into(), kernel.path.clone().into()]);
    words.extend(["-initrd".into(), place.join("initrd").into()]);
    words.extend(["-append".into(), append.into()]);
    let mut chardev = |id: &str, path: &Path, option: &str| {
        words.extend(["-chardev".into(), with_path(&format!("{option},id={id}"), path)]);
    };
    chardev("log", log, "file,append=on");
    let folders: Vec<String> = (0..=options.volumes.len()).map(tag).collect();
    folders.iter().for_each(|tag| chardev(tag, &place.join(tag), "socket"));
    chardev("channel", &place.join("channel"), "socket");
    words.extend(["-serial".into(), "chardev:log".into()]);
    let mut device = |text: String| words.extend(["-device".into(), text.into()]);
    for tag in &folders {
        device(format!("vhost-user-fs-device,chardev={tag},tag={tag},queue-size=1024"));
    }
    // The last one that is connected: then nobody needs the folder of the sockets any more.
    device("virtio-serial-device".into());
    device(format!("virtserialport,chardev=channel,name={PORT}"));
    if let Some(path) = &options.boot_trace {
        words.extend(["-boot-trace".into(), path.into()]);
    }
    words
}

/// An option's value with this path, in which a comma is doubled, at its end.
fn with_path(value: &str, path: &Path) -> OsString {
    let mut bytes = [value.as_bytes(), b",path="].concat();
    for byte in path.as_os_str().as_bytes() {
        bytes.extend(if *byte == b',' { &b",,"[..] } else { std::slice::from_ref(byte) });
    }
    OsString::from_vec(bytes)
}

/// Starts the thread that serves the session, as soon as the machine comes for it.
fn meet(session: &Arc<Session>, listener: UnixListener) -> Result<Receiver<Ending>, Error> {
    let session = session.clone();
    let (tell, ending) = mpsc::sync_channel(1);
    let serve = move || {
        let ending = session.serve(&listener);
        // A guest that has said why there is no command ends by itself.
        let is_cut = ending.failure.is_some() && !session.has_ended();
        // Nobody asks when the machine never came.
        let _ = tell.send(ending);
        if is_cut {
            session.end_machine();
        }
    };
    let thread = signals::spawn("session", serve);
    thread.map_err(|source| Error::Process("starting a thread", source))?;
    Ok(ending)
}

impl Workload {
    /// The machine.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Who is asked first about a signal.
    pub fn session(&self) -> Arc<Session> {
        self.session.clone()
    }

    /// What became of the command, whose machine ended so.
    pub fn finish(mut self, result: Result<Outcome, run::Error>) -> Result<Status, Error> {
        // A machine that never came for its session has said nothing.
        let was_there = self.session.close();
        let by_signal = matches!(result, Ok(Outcome { status: Status::Signal(_), .. }));
        // Who was asked twice to end waits for nobody who reads. A wire that was cut has said why.
        let ending = match was_there && !by_signal {
            true => self.ending.recv().unwrap_or_default(),
            false => self.ending.try_recv().unwrap_or_default(),
        };
        console::restore();
        let ended = self.daemons.drain(..).filter_map(|daemon| daemon.finish(was_there));
        let ended = ended.reduce(|first, _| first);
        match (ending, result) {
            (Ending { status: Some(status), .. }, _) => Ok(Status::Code(status)),
            (Ending { failure: Some(why), .. }, _) => Err(Error::Guest(why)),
            (_, Ok(Outcome { status: status @ Status::Signal(_), .. })) => Ok(status),
            (_, Err(error)) => {
                self.kernel_log.tell();
                Err(cause(error, ended))
            }
            (_, Ok(Outcome { reason, .. })) => {
                self.kernel_log.tell();
                Err(Error::NoStatus { reason: reason.to_string(), advice: self.advice.clone() })
            }
        }
    }
}

/// Why the machine failed: nobody is at the socket of a daemon that has ended.
fn cause(error: run::Error, ended: Option<virtiofsd::Error>) -> Error {
    match (error, ended) {
        (run::Error::Virtio(virtio::Error::VhostUser(..)), Some(ended)) => ended.into(),
        (error, _) => error.into(),
    }
}

impl Drop for Workload {
    /// A machine that was never made has a folder of sockets all the same.
    fn drop(&mut self) {
        self.session.close();
    }
}
