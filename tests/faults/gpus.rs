//! Engines on the software driver's GPU, swapped by `checkpoint` slowly enough to be hit in the middle; and the gpu server.

use crate::{
    case::{Case, Stream, another_pid, children, chosen, is_stopped, pid, signal},
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

/// How the victim is swapped.
#[derive(Clone, Copy)]
struct Way {
    mechanism: &'static str,
    /// In the rows.
    name: &'static str,
    /// Makes moves last that this driver does at once.
    slow: &'static str,
}

const WAYS: [Way; 2] = [
    Way { mechanism: "checkpoint", name: "GPU, checkpoint", slow: "" },
    Way {
        mechanism: "park",
        name: "GPU, park",
        slow: "cuMemExportToShareableHandle delay=700\ncuMemMap delay=700\n",
    },
];

/// The victim starts last, and so can be held in its start.
fn two(way: Way, more: &str) -> String {
    let swap = |mechanism: &str| format!("swap = [\"{mechanism}\", \"restart\"]\n");
    let pool = if way.mechanism == "park" { "[memory]\npool = \"256MiB\"\n" } else { "" };
    pool.to_owned()
        + &model("other", 16, &swap("checkpoint"))
        + &model("victim", 48, &(swap(way.mechanism) + more))
}

fn start(bench: &Bench, way: Way) -> Service {
    bench.set_faults("");
    if way.mechanism == "park" {
        Bench::preload_library();
    }
    Service::start_in(&two(way, ""), &bench.environment())
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

/// What a process is struck with.
const FAULTS: [(&str, Signal); 2] = [("kill -9", Signal::SIGKILL), ("SIGSTOP", Signal::SIGSTOP)];
/// The states in which the victim is struck.
const STATES: [&str; 6] = ["starting", "streaming", "resident", "swapping_out", "out", "swapping_in"];

/// A run with the victim in a state.
struct Scene {
    bench: Bench,
    service: Service,
    way: Way,
    wanted: &'static str,
    /// The victim's first process.
    first: i32,
    /// Is there for as long as the victim is held in its start.
    hold: Option<tempfile::NamedTempFile>,
}

impl Scene {
    /// The run is up, or in its victim's start; nothing where there is no software driver.
    fn set(way: Way, wanted: &'static str, workers: bool) -> Option<Self> {
        let bench = bench()?;
        if way.mechanism == "park" {
            Bench::preload_library();
        }
        // One that lost a worker in its start, and does not end, is waited for as long as that.
        let mut text = two(way, if workers { "start_timeout = \"15s\"" } else { "" });
        let victim = text.find("[models.victim]").expect("it has one");
        let mut more = |words: &str| {
            let at = victim + text[victim..].find("--weights").expect("in its command");
            text.insert_str(at, words);
        };
        if workers {
            more("--workers 1 ");
        }
        let hold = (wanted == "starting").then(|| tempfile::NamedTempFile::new().unwrap());
        let service = if let Some(hold) = &hold {
            more(&format!("--hold {} ", hold.path().display()));
            let service = Service::launch_in(&text, &[], &bench.environment());
            let log = service.dir.path().join("run/log/victim.log");
            eventually("the victim has its memory", || {
                std::fs::read_to_string(&log).is_ok_and(|text| text.contains("bytes held"))
            });
            service
        } else {
            Service::start_in(&text, &bench.environment())
        };
        let first = pid(&service, "victim").unwrap();
        Some(Self { bench, service, way, wanted, first, hold })
    }

    /// Brings the victim into the state and strikes there. A stream that was open is returned.
    fn struck(
        self,
        name: &'static str,
        fault: &'static str,
        strike: impl Fn(&Service) + Sync,
    ) -> (Bench, Case, Option<Stream>) {
        let Self { bench, service, way, wanted, hold, .. } = self;
        let case = Case::begin(service, name, fault, wanted);
        let mut stream = None;
        match wanted {
            "starting" | "resident" => case.strike(|service| strike(service)),
            "streaming" => {
                stream = Some(Stream::begin(&case.service));
                case.strike(|service| strike(service));
            }
            "out" => {
                assert!(swap(&case.service, "out"), "{}", case.service.log());
                state(&case.service, "out");
                case.strike(|service| strike(service));
            }
            _ => {
                let direction = if wanted == "swapping_out" { "out" } else { "in" };
                if direction == "in" {
                    assert!(swap(&case.service, "out"), "{}", case.service.log());
                }
                bench.set_faults(way.slow);
                let service = &case.service;
                std::thread::scope(|scope| {
                    let asked = scope.spawn(|| swap(service, direction));
                    state(service, wanted);
                    case.strike(&strike);
                    bench.set_faults("");
                    asked.join().unwrap();
                });
            }
        }
        drop(hold);
        (bench, case, stream)
    }
}

/// Every way of swapping in every state; with `workers`, of an engine that has one.
fn everywhere(fault: Option<usize>, workers: bool, mut act: impl FnMut(Scene)) {
    for (at, way) in WAYS.into_iter().enumerate() {
        for (state, wanted) in STATES.into_iter().enumerate() {
            if !chosen(at, state, fault) {
                continue;
            }
            if let Some(scene) = Scene::set(way, wanted, workers) {
                act(scene);
            }
        }
    }
}

/// One kill is not held against the mechanism.
fn not_crossed_out(service: &Service) {
    service.answer("victim");
    let row = service.model("victim");
    assert_eq!(row["crossed"].as_array().map(Vec::len), Some(0), "{row}\n{}", service.log());
}

#[test]
fn the_engine_is_killed() {
    everywhere(None, false, |scene| {
        let (first, name) = (scene.first, scene.way.name);
        let (_bench, case, stream) = scene.struck(name, "kill -9", |_| signal(first, Signal::SIGKILL));
        if let Some(mut stream) = stream {
            assert_eq!(stream.error(), "engine_failed");
        }
        another_pid(&case.service, "victim", first);
        not_crossed_out(&case.service);
        case.recovers("started again");
    });
}

#[test]
fn the_engine_is_stopped() {
    everywhere(None, false, |scene| {
        let (first, name) = (scene.first, scene.way.name);
        let (_bench, case, stream) = scene.struck(name, "SIGSTOP", |_| signal(first, Signal::SIGSTOP));
        if let Some(mut stream) = stream {
            eventually("it is continued", || !is_stopped(first));
            assert!((0..50).all(|_| stream.piece().is_some_and(|piece| piece["error"].is_null())));
        }
        case.service.answer("victim");
        assert!(!is_stopped(first));
        let same = pid(&case.service, "victim") == Some(first);
        case.recovers(if same { "continued; nothing lost" } else { "given up after a while; started again" });
    });
}

#[test]
fn a_worker_of_the_engine() {
    for (at, (fault, number)) in FAULTS.into_iter().enumerate() {
        everywhere(Some(at), true, |scene| {
            let first = scene.first;
            eventually("it has a worker", || !children(first).is_empty());
            let worker = children(first)[0];
            let name = if scene.way.mechanism == "park" { "GPU, worker of parked" } else { "GPU, worker" };
            let (_bench, case, _) = scene.struck(name, fault, |_| signal(worker, number));
            if number == Signal::SIGKILL {
                // Whatever it was to do next shows that the engine is not whole.
                case.service.chat("victim", serde_json::json!({ "max_tokens": 4 })).send().unwrap();
                another_pid(&case.service, "victim", first);
                not_crossed_out(&case.service);
                case.recovers("found out; started again");
            } else {
                case.service.answer("victim");
                assert!(!is_stopped(worker));
                let same = pid(&case.service, "victim") == Some(first);
                case.recovers(if same { "continued; nothing lost" } else { "given up; started again" });
            }
        });
    }
}

#[test]
fn the_gpu_server() {
    for (at, (fault, number)) in FAULTS.into_iter().enumerate() {
        everywhere(Some(at), false, |scene| {
            let (first, server) = (scene.first, gpu_server(&scene.service));
            let parked = scene.way.mechanism == "park";
            let name = if parked { "gpu server, parking" } else { "gpu server" };
            let (_bench, case, stream) = scene.struck(name, fault, |_| signal(server, number));
            if let Some(mut stream) = stream {
                assert!((0..50).all(|_| stream.piece().is_some_and(|piece| piece["error"].is_null())));
            }
            case.service.answer("victim");
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
        });
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
        let service = start(&bench, WAYS[0]);
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
    let case = Case::begin(start(&bench, WAYS[0]), "GPU, checkpoint", "GPU is full", "out");
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
    let case = Case::begin(start(&bench, WAYS[0]), "GPU, checkpoint", "GPU is full", "wanted at once");
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
