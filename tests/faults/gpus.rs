//! Engines on the software driver's GPU, swapped by `checkpoint` slowly enough to be hit in the middle; and the gpu server.

use crate::{
    case::{Case, another_pid, children, is_stopped, pid, signal},
    gpu_bench::Bench,
    service::{Service, eventually},
};
use nix::sys::signal::Signal;
use software_gpu::config::{Gpu, Machine};

const MIB: u64 = 1 << 20;

/// One GPU of 1 GiB; 64 MiB take a second each way.
fn bench() -> Option<Bench> {
    let gpu = Gpu { bytes: 1 << 30, node: None };
    let machine =
        Machine { gpus: vec![gpu], context: 16 << 20, out_mib_s: 64, in_mib_s: 64, ..Machine::default() };
    (!crate::gpu_bench::real()).then(|| Bench::on(machine))
}

fn model(name: &str, mib: u64, more: &str) -> String {
    let engine = Bench::engine_program();
    let command =
        format!("{} --port {{{{ port }}}} --model {{{{ name }}}} --weights {}", engine.display(), mib * MIB);
    format!(
        "[models.{name}]\nengine = \"custom\"\ncommand = {command:?}\ngpus = 1\ngpu_memory = \"{}MiB\"\nhang_timeout = \"2s\"\n{more}\n",
        mib + 40
    )
}

fn two(more: &str) -> String {
    model("victim", 48, &format!("swap = [\"checkpoint\", \"restart\"]\n{more}"))
        + &model("other", 16, "swap = [\"checkpoint\", \"restart\"]\npin = true")
}

fn start(bench: &Bench) -> Service {
    Service::start_in(&two(""), &bench.environment())
}

fn swap(service: &Service, way: &str) -> bool {
    service.verb(&["swap", way, "victim"]).status.success()
}

fn state(service: &Service, wanted: &str) {
    eventually(wanted, || service.model("victim")["state"] == wanted);
}

/// The gpu server: a child of the daemon that says so on its command line.
fn gpu_server(service: &Service) -> i32 {
    let daemon = service.child.id().cast_signed();
    let is_it = |pid: &i32| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.ends_with(b"gpu-server\0"))
    };
    children(daemon).into_iter().find(is_it).expect("the daemon has a gpu server")
}

/// Brings the victim into a state and strikes there.
fn struck_in(
    service: Service,
    name: &'static str,
    fault: &'static str,
    wanted: &'static str,
    strike: impl Fn(&Service) + Sync,
) -> Case {
    let case = Case::begin(service, name, fault, wanted);
    match wanted {
        "resident" => case.strike(|service| strike(service)),
        "out" => {
            assert!(swap(&case.service, "out"), "{}", case.service.log());
            state(&case.service, "out");
            case.strike(|service| strike(service));
        }
        _ => {
            let way = if wanted == "swapping_out" { "out" } else { "in" };
            if way == "in" {
                assert!(swap(&case.service, "out"), "{}", case.service.log());
            }
            let service = &case.service;
            std::thread::scope(|scope| {
                let asked = scope.spawn(|| swap(service, way));
                state(service, wanted);
                case.strike(&strike);
                asked.join().unwrap();
            });
        }
    }
    case
}

const STATES: [&str; 4] = ["resident", "swapping_out", "out", "swapping_in"];

#[test]
fn the_engine_is_killed() {
    let Some(bench) = bench() else { return };
    for wanted in STATES {
        let service = start(&bench);
        let first = pid(&service, "victim").unwrap();
        let case =
            struck_in(service, "GPU, checkpoint", "kill -9", wanted, |_| signal(first, Signal::SIGKILL));
        another_pid(&case.service, "victim", first);
        case.recovers("started again");
    }
}

#[test]
fn the_engine_is_stopped() {
    let Some(bench) = bench() else { return };
    for wanted in STATES {
        let service = start(&bench);
        let first = pid(&service, "victim").unwrap();
        let case =
            struck_in(service, "GPU, checkpoint", "SIGSTOP", wanted, |_| signal(first, Signal::SIGSTOP));
        case.service.answer("victim");
        assert!(!is_stopped(first));
        let same = pid(&case.service, "victim") == Some(first);
        case.recovers(if same { "continued; nothing lost" } else { "given up after a while; started again" });
    }
}

#[test]
fn a_worker_of_the_engine() {
    let Some(bench) = bench() else { return };
    for (fault, number) in [("kill -9", Signal::SIGKILL), ("SIGSTOP", Signal::SIGSTOP)] {
        let text = two("").replacen("--weights", "--workers 1 --weights", 1);
        let service = Service::start_in(&text, &bench.environment());
        let first = pid(&service, "victim").unwrap();
        let worker = children(first)[0];
        let case = struck_in(service, "GPU, worker", fault, "resident", |_| signal(worker, number));
        if number == Signal::SIGKILL {
            another_pid(&case.service, "victim", first);
            case.recovers("found out; started again");
        } else {
            eventually("it is continued", || !is_stopped(worker));
            case.recovers("continued; nothing lost");
        }
    }
}

#[test]
fn the_gpu_server() {
    let Some(bench) = bench() else { return };
    for (fault, number) in [("kill -9", Signal::SIGKILL), ("SIGSTOP", Signal::SIGSTOP)] {
        for wanted in STATES {
            let service = start(&bench);
            let first = pid(&service, "victim").unwrap();
            let server = gpu_server(&service);
            let case = struck_in(service, "gpu server", fault, wanted, |_| signal(server, number));
            // The next call finds out, if no one is under way.
            let _ = (swap(&case.service, "out"), swap(&case.service, "in"));
            case.service.answer("victim");
            assert_ne!(gpu_server(&case.service), server);
            let same = pid(&case.service, "victim") == Some(first);
            case.recovers(if same {
                "replaced; the engine goes on"
            } else {
                "replaced; the engine started again"
            });
        }
    }
}

#[test]
fn a_call_of_the_gpu_server_hangs_or_is_refused() {
    let Some(bench) = bench() else { return };
    for (fault, line, wanted) in [
        ("lock hangs", "cuCheckpointProcessLock hang times=1", "swapping_out"),
        ("checkpoint crashes", "cuCheckpointProcessCheckpoint crash times=1", "swapping_out"),
        ("checkpoint refused", "cuCheckpointProcessCheckpoint error=801 times=1", "swapping_out"),
        ("restore crashes", "cuCheckpointProcessRestore crash times=1", "swapping_in"),
        ("restore refused", "cuCheckpointProcessRestore error=801 times=1", "swapping_in"),
    ] {
        bench.set_faults("");
        let service = start(&bench);
        let first = pid(&service, "victim").unwrap();
        let case = Case::begin(service, "gpu server", fault, wanted);
        if wanted == "swapping_in" {
            assert!(swap(&case.service, "out"), "{}", case.service.log());
        }
        bench.set_faults(line);
        let way = if wanted == "swapping_in" { "in" } else { "out" };
        case.strike(|service| {
            swap(service, way);
        });
        case.service.answer("victim");
        let same = pid(&case.service, "victim") == Some(first);
        case.recovers(if same { "the engine goes on" } else { "the engine started again" });
    }
    bench.set_faults("");
}

#[test]
fn a_stranger_fills_the_gpu_while_the_engine_is_out() {
    let Some(bench) = bench() else { return };
    let case = Case::begin(start(&bench), "GPU, checkpoint", "GPU is full", "out");
    let first = pid(&case.service, "victim").unwrap();
    assert!(swap(&case.service, "out"), "{}", case.service.log());
    let before = case.service.status()["capacity"]["gpu"][0].as_u64().unwrap();
    let stranger = bench.engine(&["--port", "0", "--weights", &(900 * MIB).to_string()]);
    case.strike(|service| {
        eventually("the stranger is seen", || {
            service.status()["capacity"]["gpu"][0].as_u64().unwrap() + 400 * MIB < before
        });
    });
    // It does not come in, and is not broken by a try: its request waits, or is told.
    let waiting = case.service.chat("victim", serde_json::json!({ "max_tokens": 4 }));
    let waiting = std::thread::spawn(move || waiting.send().unwrap().status().as_u16());
    assert_eq!(case.service.model("victim")["state"], "out");
    drop(stranger);
    assert!([200, 503].contains(&waiting.join().unwrap()));
    case.service.answer("victim");
    assert_eq!(pid(&case.service, "victim"), Some(first), "{}", case.service.log());
    case.recovers("stays out; comes in when there is room");
}

#[test]
fn a_stranger_fills_the_gpu_and_the_engine_is_wanted_at_once() {
    let Some(bench) = bench() else { return };
    let case = Case::begin(start(&bench), "GPU, checkpoint", "GPU is full", "wanted at once");
    let first = pid(&case.service, "victim").unwrap();
    assert!(swap(&case.service, "out"), "{}", case.service.log());
    let before = case.service.status()["capacity"]["gpu"][0].as_u64().unwrap();
    let stranger = bench.engine(&["--port", "0", "--weights", &(940 * MIB).to_string()]);
    let waiting = case.service.chat("victim", serde_json::json!({ "max_tokens": 4 }));
    let waiting = std::thread::spawn(move || waiting.send().unwrap().status().as_u16());
    // Before the ledger knows: each try finds too little free.
    let refused = |it: &serde_json::Value| {
        it["model"] == "victim"
            && it["fault"].as_str().is_some_and(|fault| fault.contains("the engine needs"))
    };
    let tries = |service: &Service| {
        service.status()["swaps"].as_array().unwrap().iter().filter(|it| refused(it)).count()
    };
    case.strike(|service| {
        eventually("it is tried twice, or known to have no room", || {
            let known = service.status()["capacity"]["gpu"][0].as_u64().unwrap() + 400 * MIB < before;
            tries(service) >= 2 || (known && service.model("victim")["state"] == "out")
        });
    });
    drop(stranger);
    assert_eq!(waiting.join().unwrap(), 200, "{}", case.service.log());
    assert_eq!(pid(&case.service, "victim"), Some(first), "{}", case.service.log());
    case.recovers("stays out; comes in when there is room");
}
