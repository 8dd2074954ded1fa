//! One router with its test engine and gate, on one thread.

use crate::{
    client::Client,
    engine::{Step, TestEngine},
    gate::{Entry, FixedGate},
};
use std::{future::Future, net::SocketAddr, path::PathBuf, rc::Rc, time::Duration};
use swapserve::router::{Listeners, RouterConfig, auth::Key, serve};
use tokio::{sync::oneshot, task, time::timeout};

/// Nothing here takes long; what hangs fails.
const DEADLINE: Duration = Duration::from_secs(30);

/// The router under test and what surrounds it.
pub struct Bed {
    pub address: SocketAddr,
    pub socket: PathBuf,
    pub gate: Rc<FixedGate>,
    pub engine: TestEngine,
    end: Option<oneshot::Sender<()>>,
    served: task::JoinHandle<()>,
    _directory: tempfile::TempDir,
}

/// How a test's router differs from the usual one.
pub struct Setup {
    pub config: RouterConfig,
    /// Changes the one model's entry.
    pub entry: fn(&mut Entry),
}

impl Default for Setup {
    fn default() -> Self {
        let config = RouterConfig {
            key: Some(Key::new("test-key")),
            max_body: 1 << 20,
            header_timeout: Duration::from_secs(10),
            first_byte_timeout: None,
            idle_stream_timeout: None,
            client_timeout: None,
            max_connections: 1000,
            close_grace: Duration::from_secs(5),
        };
        Self { config, entry: |_| {} }
    }
}

impl Bed {
    async fn start(setup: Setup, scripts: Vec<Vec<Step>>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let engine_socket = directory.path().join("engine.sock");
        let engine = TestEngine::start(&engine_socket, scripts);
        let mut entry = Entry::unix("chat", &engine_socket);
        (setup.entry)(&mut entry);
        let gate = FixedGate::new(vec![entry]);
        let mut listeners = Listeners::new();
        let address = listeners.tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let socket = directory.path().join("router.sock");
        listeners.unix(&socket).unwrap();
        let (end, ended) = oneshot::channel();
        let shutdown = async { drop(ended.await) };
        let served = task::spawn_local(serve(listeners, gate.clone(), setup.config, shutdown));
        Self { address, socket, gate, engine, end: Some(end), served, _directory: directory }
    }

    pub async fn client(&self) -> Client {
        Client::tcp(self.address).await
    }

    /// Begins the router's shutdown.
    pub fn end(&mut self) {
        drop(self.end.take());
    }

    /// Waits for `serve` to return.
    pub async fn ended(&mut self) {
        self.end();
        (&mut self.served).await.unwrap();
    }

    /// Lets other tasks run until `done`.
    pub async fn until(&self, done: impl Fn(&FixedGate) -> bool) {
        while !done(&self.gate) {
            task::yield_now().await;
        }
    }
}

/// Runs a test on the usual bed.
pub fn run<F: Future<Output = ()>>(scripts: Vec<Vec<Step>>, test: impl FnOnce(Bed) -> F) {
    run_with(Setup::default(), scripts, test);
}

/// Runs a test on a bed of its own.
pub fn run_with<F: Future<Output = ()>>(setup: Setup, scripts: Vec<Vec<Step>>, test: impl FnOnce(Bed) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    task::LocalSet::new().block_on(&runtime, async {
        timeout(DEADLINE, async { test(Bed::start(setup, scripts).await).await }).await.expect("it hangs");
    });
}
