//! The router's gate over the core: admission, leases, admin verbs.

use super::core::{Core, Grant};
use crate::{
    router::gate::{Denied, Gate, Lease, LocalFuture, ModelView, Verb, VerbError},
    scheduler::{Event, Rejection},
    units::{ModelId, RequestId},
};
use std::{rc::Rc, sync::Arc};
use tokio::sync::{oneshot, watch};

/// The daemon as the router sees it.
pub struct DaemonGate {
    core: Rc<Core>,
    stop: watch::Sender<bool>,
}

impl DaemonGate {
    /// A gate over `core`; `stop` is raised when an operator asks the run to end.
    pub fn new(core: Rc<Core>, stop: watch::Sender<bool>) -> Rc<Self> {
        Rc::new(DaemonGate { core, stop })
    }

    fn find(&self, model: &str) -> Option<ModelId> {
        self.core.plan.find(model)
    }

    fn known(&self) -> Vec<String> {
        self.core.plan.models.iter().map(|m| m.name.clone()).collect()
    }
}

/// A request in the queue. Dropping it before its grant was taken cancels it, or gives the lease back if the grant was
/// already on its way.
struct Waiting {
    core: Rc<Core>,
    request: RequestId,
    granted: oneshot::Receiver<Result<Grant, Rejection>>,
    settled: bool,
}

impl Waiting {
    async fn outcome(mut self) -> Result<Grant, Rejection> {
        let outcome = (&mut self.granted).await;
        self.settled = true;
        // The sender is only dropped unused when the run is torn down.
        outcome.unwrap_or(Err(Rejection::Draining))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        match self.granted.try_recv() {
            Ok(Ok(_)) => self.core.release(self.request),
            Ok(Err(_)) => {}
            Err(_) => self.core.cancel(self.request),
        }
    }
}

impl Gate for DaemonGate {
    fn lease(self: Rc<Self>, model: &str) -> LocalFuture<Result<Lease, Denied>> {
        let Some(id) = self.find(model) else {
            let known = self.known();
            return Box::pin(async move { Err(Denied::UnknownModel { known }) });
        };
        let core = self.core.clone();
        Box::pin(async move {
            let (request, granted) = core.arrive(id);
            let waiting = Waiting { core: core.clone(), request, granted, settled: false };
            let grant = waiting.outcome().await.map_err(Denied::Rejected)?;
            lease(core, request, grant)
        })
    }

    fn models(&self) -> Vec<ModelView> {
        self.core.model_views()
    }

    fn admin(self: Rc<Self>, model: &str, verb: Verb) -> LocalFuture<Result<(), VerbError>> {
        let Some(model) = self.find(model) else {
            let known = self.known();
            return Box::pin(async move { Err(VerbError::UnknownModel { known }) });
        };
        let answered = match verb {
            Verb::In => self.core.ask(|ask| Event::AskIn { ask, model }),
            Verb::Out => self.core.ask(|ask| Event::AskOut { ask, model }),
            Verb::Pin | Verb::Unpin => {
                self.core.post(Event::Pin { model, pinned: verb == Verb::Pin });
                return Box::pin(async { Ok(()) });
            }
        };
        Box::pin(async move {
            let ending = || Err("the run is ending".to_owned());
            answered.await.unwrap_or_else(|_| ending()).map_err(VerbError::Refused)
        })
    }

    fn status(&self) -> serde_json::Value {
        serde_json::to_value(self.core.status()).expect("the status serialises")
    }

    fn explain(&self, model: &str) -> Option<serde_json::Value> {
        let explanation = self.core.explain(self.find(model)?);
        Some(serde_json::to_value(explanation).expect("an explanation serialises"))
    }

    fn accepting(&self) -> bool {
        self.core.accepting()
    }

    fn stop(&self) {
        self.stop.send_replace(true);
    }

    fn metrics(&self) -> String {
        self.core.metrics()
    }
}

/// The lease that a grant stands for.
fn lease(core: Rc<Core>, request: RequestId, grant: Grant) -> Result<Lease, Denied> {
    let (engine, lost) = core.address(grant.model);
    let Some(upstream) = engine.upstream.clone() else {
        core.release(request);
        let detail = "the engine went away between its lease and its first byte; ask again".to_owned();
        return Err(Denied::Rejected(Rejection::EngineFailed { detail }));
    };
    let plan = core.plan.model(grant.model);
    Ok(Lease {
        request,
        upstream,
        served_name: Arc::from(plan.served_as.as_str()),
        engine_key: engine.key.clone(),
        on_disconnect: plan.on_disconnect,
        waited: grant.waited,
        swapping: grant.swapping,
        job_ends: core.remaining().filter(|left| *left <= core.plan.scheduler.end_margin),
        lost,
        release: Some(Box::new(move || core.release(request))),
    })
}
