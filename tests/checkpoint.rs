//! The mechanisms `checkpoint` and `sleep+checkpoint` on a test engine that knows what must be in its memory.
//!
//! On the software driver, faults included; with `SWAPSERVE_TEST_GPU=real` the tests that need no injected fault run on
//! the machine's own GPU.

mod gpu_bench;

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gpu_bench::{Bench, spawner};
use software_gpu::config::{Gpu, Machine};
use software_gpu::record::State;
use swapserve::config::{self, ModelPlan, Preset};
use swapserve::engine::{Cookie, Engine, EngineEnv};
use swapserve::gpu::GpuClient;
use swapserve::gpu::park::call::ParkedProcess;
use swapserve::gpu::park::nodes::GpuNodes;
use swapserve::gpu::park::setup::ParkSetup;
use swapserve::swap::checkpoint::{Checkpoint, SleepCheckpoint};
use swapserve::swap::park::{Park, ParkCheckpoint};
use swapserve::swap::{Deps, Mechanism, MoveLog, Sleep, SwapError, Swapper};
use swapserve::units::{Bytes, Footprint, MechanismKind};

/// An engine under test, its mechanism and its gpu server.
struct Case {
    engine: Engine,
    mechanism: Arc<dyn Mechanism>,
    server: GpuClient,
    _directory: tempfile::TempDir,
}

impl Case {
    /// A running engine: the test engine with these arguments, and these further lines of its config.
    async fn start(bench: &Bench, arguments: &[&str], config: &str) -> Self {
        let server = bench.server();
        Self::start_on(bench, server, arguments, config, |_| {}).await
    }

    async fn start_on(
        bench: &Bench,
        server: GpuClient,
        arguments: &[&str],
        config: &str,
        adapt: impl FnOnce(&mut ModelPlan),
    ) -> Self {
        Self::start_in(bench, server, arguments, config, adapt, &[]).await
    }

    async fn start_in(
        bench: &Bench,
        server: GpuClient,
        arguments: &[&str],
        config: &str,
        adapt: impl FnOnce(&mut ModelPlan),
        environment: &[(OsString, OsString)],
    ) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let program = Bench::engine_program();
        let mut command = vec![program.display().to_string()];
        command.extend(["--port", "{{ port }}", "--model", "{{ name }}"].map(str::to_owned));
        command.extend(arguments.iter().map(|&argument| argument.to_owned()));
        let text = format!("[models.m]\nengine = \"custom\"\ncommand = {command:?}\ngpus = 1\n{config}\n");
        let plan = config::parse(Path::new("models.toml"), &text, &config::Context::default());
        let plan = plan.unwrap_or_else(|mistakes| panic!("{}", mistakes.render(false)));
        let mut plan = plan.models[0].clone();
        adapt(&mut plan);
        let inherited = std::env::vars_os()
            .chain(bench.environment().into_iter().map(|(name, value)| (name.into(), value.into())))
            .chain(environment.iter().cloned());
        let env = EngineEnv {
            spawner: spawner(),
            run_dir: directory.path().to_owned(),
            log_dir: directory.path().to_owned(),
            cookie: Cookie { name: "SWAPSERVE_TEST".into(), value: directory.path().display().to_string() },
            inherited: inherited.collect(),
            gpus: [0].into_iter().collect(),
            visible: vec![gpu_bench::first_gpu()],
            threads: 1,
            binding: None,
            gpu_memory_fraction: None,
            extra: Default::default(),
            held: None,
        };
        let mut engine = Engine::new(Arc::new(plan), env);
        engine.launch(&|_| {}).await.expect("the engine starts");
        let mechanism = Arc::new(Checkpoint::new(server.clone()));
        Self { engine, mechanism, server, _directory: directory }
    }

    /// An engine with the preload library and a gpu server with a pool, and `park+checkpoint`.
    async fn start_parkable(bench: &Bench, arguments: &[&str], config: &str) -> Self {
        let setup = ParkSetup::new(512 << 20, GpuNodes::default()).expect("a pool can be set up");
        let mut command = bench.server_command();
        command.park = Some(setup.clone());
        let server = GpuClient::start(spawner(), command);
        let preload = ("LD_PRELOAD".into(), Bench::preload_library().into_os_string());
        let more = [preload, setup.engine_environment()];
        let mut case = Self::start_in(bench, server, arguments, config, |_| {}, &more).await;
        let park = Park::new(case.server.clone(), Arc::new(case.server.clone()), true);
        case.mechanism = Arc::new(ParkCheckpoint::new(park, Checkpoint::new(case.server.clone())));
        case
    }

    /// Waits until the memory server knows something of one of the processes.
    async fn known(&self, so: impl Fn(&ParkedProcess) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let pids = self.pids();
        while !self
            .server
            .parking()
            .await
            .unwrap()
            .processes
            .iter()
            .any(|it| pids.contains(&it.pid) && so(it))
        {
            assert!(Instant::now() < deadline, "it is not known");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn out(&mut self) -> Result<Footprint, SwapError> {
        let mut log = MoveLog::new(Instant::now() + Duration::from_secs(60), 0);
        self.mechanism.swap_out(&mut self.engine, &mut log).await
    }

    async fn back(&mut self) -> Result<Footprint, SwapError> {
        self.back_within(Duration::from_secs(60)).await
    }

    async fn back_within(&mut self, limit: Duration) -> Result<Footprint, SwapError> {
        let mut log = MoveLog::new(Instant::now() + limit, 0);
        self.mechanism.swap_in(&mut self.engine, &mut log).await
    }

    /// Every byte of every process is what it was.
    async fn intact(&self) {
        let reply = self.engine.control(http::Method::GET, "/check", None, Duration::from_secs(20)).await;
        let reply = reply.expect("the engine answers");
        assert_eq!(reply.status.as_u16(), 200, "{}", reply.excerpt());
    }

    /// Processes of the engine, the root first.
    fn pids(&self) -> Vec<i32> {
        self.engine.tree().iter().map(|id| id.pid).collect()
    }

    fn deps(&self) -> Deps {
        Deps {
            gpus: Arc::new(self.server.clone()),
            server: Some(self.server.clone()),
            parking: Err("not here".to_owned()),
        }
    }
}

#[tokio::test]
async fn out_it_holds_nothing_and_back_it_is_the_same() {
    let bench = Bench::any();
    let mut case = Case::start(&bench, &["--weights", "128MiB"], "").await;
    case.mechanism.suits(&case.engine).await.unwrap();
    let before = case.engine.probe(16, Duration::from_secs(10)).await.unwrap();
    for _ in 0..3 {
        let out = case.out().await.unwrap();
        assert_eq!(out.gpu.iter().copied().sum::<Bytes>(), Bytes(0));
        assert!(out.host >= Bytes::mib(128), "{:?}", out.host);
        let held = case.server.process_memory().await.unwrap();
        assert!(held.iter().all(|it| !case.pids().contains(&it.pid) || it.bytes == Some(0)), "{held:?}");
        let resident = case.back().await.unwrap();
        assert!(resident.gpu[0] >= Bytes::mib(128));
        assert!(case.engine.probe(16, Duration::from_secs(10)).await.unwrap().same(&before));
    }
    case.intact().await;
}

#[tokio::test]
async fn an_engine_of_several_processes_moves_as_one() {
    let bench = Bench::any();
    let mut case = Case::start(&bench, &["--workers", "2"], "swap = [\"checkpoint\"]").await;
    case.mechanism.suits(&case.engine).await.unwrap();
    let out = case.out().await.unwrap();
    assert!(out.host >= Bytes::mib(3 * 64));
    case.back().await.unwrap();
    case.intact().await;
}

#[tokio::test]
async fn a_stream_in_the_middle_goes_on() {
    let bench = Bench::any();
    let mut case = Case::start(&bench, &[], "").await;
    let body = serde_json::json!({"model": "m", "prompt": "x", "max_tokens": 300, "stream": true});
    let asked = case
        .engine
        .control(http::Method::POST, "/v1/completions", Some(&body), Duration::from_secs(30))
        .await;
    let uncut = asked.expect("a stream").excerpt();
    let mut log = MoveLog::new(Instant::now() + Duration::from_secs(60), 1);
    let upstream = case.engine.upstream().expect("it runs").clone();
    let cut = tokio::spawn(stream(upstream, body));
    case.mechanism.swap_out(&mut case.engine, &mut log).await.unwrap();
    case.back().await.unwrap();
    let cut = cut.await.expect("the stream ends");
    assert!(cut.contains("[DONE]") && cut.matches("data:").count() == 301, "{uncut}\n{cut}");
}

async fn stream(upstream: swapserve::router::gate::Upstream, body: serde_json::Value) -> String {
    let swapserve::router::gate::Upstream::Tcp(address) = upstream else { panic!("a TCP engine") };
    let client = reqwest::Client::new();
    let reply = client.post(format!("http://{address}/v1/completions")).body(body.to_string()).send().await;
    reply.expect("an answer").text().await.expect("a whole stream")
}

#[tokio::test]
async fn one_process_that_cannot_be_locked_leaves_all_running() {
    let Some(bench) = Bench::software(1) else { return };
    let mut case = Case::start(&bench, &["--workers", "2"], "swap = [\"checkpoint\"]").await;
    let last = *case.pids().last().expect("it runs");
    bench.set_faults(&format!("cuCheckpointProcessLock error=600 target={last}"));
    let error = case.out().await.unwrap_err();
    assert!(error.unharmed && error.stage == "lock", "{error}");
    case.intact().await;
}

#[tokio::test]
async fn a_lock_that_times_out_in_a_call_leaves_all_running() {
    let Some(bench) = Bench::software(1) else { return };
    let mut case = Case::start(&bench, &["--workers", "1"], "swap = [\"checkpoint\"]").await;
    let worker = *case.pids().last().expect("it runs");
    bench.set_faults(&format!("cuMemcpyDtoH_v2 delay=3000 times=1 pid={worker}"));
    let upstream = case.engine.upstream().expect("it runs").clone();
    let body = serde_json::json!({"max_tokens": 4, "stream": false});
    let busy = tokio::spawn(stream(upstream, body));
    let entered = || {
        bench
            .lab()
            .expect("software")
            .table()
            .find(worker)
            .is_some_and(|it| it.in_flight.load(std::sync::atomic::Ordering::SeqCst) > 0)
    };
    gpu_bench::until("the worker is inside the driver", entered).await;
    let mut log = MoveLog::new(Instant::now() + Duration::from_millis(500), 1);
    let error = case.mechanism.swap_out(&mut case.engine, &mut log).await.unwrap_err();
    assert!(error.unharmed && error.stage == "lock", "{error}");
    busy.await.expect("the request that was in the driver ends");
    case.intact().await;
}

#[tokio::test]
async fn one_process_that_cannot_be_checkpointed_brings_all_back() {
    let Some(bench) = Bench::software(1) else { return };
    let mut case = Case::start(&bench, &["--workers", "2"], "swap = [\"checkpoint\"]").await;
    let last = *case.pids().last().expect("it runs");
    bench.set_faults(&format!("cuCheckpointProcessCheckpoint error=801 target={last}"));
    let error = case.out().await.unwrap_err();
    assert!(error.unharmed && error.stage == "checkpoint", "{error}");
    case.intact().await;
}

#[tokio::test]
async fn a_gpu_server_killed_in_any_state_costs_no_engine() {
    let Some(bench) = Bench::software(1) else { return };
    for call in ["Lock", "Checkpoint", "Restore", "Unlock"] {
        let mut case = Case::start(&bench, &["--workers", "1"], "swap = [\"checkpoint\"]").await;
        bench.set_faults(&format!("cuCheckpointProcess{call} crash times=1"));
        match case.out().await {
            Ok(_) => case.back().await.map(drop).unwrap_or_else(|error| panic!("{call}: {error}")),
            Err(error) => assert!(error.unharmed, "{call}: {error}"),
        }
        assert_eq!(case.server.generation(), 2, "{call}");
        bench.set_faults("");
        case.intact().await;
        case.out().await.unwrap();
        case.back().await.unwrap();
        case.intact().await;
    }
}

/// Killed while the engine is resident, and while it is out.
#[tokio::test]
async fn a_gpu_server_killed_between_moves_costs_no_engine() {
    let bench = Bench::any();
    let mut case = Case::start(&bench, &["--workers", "1"], "swap = [\"checkpoint\"]").await;
    case.server.ping().await.unwrap();
    for _ in 0..2 {
        bench.kill_server(&case.server).await;
        case.out().await.unwrap();
        bench.kill_server(&case.server).await;
        case.back().await.unwrap();
        case.intact().await;
    }
    assert_eq!(case.server.generation(), 5);
}

/// The driver finishes a move by itself when the gpu server that asked for it is killed.
#[tokio::test]
async fn a_gpu_server_killed_in_mid_move_costs_no_engine() {
    let bench = if gpu_bench::real() { Bench::any() } else { Bench::slow() };
    let weights = if gpu_bench::real() { "4GiB" } else { "64MiB" };
    let mut case = Case::start(&bench, &["--weights", weights], "").await;
    let limit = Duration::from_millis(250);
    let mut log = MoveLog::new(Instant::now() + limit, 0);
    let error = case.mechanism.swap_out(&mut case.engine, &mut log).await.unwrap_err();
    assert!(error.unharmed && error.stage == "checkpoint", "{error}");
    assert_eq!(case.server.generation(), 2);
    case.intact().await;
    case.out().await.unwrap();
    case.back_within(limit).await.unwrap();
    assert_eq!(case.server.generation(), 3);
    case.intact().await;
}

#[tokio::test]
async fn a_restore_with_too_little_memory_never_starts() {
    let bench = Bench::any();
    let mut case = Case::start(&bench, &["--weights", "256MiB"], "").await;
    case.out().await.unwrap();
    // Another engine takes all but 64 MiB of what the first one needs.
    let free = case.server.memory(0).await.unwrap().free;
    let context = if gpu_bench::real() { 600 << 20 } else { 16 << 20 };
    let hog = bench.engine(&["--weights", &format!("{}MiB", (free - context - (64 << 20)) >> 20)]);
    let error = case.back_within(Duration::from_millis(500)).await.unwrap_err();
    assert!(error.unharmed && error.stage == "confirm", "{error}");
    assert!(error.reason.contains("needs"), "{error}");
    drop(hog);
    case.back().await.unwrap();
    case.intact().await;
}

#[tokio::test]
async fn what_was_parked_too_needs_room_before_the_rest_is_restored() {
    let bench = Bench::any();
    let mut case = Case::start_parkable(&bench, &["--weights", "256MiB"], "").await;
    case.known(|process| process.here > 0).await;
    case.mechanism.suits(&case.engine).await.unwrap();
    case.out().await.unwrap();
    // Room for the context and no more.
    let free = case.server.memory(0).await.unwrap().free;
    let context = if gpu_bench::real() { 600 << 20 } else { 16 << 20 };
    let hog = bench.engine(&["--weights", &format!("{}MiB", (free - 2 * context - (64 << 20)) >> 20)]);
    let error = case.back_within(Duration::from_millis(500)).await.unwrap_err();
    assert!(error.unharmed && error.stage == "confirm", "{error}");
    drop(hog);
    case.back().await.unwrap();
    case.intact().await;
}

#[tokio::test]
async fn one_that_is_known_to_have_opened_memory_of_another_is_not_checkpointed() {
    let Some(bench) = Bench::software(1) else { return };
    let arguments = ["--weights", "64MiB", "--imported"];
    let mut case = Case::start_parkable(&bench, &arguments, "swap = [\"park+checkpoint\"]").await;
    case.known(|process| process.imported > 0).await;
    let reason = case.mechanism.suits(&case.engine).await.unwrap_err();
    assert!(reason.contains("has opened memory of another process"), "{reason}");
    let error = case.out().await.unwrap_err();
    assert!(error.unharmed && error.stage == "find", "{error}");
    case.intact().await;
}

#[tokio::test]
async fn a_process_that_dies_in_mid_checkpoint_loses_its_engine_and_no_other() {
    let Some(bench) = Bench::software(1) else { return };
    let mut other = Case::start(&bench, &[], "").await;
    let server = other.server.clone();
    let mut case =
        Case::start_on(&bench, server, &["--workers", "1"], "swap = [\"checkpoint\"]", |_| {}).await;
    let worker = *case.pids().last().expect("it runs");
    bench.set_faults(&format!("cuCheckpointProcessCheckpoint kill-target target={worker}"));
    let error = case.out().await.unwrap_err();
    assert!(!error.unharmed, "{error}");
    bench.set_faults("");
    other.out().await.unwrap();
    other.back().await.unwrap();
    other.intact().await;
    assert_eq!(other.server.generation(), 1);
}

/// Somebody kills a worker in mid-move; the second time it may well be the mechanism.
#[tokio::test]
async fn a_mechanism_is_crossed_out_when_a_second_process_dies_in_its_moves() {
    let Some(bench) = Bench::software(1) else { return };
    let arguments = ["--workers", "1"];
    let mut case = Case::start(&bench, &arguments, "swap = [\"checkpoint\", \"restart\"]").await;
    let mut swapper = Swapper::new(&case.engine.plan, &case.deps());
    for chosen in [MechanismKind::Checkpoint, MechanismKind::Checkpoint, MechanismKind::Restart] {
        let trial = swapper.trial(&mut case.engine).await.unwrap();
        assert_eq!(trial.chosen, chosen, "{:?}", swapper.crossed());
        if chosen == MechanismKind::Restart {
            break;
        }
        assert!(swapper.crossed().is_empty(), "{:?}", swapper.crossed());
        let worker = *case.pids().last().expect("it runs");
        bench.set_faults(&format!("cuCheckpointProcessCheckpoint kill-target target={worker}"));
        let failed = swapper.swap_out(&mut case.engine, 0, None).await.unwrap_err();
        assert!(failed.lost && !case.engine.is_alive(), "{failed}");
        bench.set_faults("");
        case.engine.launch(&|_| {}).await.expect("it starts again");
    }
    let [(MechanismKind::Checkpoint, _)] = swapper.crossed() else { panic!("{:?}", swapper.crossed()) };
}

#[tokio::test]
async fn a_mechanism_in_whose_trial_a_process_dies_is_tried_once_more() {
    let Some(bench) = Bench::software(1) else { return };
    for (times, chosen) in [("times=1", MechanismKind::Checkpoint), ("", MechanismKind::Restart)] {
        let mut case = Case::start(&bench, &[], "swap = [\"checkpoint\", \"restart\"]").await;
        let root = case.engine.pid();
        let mut swapper = Swapper::new(&case.engine.plan, &case.deps());
        bench.set_faults(&format!("cuCheckpointProcessCheckpoint kill-target {times}"));
        let trial = swapper.trial(&mut case.engine).await.unwrap();
        bench.set_faults("");
        assert_eq!(trial.chosen, chosen, "{:?}", swapper.crossed());
        assert_ne!(case.engine.pid(), root);
        case.intact().await;
    }
}

#[tokio::test]
async fn the_trial_says_why_not_and_loses_nobody() {
    let bench = Bench::any();
    for (kind, arguments, chosen, word) in [
        ("plain", &[][..], MechanismKind::Checkpoint, ""),
        (
            "managed",
            &["--managed"][..],
            MechanismKind::Restart,
            if gpu_bench::real() { "managed" } else { "801" },
        ),
        ("imported", &["--imported"][..], MechanismKind::Restart, "cannot be restored"),
    ] {
        let mut case = Case::start(&bench, arguments, "").await;
        let root = case.engine.pid();
        let mut swapper = Swapper::new(&case.engine.plan, &case.deps());
        let trial = swapper.trial(&mut case.engine).await.unwrap();
        println!("{kind}: {}, {:?}", trial.chosen, swapper.crossed());
        assert_eq!(trial.chosen, chosen, "{kind}: {:?}", swapper.crossed());
        let reason = swapper.crossed().iter().find(|(kind, _)| *kind == MechanismKind::Checkpoint);
        assert!(word.is_empty() || reason.is_some_and(|(_, text)| text.contains(word)), "{kind}: {reason:?}");
        assert_eq!(case.engine.pid(), root, "{kind}: it was lost");
        case.intact().await;
    }
}

/// A restore of four seconds against a start of a fraction of one.
#[tokio::test]
async fn a_swap_in_that_is_much_slower_than_a_start_is_not_chosen_unless_it_is_named() {
    if gpu_bench::real() {
        return;
    }
    let gpu = Gpu { bytes: 1 << 30, node: None };
    let bench = Bench::on(Machine { gpus: vec![gpu], in_mib_s: 8, ..Machine::default() });
    for (config, chosen) in
        [("", MechanismKind::Restart), ("swap = \"checkpoint\"", MechanismKind::Checkpoint)]
    {
        let mut case = Case::start(&bench, &["--weights", "32MiB"], config).await;
        let root = case.engine.pid();
        let mut swapper = Swapper::new(&case.engine.plan, &case.deps());
        let trial = swapper.trial(&mut case.engine).await.unwrap();
        assert_eq!(trial.chosen, chosen, "{:?}", swapper.crossed());
        let reason = swapper.crossed().iter().find(|(kind, _)| *kind == MechanismKind::Checkpoint);
        assert_eq!(reason.is_some_and(|(_, text)| text.starts_with("it works, but")), config.is_empty());
        assert_eq!(case.engine.pid(), root);
        case.intact().await;
    }
}

#[tokio::test]
async fn an_engine_that_sleeps_first_leaves_nothing() {
    let bench = Bench::any();
    let arguments = ["--weights", "64MiB", "--cache", "512MiB", "--enable-sleep-mode"];
    let asleep_first = |plan: &mut ModelPlan| {
        plan.engine = Preset::Vllm;
        plan.swap = vec![MechanismKind::SleepCheckpoint];
    };
    let config = "env = { VLLM_SERVER_DEV_MODE = \"1\" }";
    let mut case = Case::start_on(&bench, bench.server(), &arguments, config, asleep_first).await;
    let mut swapper = Swapper::new(&case.engine.plan, &case.deps());
    let trial = swapper.trial(&mut case.engine).await.unwrap();
    assert_eq!(trial.chosen, MechanismKind::SleepCheckpoint, "{:?}", swapper.crossed());
    let out = swapper.swap_out(&mut case.engine, 0, None).await.unwrap().out;
    assert_eq!(out.gpu.iter().copied().sum::<Bytes>(), Bytes(0));
    swapper.swap_in(&mut case.engine).await.unwrap();
    case.intact().await;
}

#[tokio::test]
async fn what_was_slept_away_too_needs_room_before_the_rest_is_restored() {
    let bench = Bench::any();
    let arguments = ["--weights", "64MiB", "--cache", "256MiB", "--enable-sleep-mode"];
    let config = "env = { VLLM_SERVER_DEV_MODE = \"1\" }";
    let vllm = |plan: &mut ModelPlan| plan.engine = Preset::Vllm;
    let mut case = Case::start_on(&bench, bench.server(), &arguments, config, vllm).await;
    let (sleep, rest) = (Sleep::new(Arc::new(case.server.clone())), Checkpoint::new(case.server.clone()));
    case.mechanism = Arc::new(SleepCheckpoint::new(sleep, rest));
    case.mechanism.suits(&case.engine).await.unwrap();
    case.out().await.unwrap();
    // Room for the context and the weights, and no more.
    let free = case.server.memory(0).await.unwrap().free;
    let context = if gpu_bench::real() { 600 << 20 } else { 16 << 20 };
    let hog = bench.engine(&["--weights", &format!("{}MiB", (free - 2 * context - (128 << 20)) >> 20)]);
    let error = case.back_within(Duration::from_millis(500)).await.unwrap_err();
    assert!(error.unharmed && error.short && error.stage == "confirm", "{error}");
    drop(hog);
    case.back().await.unwrap();
    case.intact().await;
}

#[tokio::test]
async fn what_is_out_is_frozen_and_checkpointed() {
    let Some(bench) = Bench::software(1) else { return };
    let mut case = Case::start(&bench, &[], "").await;
    case.out().await.unwrap();
    let pid = case.engine.pid().expect("it runs");
    gpu_bench::until("the engine is stopped", || software_gpu::record::stopped(pid)).await;
    let record = bench.lab().expect("software").table().find(pid).expect("it uses CUDA");
    assert_eq!(record.state(), State::Checkpointed);
    case.back().await.unwrap();
    case.intact().await;
}
