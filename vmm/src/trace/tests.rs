//! What a trace says of a boot that never was.

use super::*;

#[test]
fn counts_and_marks_are_in_the_trace() {
    let mut trace = Trace::new(Path::new("x"), 5);
    trace.step("memory");
    std::thread::sleep(std::time::Duration::from_millis(2));
    trace.step(FILTER_STEP);
    trace.enter_guest(true, &[("kernel", Range::between(1, 2))]);
    trace.first_run();
    trace.count(Exit::IoOut, "COM1");
    trace.count(Exit::IoOut, "COM1");
    trace.count(Exit::MmioRead, "unclaimed");
    // The trace asked for this one itself: it is told, but nothing that a start costs.
    trace.count(Exit::Msr, "CPU");
    trace.mark_first(Event::Console);
    trace.mark_first(Event::Console);
    trace.mark(Event::Post(post::GUEST_INIT));
    trace.kvm_counts(Some(9), Some(8));
    let stamps = BootTrace { start: 10, load_kernel: 20, kernel_entry: 30 };
    trace.firmware(Some((stamps, Some(1000))));
    let json = trace.json("power off", 0, 77);
    assert_eq!(json["start_ns"], 5);
    assert!(json["trace_cost_ns"].as_u64().unwrap() >= 2_000_000, "its own set-up counts");
    assert_eq!(json["exits"]["io_out"]["COM1"], 2);
    assert_eq!(json["exits"]["total"], 3);
    assert_eq!(json["exits"]["msr_write"]["CPU"], 1);
    let boot = &json["boots"][0];
    assert_eq!(boot["path"], "direct");
    assert_eq!(boot["marks"][0]["name"], "kernel entry");
    assert_eq!(boot["marks"][0]["ns"], boot["first_run_ns"]);
    assert_eq!(boot["marks"][1]["name"], "first console byte");
    assert_eq!(boot["marks"][1]["code"], serde_json::Value::Null);
    assert_eq!(boot["marks"][2]["code"], 0xe0);
    assert_eq!(boot["marks"][2]["exits"], 3);
    assert_eq!((&boot["kvm_exits"], &boot["kvm_page_faults"]), (&9.into(), &8.into()));
    assert!(json["process"]["peak_kib"].as_u64().unwrap() > 0);
    assert!(json["process"]["page_faults"].as_u64().unwrap() > 0);
    assert_eq!(boot["firmware"]["load_kernel"], 20);
    assert_eq!(boot["firmware"]["khz"], 1000);
    assert_eq!(json["exit"]["reason"], "power off");
}
