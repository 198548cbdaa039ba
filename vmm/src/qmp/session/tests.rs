//! A client and its monitor, over a socket.

use std::io::{BufRead, BufReader, Write};
use std::sync::Arc;

use super::*;
use crate::config::Config;
use crate::control::{Control, RunState};
use crate::qmp::Parts;

/// Sends `input`, reads `answers` lines after the greeting.
fn talk(input: &[u8], answers: usize) -> Vec<Value> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let control = Arc::new(Control::new(RunState::Paused, false));
    let config = Config { name: Some("x".into()), ..Config::default() };
    let machine = Machine::new(&config, control.clone(), &Parts::default());
    let mailbox = Arc::new(Mailbox::new().unwrap());
    let letters = mailbox.clone();
    control.listen(Box::new(move |event| letters.put(event)));
    std::thread::scope(|scope| {
        scope.spawn(|| Session::new(Stream::Unix(theirs), &machine, &mailbox).run());
        (&ours).write_all(input).unwrap();
        let lines = BufReader::new(&ours).lines().take(answers + 1);
        let lines: Vec<Value> =
            lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
        assert!(lines[0]["QMP"]["version"]["qemu"]["major"].is_u64(), "{}", lines[0]);
        drop(ours);
        lines[1..].to_vec()
    })
}

const CAPABILITIES: &str = r#"{"execute":"qmp_capabilities"}"#;

fn check(command: &str, expected: &Value) {
    let answers = talk(format!("{CAPABILITIES}\n{command}\n").as_bytes(), 2);
    assert_eq!(answers[0], json!({ "return": {} }));
    assert_eq!(&answers[1], expected, "{command}");
}

fn class_of(input: &[u8]) -> String {
    talk(input, 1)[0]["error"]["class"].as_str().unwrap().to_owned()
}

#[test]
fn commands_are_answered_with_their_id() {
    check(r#"{"execute":"query-name","id":[1]}"#, &json!({ "return": { "name": "x" }, "id": [1] }));
    let paused = json!({ "running": false, "singlestep": false, "status": "paused" });
    check(r#"{"execute":"query-status"}"#, &json!({ "return": paused }));
    let kvm = json!({ "return": { "enabled": true, "present": true } });
    check("{\"execute\":\n\t\"query-kvm\",\"arguments\":{}}", &kvm);
}

#[test]
fn nothing_goes_before_the_capabilities() {
    assert_eq!(class_of(br#"{"execute":"query-status"}"#), "CommandNotFound");
    let refused = talk(br#"{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}"#, 1);
    assert_eq!(refused[0]["error"]["class"], "GenericError");
}

#[test]
fn what_is_no_command_gets_an_error_and_the_next_one_its_answer() {
    for bad in ["{]", "7", "[]", "\"x\"", "{}", r#"{"execute":1}"#, r#"{"execute":"x","y":0}"#] {
        let input = format!("{bad}\n{CAPABILITIES}\n");
        let answers = talk(input.as_bytes(), 2);
        assert_eq!(answers[0]["error"]["class"], "GenericError", "{bad}");
        assert_eq!(answers[1], json!({ "return": {} }), "{bad}");
    }
    let unknown = format!("{CAPABILITIES}{}", r#"{"execute":"frobnicate","id":"a"}"#);
    let answers = talk(unknown.as_bytes(), 2);
    assert_eq!(answers[1]["error"]["class"], "CommandNotFound");
    assert_eq!(answers[1]["id"], "a");
}

#[test]
fn a_command_without_an_end_is_given_up() {
    let mut input = b"{\"execute\":\"".to_vec();
    input.resize(COMMAND_MAX + 2, b'a');
    assert_eq!(class_of(&input), "GenericError");
    assert_eq!(class_of(&[b'['; 100_000]), "GenericError");
}

#[test]
fn events_come_before_the_answer_that_they_are_of() {
    let input =
        format!("{CAPABILITIES}\n{}\n{}\n", r#"{"execute":"cont"}"#, r#"{"execute":"stop"}"#);
    let answers = talk(input.as_bytes(), 5);
    assert_eq!(answers[1]["event"], "RESUME");
    assert_eq!(answers[2], json!({ "return": {} }));
    assert_eq!(answers[3]["event"], "STOP");
    assert!(answers[3]["timestamp"]["seconds"].as_u64().unwrap() > 1_600_000_000);
}

#[test]
fn every_command_is_listed_and_none_twice() {
    let answers =
        talk(format!("{CAPABILITIES}{}", r#"{"execute":"query-commands"}"#).as_bytes(), 2);
    let mut names: Vec<_> = answers[1]["return"]
        .as_array()
        .unwrap()
        .iter()
        .map(|command| command["name"].as_str().unwrap().to_owned())
        .collect();
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count);
    assert!(names.iter().any(|name| name == "system_powerdown"));
}
