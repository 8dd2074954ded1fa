//! The same program, with the openai client for Python, direct to real engines and through the router: the same results.
//!
//! Needs what `scripts/engines` makes; without it the tests say so and pass.

#[expect(dead_code, reason = "the gate can do more than is asked of it here")]
#[path = "router/gate.rs"]
mod gate;

use gate::{Entry, FixedGate};
use serde_json::Value;
use std::{
    fs,
    future::Future,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    rc::Rc,
    time::{Duration, Instant},
};
use swapserve::router::{Listeners, RouterConfig, auth::Key, gate::Upstream, serve};
use tokio::{net::TcpListener, task};

/// Longest time for an engine to answer its first request.
const START: Duration = Duration::from_secs(60);

/// Where the engines are; `None` if they have not been made.
fn engines() -> Option<PathBuf> {
    let made = std::env::var_os("SWAPSERVE_ENGINES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".engines"), PathBuf::from);
    if made.join(".made").exists() {
        return Some(made);
    }
    eprintln!("skipped: there are no engines in {}; `scripts/engines` makes them", made.display());
    None
}

/// A real engine on a loopback port, killed on drop.
struct Engine {
    child: Child,
    address: SocketAddr,
}

impl Engine {
    async fn start(program: PathBuf, args: &[&str], ready: &str) -> Self {
        // The port is free again when the listener is dropped; nothing else here binds such a port.
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let child = Command::new(&program)
            .args(args)
            .args(["--host", "127.0.0.1", "--port", &free.port().to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", program.display()));
        let engine = Self { child, address: free };
        let url = engine.url(ready);
        let begun = Instant::now();
        while !reqwest::get(&url).await.is_ok_and(|answer| answer.status().is_success()) {
            assert!(begun.elapsed() < START, "{} does not answer on {url}", program.display());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        engine
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs one suite of the program and gives its results.
async fn program(engines: &Path, args: Vec<String>) -> Value {
    let mut command = Command::new(engines.join("venv/bin/python"));
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/conformance.py")).args(args);
    let output = task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn arguments(suite: &str, server: &str, key: &str, engine: &Engine) -> Vec<String> {
    let engine = engine.url("");
    let args = [suite, "--model", "tiny", "--key", key, "--base-url", server, "--engine-url", &engine];
    args.map(str::to_owned).to_vec()
}

/// A router in front of one engine, and its address.
async fn router(engine: &Engine) -> (Rc<FixedGate>, String) {
    let mut entry = Entry::new("tiny", Upstream::Tcp(engine.address));
    entry.engine_key = Some("engine-key");
    let gate = FixedGate::new(vec![entry]);
    let mut listeners = Listeners::new();
    let address = listeners.tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let config = RouterConfig {
        key: Some(Key::new("run-key")),
        max_body: 2 << 20,
        header_timeout: Duration::from_secs(10),
        first_byte_timeout: None,
        idle_stream_timeout: None,
        client_timeout: None,
        max_connections: 1000,
        close_grace: Duration::from_secs(1),
    };
    task::spawn_local(serve(listeners, gate.clone(), config, std::future::pending()));
    (gate, format!("http://{address}/v1"))
}

/// Direct and through the router; the results must be equal, check for check.
async fn compare(engines: &Path, suite: &str, engine: &Engine, router: &str) {
    let direct = program(engines, arguments(suite, &engine.url("/v1"), "engine-key", engine)).await;
    let routed = program(engines, arguments(suite, router, "run-key", engine)).await;
    let checks = direct.as_object().unwrap();
    assert!(!checks.is_empty());
    for (check, expected) in checks {
        assert_eq!(&routed[check], expected, "{check}: the router's result is on the left");
    }
}

fn run<F: Future<Output = ()>>(test: impl FnOnce(PathBuf) -> F) {
    let Some(engines) = engines() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    task::LocalSet::new().block_on(&runtime, test(engines));
}

async fn llama(engines: &Path) -> (tempfile::TempDir, Engine) {
    let directory = tempfile::tempdir().unwrap();
    let key = directory.path().join("key");
    fs::write(&key, "engine-key").unwrap();
    let model = engines.join("models/smollm2.gguf");
    let args =
        ["-m", model.to_str().unwrap(), "-a", "tiny", "-t", "1", "--api-key-file", key.to_str().unwrap()];
    let engine = Engine::start(engines.join("bin/llama-server"), &args, "/health").await;
    (directory, engine)
}

#[test]
fn chat_completions_errors_and_cancels_are_the_same_through_the_router() {
    run(async |engines| {
        let (_key, engine) = llama(&engines).await;
        let (gate, url) = router(&engine).await;
        compare(&engines, "chat", &engine, &url).await;

        let refusals = program(&engines, arguments("refusals", &url, "run-key", &engine)).await;
        for (check, raised, status) in [
            ("unknown_model", "NotFoundError", 404),
            ("a_body_that_is_no_json", "BadRequestError", 400),
            ("a_body_that_is_too_large", "APIStatusError", 413),
            ("an_unknown_path", "NotFoundError", 404),
        ] {
            assert_eq!(
                (&refusals[check]["raised"], &refusals[check]["status"]),
                (&raised.into(), &status.into())
            );
        }
        assert_eq!(refusals["unknown_model"]["body"]["code"], "model_not_found");
        assert_eq!(refusals["the_model_is_listed"], serde_json::json!([true, true]));

        gate.hold(true);
        let queue = program(&engines, arguments("queue", &url, "run-key", &engine)).await;
        assert_eq!(queue["cancelled_in_the_queue"]["raised"], "APITimeoutError");
        while gate.waiting.get() > 0 || gate.leases.get() > 0 {
            task::yield_now().await;
        }
    });
}

#[test]
fn embeddings_are_the_same_through_the_router() {
    run(async |engines| {
        let engine = Engine::start(engines.join("bin/embed-server"), &["--threads", "1"], "/v1/models").await;
        let (_gate, url) = router(&engine).await;
        compare(&engines, "embeddings", &engine, &url).await;
    });
}
