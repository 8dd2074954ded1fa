//! Engines on the CPU, killed, stopped and hung in each state; the processes around them likewise.

use crate::{
    case::{Case, Stream, another_pid, children, is_stopped, pid, signal},
    service::{Service, counter, eventually, fake, real_engines},
};
use nix::sys::signal::Signal;
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

/// Files by which a test holds an engine in a state.
struct Holds(tempfile::TempDir);

impl Holds {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn set(&self, name: &str) {
        fs::write(self.path(name), "").unwrap();
    }

    fn lift(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }
}

/// The victim and its bystander. The victim is swapped by hooks that wait while their files are there, or frozen.
fn two(holds: &Holds, swap: &str) -> String {
    let path = |name: &str| holds.path(name).display().to_string();
    let arguments = format!("--hold {} --trial-hold {} --hang {}", path("hold"), path("trial"), path("hang"));
    let wait = |name: &str| format!("while [ -e {} ]; do sleep 0.02; done", path(name));
    let more = format!(
        "swap = [{swap}]\nhang_timeout = \"2s\"\nhooks = {{ out = [\"sh\", \"-c\", {:?}], in = [\"sh\", \"-c\", {:?}] }}\n",
        wait("out"),
        wait("in")
    );
    let more = if swap.contains("hook") { more } else { more.lines().take(2).collect::<Vec<_>>().join("\n") };
    format!("[scheduler]\nrunning_slots = 8\n{}{}", fake("victim", &arguments, &more), fake("other", "", ""))
}

/// What is done to the engine's first process.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    Kill,
    Stop,
    Hang,
}

impl Fault {
    const ALL: [Self; 3] = [Self::Kill, Self::Stop, Self::Hang];

    fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill -9",
            Self::Stop => "SIGSTOP",
            Self::Hang => "hang",
        }
    }

    fn strike(self, holds: &Holds, pid: i32) {
        match self {
            Self::Kill => signal(pid, Signal::SIGKILL),
            Self::Stop => {
                signal(pid, Signal::SIGSTOP);
                eventually("it is stopped", || is_stopped(pid));
            }
            Self::Hang => holds.set("hang"),
        }
    }
}

fn swap(service: &Service, way: &str) {
    let done = service.verb(&["swap", way, "victim"]);
    assert!(done.status.success(), "{}\n{}", String::from_utf8_lossy(&done.stderr), service.log());
}

fn state(service: &Service, wanted: &str) {
    eventually(wanted, || service.model("victim")["state"] == wanted);
}

/// Sees to it that the victim is served again: by the same process if it was only stopped, else by another one.
fn comes_back(case: Case, fault: Fault, holds: &Holds, pid: i32) {
    if fault == Fault::Stop {
        eventually("it is continued", || !is_stopped(pid));
        case.service.answer("victim");
        assert_eq!(crate::case::pid(&case.service, "victim"), Some(pid), "{}", case.service.log());
        return case.recovers("continued; nothing lost");
    }
    if fault == Fault::Hang {
        eventually("it is found out", || case.service.log().contains("it has not been well"));
        holds.lift("hang");
    }
    another_pid(&case.service, "victim", pid);
    case.recovers("started again");
}

#[test]
fn starting() {
    for fault in Fault::ALL {
        let holds = Holds::new();
        holds.set("hold");
        let service = Service::launch(&two(&holds, "\"freeze\""), &[]);
        eventually("it is launched", || {
            service.verb(&["status", "--json"]).status.success() && pid(&service, "victim").is_some()
        });
        let case = Case::begin(service, "CPU", fault.name(), "starting");
        let first = pid(&case.service, "victim").unwrap();
        case.strike(|_| fault.strike(&holds, first));
        if fault == Fault::Hang {
            // It is waited for until `start_timeout`: loading may take as long.
            holds.lift("hang");
            holds.lift("hold");
            case.recovers("waited for until start_timeout");
            continue;
        }
        holds.lift("hold");
        comes_back(case, fault, &holds, first);
    }
}

#[test]
fn in_the_trial() {
    for fault in Fault::ALL {
        let holds = Holds::new();
        holds.set("trial");
        let service = Service::launch(&two(&holds, "\"freeze\""), &[]);
        eventually("its trial has begun", || {
            service.verb(&["status", "--json"]).status.success()
                && service.model("victim")["stage"] == "trial"
        });
        let case = Case::begin(service, "CPU", fault.name(), "trial");
        let first = pid(&case.service, "victim").unwrap();
        case.strike(|_| fault.strike(&holds, first));
        if fault == Fault::Hang {
            // Its answer is waited for as long as a swap may take.
            holds.lift("hang");
            holds.lift("trial");
            case.recovers("waited for until swap_timeout");
            continue;
        }
        if fault == Fault::Stop {
            eventually("it is continued", || !is_stopped(first));
        }
        holds.lift("trial");
        comes_back(case, fault, &holds, first);
    }
}

#[test]
fn resident_and_idle() {
    for fault in Fault::ALL {
        let holds = Holds::new();
        let case =
            Case::begin(Service::start(&two(&holds, "\"freeze\""), &[]), "CPU", fault.name(), "resident");
        let first = pid(&case.service, "victim").unwrap();
        case.strike(|_| fault.strike(&holds, first));
        comes_back(case, fault, &holds, first);
    }
}

#[test]
fn streaming() {
    for fault in Fault::ALL {
        let holds = Holds::new();
        let case =
            Case::begin(Service::start(&two(&holds, "\"freeze\""), &[]), "CPU", fault.name(), "streaming");
        let first = pid(&case.service, "victim").unwrap();
        let mut stream = Stream::begin(&case.service);
        case.strike(|_| fault.strike(&holds, first));
        if fault == Fault::Stop {
            eventually("it is continued", || !is_stopped(first));
            assert!((0..50).all(|_| stream.piece().is_some_and(|piece| piece["error"].is_null())));
        } else {
            assert_eq!(stream.error(), "engine_failed");
        }
        drop(stream);
        comes_back(case, fault, &holds, first);
    }
}

#[test]
fn out() {
    for fault in Fault::ALL {
        let holds = Holds::new();
        let case = Case::begin(Service::start(&two(&holds, "\"freeze\""), &[]), "CPU", fault.name(), "out");
        let first = pid(&case.service, "victim").unwrap();
        swap(&case.service, "out");
        state(&case.service, "out");
        case.strike(|_| fault.strike(&holds, first));
        if fault == Fault::Stop {
            // It is stopped already: that is what being out means here.
            case.recovers("no change; comes in as ever");
            continue;
        }
        if fault == Fault::Hang {
            swap(&case.service, "in");
        }
        comes_back(case, fault, &holds, first);
    }
}

/// An order that comes while the rest of a dead engine is being ended is none for the next one.
#[test]
fn asked_out_while_what_is_left_of_it_is_ended() {
    let holds = Holds::new();
    let text = two(&holds, "\"freeze\"").replacen("--answer victim", "--answer victim --daemon", 1);
    let case = Case::begin(Service::start(&text, &[]), "CPU", "kill -9", "asked out");
    let first = pid(&case.service, "victim").unwrap();
    // The daemon that it leaves heeds no TERM: ending it takes as long as the grace.
    case.strike(|_| signal(first, Signal::SIGKILL));
    // An order that comes before its end is known meets it in a move, and that is the mechanism's loss.
    eventually("its end is known", || !Path::new(&format!("/proc/{first}")).exists());
    case.service.verb(&["swap", "out", "victim"]);
    another_pid(&case.service, "victim", first);
    case.service.answer("victim");
    assert_eq!(case.service.model("victim")["mechanism"], "freeze", "{}", case.service.log());
    case.recovers("started again; its mechanism is kept");
}

/// Swapping by hooks that take as long as the test likes.
fn in_a_move(way: &'static str, moving: &'static str) {
    for fault in Fault::ALL {
        let holds = Holds::new();
        let case = Case::begin(
            Service::start(&two(&holds, "\"hook\", \"restart\""), &[]),
            "CPU",
            fault.name(),
            moving,
        );
        let first = pid(&case.service, "victim").unwrap();
        if way == "in" {
            swap(&case.service, "out");
        }
        holds.set(way);
        std::thread::scope(|scope| {
            let service = &case.service;
            let asked = scope.spawn(|| service.verb(&["swap", way, "victim"]));
            state(service, moving);
            case.strike(|_| fault.strike(&holds, first));
            holds.lift(way);
            asked.join().unwrap();
        });
        // A hook does its work whatever the engine does; what became of the engine is seen after it.
        match (fault, way) {
            (Fault::Hang, "out") => {
                holds.lift("hang");
                case.recovers("goes out; comes in as ever");
            }
            (Fault::Stop, _) => {
                eventually("it is continued", || !is_stopped(first));
                case.recovers("continued after the move");
            }
            _ => comes_back(case, fault, &holds, first),
        }
    }
}

#[test]
fn swapping_out() {
    in_a_move("out", "swapping_out");
}

#[test]
fn swapping_in() {
    in_a_move("in", "swapping_in");
}

#[test]
fn a_process_below_the_engine() {
    for fault in [Fault::Kill, Fault::Stop] {
        let holds = Holds::new();
        let text = two(&holds, "\"freeze\"").replacen("--answer victim", "--answer victim --daemon", 1);
        let case = Case::begin(Service::start(&text, &[]), "CPU, worker", fault.name(), "resident");
        let first = pid(&case.service, "victim").unwrap();
        // A daemon that left its session: the warden has it.
        let helper = daemon_of(first);
        case.strike(|_| fault.strike(&holds, helper));
        match fault {
            Fault::Kill => eventually("it is gone", || !Path::new(&format!("/proc/{helper}")).exists()),
            _ => eventually("it is continued", || !is_stopped(helper)),
        }
        case.service.answer("victim");
        assert_eq!(pid(&case.service, "victim"), Some(first), "an engine that still answers is left alone");
        case.recovers("the engine answers and goes on");
    }
}

fn daemon_of(engine: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{engine}/stat")).unwrap();
    let warden: i32 = stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap();
    children(warden).into_iter().find(|pid| *pid != engine).expect("the warden has the daemon")
}

#[test]
fn the_warden_of_an_engine() {
    let holds = Holds::new();
    let case =
        Case::begin(Service::start(&two(&holds, "\"freeze\""), &[]), "CPU, warden", "kill -9", "resident");
    let first = pid(&case.service, "victim").unwrap();
    let stat = fs::read_to_string(format!("/proc/{first}/stat")).unwrap();
    let warden: i32 = stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap();
    case.strike(|_| signal(warden, Signal::SIGKILL));
    another_pid(&case.service, "victim", first);
    case.recovers("started again");
}

#[test]
fn a_real_engine() {
    let Some(engines) = real_engines() else { return };
    for (fault, number) in [("kill -9", Signal::SIGKILL), ("SIGSTOP", Signal::SIGSTOP)] {
        let slots = "[scheduler]\nrunning_slots = 8\n";
        let victim = counter(&engines, "alpha", "freeze")
            .replace("[models.alpha]", "[models.victim]\nhang_timeout = \"2s\"");
        let text = format!("{slots}{victim}{}", fake("other", "", ""));
        let case = Case::begin(Service::start(&text, &[]), "llama.cpp", fault, "streaming");
        let first = pid(&case.service, "victim").unwrap();
        let mut stream = Stream::begin(&case.service);
        case.strike(|_| signal(first, number));
        if number == Signal::SIGSTOP {
            eventually("it is continued", || !is_stopped(first));
            assert!((0..20).all(|_| stream.piece().is_some_and(|piece| piece["error"].is_null())));
            case.recovers("continued; the stream goes on");
        } else {
            assert_eq!(stream.error(), "engine_failed");
            another_pid(&case.service, "victim", first);
            case.recovers("error event; started again");
        }
    }
}

#[test]
fn the_users_command() {
    for (fault, script, code) in [
        ("kill -9", "kill -9 $$", 137),
        ("hang, then TERM", "trap '' HUP; sleep 1000 & wait", 143),
        // What is stopped does not hear a TERM: it is killed when its time is over.
        ("SIGSTOP, then TERM", "kill -STOP $$", 137),
    ] {
        let holds = Holds::new();
        let (dir, file) = crate::service::config(&two(&holds, "\"freeze\""));
        let mut run = crate::service::swapserve();
        run.arg("run").arg("--config").arg(&file).arg("--run-dir").arg(dir.path().join("run"));
        run.args(["--", "sh", "-c", &format!("echo $$ > {}; {script}", dir.path().join("pid").display())]);
        let mut child = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let begun = std::time::Instant::now();
        eventually("the command runs", || {
            dir.path().join("pid").exists() || child.try_wait().unwrap().is_some()
        });
        if fault.contains("SIGSTOP") {
            let stopped = || {
                let pid = fs::read_to_string(dir.path().join("pid")).unwrap_or_default();
                pid.trim().parse().is_ok_and(is_stopped)
            };
            eventually("it is stopped", stopped);
        }
        if fault.contains("TERM") {
            signal(child.id().cast_signed(), Signal::SIGTERM);
        }
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(code), "{fault}");
        assert!(!dir.path().join("run").exists());
        let mark = dir.path().to_str().unwrap().to_owned();
        eventually("nothing is left", || crate::service::processes_with(&mark).is_empty());
        println!(
            "{:28} {fault:14} {:14} ends the run with {code}, nothing left",
            "user's command", "serving"
        );
        crate::case::row(&json!({
            "engine": "user's command", "fault": fault, "state": "serving", "outcome": format!("the run ends with {code}; nothing left"),
            "requests_lost_elsewhere": 0, "seconds": begun.elapsed().as_secs_f64().round(),
        }));
    }
}
