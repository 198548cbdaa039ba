//! What QMP's commands do (QEMU, qapi/*.json, has their shapes).

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::args;
use crate::config::{Chardev, Config};
use crate::control::{Control, Request, RunState};
use crate::virtio::balloon::Balloon;

/// Why a command was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// QMP's error class.
    pub class: &'static str,
    /// For people.
    pub description: String,
}

impl Failure {
    /// Of no class that a client could tell from others.
    pub fn generic(description: String) -> Self {
        Self { class: "GenericError", description }
    }

    /// There is no such command, now.
    pub fn not_found(description: String) -> Self {
        Self { class: "CommandNotFound", description }
    }
}

type Result = std::result::Result<Value, Failure>;

/// Parts of the machine that commands reach.
#[derive(Clone, Copy, Default)]
pub struct Parts<'a> {
    /// What COM1's pty is called, if it is one.
    pub pty: Option<&'a str>,
    /// The balloon, if there is one.
    pub balloon: Option<&'a Arc<Balloon>>,
}

/// The machine as commands see it.
pub struct Machine {
    /// What it does, and what it is told.
    pub control: Arc<Control>,
    name: Option<String>,
    memory: u64,
    serial: String,
    devices: Vec<(&'static str, String)>,
    balloon: Option<Arc<Balloon>>,
}

impl Machine {
    /// The machine of `config`.
    pub fn new(config: &Config, control: Arc<Control>, parts: &Parts<'_>) -> Self {
        let mut devices = Vec::new();
        let mut add = |kind, is_there: bool| {
            if is_there {
                devices.push((kind, format!("device[{}]", devices.len())));
            }
        };
        add("isa-serial", config.isa_serial);
        add("isa-debug-exit", config.debug_exit.is_some());
        add("pvpanic", config.pvpanic.is_some());
        config.virtio.iter().for_each(|device| add(device.name(), true));
        let (name, serial) = (config.name.clone(), file_name(&config.serial, parts.pty));
        let balloon = parts.balloon.cloned();
        Self { control, name, memory: config.memory, serial, devices, balloon }
    }
}

type Execute = fn(&Machine, &Map<String, Value>) -> Result;

/// All commands but `qmp_capabilities`, which is the session's own.
const COMMANDS: [(&str, Execute); 24] = [
    ("balloon", balloon),
    ("cont", |machine, _| match machine.control.resume() {
        true => Ok(json!({})),
        false => Err(Failure::generic("Resetting the Virtual Machine is required".into())),
    }),
    ("device-list-properties", device_list_properties),
    ("qom-list", qom_list),
    ("qom-list-types", |_, _| {
        Ok(args::device_types().iter().map(|name| json!({ "name": name })).collect())
    }),
    ("query-balloon", |machine, _| Ok(json!({ "actual": machine.balloon()?.actual() }))),
    ("query-block", |_, _| Ok(json!([]))),
    ("query-chardev", query_chardev),
    ("query-commands", |_, _| Ok(query_commands())),
    ("query-cpus-fast", query_cpus_fast),
    ("query-iothreads", |_, _| Ok(json!([]))),
    ("query-kvm", |_, _| Ok(json!({ "enabled": true, "present": true }))),
    ("query-machines", |_, _| Ok(query_machines())),
    ("query-memory-size-summary", |machine, _| Ok(json!({ "base-memory": machine.memory }))),
    ("query-name", |machine, _| {
        Ok(machine.name.as_ref().map_or_else(|| json!({}), |name| json!({ "name": name })))
    }),
    ("query-pci", |_, _| Err(Failure::generic("this machine has no PCI bus".into()))),
    ("query-status", query_status),
    ("query-target", |_, _| Ok(json!({ "arch": "x86_64" }))),
    ("query-version", |_, _| Ok(version())),
    ("quit", |machine, _| {
        machine.control.request(Request::QuitByQmp);
        Ok(json!({}))
    }),
    ("set-action", |_, _| Err(Failure::generic("give -action on the command line".into()))),
    ("stop", |machine, _| {
        machine.control.stop();
        Ok(json!({}))
    }),
    ("system_powerdown", |machine, _| match machine.control.press_power_button() {
        true => Ok(json!({})),
        false => Err(Failure::generic("there is no power button without ACPI".into())),
    }),
    ("system_reset", |machine, _| {
        machine.control.request(Request::Reset);
        Ok(json!({}))
    }),
];

/// Does the command `name`.
pub fn execute(machine: &Machine, name: &str, arguments: &Map<String, Value>) -> Result {
    match COMMANDS.iter().find(|(known, _)| *known == name) {
        Some((_, execute)) => execute(machine, arguments),
        None => Err(Failure::not_found(format!("The command {name} has not been found"))),
    }
}

/// Our version, in the shape that QEMU gives its own.
pub fn version() -> Value {
    let number = |text: &str| text.parse::<u32>().unwrap_or(0);
    json!({
        "qemu": {
            "major": number(env!("CARGO_PKG_VERSION_MAJOR")),
            "minor": number(env!("CARGO_PKG_VERSION_MINOR")),
            "micro": number(env!("CARGO_PKG_VERSION_PATCH")),
        },
        "package": concat!("microvm ", env!("CARGO_PKG_VERSION")),
    })
}

fn query_commands() -> Value {
    let names = COMMANDS.iter().map(|(name, _)| *name).chain(["qmp_capabilities"]);
    names.map(|name| json!({ "name": name })).collect()
}

fn query_status(machine: &Machine, _: &Map<String, Value>) -> Result {
    let state = machine.control.run_state();
    let running = state == RunState::Running;
    Ok(json!({ "status": state.name(), "singlestep": false, "running": running }))
}

fn query_cpus_fast(machine: &Machine, _: &Map<String, Value>) -> Result {
    let cpus = machine.control.cpus();
    let cpu = |(id, thread): (u8, i32)| {
        json!({
            "cpu-index": id,
            "thread-id": thread,
            "qom-path": format!("/machine/unattached/cpu[{id}]"),
            "target": "x86_64",
            "props": { "socket-id": 0, "die-id": 0, "core-id": id, "thread-id": 0 },
        })
    };
    Ok(cpus.into_iter().map(cpu).collect())
}

fn query_machines() -> Value {
    json!([{
        "name": "microvm",
        "is-default": true,
        "cpu-max": args::CPUS_MAX,
        "hotpluggable-cpus": false,
        "numa-mem-supported": false,
        "deprecated": false,
    }])
}

impl Machine {
    fn balloon(&self) -> std::result::Result<&Balloon, Failure> {
        self.balloon.as_deref().ok_or_else(|| Failure {
            class: "DeviceNotActive",
            description: "No balloon device has been activated".into(),
        })
    }
}

/// A guest without a driver is asked as soon as it has one, as in QEMU.
fn balloon(machine: &Machine, arguments: &Map<String, Value>) -> Result {
    let balloon = machine.balloon()?;
    match arguments.get("value").and_then(Value::as_u64) {
        Some(value @ 1..) => {
            balloon.ask(value);
            Ok(json!({}))
        }
        _ => Err(Failure::generic("Parameter 'value' expects a number of bytes".into())),
    }
}

fn query_chardev(machine: &Machine, _: &Map<String, Value>) -> Result {
    let file = &machine.serial;
    Ok(json!([{ "label": "serial0", "filename": file, "frontend-open": true }]))
}

/// A character device's name, as QEMU has it.
fn file_name(chardev: &Chardev, pty: Option<&str>) -> String {
    match chardev {
        Chardev::Null => "null".into(),
        Chardev::Stdio { escapes: false, .. } => "stdio".into(),
        Chardev::Stdio { escapes: true, .. } => "mux".into(),
        Chardev::File { path, .. } => format!("file:{}", path.display()),
        Chardev::Pty { .. } => format!("pty:{}", pty.unwrap_or_default()),
        Chardev::Pipe(path) => format!("pipe:{}", path.display()),
        Chardev::Server { path, .. } => format!("unix:{},server=on", path.display()),
        Chardev::Client { path, .. } => format!("unix:{}", path.display()),
    }
}

fn qom_list(machine: &Machine, arguments: &Map<String, Value>) -> Result {
    let entry = |name: &str, kind: &str| json!({ "name": name, "type": kind });
    match arguments.get("path").and_then(Value::as_str) {
        Some("/") => Ok(json!([entry("machine", "child<microvm-machine>")])),
        Some("/machine") => Ok(json!([
            entry("type", "string"),
            entry("peripheral-anon", "child<container>"),
            entry("unattached", "child<container>"),
        ])),
        Some("/machine/peripheral-anon") => Ok(machine
            .devices
            .iter()
            .map(|(kind, name)| entry(name, &format!("child<{kind}>")))
            .collect()),
        Some("/machine/unattached") => Ok(machine
            .control
            .cpus()
            .iter()
            .map(|(id, _)| entry(&format!("cpu[{id}]"), "child<host-x86_64-cpu>"))
            .collect()),
        Some(path) => Err(Failure {
            class: "DeviceNotFound",
            description: format!("Device '{path}' not found"),
        }),
        None => Err(Failure::generic("Parameter 'path' is missing".into())),
    }
}

fn device_list_properties(_: &Machine, arguments: &Map<String, Value>) -> Result {
    let Some(name) = arguments.get("typename").and_then(Value::as_str) else {
        return Err(Failure::generic("Parameter 'typename' is missing".into()));
    };
    match args::device_properties(name) {
        Some(properties) => Ok(properties
            .iter()
            .map(|(name, kind)| json!({ "name": name, "type": kind }))
            .collect()),
        None => Err(Failure {
            class: "DeviceNotFound",
            description: format!("Device '{name}' not found"),
        }),
    }
}
