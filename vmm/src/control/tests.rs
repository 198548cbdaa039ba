//! CPUs and those who want something of them, without a machine.

use std::sync::mpsc::channel;
use std::thread;

use super::*;

/// A CPU that "runs" by asking again and again, until it is to leave.
fn cpu(control: &Control, id: u8) -> Verdict {
    control.join(id);
    let verdict = loop {
        match control.checkpoint() {
            Verdict::Go | Verdict::Report => thread::yield_now(),
            verdict => break verdict,
        }
    };
    control.leave();
    verdict
}

fn wait_for_cpus(control: &Control, count: usize) {
    while control.cpus().len() < count {
        thread::yield_now();
    }
}

#[test]
fn stopped_cpus_do_not_run_and_go_on() {
    signals::block();
    let control = Control::new(RunState::Running, false);
    control.begin(None);
    thread::scope(|scope| {
        let cpus = [0, 1, 2].map(|id| {
            scope.spawn({
                let control = &control;
                move || cpu(control, id)
            })
        });
        wait_for_cpus(&control, 3);
        for _ in 0..20 {
            control.stop();
            assert_eq!(control.lock().parked, 3);
            assert_eq!(control.run_state(), RunState::Paused);
            assert!(control.resume());
        }
        control.end();
        for cpu in cpus {
            assert_eq!(cpu.join().unwrap(), Verdict::Leave);
        }
    });
    assert!(control.cpus().is_empty());
}

#[test]
fn one_cpu_obeys_and_the_end_counts_more_than_a_reset() {
    signals::block();
    let control = Control::new(RunState::Prelaunch, false);
    control.begin(None);
    control.request(Request::Reset);
    control.request(Request::QuitByQmp);
    control.request(Request::Reset);
    assert_eq!(cpu(&control, 0), Verdict::Obey(Request::QuitByQmp));
    control.end();
    assert_eq!(cpu(&control, 1), Verdict::Leave);
}

#[test]
fn every_cpu_says_once_where_it_is() {
    signals::block();
    let control = Control::new(RunState::Running, false);
    control.begin(None);
    control.join(0);
    control.ask_for_reports();
    assert_eq!(control.checkpoint(), Verdict::Report);
    assert_eq!(control.checkpoint(), Verdict::Go);
    control.leave();
}

#[test]
fn what_is_off_only_a_reset_wakes() {
    let control = Control::new(RunState::Running, false);
    control.rest(RunState::Shutdown);
    assert!(!control.resume());
    control.revive();
    assert_eq!(control.run_state(), RunState::Running);
    control.rest(RunState::GuestPanicked);
    assert!(control.resume());
}

#[test]
fn the_power_button_is_felt_also_by_a_machine_that_is_not_there_yet() {
    signals::block();
    let (pressed, presses) = channel();
    let (heard, events) = channel();
    let control = Control::new(RunState::Running, true);
    control.listen(Box::new(move |event| heard.send(event).unwrap()));
    let button: Line = Arc::new(move || pressed.send(()).unwrap());
    control.begin(Some(button.clone()));
    assert!(control.press_power_button());
    assert_eq!(presses.try_iter().count(), 1);
    control.end();
    assert!(control.press_power_button());
    assert_eq!(presses.try_iter().count(), 0);
    control.begin(Some(button));
    assert_eq!(presses.try_iter().count(), 1);
    assert_eq!(events.try_iter().collect::<Vec<_>>(), [Event::Powerdown; 2]);
    assert!(!Control::new(RunState::Running, false).press_power_button());
}
