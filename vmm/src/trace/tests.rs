//! What a trace says of a boot that never was.

use super::*;

#[test]
fn counts_and_marks_are_in_the_trace() {
    let mut trace = Trace::new(5);
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
    assert!(boot["marks"][2]["bytes"].as_u64() >= boot["setup"][0]["bytes"].as_u64());
    assert_eq!((&boot["kvm_exits"], &boot["kvm_page_faults"]), (&9.into(), &8.into()));
    assert!(json["process"]["peak_kib"].as_u64().unwrap() > 0);
    assert!(json["process"]["page_faults"].as_u64().unwrap() > 0);
    assert_eq!(boot["firmware"]["load_kernel"], 20);
    assert_eq!(boot["firmware"]["khz"], 1000);
    assert_eq!(json["exit"]["reason"], "power off");
}

#[test]
fn a_guest_that_never_rests_takes_no_more_memory() {
    let mut trace = Trace::new(5);
    for boot in 0..BOOTS_MAX + 10 {
        trace.step("KVM_CREATE_VM");
        trace.enter_guest(false, &[("initrd", Range::between(0, 0))]);
        (0..if boot == 0 { MARKS_MAX + 5 } else { 1 }).for_each(|_| trace.mark(Event::Post(1)));
        trace.kvm_counts(None, None);
    }
    let json = trace.json("power off", 0, now());
    assert_eq!(json["boots"].as_array().unwrap().len(), BOOTS_MAX);
    assert_eq!(
        (&json["boots_dropped"], &json["boots"][0]["marks_dropped"]),
        (&10.into(), &5.into())
    );
    assert_eq!(json["boots"][0]["placed"], serde_json::json!({}));
    // In the picture nothing lasts beyond its boot, and no boot begins before the last one ended.
    let slices = json["traceEvents"].as_array().unwrap();
    let time = |slice: &serde_json::Value, key: &str| slice[key].as_f64();
    let first_end = json["boots"][0]["end_ns"].as_f64().unwrap() / 1e3;
    let (mut setups, mut last) = (0, 0.0);
    for slice in slices.iter().filter(|slice| slice["name"] == "KVM_CREATE_VM") {
        let [start, length] = ["ts", "dur"].map(|key| time(slice, key).unwrap());
        assert!(start >= last, "{slice}");
        (setups, last) = (setups + 1, start + length);
    }
    assert_eq!(setups, BOOTS_MAX);
    let of_first = slices.iter().filter(|slice| slice["name"] == "POST code").take(MARKS_MAX);
    let ends = of_first.map(|slice| time(slice, "ts").unwrap() + time(slice, "dur").unwrap());
    assert!(ends.fold(0.0, f64::max) <= first_end + 1.0);
}

#[test]
fn a_trace_goes_to_a_file_that_can_be_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.json");
    std::fs::write(&path, "what was there before, which was longer").unwrap();
    Trace::open(&path, 5).unwrap().write("power off", 0).unwrap();
    let text = std::fs::read(&path).unwrap();
    assert!(serde_json::from_slice::<serde_json::Value>(&text).is_ok());
    Trace::open(Path::new("/dev/null"), 5).unwrap().write("power off", 0).unwrap();
    let pipe = folder.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
    for wrong in [folder.path(), &pipe, Path::new("/nowhere/x")] {
        assert!(Trace::open(wrong, 5).is_err(), "{wrong:?}");
    }
}
