//! The mechanisms on running engines, and the ladder that chooses among them.

use crate::lab::{Lab, launched, llama, real_engines};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes as Body;
use hyper_util::rt::TokioIo;
use std::{sync::Arc, time::Duration};
use swapserve::{
    config::{Hooks, ModelPlan},
    engine::Engine,
    process::{ProcFs, State},
    router::gate::Upstream,
    scheduler::SwapMeasure,
    swap::{Deps, NoGpus, Swapper},
    units::{Bytes, MechanismKind},
};
use tokio::net::{TcpStream, UnixStream};

const LIMIT: Duration = Duration::from_secs(30);

fn no_gpus() -> Deps {
    Deps { gpus: Arc::new(NoGpus), server: None, parking: Err("no GPU".to_owned()) }
}

fn names(measure: &SwapMeasure) -> Vec<&str> {
    measure.phases.iter().map(|(name, _)| name.as_str()).collect()
}

/// A streamed completion: its text chunk by chunk.
struct Stream {
    body: hyper::body::Incoming,
    text: String,
}

impl Stream {
    async fn open(engine: &Engine, tokens: u32) -> Self {
        let request = serde_json::json!({"model": engine.plan.served_as, "prompt": "go", "max_tokens": tokens,
            "temperature": 0, "stream": true});
        let key = engine.key().expect("real engines have a key");
        let request = hyper::Request::post("/v1/completions")
            .header("host", "localhost")
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {key}"))
            .body(Full::new(Body::from(request.to_string())))
            .expect("a request");
        let response = match engine.upstream().expect("it runs") {
            Upstream::Unix(path) => {
                let io = TokioIo::new(UnixStream::connect(path).await.expect("it listens"));
                let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.expect("HTTP");
                tokio::spawn(connection);
                sender.send_request(request).await
            }
            Upstream::Tcp(at) => {
                let io = TokioIo::new(TcpStream::connect(at).await.expect("it listens"));
                let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.expect("HTTP");
                tokio::spawn(connection);
                sender.send_request(request).await
            }
        };
        Stream { body: response.expect("it answers").into_body(), text: String::new() }
    }

    /// The next bytes; false at the end.
    async fn more(&mut self) -> bool {
        let Some(frame) = self.body.frame().await else { return false };
        let frame = frame.expect("the stream is not broken");
        self.text.push_str(&String::from_utf8_lossy(frame.data_ref().expect("data")));
        true
    }

    async fn rest(mut self) -> String {
        while self.more().await {}
        let events = self.text.lines().filter_map(|line| line.strip_prefix("data: {"));
        events
            .map(|event| {
                let event: serde_json::Value = serde_json::from_str(&format!("{{{event}")).expect("JSON");
                event.pointer("/choices/0/text").and_then(|text| text.as_str()).unwrap_or_default().to_owned()
            })
            .collect()
    }
}

#[tokio::test]
async fn a_stream_that_was_frozen_goes_on_token_for_token() {
    let Some(real) = real_engines() else { return };
    let lab = Lab::new();
    for (model, tokens) in [("alpha", 2000), ("smollm2", 48)] {
        let mut engine = launched(&lab, llama(&real, model, model, true)).await;
        let uncut = Stream::open(&engine, tokens).await.rest().await;
        let mut swapper = Swapper::new(&engine.plan, &no_gpus());
        swapper.adopt(&engine).await.expect("freeze suits a CPU engine");

        let mut stream = Stream::open(&engine, tokens).await;
        while stream.text.len() < 600 {
            assert!(stream.more().await, "it is in mid-stream");
        }
        let out = swapper.swap_out(&mut engine, 1, None).await.expect("it is frozen");
        assert_eq!((out.mechanism, names(&out)), (Some(MechanismKind::Freeze), vec!["freeze"]));
        let states = engine.members().expect("/proc can be read");
        assert!(states.iter().all(|process| process.state == State::Stopped), "{states:?}");
        // What was on its way arrives; then nothing more comes.
        while tokio::time::timeout(Duration::from_millis(300), stream.more()).await.is_ok() {}
        let back = swapper.swap_in(&mut engine).await.expect("it is thawed");
        assert_eq!(names(&back), ["thaw"]);
        assert_eq!(stream.rest().await, uncut, "{model}");
        engine.stop().await.expect("it can be stopped");
    }
}

#[tokio::test]
async fn a_frozen_engine_takes_memory_and_no_slot_and_can_be_stopped() {
    let lab = Lab::new();
    let mut engine = launched(&lab, lab.fake("a", &["--daemon"])).await;
    let mut swapper = Swapper::new(&engine.plan, &no_gpus());
    let trial = swapper.trial(&mut engine).await.expect("freeze passes");
    assert_eq!(trial.chosen, MechanismKind::Freeze);
    let SwapMeasure { resident, out, .. } = &trial.measure;
    assert!(resident.host > Bytes::mib(5));
    assert_eq!((resident.slots, out.slots, out.host), (1, 0, resident.host));
    swapper.swap_out(&mut engine, 0, None).await.expect("it is frozen");
    let tree = engine.tree();
    assert_eq!(tree.len(), 2, "the daemon it left is frozen with it");
    assert!(engine.stop().await.expect("it can be stopped").is_clean());
    assert!(tree.iter().all(|&id| ProcFs::default().same(id).is_none_or(|stat| stat.is_dead())));
}

#[tokio::test]
async fn restart_frees_the_memory_and_answers_the_same() {
    let Some(real) = real_engines() else { return };
    let lab = Lab::new();
    let plan = ModelPlan { swap: vec![MechanismKind::Restart], ..llama(&real, "beta", "beta", false) };
    let mut engine = launched(&lab, plan).await;
    let before = engine.probe(8, LIMIT).await.expect("it answers");
    let mut swapper = Swapper::new(&engine.plan, &no_gpus());
    let trial = swapper.trial(&mut engine).await.expect("restart always passes");
    assert_eq!(trial.chosen, MechanismKind::Restart);
    assert!(trial.measure.resident.host > Bytes::mib(20));
    assert_eq!(trial.measure.out.host, Bytes(0));
    assert_eq!(trial.measure.resident.slots, 0);

    let first = engine.pid();
    let busy = swapper.swap_out(&mut engine, 1, None).await.expect_err("it would cut a request off");
    assert!(!busy.lost);
    swapper.swap_out(&mut engine, 0, None).await.expect("it is stopped");
    assert!(engine.running().is_none());
    let back = swapper.swap_in(&mut engine).await.expect("it is started");
    assert!(back.resident.host > Bytes::mib(20), "measured anew");
    assert_ne!(engine.pid(), first);
    assert_eq!(engine.probe(8, LIMIT).await.expect("it answers"), before);
    engine.stop().await.expect("it can be stopped");
}

#[tokio::test]
async fn hooks_are_told_about_the_engine_and_say_what_went_wrong() {
    let lab = Lab::new();
    let note = lab.path("note");
    let tell = format!("echo $SWAPSERVE_MODEL $SWAPSERVE_PID $SWAPSERVE_ADDRESS >> {}", note.display());
    let shell = |script: &str| vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()];
    let hooks = |out: &str, back: &str| Some(Hooks { out: shell(out), back: shell(back) });
    let plan =
        ModelPlan { swap: vec![MechanismKind::Hook], hooks: hooks(&tell, &tell), ..lab.fake("a", &[]) };
    let mut engine = launched(&lab, plan.clone()).await;
    let mut swapper = Swapper::new(&engine.plan, &no_gpus());
    swapper.trial(&mut engine).await.expect("both commands succeed");
    let Some(Upstream::Tcp(at)) = engine.upstream() else { panic!("it listens on a port") };
    let line = format!("a {} http://{at}\n", engine.pid().expect("it runs"));
    assert_eq!(std::fs::read_to_string(note).expect("the hooks wrote it"), line.repeat(2));
    engine.stop().await.expect("it can be stopped");

    for (out, expected) in [("echo no room >&2; exit 4", "no room"), ("sleep 60", "not done within 1.0 s")] {
        let swap_timeout = Duration::from_secs(1);
        let mut engine =
            launched(&lab, ModelPlan { hooks: hooks(out, "true"), swap_timeout, ..plan.clone() }).await;
        let mut swapper = Swapper::new(&engine.plan, &no_gpus());
        swapper.adopt(&engine).await.expect("it suits");
        let failed = swapper.swap_out(&mut engine, 0, None).await.expect_err("the command failed");
        assert!(failed.detail.contains(expected), "{failed}");
        assert!(!failed.lost, "the engine still answers");
        engine.stop().await.expect("it can be stopped");
    }
}

#[tokio::test]
async fn an_engine_that_dies_while_it_is_out_is_lost_and_leaves_nothing() {
    let lab = Lab::new();
    let mut engine = launched(&lab, lab.fake("a", &["--daemon"])).await;
    let mut swapper = Swapper::new(&engine.plan, &no_gpus());
    swapper.adopt(&engine).await.expect("freeze suits");
    swapper.swap_out(&mut engine, 0, None).await.expect("it is frozen");
    let tree = engine.tree();
    engine.running().expect("it runs").child.signal(rustix::process::Signal::KILL).expect("it can be killed");
    engine.exited().await;
    let failed = swapper.swap_in(&mut engine).await.expect_err("nobody is there to thaw");
    assert!(failed.lost, "{failed}");
    assert!(tree.iter().all(|&id| ProcFs::default().same(id).is_none_or(|stat| stat.is_dead())));
    // Killed from outside says nothing about the mechanism.
    engine.launch(&|_| {}).await.expect("it starts again");
    assert_eq!(swapper.trial(&mut engine).await.expect("freeze passes").chosen, MechanismKind::Freeze);
    engine.stop().await.expect("it can be stopped");
}

#[tokio::test]
async fn without_a_rung_that_works_the_trial_says_so() {
    let lab = Lab::new();
    let plan =
        ModelPlan { swap: vec![MechanismKind::Sleep, MechanismKind::Checkpoint], ..lab.fake("a", &[]) };
    let mut engine = launched(&lab, plan).await;
    let mut swapper = Swapper::new(&engine.plan, &no_gpus());
    let error = swapper.trial(&mut engine).await.expect_err("nothing is left").to_string();
    assert!(error.contains("no sleep of its own") && error.contains("add \"restart\""), "{error}");
    engine.stop().await.expect("it can be stopped");
}
