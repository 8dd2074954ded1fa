//! A gate over a fixed table: every model resident, unless a test says otherwise.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    path::Path,
    rc::Rc,
    sync::Arc,
    task::{Poll, Waker},
    time::Duration,
};
use swapserve::{
    config::DisconnectPolicy,
    router::gate::{Denied, Gate, Lease, LocalFuture, ModelView, Upstream, Verb, VerbError},
    units::RequestId,
};
use tokio::sync::watch;

/// One model of the table.
pub struct Entry {
    pub name: &'static str,
    pub alias: &'static str,
    pub served_name: &'static str,
    pub upstream: Upstream,
    pub engine_key: Option<&'static str>,
    pub on_disconnect: DisconnectPolicy,
    /// The answer to every request instead of a lease.
    pub denied: Option<Denied>,
}

impl Entry {
    pub fn new(name: &'static str, upstream: Upstream) -> Self {
        Self {
            name,
            alias: "",
            served_name: name,
            upstream,
            engine_key: None,
            on_disconnect: DisconnectPolicy::Cancel,
            denied: None,
        }
    }

    pub fn unix(name: &'static str, socket: &Path) -> Self {
        Self::new(name, Upstream::Unix(socket.to_owned()))
    }
}

/// The gate.
pub struct FixedGate {
    entries: Vec<Entry>,
    lost: watch::Sender<bool>,
    next: Cell<u64>,
    /// While set, requests wait.
    held: Cell<bool>,
    waiters: RefCell<Vec<Waker>>,
    /// Requests that wait now.
    pub waiting: Rc<Cell<u32>>,
    /// Leases that are held now.
    pub leases: Rc<Cell<u32>>,
    /// What the admin verbs were asked to do.
    pub asked: RefCell<Vec<(String, Verb)>>,
    pub accepting: Cell<bool>,
    pub resident: Cell<bool>,
    /// How often the router has asked whether a model is resident.
    pub asked_resident: Cell<u32>,
    pub stopped: Cell<bool>,
}

impl FixedGate {
    pub fn new(entries: Vec<Entry>) -> Rc<Self> {
        Rc::new(Self {
            entries,
            lost: watch::Sender::new(false),
            next: Cell::new(1),
            held: Cell::new(false),
            waiters: RefCell::default(),
            waiting: Rc::default(),
            leases: Rc::default(),
            asked: RefCell::default(),
            accepting: Cell::new(true),
            resident: Cell::new(true),
            asked_resident: Cell::new(0),
            stopped: Cell::new(false),
        })
    }

    /// Makes requests wait, or lets those that wait go.
    pub fn hold(&self, held: bool) {
        self.held.set(held);
        self.waiters.take().into_iter().for_each(Waker::wake);
    }

    /// Every engine is lost.
    pub fn lose_engines(&self) {
        self.lost.send_replace(true);
    }

    fn known(&self) -> Vec<String> {
        self.entries.iter().map(|e| e.name.to_owned()).collect()
    }

    fn find(&self, model: &str) -> Option<&Entry> {
        self.entries.iter().find(|e| e.name == model || (e.alias == model && !model.is_empty()))
    }
}

/// Counts while it lives.
struct Counted(Rc<Cell<u32>>);

impl Counted {
    fn new(count: &Rc<Cell<u32>>) -> Self {
        count.set(count.get() + 1);
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Gate for FixedGate {
    fn lease(self: Rc<Self>, model: &str) -> LocalFuture<Result<Lease, Denied>> {
        let model = model.to_owned();
        Box::pin(async move {
            let entry = self.find(&model).ok_or_else(|| Denied::UnknownModel { known: self.known() })?;
            if let Some(denied) = &entry.denied {
                return Err(denied.clone());
            }
            let waited = self.held.get();
            if waited {
                let _waiting = Counted::new(&self.waiting);
                poll_fn(|cx| {
                    if !self.held.get() {
                        return Poll::Ready(());
                    }
                    self.waiters.borrow_mut().push(cx.waker().clone());
                    Poll::Pending
                })
                .await;
            }
            self.next.set(self.next.get() + 1);
            let lease = Counted::new(&self.leases);
            Ok(Lease {
                request: RequestId(self.next.get()),
                upstream: entry.upstream.clone(),
                served_name: Arc::from(entry.served_name),
                engine_key: entry.engine_key.map(Arc::from),
                on_disconnect: entry.on_disconnect,
                waited: Duration::from_millis(if waited { 300 } else { 0 }),
                swapping: Duration::from_millis(if waited { 200 } else { 0 }),
                job_ends: waited.then_some(Duration::from_secs(90)),
                lost: self.lost.subscribe(),
                release: Some(Box::new(move || drop(lease))),
            })
        })
    }

    fn models(&self) -> Vec<ModelView> {
        let view = |e: &Entry| ModelView {
            name: e.name.to_owned(),
            aliases: Some(e.alias.to_owned()).filter(|a| !a.is_empty()).into_iter().collect(),
            state: if self.resident.get() { "resident" } else { "out" }.to_owned(),
            created: 1_700_000_000,
            detail: String::new(),
        };
        self.entries.iter().map(view).collect()
    }

    fn is_resident(&self, _model: &str) -> bool {
        self.asked_resident.set(self.asked_resident.get() + 1);
        self.resident.get()
    }

    fn admin(self: Rc<Self>, model: &str, verb: Verb) -> LocalFuture<Result<(), VerbError>> {
        let model = model.to_owned();
        Box::pin(async move {
            let entry = self.find(&model).ok_or_else(|| VerbError::UnknownModel { known: self.known() })?;
            if verb == Verb::Out && entry.denied.is_some() {
                return Err(VerbError::Refused("it is pinned".to_owned()));
            }
            self.asked.borrow_mut().push((model, verb));
            Ok(())
        })
    }

    fn status(&self) -> serde_json::Value {
        serde_json::json!({ "models": self.known() })
    }

    fn explain(&self, model: &str) -> Option<serde_json::Value> {
        self.find(model).map(|e| serde_json::json!({ "model": e.name }))
    }

    fn accepting(&self) -> bool {
        self.accepting.get()
    }

    fn stop(&self) {
        self.stopped.set(true);
    }

    fn metrics(&self) -> String {
        "# TYPE swapserve_test gauge\nswapserve_test 1\n".to_owned()
    }
}
