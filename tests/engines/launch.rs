//! Engines from launch to stop: real ones, and ones that misbehave.

use crate::lab::{Lab, embedder, llama, real_engines};
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use swapserve::{
    config::{ModelPlan, plan::Probe},
    engine::{Answer, LaunchError, Stage},
    process::ProcFs,
    router::gate::Upstream,
    swap::{Deps, NoGpus, Swapper},
    units::MechanismKind,
};

async fn fails(lab: &Lab, plan: ModelPlan) -> LaunchError {
    let mut engine = lab.engine(plan);
    let error = engine.launch(&|_| {}).await.expect_err("this engine cannot be started");
    assert!(engine.running().is_none(), "nothing of it is left: {error}");
    error
}

#[tokio::test]
async fn a_real_engine_answers_and_leaves_nothing() {
    let Some(real) = real_engines() else { return };
    let lab = Lab::new();
    for unix_socket in [true, false] {
        let mut engine = lab.engine(llama(&real, "org/alpha", "alpha", unix_socket));
        let stages = Mutex::new(Vec::new());
        engine.launch(&|stage| stages.lock().unwrap().push(stage)).await.expect("it starts");
        let stages = stages.into_inner().unwrap();
        assert!(matches!(stages.first(), Some(Stage::Spawned { .. })), "{stages:?}");
        assert_eq!(&stages[stages.len() - 2..], [Stage::Listening, Stage::Answered]);

        let answer = engine.probe(3, Duration::from_secs(30)).await.expect("it answers");
        assert_eq!(answer, Answer::Text(" alpha0000 alpha0001 alpha0002".into()));
        assert_eq!(matches!(engine.upstream(), Some(Upstream::Unix(_))), unix_socket);
        assert!(engine.host_memory() > swapserve::units::Bytes::mib(20));
        let key = engine.key().cloned().expect("it has a key of its own");
        assert_eq!(key.len(), 64);

        let tree = engine.tree();
        let exited = engine.exited();
        let report = engine.stop().await.expect("it can be stopped");
        assert!(report.is_clean());
        assert!(exited.await.is_some());
        assert!(tree.iter().all(|&id| ProcFs::default().same(id).is_none_or(|stat| stat.is_dead())));
        assert!(
            !std::fs::read_dir(lab.dir.path()).unwrap().any(|entry| {
                entry.unwrap().path().extension().is_some_and(|extension| extension == "sock")
            })
        );
    }
}

#[tokio::test]
async fn a_real_embedder_gives_the_same_vector_before_and_after_its_swap() {
    let Some(real) = real_engines() else { return };
    let lab = Lab::new();
    let mut engine = lab.engine(embedder(&real));
    engine.launch(&|_| {}).await.expect("it starts");
    let before = engine.probe(1, Duration::from_secs(30)).await.expect("it answers");
    assert!(matches!(&before, Answer::Vector(vector) if vector.len() == 384), "{}", before.excerpt());
    let mut swapper = Swapper::new(
        &engine.plan,
        &Deps { gpus: Arc::new(NoGpus), server: None, parking: Err("no GPU".to_owned()) },
    );
    assert_eq!(swapper.trial(&mut engine).await.expect("freeze passes").chosen, MechanismKind::Freeze);
    assert!(engine.probe(1, Duration::from_secs(30)).await.expect("it answers").same(&before));
    engine.stop().await.expect("it can be stopped");
}

#[tokio::test]
async fn an_engine_keeps_its_port_and_gets_a_new_key() {
    let lab = Lab::new();
    let plan =
        ModelPlan { api_key: true, args: vec!["--key".into(), "{{ api_key }}".into()], ..lab.fake("a", &[]) };
    let mut engine = lab.engine(plan);
    engine.launch(&|_| {}).await.expect("it starts");
    let (port, key) = (engine.upstream().cloned(), engine.key().cloned().expect("it has a key"));
    assert!(engine.log_tail(5).contains("fake engine with key ****"), "the key is blotted out");
    engine.launch(&|_| {}).await.expect("it starts again, the first one being stopped");
    assert_eq!(engine.upstream().cloned(), port);
    assert_ne!(engine.key().cloned(), Some(key));
    engine.stop().await.expect("it can be stopped");
}

#[tokio::test]
async fn a_command_that_exits_at_once_is_noticed_at_once() {
    let lab = Lab::new();
    let begun = Instant::now();
    let error = fails(&lab, lab.fake("a", &["--exit", "3"])).await;
    assert!(begun.elapsed() < Duration::from_secs(30), "long before start_timeout");
    assert!(matches!(&error, LaunchError::Exited { status, .. } if status.code() == Some(3)), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("exit code 3") && text.contains("fake: no such model") && text.contains("a.log"),
        "{text}"
    );
}

#[tokio::test]
async fn a_port_that_somebody_has_is_named() {
    let lab = Lab::new();
    let held = std::net::TcpListener::bind("127.0.0.1:0").expect("there are free ports");
    let port = held.local_addr().expect("it is bound").port().to_string();
    let error = fails(&lab, lab.fake("a", &["--port", &port])).await;
    assert!(matches!(error, LaunchError::PortTaken { .. }) && error.may_pass(), "{error}");
    assert!(error.to_string().contains("its port is taken"), "{error}");
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() {
    let lab = Lab::new();
    let plan = ModelPlan { command: vec!["no-such-engine".into()], ..lab.fake("a", &[]) };
    let error = fails(&lab, plan).await;
    assert!(!error.may_pass());
    assert!(error.to_string().contains("no no-such-engine in PATH="), "{error}");
}

#[tokio::test]
async fn an_engine_that_never_listens_runs_into_its_timeout() {
    let lab = Lab::new();
    let stages = Mutex::new(Vec::new());
    let plan = ModelPlan { start_timeout: Duration::from_secs(2), ..lab.fake("a", &["--mute"]) };
    let mut engine = lab.engine(plan);
    let error =
        engine.launch(&|stage| stages.lock().unwrap().push(stage)).await.expect_err("it never listens");
    let text = error.to_string();
    assert!(matches!(error, LaunchError::NeverReady { .. }), "{text}");
    assert!(text.contains("start_timeout") && text.contains("fake: loading, forever"), "{text}");
    let line = Stage::Loading { line: "fake: loading, forever".into() };
    assert!(stages.into_inner().unwrap().contains(&line), "its log is shown while it loads");
}

#[tokio::test]
async fn an_engine_that_refuses_the_probe_says_what_to_change() {
    let lab = Lab::new();
    let error = fails(&lab, lab.fake("a", &["--refuse", "400"])).await.to_string();
    assert!(error.contains("refused as told") && error.contains("probe = \"completion\""), "{error}");
    // A server error may pass: it is asked again until start_timeout.
    let plan = ModelPlan { start_timeout: Duration::from_secs(2), ..lab.fake("b", &["--refuse", "503"]) };
    assert!(matches!(fails(&lab, plan).await, LaunchError::NoAnswer { .. }));
}

#[tokio::test]
async fn an_engine_that_loads_behind_its_port_is_waited_for() {
    let lab = Lab::new();
    let mut engine = lab.engine(lab.fake("a", &["--loading", "0.7"]));
    engine.launch(&|_| {}).await.expect("it becomes ready");
    engine.stop().await.expect("it can be stopped");
}

#[tokio::test]
async fn embedders_and_other_kinds_have_probes_of_their_own() {
    let lab = Lab::new();
    for (probe, expected) in
        [(Probe::Embedding, Answer::Vector(vec![0.6, 0.8])), (Probe::Health, Answer::Healthy)]
    {
        let mut engine = lab.engine(ModelPlan { probe, ..lab.fake("a", &[]) });
        engine.launch(&|_| {}).await.expect("it starts");
        assert_eq!(engine.probe(1, Duration::from_secs(10)).await.expect("it answers"), expected);
        engine.stop().await.expect("it can be stopped");
    }
}

#[tokio::test]
async fn a_deaf_engine_and_its_daemon_are_ended_too() {
    let lab = Lab::new();
    let plan = ModelPlan { stop_grace: Duration::from_millis(300), ..lab.fake("a", &["--deaf", "--daemon"]) };
    let mut engine = lab.engine(plan);
    engine.launch(&|_| {}).await.expect("it starts");
    let tree = engine.tree();
    assert_eq!(tree.len(), 2, "the server and the daemon it left: {tree:?}");
    let report = engine.stop().await.expect("it can be stopped");
    assert!(report.is_clean());
    assert!(tree.iter().all(|&id| ProcFs::default().same(id).is_none_or(|stat| stat.is_dead())));
}

#[tokio::test]
async fn log_files_are_the_users_own() {
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::new();
    let mut engine = lab.engine(lab.fake("a/b c", &[]));
    engine.launch(&|_| {}).await.expect("it starts");
    assert_eq!(engine.log_path().parent(), Some(lab.dir.path()));
    let mode = std::fs::metadata(engine.log_path()).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    engine.stop().await.expect("it can be stopped");
}
