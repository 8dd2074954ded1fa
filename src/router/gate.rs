//! The router's view of the daemon: admission of requests, leases on engines, and the admin verbs.
//!
//! Everything here runs on the one thread of the data path; nothing is `Send`, nothing locks. The daemon implements
//! [`Gate`] over the scheduler; tests implement it over a fixed table.

use crate::{config::DisconnectPolicy, scheduler::Rejection, units::RequestId};
use serde::Serialize;
use std::{future::Future, path::PathBuf, pin::Pin, rc::Rc, sync::Arc, time::Duration};

/// A future on the data path's own thread.
pub type LocalFuture<T> = Pin<Box<dyn Future<Output = T>>>;

/// Where an engine listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Upstream {
    /// A Unix socket in the run directory.
    Unix(PathBuf),
    /// A loopback port.
    Tcp(std::net::SocketAddr),
}

/// A request's hold on a resident engine, from dispatch to its last byte. Dropping it releases it.
pub struct Lease {
    /// The request it belongs to.
    pub request: RequestId,
    /// Where to forward.
    pub upstream: Upstream,
    /// Name the engine serves the model under; differs from what the client sent if that was an alias.
    pub served_name: Arc<str>,
    /// The engine's own key, sent as `Authorization: Bearer`.
    pub engine_key: Option<Arc<str>>,
    /// What to do when the client goes away.
    pub on_disconnect: DisconnectPolicy,
    /// From arrival to dispatch.
    pub waited: Duration,
    /// The part of `waited` in which the model was being swapped in.
    pub swapping: Duration,
    /// Time until the job's end, where that is near.
    pub job_ends: Option<Duration>,
    /// Resolves when the engine was lost and nothing more will come from it.
    pub lost: tokio::sync::watch::Receiver<bool>,
    /// Runs on drop: tells the scheduler. Boxed so that the daemon's types stay out of the router.
    pub release: Option<Box<dyn FnOnce()>>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(release) = self.release.take() {
            release();
        }
    }
}

/// Why there is no lease.
#[derive(Clone, Debug, PartialEq)]
pub enum Denied {
    /// No model of that name.
    UnknownModel {
        /// The names that exist.
        known: Vec<String>,
    },
    /// The scheduler's reason.
    Rejected(Rejection),
}

/// A model as `/v1/models` and the admin API show it.
#[derive(Clone, Debug, Serialize)]
pub struct ModelView {
    /// Its name.
    pub name: String,
    /// Its other names.
    pub aliases: Vec<String>,
    /// Scheduler state in lower case: `cold`, `starting`, `resident`, `swapping_out`, `out`, `swapping_in`, `failed`, `stopped`.
    pub state: String,
    /// Unix time the run began to offer it, seconds.
    pub created: u64,
    /// Why it is in that state, for people.
    pub detail: String,
}

/// An admin verb on a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Make it resident.
    In,
    /// Make it go out.
    Out,
    /// Never choose it as a victim.
    Pin,
    /// The opposite.
    Unpin,
}

impl Verb {
    /// As paths and answers spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
            Self::Pin => "pin",
            Self::Unpin => "unpin",
        }
    }
}

/// What the router asks of the daemon.
pub trait Gate {
    /// Admits a request for `model` and waits for its lease. Dropping the future takes it out of the queue.
    fn lease(self: Rc<Self>, model: &str) -> LocalFuture<Result<Lease, Denied>>;
    /// The models in config order.
    fn models(&self) -> Vec<ModelView>;
    /// Whether a model is resident now; while it is not, silence of its engine means nothing.
    fn is_resident(&self, model: &str) -> bool {
        self.models().iter().any(|m| m.name == model && m.state == "resident")
    }
    /// Carries out an admin verb and waits for its outcome.
    fn admin(self: Rc<Self>, model: &str, verb: Verb) -> LocalFuture<Result<(), VerbError>>;
    /// The whole state of the run as JSON (`swapserve status --json`).
    fn status(&self) -> serde_json::Value;
    /// Why a model is where it is (`swapserve explain MODEL`).
    fn explain(&self, model: &str) -> Option<serde_json::Value>;
    /// Whether requests are still admitted; `/health` is 503 when not.
    fn accepting(&self) -> bool;
    /// Asks the run to end (`swapserve stop`).
    fn stop(&self);
    /// Engine metrics that the scheduler knows, in Prometheus text format, appended to the router's own.
    fn metrics(&self) -> String;
}

/// Why an admin verb failed.
#[derive(Clone, Debug, PartialEq)]
pub enum VerbError {
    /// No such model.
    UnknownModel {
        /// The names that exist.
        known: Vec<String>,
    },
    /// The reason, for people (409).
    Refused(String),
}
