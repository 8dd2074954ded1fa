//! The verbs that speak to a running service.

use super::service::{Service, config, fake, run, swapserve};
use serde_json::Value;
use std::fs;

fn two() -> String {
    format!(
        "[scheduler]\nrunning_slots = 1\n{}{}",
        fake("one", "", "aliases = [\"first\"]"),
        fake("two", "", "")
    )
}

#[test]
fn status_explain_swap_logs_env() {
    let service = Service::start(&two(), &[]);
    let said = |arguments: &[&str]| {
        let output = service.verb(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(service.answer("first"), "one", "an alias is the model");
    assert_eq!(service.model("one")["state"], "resident");
    assert_eq!(service.model("two")["state"], "out");
    assert!(said(&["status"]).contains("freeze"));
    assert!(said(&["explain", "two"]).starts_with("two: "));

    said(&["swap", "in", "two"]);
    assert_eq!(service.model("two")["state"], "resident");
    said(&["swap", "pin", "two"]);
    assert_eq!(service.model("two")["pinned"], true);
    said(&["swap", "unpin", "two"]);
    said(&["swap", "out", "two"]);
    assert_eq!(service.model("two")["state"], "out");
    assert_eq!(service.verb(&["swap", "in", "nobody"]).status.code(), Some(64));

    said(&["logs", "one"]);
    let exports = said(&["env"]);
    assert!(exports.contains("export OPENAI_BASE_URL=http://127.0.0.1:"), "{exports}");
    assert!(exports.contains("export OPENAI_API_KEY=sk-swapserve-"), "{exports}");
}

#[test]
fn secrets_are_for_this_user_only() {
    use std::os::unix::fs::MetadataExt;
    let service = Service::start(&two(), &[]);
    let mode = |name: &str| fs::metadata(service.dir.path().join(name)).unwrap().mode() & 0o777;
    assert_eq!((mode("endpoint.json"), mode("run"), mode("run/key")), (0o600, 0o700, 0o600));
    let key = service.endpoint()["key"].as_str().unwrap().to_owned();
    assert!(!service.log().contains(&key));
    let status = service.status().to_string();
    assert!(!status.contains(&key), "status tells the key");
}

#[test]
fn without_a_service_they_say_so() {
    let (dir, _) = config("");
    let home = dir.path().join("home");
    for verb in [&["status"][..], &["env"], &["stop"], &["explain", "x"]] {
        let output = swapserve().args(verb).env("HOME", &home).output().unwrap();
        assert_eq!(output.status.code(), Some(69), "{verb:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("swapserve serve"), "{said}");
    }
}

#[test]
fn the_journal_notes_every_event_and_effect() {
    let dir = tempfile::tempdir().unwrap();
    let journal = dir.path().join("journal.jsonl");
    let mut service = Service::start(&two(), &["--journal", journal.to_str().unwrap()]);
    service.answer("one");
    service.answer("two");
    assert!(service.verb(&["stop"]).status.success());
    assert_eq!(service.ended(), 0);
    let lines = fs::read_to_string(&journal).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let count = |kind: &str, name: &str| lines.iter().filter(|line| line[kind][kind] == name).count();
    assert_eq!(count("event", "arrived"), 2);
    assert_eq!(count("effect", "dispatch"), 2);
    assert_eq!(count("event", "released"), 2);
    assert!(count("effect", "swap_in") >= 1);
}

#[test]
fn logs_are_kept_where_the_user_wants_them() {
    let (dir, file) = config(&fake("kept", "", ""));
    let logs = dir.path().join("logs");
    let ran = run(&file, &["--log-dir", logs.to_str().unwrap()], &["true"]);
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let runs: Vec<_> = fs::read_dir(&logs).unwrap().flatten().collect();
    assert_eq!(runs.len(), 1, "one directory a run");
    assert!(runs[0].path().join("kept.log").is_file());
}
