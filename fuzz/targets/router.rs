//! A router between a client and an engine, on one thread whose clock stands still while there is anything to do: waits and
//! timeouts take no time, and a run is the same each time.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    path::{Path, PathBuf},
    rc::Rc,
    sync::{
        Arc, Once,
        atomic::{AtomicU32, Ordering},
    },
    thread::LocalKey,
    time::Duration,
};
use swapserve::{
    config::DisconnectPolicy,
    router::{
        Listeners, RouterConfig,
        auth::Key,
        gate::{Denied, Gate, Lease, LocalFuture, ModelView, Upstream, Verb, VerbError},
        serve,
    },
    units::RequestId,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    runtime::Runtime,
    task::{LocalSet, spawn_local},
    time::timeout,
};

/// The client's key, and the engine's.
pub const KEY: &str = "client-key";
pub const ENGINE_KEY: &str = "engine-key";

/// The longest that a client is given, by the clock that stands still.
const PATIENCE: Duration = Duration::from_secs(600);

/// Panics so far: a runtime keeps those of its tasks to itself.
static PANICS: AtomicU32 = AtomicU32::new(0);

/// What the engine does.
#[derive(Default)]
pub struct Engine {
    /// All that came, a connection each.
    pub seen: RefCell<Vec<Vec<u8>>>,
    /// Sent as the answer, in these pieces; the connection is closed after them. Nothing: a short answer to each request.
    pub answer: RefCell<Option<Vec<Vec<u8>>>>,
}

/// A router that serves, and what surrounds it.
pub struct Rig {
    runtime: Runtime,
    local: LocalSet,
    engine: Rc<Engine>,
    gate: Rc<OneModel>,
    socket: PathBuf,
    _directory: TempDir,
}

impl Rig {
    /// This thread's, started at its first use.
    pub fn of_thread(kept: &'static LocalKey<Cell<Option<&'static Self>>>) -> &'static Self {
        kept.get().unwrap_or_else(|| {
            let rig: &'static Self = Box::leak(Box::new(Self::start()));
            kept.set(Some(rig));
            rig
        })
    }

    /// One that is up.
    fn start() -> Self {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                PANICS.fetch_add(1, Ordering::Relaxed);
                before(panic);
            }));
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .expect("a runtime can be made");
        let local = LocalSet::new();
        let directory = tempfile::tempdir().expect("a directory can be made");
        let (socket, upstream) = (directory.path().join("router.sock"), directory.path().join("engine.sock"));
        let engine = Rc::new(Engine::default());
        let gate = Rc::new(OneModel { upstream: upstream.clone(), leases: Rc::default() });
        let config = RouterConfig {
            key: Some(Key::new(KEY)),
            max_body: 64 << 10,
            header_timeout: Duration::from_secs(10),
            first_byte_timeout: None,
            idle_stream_timeout: Some(Duration::from_secs(60)),
            client_timeout: Some(Duration::from_secs(60)),
            max_connections: 64,
            close_grace: Duration::from_secs(1),
        };
        local.block_on(&runtime, async {
            let listener = UnixListener::bind(&upstream).expect("the directory is ours");
            spawn_local(play(listener, engine.clone()));
            let mut listeners = Listeners::new();
            listeners.unix(&socket).expect("the directory is ours");
            spawn_local(serve(listeners, gate.clone(), config, std::future::pending()));
        });
        Self { runtime, local, engine, gate, socket, _directory: directory }
    }

    /// Has a client send these bytes and read to the end. What it read, and what the engine saw meanwhile.
    pub fn exchange(&self, bytes: &[u8], answer: Option<Vec<Vec<u8>>>) -> (Vec<u8>, Vec<Vec<u8>>) {
        let panics = PANICS.load(Ordering::Relaxed);
        self.engine.answer.replace(answer);
        self.engine.seen.take();
        let read = self.on(async { timeout(PATIENCE, talk(&self.socket, bytes)).await.unwrap_or_default() });
        // What the client left behind comes to its end: a lease, a connection to the engine.
        self.on(async { tokio::time::sleep(Duration::from_secs(200)).await });
        assert_eq!(self.gate.leases.get(), 0, "a lease outlives its client");
        assert_eq!(PANICS.load(Ordering::Relaxed), panics, "the router panicked");
        (read, self.engine.seen.take())
    }

    fn on<T>(&self, work: impl Future<Output = T>) -> T {
        self.local.block_on(&self.runtime, work)
    }
}

async fn talk(socket: &Path, bytes: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(socket).await.expect("the router listens");
    let (mut from, mut to) = stream.split();
    let mut read = Vec::new();
    let send = async {
        // The router may have closed it before all was sent.
        let _ = to.write_all(bytes).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = from.read_to_end(&mut read) => {}
        () = send => {}
    }
    read
}

async fn play(listener: UnixListener, engine: Rc<Engine>) {
    while let Ok((stream, _)) = listener.accept().await {
        let at = engine.seen.borrow().len();
        engine.seen.borrow_mut().push(Vec::new());
        spawn_local(converse(stream, engine.clone(), at));
    }
}

async fn converse(mut stream: UnixStream, engine: Rc<Engine>, at: usize) {
    let mut answered = 0;
    loop {
        let mut buffer = Vec::with_capacity(16 << 10);
        if !matches!(stream.read_buf(&mut buffer).await, Ok(1..)) {
            return;
        }
        let whole = {
            let mut seen = engine.seen.borrow_mut();
            // A connection that is kept from one run to the next begins anew there.
            while seen.len() <= at {
                seen.push(Vec::new());
            }
            seen[at].extend_from_slice(&buffer);
            super::request::count(&seen[at])
        };
        let answer = engine.answer.borrow().clone();
        if let Some(pieces) = answer.filter(|_| whole > 0) {
            for piece in pieces {
                if stream.write_all(&piece).await.is_err() {
                    return;
                }
                tokio::task::yield_now().await;
            }
            return;
        }
        for _ in answered..whole {
            if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await.is_err() {
                return;
            }
        }
        answered = whole;
    }
}

/// The one model, always resident.
struct OneModel {
    upstream: PathBuf,
    leases: Rc<Cell<u32>>,
}

impl Gate for OneModel {
    fn lease(self: Rc<Self>, model: &str) -> LocalFuture<Result<Lease, Denied>> {
        if model != "chat" && model != "alias" {
            let known = vec!["chat".to_owned()];
            return Box::pin(std::future::ready(Err(Denied::UnknownModel { known })));
        }
        let leases = self.leases.clone();
        leases.set(leases.get() + 1);
        // Held for ever: the engine is never lost.
        let lost = tokio::sync::watch::Sender::new(false);
        Box::pin(std::future::ready(Ok(Lease {
            request: RequestId(1),
            upstream: Upstream::Unix(self.upstream.clone()),
            served_name: Arc::from("chat"),
            engine_key: Some(Arc::from(ENGINE_KEY)),
            on_disconnect: DisconnectPolicy::Cancel,
            waited: Duration::ZERO,
            swapping: Duration::ZERO,
            job_ends: None,
            lost: lost.subscribe(),
            release: Some(Box::new(move || {
                drop(lost);
                leases.set(leases.get() - 1);
            })),
        })))
    }

    fn models(&self) -> Vec<ModelView> {
        vec![ModelView {
            name: "chat".to_owned(),
            aliases: vec!["alias".to_owned()],
            state: "resident".to_owned(),
            created: 1_700_000_000,
            detail: String::new(),
        }]
    }

    fn admin(self: Rc<Self>, _model: &str, _verb: Verb) -> LocalFuture<Result<(), VerbError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn status(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    fn explain(&self, _model: &str) -> Option<serde_json::Value> {
        None
    }

    fn accepting(&self) -> bool {
        true
    }

    fn stop(&self) {}

    fn metrics(&self) -> String {
        String::new()
    }
}
