//! Every way a run ends outside Slurm, and what is left: nothing.

use super::service::{Service, config, eventually, fake, processes_with, run, swapserve};
use nix::sys::signal::Signal;
use std::process::Stdio;

fn two() -> String {
    format!("[scheduler]\nrunning_slots = 1\n{}{}", fake("one", "", ""), fake("two", "--daemon", ""))
}

#[test]
fn run_ends_with_the_commands_status_and_leaves_nothing() {
    let (dir, file) = config(&two());
    let mark = dir.path().to_str().unwrap().to_owned();
    let run_dir = dir.path().join("run");
    let options = ["--run-dir", run_dir.to_str().unwrap()];
    let output = run(
        &file,
        &options,
        &["sh", "-c", "test -n \"$OPENAI_API_KEY\" && test -r $SWAPSERVE_ENDPOINT_FILE && exit 7"],
    );
    assert_eq!(output.status.code(), Some(7), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!run_dir.exists());
    eventually("every process ends", || processes_with(&mark).is_empty());
}

#[test]
fn a_command_that_a_signal_ends_is_reported_as_shells_do() {
    let (_dir, file) = config(&fake("one", "", ""));
    let output = run(&file, &[], &["sh", "-c", "kill -TERM $$"]);
    assert_eq!(output.status.code(), Some(143));
}

#[test]
fn a_process_that_the_command_leaves_behind_is_ended_too() {
    let (dir, file) = config(&fake("one", "", ""));
    let mark = dir.path().join("orphan");
    let command = format!("MARK={} setsid sleep 1000 & exit 0", mark.display());
    let output = run(&file, &[], &["sh", "-c", &command]);
    assert_eq!(output.status.code(), Some(0));
    eventually("the orphan ends", || processes_with(mark.to_str().unwrap()).is_empty());
}

#[test]
fn signals_end_a_service_in_order() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1] {
        let mut service = Service::start(&two(), &[]);
        service.signal(signal);
        assert_eq!(service.ended(), 0, "{signal}: {}", service.log());
        service.assert_gone();
    }
}

#[test]
fn stop_ends_it_too() {
    let mut service = Service::start(&two(), &[]);
    assert!(service.verb(&["stop"]).status.success());
    assert_eq!(service.ended(), 0, "{}", service.log());
    service.assert_gone();
}

#[test]
fn an_end_during_the_start_is_an_end() {
    let mut service = Service::launch(&fake("late", "--mute", ""), &[]);
    eventually("the engine is launched", || {
        service.verb(&["status", "--json"]).status.success() && service.model("late")["pid"].is_number()
    });
    service.signal(Signal::SIGTERM);
    assert_eq!(service.ended(), 0, "{}", service.log());
    service.assert_gone();
}

#[test]
fn stop_is_heard_during_the_start() {
    // An engine that would be waited for much longer than this test waits for anything.
    let text = fake("late", "--mute", "").replace("start_timeout = \"30s\"", "start_timeout = \"1h\"");
    let mut service = Service::launch(&text, &[]);
    eventually("the engine is launched", || {
        service.verb(&["status", "--json"]).status.success() && service.model("late")["pid"].is_number()
    });
    assert!(service.verb(&["stop"]).status.success());
    assert_eq!(service.ended(), 0, "{}", service.log());
    service.assert_gone();
}

#[test]
fn the_daemons_own_death_takes_the_engines_with_it() {
    let mut service = Service::start(&two(), &[]);
    service.signal(Signal::SIGKILL);
    service.ended();
    let mark = service.dir.path().to_str().unwrap().to_owned();
    eventually("every engine ends", || processes_with(&mark).is_empty());
}

#[test]
fn an_engine_that_dies_is_started_again() {
    let service = Service::start(&fake("one", "", ""), &[]);
    let pid = |service: &Service| service.model("one")["pid"].as_i64();
    let first = pid(&service).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(first).unwrap()), Signal::SIGKILL)
        .unwrap();
    eventually("another engine runs", || pid(&service).is_some_and(|now| now != first));
    assert_eq!(service.answer("one"), "one");
}

/// A run whose command has left a process in a session of its own, both marked by the folder's name.
fn run_with_an_orphan(dir: &std::path::Path, file: &std::path::Path, script: &str) -> std::process::Child {
    let mut run = swapserve();
    run.arg("run").arg("--config").arg(file).arg("--run-dir").arg(dir.join("run"));
    run.args(["--", "sh", "-c", script, dir.to_str().unwrap()]).stdout(Stdio::null());
    run.stderr(std::fs::File::create(dir.join("said")).unwrap());
    let run = run.spawn().unwrap();
    eventually("the command is there", || dir.join("there").exists());
    run
}

const ORPHAN: &str = "MARK=$0 setsid sleep 1000 & touch $0/there; ";

#[test]
fn the_daemons_own_death_takes_the_command_and_its_orphans_with_it() {
    let (dir, file) = config(&fake("one", "--daemon", ""));
    let mut run = run_with_an_orphan(dir.path(), &file, &format!("{ORPHAN} sleep 1000"));
    run.kill().unwrap();
    run.wait().unwrap();
    eventually("everybody ends", || processes_with(dir.path().to_str().unwrap()).is_empty());
    eventually("the run directory with the key goes", || !dir.path().join("run").exists());
}

#[test]
fn a_second_term_ends_a_command_that_does_not_listen() {
    let (dir, file) = config(&fake("one", "--deaf", ""));
    let mut run =
        run_with_an_orphan(dir.path(), &file, &format!("trap '' TERM; {ORPHAN} sleep 1000; sleep 1000"));
    let pid = nix::unistd::Pid::from_raw(i32::try_from(run.id()).unwrap());
    nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
    // The same signal within half a second is an echo of the first: sent until it is heard.
    eventually("the run ends", || {
        let _ = nix::sys::signal::kill(pid, Signal::SIGTERM);
        run.try_wait().unwrap().is_some()
    });
    assert_eq!(run.wait().unwrap().code(), Some(137), "the command was killed");
    let said = std::fs::read_to_string(dir.path().join("said")).unwrap();
    assert!(said.contains("TERM again: the command is killed"), "{said}");
    assert!(processes_with(dir.path().to_str().unwrap()).is_empty());
}
