//! The OpenAI-compatible endpoint: listen, peek at the model, forward, stream, account.
//!
//! The router knows nothing of swapping. It asks its [`gate::Gate`] for a lease on an engine that answers, forwards the
//! request's bytes unchanged, and gives the lease back after the last byte.
//!
//! ```text
//!  listen ─► serve: key, allow-list ─► own      models, health, metrics, admin verbs, peers' APIs
//!                       │
//!                       └─► forward: intake ─► peek ─► gate.lease ─► exchange ─► stream ─► client
//!                                                                       │
//!                                                                      pool
//! ```
//!
//! Everything runs on one thread, in the task of the client's connection; a client that goes away drops its request's
//! future, and with it the place in the queue or the exchange with the engine. A stranger adds a path in [`routes`],
//! an error in [`errors`], an answer of the router's own in [`own`].

pub mod auth;
pub mod body;
pub mod errors;
pub mod exchange;
pub mod forward;
pub mod gate;
pub mod headers;
pub mod intake;
pub mod listen;
pub mod multipart;
pub mod newcomers;
pub mod own;
pub mod patient;
pub mod peek;
pub mod percent;
pub mod pool;
pub mod rewrite;
pub mod routes;
pub mod serve;
pub mod socket;
pub mod stream;
pub mod upgrade;

use crate::{
    config::plan::RouterPlan,
    observe::metrics::{ModelMetrics, RouterMetrics},
};
use auth::Key;
use exchange::Exchanges;
use gate::Gate;
use http::HeaderValue;
pub use listen::Listeners;
use newcomers::Newcomers;
pub use serve::serve;
use std::{collections::HashMap, rc::Rc, sync::Arc, time::Duration};
use stream::{Awaited, Silence};
use tokio::sync::watch;

/// Of the places for clients, those that connections which have not shown the key never take, at most.
const KEPT_PLACES: u32 = 64;

/// What the router is told at its start.
#[derive(Clone, Debug)]
pub struct RouterConfig {
    /// The key requests must bring; `None`: all are admitted.
    pub key: Option<Key>,
    /// Largest request body, bytes.
    pub max_body: u64,
    /// Longest time for a request's headers, and for a kept connection to stay idle; also the first grace for its body.
    pub header_timeout: Duration,
    /// Longest time that a resident engine may take to begin its answer.
    pub first_byte_timeout: Option<Duration>,
    /// Longest silence of a resident engine in mid-stream.
    pub idle_stream_timeout: Option<Duration>,
    /// Longest time in which a client may take nothing of what is there for it.
    pub client_timeout: Option<Duration>,
    /// Clients' connections at once; further ones wait in the kernel's queue.
    pub max_connections: u32,
    /// After the shutdown begins, time for the last bytes to reach the clients.
    pub close_grace: Duration,
}

impl RouterConfig {
    /// As `[router]` says, with the run's key.
    pub fn new(plan: &RouterPlan, key: Option<Key>) -> Self {
        Self {
            key,
            max_body: plan.max_body.0,
            header_timeout: plan.header_timeout,
            first_byte_timeout: plan.first_byte_timeout,
            idle_stream_timeout: plan.idle_stream_timeout,
            client_timeout: plan.client_timeout,
            max_connections: listen::bearable_connections(),
            close_grace: Duration::from_secs(1),
        }
    }
}

/// What all connections share.
pub struct Router {
    gate: Rc<dyn Gate>,
    config: RouterConfig,
    exchanges: Rc<Exchanges>,
    metrics: RouterMetrics,
    newcomers: Rc<Newcomers>,
    /// By every name a request may give.
    models: HashMap<String, Known>,
    /// Turns true when the router shuts down.
    ending: watch::Receiver<bool>,
}

/// What is kept ready for each model.
#[derive(Clone)]
struct Known {
    name: Arc<str>,
    header: HeaderValue,
    metrics: Rc<ModelMetrics>,
}

impl Router {
    fn new(
        gate: Rc<dyn Gate>,
        config: RouterConfig,
        exchanges: Rc<Exchanges>,
        ending: watch::Receiver<bool>,
    ) -> Self {
        let metrics = RouterMetrics::default();
        let mut models = HashMap::new();
        for view in gate.models() {
            let Ok(header) = HeaderValue::from_bytes(view.name.as_bytes()) else { continue };
            let known = Known { name: Arc::from(&*view.name), header, metrics: metrics.model(&view.name) };
            for name in view.aliases.into_iter().chain([view.name]) {
                models.insert(name, known.clone());
            }
        }
        let most = match config.key {
            Some(_) => config.max_connections - KEPT_PLACES.min(config.max_connections / 4),
            None => u32::MAX,
        };
        Self { gate, config, exchanges, metrics, newcomers: Newcomers::new(most as usize), models, ending }
    }

    fn known(&self, model: &str) -> Option<&Known> {
        self.models.get(model)
    }

    /// Watches a model's engine for silence, where there is a limit to it.
    fn silence(&self, known: Option<&Known>, limit: Option<Duration>, awaited: Awaited) -> Option<Silence> {
        let (known, limit) = known.zip(limit)?;
        Some(Silence::new(self.gate.clone(), known.name.clone(), limit, awaited))
    }

    fn bounds(&self) -> intake::Bounds {
        intake::Bounds { max_body: self.config.max_body, grace: self.config.header_timeout }
    }
}
