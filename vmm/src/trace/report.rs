//! A trace as JSON, which is also a trace for Perfetto and Chrome.
//!
//! The format of those is "Trace Event Format" of the Chromium project: an object with
//! `traceEvents`; they pass over what they do not know.

use std::fs::read_to_string;

use serde_json::{Map, Value, json};

use abi::post;

use super::{Boot, End, Event, Mark, Meanwhile, Step, Trace, page_faults};

/// The rows of the picture: what this process does, and what the guest does.
const VMM_ROW: u32 = 1;
const GUEST_ROW: u32 = 2;
const MEANWHILE_ROW: u32 = 3;
const FIRMWARE_ROW: u32 = 4;

impl Trace {
    pub(super) fn json(&self, reason: &str, status: i32, end_ns: u64) -> Value {
        let mut exits = Map::new();
        exits.insert("total".into(), self.exits.into());
        for (exit, device, count) in &self.counts {
            let kind = exits.entry(exit.name()).or_insert_with(|| json!({}));
            kind[device] = (*count).into();
        }
        let boots: Vec<_> = self.boots.iter().map(Boot::json).collect();
        json!({
            "format": "microvm boot trace 2",
            "clock": "CLOCK_MONOTONIC",
            "exec_ns": self.exec_ns,
            "start_ns": self.start_ns,
            "boots": boots,
            "boots_dropped": self.boots_dropped,
            "exit": { "ns": end_ns, "reason": reason, "status": status },
            "exits": exits,
            "process": { "peak_kib": peak_kib(), "page_faults": page_faults() },
            "trace_cost_ns": self.cost_ns(),
            "displayTimeUnit": "ns",
            "traceEvents": self.events(end_ns),
        })
    }

    /// The picture: each step and stage from the end of the one before to its own.
    fn events(&self, end_ns: u64) -> Vec<Value> {
        let mut events = vec![
            name_row(VMM_ROW, "microvm"),
            name_row(MEANWHILE_ROW, "microvm, meanwhile"),
            name_row(FIRMWARE_ROW, "firmware, by its TSC"),
            name_row(GUEST_ROW, "guest"),
        ];
        let mut from = self.start_ns;
        events.push(slice(VMM_ROW, "exec", (from.saturating_sub(self.exec_ns), from), json!({})));
        let (mut page_faults, mut bytes) = (0, 0);
        for boot in &self.boots {
            for step in &boot.setup {
                let counts = json!({
                    "page_faults": step.page_faults.saturating_sub(page_faults),
                    "bytes": step.bytes.saturating_sub(bytes),
                });
                events.push(slice(VMM_ROW, step.name, (from, step.end_ns), counts));
                (from, page_faults, bytes) = (step.end_ns, step.page_faults, step.bytes);
            }
            events.extend(boot.meanwhile.iter().map(Meanwhile::slice));
            events.extend(boot.firmware_slices());
            events.push(slice(VMM_ROW, "threads", (from, boot.first_run_ns), json!({})));
            let end = End { ns: end_ns, exits: self.exits, page_faults, bytes };
            let end = boot.end.unwrap_or(end);
            // What a mark begins lasts until the next.
            let ends = boot.marks.iter().skip(1).map(Mark::as_end).chain([end]);
            for (mark, end) in boot.marks.iter().zip(ends) {
                let name = mark.what.name().unwrap_or("POST code");
                let counts = json!({
                    "exits": end.exits.saturating_sub(mark.exits),
                    "page_faults": end.page_faults.saturating_sub(mark.page_faults),
                    "bytes": end.bytes.saturating_sub(mark.bytes),
                });
                events.push(slice(GUEST_ROW, name, (mark.ns, end.ns), counts));
            }
            (from, page_faults, bytes) = (end.ns, end.page_faults, end.bytes);
        }
        events.push(slice(VMM_ROW, "end", (from, end_ns), json!({})));
        events
    }
}

/// A bar of the picture; the format counts in microseconds.
#[expect(clippy::cast_precision_loss, reason = "microseconds of days have less than 53 bits")]
fn slice(row: u32, name: &str, (start, end): (u64, u64), arguments: Value) -> Value {
    let microseconds = |ns: u64| ns as f64 / 1e3;
    let (ts, dur) = (microseconds(start), microseconds(end.saturating_sub(start)));
    json!({
        "ph": "X", "pid": 1, "tid": row, "name": name, "ts": ts, "dur": dur, "args": arguments,
    })
}

fn name_row(row: u32, name: &str) -> Value {
    json!({ "ph": "M", "pid": 1, "tid": row, "name": "thread_name", "args": { "name": name } })
}

impl Boot {
    /// The firmware's stages. Its clock is another one: both meet where it enters the kernel.
    fn firmware_slices(&self) -> Vec<Value> {
        let is_entry = |mark: &&Mark| mark.what == Event::Post(post::KERNEL_ENTRY);
        let (Some((stamps, Some(khz @ 1..))), Some(entry)) =
            (self.firmware, self.marks.iter().find(is_entry))
        else {
            return Vec::new();
        };
        let at = |stamp: u64| {
            let before = stamps.kernel_entry.saturating_sub(stamp).saturating_mul(1_000_000);
            entry.ns.saturating_sub(before / u64::from(khz))
        };
        let [start, load, enter] = [stamps.start, stamps.load_kernel, stamps.kernel_entry].map(at);
        vec![
            slice(FIRMWARE_ROW, "what there is", (start, load), json!({})),
            slice(FIRMWARE_ROW, "load the kernel", (load, enter), json!({})),
        ]
    }

    fn json(&self) -> Value {
        let placed: Map<_, _> = self
            .placed
            .iter()
            .filter(|(_, range)| !range.is_empty())
            .map(|(name, range)| ((*name).into(), json!([range.start(), range.end()])))
            .collect();
        json!({
            "path": if self.direct { "direct" } else { "firmware" },
            "setup": self.setup.iter().map(Step::json).collect::<Vec<_>>(),
            "meanwhile": self.meanwhile.iter().map(Meanwhile::json).collect::<Vec<_>>(),
            "setup_end_ns": self.setup_end_ns,
            "first_run_ns": self.first_run_ns,
            "marks": self.marks.iter().map(Mark::json).collect::<Vec<_>>(),
            "marks_dropped": self.marks_dropped,
            "end_ns": self.end.map(|end| end.ns),
            "placed": placed,
            "kvm_exits": self.kvm_exits,
            "kvm_page_faults": self.kvm_page_faults,
            "firmware": self.firmware.map(|(stamps, tsc_khz)| json!({
                "clock": "TSC",
                "khz": tsc_khz,
                "start": stamps.start,
                "load_kernel": stamps.load_kernel,
                "kernel_entry": stamps.kernel_entry,
            })),
        })
    }
}

impl Step {
    fn json(&self) -> Value {
        let Self { name, end_ns, page_faults, bytes } = self;
        json!({ "name": name, "end_ns": end_ns, "page_faults": page_faults, "bytes": bytes })
    }
}

impl Meanwhile {
    fn slice(&self) -> Value {
        slice(MEANWHILE_ROW, self.name, (self.start_ns, self.end_ns), json!({}))
    }

    fn json(&self) -> Value {
        let Self { name, start_ns, end_ns } = self;
        json!({ "name": name, "start_ns": start_ns, "end_ns": end_ns })
    }
}

impl Mark {
    fn as_end(&self) -> End {
        let Self { ns, exits, page_faults, bytes, .. } = *self;
        End { ns, exits, page_faults, bytes }
    }

    fn json(&self) -> Value {
        let code = match self.what {
            Event::Post(code) => Some(code),
            _ => None,
        };
        let Self { what, ns, exits, page_faults, bytes } = self;
        json!({
            "code": code, "name": what.name(), "ns": ns, "exits": exits, "page_faults": page_faults,
            "bytes": bytes,
        })
    }
}

/// KiB of memory that this process had at most, guest RAM that was touched included (Linux,
/// Documentation/filesystems/proc.rst, VmHWM).
fn peak_kib() -> Option<u64> {
    let status = read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}
