//! PURE: who is resident, who goes, who waits. No I/O, no clock.
//!
//! One call, [`Scheduler::step`], takes a moment and an [`Event`] and appends [`Effect`]s; the daemon carries those
//! out and feeds back what happened. Everything decided follows from the state and the event, so a schedule can be
//! replayed from its journal, simulated faster than time, and searched for broken invariants.
//!
//! ```text
//!    ┌── Prepare ─► Preparing ── put off ─► Stopping
//!    │                  │ Proceed
//!    │       Start      ▼     Started            SwapOut          SwappedOut
//!   Cold ───────────► Starting ───────► Resident ───────► SwappingOut ───────► Out
//!    ▲ ▲                  │              │   ▲ ▲               │               │ │ SwapIn
//!    │ └── failed, later ─┤              │   │ └─── refused ───┘               │ ▼
//!    │                    ▼              │   └───────── SwappedIn ──────── SwappingIn
//!    │  AskIn          Failed            │ Stop                                │
//!    │◄───────────────── ▲  ▲            ▼                                     │ Stop
//!    │    given up ──────┘  └──────── Stopping ◄───────────────────────────────┘
//!    └──────────────── Stopped ──────────┘         (a process that ends by itself: to Cold, from anywhere)
//! ```
//!
//! | state | holds in the ledger | its requests |
//! | --- | --- | --- |
//! | `Cold` | nothing | wait for a start |
//! | `Preparing` | host memory alone | wait |
//! | `Starting` | the larger of `starting` and `resident` | wait |
//! | `Resident` | `resident` | are dispatched at once; closed (*leaving*): new ones wait, those in flight finish |
//! | `SwappingOut`, `SwappingIn` | the larger of what it held and what it will hold | wait; those in flight are paused |
//! | `Out` | `out`, or more if only a part of it went | wait; those in flight are paused, and want it back |
//! | `Stopping` | what it held | wait |
//! | `Failed` | nothing | are rejected |
//!
//! The rules, each in the file that carries it out:
//!
//! - *Room* ([`mod@ledger`]): a move reserves all it needs before it begins, and what it frees counts when it is
//!   reported done. Only a measured footprint can be over the capacity, or one that claims what is being freed; then
//!   nothing more begins there.
//! - *Switches* ([`mod@early`]): a swap-in need not wait for the report where both engines are parked: it claims what is
//!   being freed, and is out again if that fails.
//! - *Order* ([`mod@placement`]): whoever waits longest is placed first, and what it needs stays promised to it.
//! - *Victims* ([`mod@policy`]): the cheapest set that covers what is missing; idle before busy; never a pinned one.
//! - *Parts*: a victim whose mechanism can frees only what is missing and is `Out` all the same; it frees more (from `Out`
//!   to `SwappingOut` again) when somebody needs that too.
//! - *Busy victims*: closed when they have been resident for `min_resident` and the waiting side has waited `patience`
//!   (less, the more it outweighs the busy side); drained; after `drain_limit` swapped out in mid-generation if their
//!   streams survive that, else drained on.
//! - *Starts* ([`mod@quiet`], [`mod@warm`], [`mod@prepare`]): nothing else moves on a GPU while an engine sizes itself by what
//!   is free there; what needs no GPU, weights and imports, is done before its turn.
//! - *Requests* ([`mod@admission`]): dispatched at once, queued, or denied with a reason; those that wait for the same
//!   model are dispatched together. Each one ends.
//! - *Failures* ([`mod@lifecycle`]): tried again after a delay that doubles, given up after some; a refused swap-out
//!   spares the engine for a while and another victim is found.
//! - *Time* ([`mod@deadline`]): bounds are kept by [`Event::Wake`] at [`Scheduler::next_wake`].
//!
//! The cost of a step does not depend on the number of waiting requests. Arrivals and releases that change no decision
//! look at one model; the others look at all models.
//!
//! A stranger adds a rule about *who goes* in `policy.rs`, about *when* in `placement.rs`, and a new kind of event in
//! `event.rs` and [`Scheduler::step`].

mod admission;
mod deadline;
mod demand;
mod early;
pub mod event;
mod explain;
mod invariants;
mod ledger;
mod lifecycle;
mod model;
mod operator;
mod placement;
mod policy;
mod prepare;
mod queue;
mod quiet;
mod spec;
mod state;
#[cfg(test)]
mod tests;
mod view;
mod warm;
mod wording;

pub use event::{Early, Effect, EngineFault, Event, Rejection, SwapMeasure};
pub use explain::{Explanation, Holder, Keeps, OutWhy, Past, PutOff, Reason, What};
pub use ledger::LedgerView;
pub use spec::{Bounds, ModelSpec, Preparation, RestartPolicy, Setup};
pub use state::State;
pub use view::ModelStatus;

use crate::units::Moment;
use ledger::Ledger;
use model::Model;
use queue::Requests;

/// The whole state of scheduling on one node. Owned by one task.
#[derive(Clone, Debug)]
pub struct Scheduler {
    models: Vec<Model>,
    ledger: Ledger,
    requests: Requests,
    bounds: Bounds,
    /// When the job ends, where that is known.
    ends: Option<Moment>,
    /// No admission and no swaps any more.
    draining: bool,
    /// Engines are being started for the first time.
    booting: bool,
    /// Somebody wants in who is not on the way: an engine that becomes idle is of interest.
    wanting: bool,
    /// The earliest moment at which a busy engine may be closed for somebody.
    gate: Option<Moment>,
    wake: Option<Moment>,
}

impl Scheduler {
    /// A scheduler that has started nothing yet; [`Event::Boot`] sets it going.
    pub fn new(setup: Setup) -> Self {
        Scheduler {
            models: setup.models.into_iter().map(Model::new).collect(),
            ledger: Ledger::new(setup.capacity, &setup.ceiling),
            requests: Requests::default(),
            bounds: setup.bounds,
            ends: None,
            draining: false,
            booting: false,
            wanting: false,
            gate: None,
            wake: None,
        }
    }

    /// Takes in what happened and appends what is to be done about it.
    pub fn step(&mut self, now: Moment, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Boot => self.boot(now, effects),
            Event::Arrived { request, model } => self.arrived(request, model, now, effects),
            Event::Cancelled { request } | Event::Released { request } => self.ended(request, now, effects),
            Event::Started { model, measure } => {
                if self.state(model) == State::Starting {
                    self.came_in(model, &measure, now, effects);
                }
            }
            Event::SwappedIn { model, measure } => {
                if self.state(model) == State::SwappingIn {
                    self.came_in(model, &measure, now, effects);
                }
            }
            Event::Imported { model } => self.imported(model, now, effects),
            Event::Warmed { model } => self.warmed(model, now, effects),
            Event::Answered { model } => self.answered(model, now, effects),
            Event::StartFailed { model, fault } => self.start_failed(model, fault, now, effects),
            Event::SwappedOut { model, measure } => self.went_out(model, &measure, now, effects),
            Event::SwapOutFailed { model, fault, lost: false, mechanism } => {
                self.use_mechanism(model, mechanism);
                self.refused_to_go(model, fault, now, effects)
            }
            Event::SwapInFailed { model, fault, lost: false } => {
                self.stayed_out(model, fault, false, now, effects);
            }
            Event::FoundNoRoom { model, fault } => self.stayed_out(model, fault, true, now, effects),
            Event::SwapOutFailed { model, fault, lost: true, .. } => {
                self.lost_in(State::SwappingOut, model, fault, now, effects);
            }
            Event::SwapInFailed { model, fault, lost: true } => {
                self.lost_in(State::SwappingIn, model, fault, now, effects);
            }
            Event::EngineDied { model, fault } => self.lost(model, fault, now, effects),
            Event::Stopped { model } => self.stopped(model, now, effects),
            Event::AskIn { ask, model } => self.ask_in(ask, model, now, effects),
            Event::AskOut { ask, model } => self.ask_out(ask, model, now, effects),
            Event::Pin { model, pinned } => self.pin(model, pinned, now, effects),
            Event::Capacity { capacity } => self.set_capacity(capacity, now, effects),
            Event::JobEnds { remaining } => self.job_ends(remaining, now, effects),
            Event::Drain => self.drain(now, effects),
            Event::Wake => self.settle(now, effects),
        }
    }

    /// When to step with [`Event::Wake`] though nothing else happens. May be early, is never late.
    pub fn next_wake(&self) -> Option<Moment> {
        self.wake
    }

    /// Makes every decision that is due.
    fn settle(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        self.expire(now, effects);
        self.place(now, effects);
        if self.boot_is_over(now) {
            self.place(now, effects);
        }
        self.wake = self.next_deadline(now);
    }
}
