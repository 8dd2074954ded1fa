//! The step: event → scheduler → effects → where they go. Everything here runs on the data path's one thread.

use super::{History, Journal, Order, Report, RunFacts, SwapRow, history, report::EngineView};
use crate::{
    config::Plan,
    gpu::park::call::Beside,
    scheduler::{Effect, EngineFault, Event, Rejection, Scheduler},
    swap::Switch,
    units::{ModelId, Moment, RequestId},
};
use std::{
    borrow::Cow,
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{Notify, mpsc, oneshot, watch};

/// A lease granted by the scheduler.
#[derive(Debug)]
pub struct Grant {
    /// The model.
    pub model: ModelId,
    /// From arrival to dispatch.
    pub waited: Duration,
    /// The part of it in which the model was swapped in.
    pub swapping: Duration,
}

/// One model, as the core knows it.
pub(super) struct Slot {
    pub(super) name: Arc<str>,
    pub(super) view: Arc<EngineView>,
    /// True once the engine that leases were given on is gone; a new channel for each engine.
    lost: watch::Sender<bool>,
    /// Number of its last swap-out.
    out: u64,
    orders: mpsc::UnboundedSender<Order>,
}

/// The owner of the run's state.
pub struct Core {
    pub(super) plan: Arc<Plan>,
    pub(super) facts: RunFacts,
    begun: Instant,
    next_request: Cell<u64>,
    next_ask: Cell<u64>,
    state: RefCell<State>,
    wake_changed: Notify,
    changed: watch::Sender<u64>,
    released: Notify,
    ends: Cell<Option<Moment>>,
}

pub(super) struct State {
    pub(super) scheduler: Scheduler,
    pub(super) slots: Vec<Slot>,
    pub(super) history: History,
    pub(super) accepting: bool,
    journal: Option<Journal>,
    waiting: HashMap<RequestId, oneshot::Sender<Result<Grant, Rejection>>>,
    asks: HashMap<u64, oneshot::Sender<Result<(), String>>>,
    /// Events that came up while effects were carried out.
    pending: VecDeque<Event>,
    /// Swap-outs so far.
    outs: u64,
    effects: Vec<Effect>,
    wake: Option<Moment>,
    stepping: bool,
}

impl Core {
    /// A core over a scheduler; `orders` reaches the workers, one a model in the plan's order.
    pub fn new(
        plan: Arc<Plan>,
        facts: RunFacts,
        scheduler: Scheduler,
        orders: Vec<mpsc::UnboundedSender<Order>>,
        journal: Option<Journal>,
    ) -> Rc<Self> {
        let slots = plan.models.iter().zip(orders).map(|(model, orders)| Slot {
            name: Arc::from(model.name.as_str()),
            view: Arc::default(),
            lost: watch::channel(false).0,
            out: 0,
            orders,
        });
        let state = State {
            scheduler,
            slots: slots.collect(),
            history: History::default(),
            accepting: true,
            journal,
            waiting: HashMap::new(),
            asks: HashMap::new(),
            pending: VecDeque::new(),
            outs: 0,
            effects: Vec::new(),
            wake: None,
            stepping: false,
        };
        Rc::new(Core {
            plan,
            facts,
            begun: Instant::now(),
            next_request: Cell::new(1),
            next_ask: Cell::new(1),
            state: RefCell::new(state),
            wake_changed: Notify::new(),
            changed: watch::channel(0).0,
            released: Notify::new(),
            ends: Cell::new(None),
        })
    }

    /// Time since the run began.
    pub fn now(&self) -> Moment {
        Moment::after_start(self.begun.elapsed())
    }

    /// A look at the state; never across an await.
    pub(super) fn look<T>(&self, at: impl FnOnce(&State) -> T) -> T {
        at(&self.state.borrow())
    }

    /// How many moves there have been; `None` while an engine moves.
    pub(super) fn at_rest(&self) -> Option<u64> {
        self.look(|state| {
            let mut models = (0..state.slots.len()).map(|at| ModelId(at as u32));
            let moving = models.any(|id| state.scheduler.state(id).is_moving());
            (!moving).then(|| state.history.total())
        })
    }

    /// Tells the scheduler what happened and carries out what it asks for. May be called while effects are being
    /// carried out (a receiver that is gone gives its lease back): the event then follows in order.
    pub fn post(&self, event: Event) {
        let Ok(mut state) = self.state.try_borrow_mut() else {
            unreachable!(
                "the core is only called between awaits, and carries out effects without calling back"
            );
        };
        state.pending.push_back(event);
        if !state.stepping {
            self.run_pending(&mut state);
        }
    }

    fn run_pending(&self, state: &mut State) {
        state.stepping = true;
        while let Some(event) = state.pending.pop_front() {
            let now = self.now();
            if let Some(journal) = &mut state.journal {
                journal.event(now, &event);
            }
            if matches!(event, Event::Drain) {
                state.accepting = false;
            }
            let State { scheduler, effects, .. } = &mut *state;
            scheduler.step(now, event, effects);
            self.carry_out(state, now);
        }
        state.stepping = false;
    }

    fn carry_out(&self, state: &mut State, now: Moment) {
        let mut effects = std::mem::take(&mut state.effects);
        for effect in effects.drain(..) {
            if let Some(journal) = &mut state.journal {
                journal.effect(now, &effect);
            }
            state.carry_out(effect);
        }
        state.effects = effects;
        let wake = state.scheduler.next_wake();
        if wake != state.wake {
            state.wake = wake;
            self.wake_changed.notify_one();
        }
    }

    /// Takes in what a worker reports.
    pub fn report(&self, report: Report) {
        let Report { model, view, event } = report;
        {
            let mut state = self.state.borrow_mut();
            let state = &mut *state;
            let slot = &mut state.slots[model.index()];
            if let Some(view) = view {
                slot.view = Arc::new(view);
            }
            if event.as_ref().is_some_and(engine_is_gone) {
                slot.lost.send_replace(true);
                slot.lost = watch::channel(false).0;
            }
            if let Some(row) = event.as_ref().and_then(ended_move) {
                let row = SwapRow { at_s: history::seconds(self.now()), model: slot.name.clone(), ..row };
                log_row(&row);
                state.history.push(row);
            }
        }
        if let Some(event) = event {
            self.post(event);
        }
        // A swap-in that failed leaves its streams paused, and an engine that died has none.
        self.released.notify_waiters();
        self.changed.send_modify(|n| *n += 1);
    }

    /// Resolves each time something that `status` shows may have changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Puts a request into the scheduler; the receiver resolves to its grant or rejection.
    pub(super) fn arrive(&self, model: ModelId) -> (RequestId, oneshot::Receiver<Result<Grant, Rejection>>) {
        let request = RequestId(self.next_request.get());
        self.next_request.set(request.0 + 1);
        let (grant, granted) = oneshot::channel();
        self.state.borrow_mut().waiting.insert(request, grant);
        self.post(Event::Arrived { request, model });
        (request, granted)
    }

    /// Takes a request out of the queue.
    pub(super) fn cancel(&self, request: RequestId) {
        self.state.borrow_mut().waiting.remove(&request);
        self.post(Event::Cancelled { request });
    }

    /// Asks the scheduler for a model to be in or out; the receiver resolves to the outcome.
    pub(super) fn ask(&self, event: impl FnOnce(u64) -> Event) -> oneshot::Receiver<Result<(), String>> {
        let ask = self.next_ask.get();
        self.next_ask.set(ask + 1);
        let (answer, answered) = oneshot::channel();
        self.state.borrow_mut().asks.insert(ask, answer);
        self.post(event(ask));
        answered
    }

    /// Where the engine of a model that was just dispatched to listens, its key, and the sign of its loss.
    pub(super) fn address(&self, model: ModelId) -> (Arc<EngineView>, watch::Receiver<bool>) {
        self.look(|state| {
            let slot = &state.slots[model.index()];
            (slot.view.clone(), slot.lost.subscribe())
        })
    }

    /// Whether requests are still admitted.
    pub fn accepting(&self) -> bool {
        self.look(|state| state.accepting)
    }

    /// Wakes the scheduler when it asked to be woken. Runs for ever.
    pub async fn keep_time(self: Rc<Self>) {
        loop {
            let wake = self.look(|state| state.wake);
            let changed = self.wake_changed.notified();
            match wake {
                None => changed.await,
                Some(at) => {
                    let due = self.begun + at.since(Moment::ZERO);
                    tokio::select! {
                        () = tokio::time::sleep_until(due.into()) => self.post(Event::Wake),
                        () = changed => {}
                    }
                }
            }
        }
    }

    /// Notes when the job ends, and tells the scheduler.
    pub fn job_ends(&self, remaining: Duration) {
        self.ends.set(Some(self.now() + remaining));
        self.post(Event::JobEnds { remaining });
    }

    /// Time until the job's end, where that is known.
    pub(super) fn remaining(&self) -> Option<Duration> {
        self.ends.get().map(|end| end.since(self.now()))
    }

    /// Gives a lease back.
    pub(super) fn release(&self, request: RequestId) {
        self.post(Event::Released { request });
        self.released.notify_waiters();
    }

    /// Resolves when no request is on an engine that runs or comes in.
    pub async fn idle(&self) {
        loop {
            let released = self.released.notified();
            if self.look(|state| state.scheduler.running()) == 0 {
                return;
            }
            released.await;
        }
    }

    /// How many models there are.
    pub fn models(&self) -> usize {
        self.plan.models.len()
    }

    /// Ends the journal; what comes after is not noted.
    pub fn close_journal(&self) {
        self.state.borrow_mut().journal = None;
    }
}

impl State {
    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Warm { model } => self.order(model, Order::Warm),
            Effect::Prepare { model } => self.order(model, Order::Prepare),
            Effect::Proceed { model } => self.order(model, Order::Proceed),
            Effect::Start { model } => self.order(model, Order::Start),
            Effect::Stop { model } => self.order(model, Order::Stop),
            Effect::SwapOut { model, in_flight, free } => {
                self.outs += 1;
                self.slots[model.index()].out = self.outs;
                let switch = Switch::Gives(self.outs);
                self.order(model, Order::SwapOut { in_flight, free, switch })
            }
            Effect::SwapIn { model, early } => {
                let switch = early.map_or(Switch::Alone, |early| {
                    let outs = early.from.iter().map(|from| self.slots[from.index()].out).collect();
                    let room = early.room.iter().map(|bytes| bytes.0).collect();
                    Switch::Takes(Beside { outs, room })
                });
                self.order(model, Order::SwapIn { switch })
            }
            Effect::Dispatch { request, model, waited, swapping } => {
                let granted =
                    self.waiting.remove(&request).map(|to| to.send(Ok(Grant { model, waited, swapping })));
                if !matches!(granted, Some(Ok(()))) {
                    // The client went away in this very moment: nobody will give the lease back but us.
                    self.pending.push_back(Event::Released { request });
                }
            }
            Effect::Reject { request, reason } => {
                if let Some(to) = self.waiting.remove(&request) {
                    // A client that is gone needs no answer.
                    let _ = to.send(Err(reason));
                }
            }
            Effect::Answer { ask, result } => {
                if let Some(to) = self.asks.remove(&ask) {
                    let _ = to.send(result);
                }
            }
        }
    }

    fn order(&mut self, model: ModelId, order: Order) {
        if let Err(mpsc::error::SendError(order)) = self.slots[model.index()].orders.send(order) {
            // The worker's task is gone (it panicked): its engine cannot be moved any more.
            let detail = format!(
                "the worker of {} is gone; this is a defect, please report it",
                self.slots[model.index()].name
            );
            let fault = EngineFault { detail, retry: false };
            self.pending.push_back(match order {
                Order::Warm => Event::Warmed { model },
                Order::Prepare | Order::Proceed | Order::Start => Event::StartFailed { model, fault },
                Order::Stop => Event::Stopped { model },
                Order::SwapOut { .. } => Event::SwapOutFailed { model, fault, lost: true, mechanism: None },
                Order::SwapIn { .. } => Event::SwapInFailed { model, fault, lost: true },
            });
        }
    }
}

/// Whether the engine that leases were given on no longer exists after this event.
fn engine_is_gone(event: &Event) -> bool {
    matches!(
        event,
        Event::EngineDied { .. }
            | Event::Stopped { .. }
            | Event::StartFailed { .. }
            | Event::SwapOutFailed { lost: true, .. }
            | Event::SwapInFailed { lost: true, .. }
    )
}

/// The row of a move that this event ends, without time and name.
fn ended_move(event: &Event) -> Option<SwapRow> {
    let (direction, measure, fault) = match event {
        Event::Started { measure, .. } => ("start", Some(measure), None),
        Event::SwappedOut { measure, .. } => ("out", Some(measure), None),
        Event::SwappedIn { measure, .. } => ("in", Some(measure), None),
        Event::StartFailed { fault, .. } => ("start", None, Some(fault)),
        Event::SwapOutFailed { fault, .. } => ("out", None, Some(fault)),
        Event::SwapInFailed { fault, .. } | Event::FoundNoRoom { fault, .. } => ("in", None, Some(fault)),
        Event::EngineDied { fault, .. } => ("died", None, Some(fault)),
        _ => return None,
    };
    Some(SwapRow {
        at_s: 0.0,
        model: Arc::from(""),
        direction: Cow::Borrowed(direction),
        mechanism: measure.and_then(|measure| measure.mechanism),
        seconds: measure.map_or(0.0, |measure| measure.took.as_secs_f64()),
        moved: measure.and_then(|measure| measure.moved),
        phases: measure.map(|measure| history::phases(&measure.phases)).unwrap_or_default(),
        fault: fault.map(|fault| fault.detail.clone()),
    })
}

fn log_row(row: &SwapRow) {
    let mechanism = row.mechanism.map_or("-", crate::units::MechanismKind::name);
    match &row.fault {
        None => {
            tracing::info!(model = %row.model, direction = %row.direction, mechanism, seconds = row.seconds, "moved")
        }
        Some(fault) => tracing::warn!(model = %row.model, direction = %row.direction, fault, "move failed"),
    }
}
