//! What the scheduler knows of one model.

use super::{
    demand::{Demand, Rate, Urgency},
    early::Ahead,
    event::{EngineFault, SwapMeasure},
    explain::History,
    policy::at_most,
    queue::Queue,
    spec::ModelSpec,
    state::State,
    warm::Warm,
};
use crate::units::{Bytes, Footprint, MechanismKind, ModelId, Moment};
use smallvec::SmallVec;
use std::time::Duration;

/// What goes out in part goes in whole chunks, none larger than this.
const LARGEST_CHUNK: Bytes = Bytes::mib(256);

/// One model: its engine's state, who waits for it and who uses it.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) spec: ModelSpec,
    pub(super) state: State,
    /// When the state was entered.
    pub(super) since: Moment,
    pub(super) pinned: bool,
    pub(super) mechanism: Option<MechanismKind>,
    pub(super) keeps_streams: bool,
    /// What it takes while resident and while out, as known now.
    pub(super) resident: Footprint,
    pub(super) out: Footprint,
    /// What it holds while out: `out`, or more after a part of it went out.
    pub(super) left: Footprint,
    /// In `SwappingOut`: bytes to be freed on each GPU; `None`: all it can.
    pub(super) share: Option<Bytes>,
    /// In `SwappingOut`: a part of it was out before, and it frees more.
    pub(super) again: bool,
    /// What the ledger counts for it.
    pub(super) held: Footprint,
    /// In `SwappingOut`: what of that which it frees another one has reserved.
    pub(super) claim: Footprint,
    /// In `SwappingIn`: it takes memory that is being freed.
    pub(super) ahead: Option<Ahead>,
    /// The last time it came in so it had to go back: it waits until its room is free.
    pub(super) patient: bool,
    pub(super) queue: Queue,
    /// Requests on this life of the engine.
    pub(super) leases: u32,
    /// Counts the engine's processes: leases of an earlier life hold nothing.
    pub(super) life: u32,
    /// Closed to new leases, and why. Only while resident.
    pub(super) leaving: Option<Leaving>,
    /// While it starts: it has answered, its trial is under way.
    pub(super) answered: bool,
    pub(super) warm: Warm,
    /// While it is prepared: it has come to its first use of a GPU.
    pub(super) imported: bool,
    /// While it starts: it was prepared.
    pub(super) was_prepared: bool,
    /// It was prepared for nothing once: not again.
    pub(super) prepared_in_vain: bool,
    pub(super) resident_since: Moment,
    /// When its last way in began.
    pub(super) way_in: Option<Moment>,
    /// Last arrival or release.
    pub(super) last_used: Moment,
    pub(super) asks_in: SmallVec<[(u64, Moment); 2]>,
    pub(super) asks_out: SmallVec<[u64; 2]>,
    pub(super) wish: Option<(Urgency, Moment)>,
    pub(super) faults: Faults,
    pub(super) rate: Rate,
    pub(super) timing: Timing,
    pub(super) swaps_in: u64,
    pub(super) swaps_out: u64,
    pub(super) history: History,
}

/// Why a resident engine is closed to new requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leaving {
    pub(super) since: Moment,
    pub(super) why: Why,
}

/// On whose behalf an engine leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// To make room for this model.
    Room(ModelId),
    /// The operator asked.
    Asked,
}

/// What went wrong lately and what follows from it.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    /// Recent failures of starts, swap-ins and processes.
    pub(super) recent: SmallVec<[Moment; 8]>,
    /// No start or swap-in before then.
    pub(super) not_before: Moment,
    /// Not chosen as a victim before then: its last swap-out was refused.
    pub(super) spared_until: Moment,
    /// Refused swap-outs in a row.
    pub(super) refusals: u32,
    /// Swap-ins in a row that found no room.
    pub(super) no_room: u32,
    pub(super) last: Option<EngineFault>,
    /// Given up; the engine only still has to be stopped.
    pub(super) hopeless: bool,
}

/// How long its moves took last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Timing {
    /// How long it waited for its last start to begin.
    pub(super) waited: Option<Duration>,
    pub(super) start: Option<Duration>,
    pub(super) swap_in: Option<Duration>,
    pub(super) swap_out: Option<Duration>,
    /// How long its longer requests take on the engine.
    pub(super) longer_leases: Duration,
}

impl Timing {
    /// Follows the longest at once and forgets it slowly.
    pub(super) fn lease_took(&mut self, took: Duration) {
        self.longer_leases = took.max((self.longer_leases * 9 + took) / 10);
    }
}

impl Model {
    pub(super) fn new(spec: ModelSpec) -> Self {
        Model {
            state: State::Cold,
            since: Moment::ZERO,
            pinned: spec.pin,
            mechanism: None,
            keeps_streams: spec.keeps_streams,
            resident: spec.resident.clone(),
            out: spec.out.clone(),
            left: Footprint::default(),
            share: None,
            again: false,
            held: Footprint::default(),
            claim: Footprint::default(),
            ahead: None,
            patient: false,
            queue: Queue::default(),
            leases: 0,
            life: 0,
            leaving: None,
            answered: false,
            warm: Warm::Not,
            imported: false,
            was_prepared: false,
            prepared_in_vain: false,
            resident_since: Moment::ZERO,
            way_in: None,
            last_used: Moment::ZERO,
            asks_in: SmallVec::new(),
            asks_out: SmallVec::new(),
            wish: None,
            faults: Faults::default(),
            rate: Rate::default(),
            timing: Timing::default(),
            swaps_in: 0,
            swaps_out: 0,
            history: History::default(),
            spec,
        }
    }

    /// Enters the next state of the diagram.
    pub(super) fn enter(&mut self, state: State, now: Moment) {
        debug_assert!(self.state.can_become(state), "{}: {} to {state}", self.spec.name, self.state);
        self.was_prepared = self.state == State::Preparing && state == State::Starting;
        self.state = state;
        self.since = now;
        self.leaving = None;
        self.answered = false;
        self.imported = false;
    }

    /// Whether a request that arrives is dispatched at once.
    pub(super) fn is_open(&self) -> bool {
        self.state == State::Resident && self.leaving.is_none()
    }

    /// Whether somebody would notice if it left.
    pub(super) fn is_busy(&self) -> bool {
        self.leases > 0 || !self.queue.is_empty()
    }

    /// Whether a swap has paused streams of its that still have clients.
    pub(super) fn has_paused_streams(&self) -> bool {
        self.state == State::Out && self.leases > 0
    }

    /// Since when and how urgently it is wanted; `None` if nobody wants it.
    pub(super) fn demand(&self) -> Option<Demand> {
        let request = self.queue.front().map(|waiting| waiting.arrived);
        let ask = self.asks_in.first().map(|(_, since)| *since);
        let paused = self.has_paused_streams().then_some(self.since);
        let awaited = [request, ask, paused].into_iter().flatten().min();
        match (awaited, self.wish) {
            (Some(since), _) => Some(Demand { urgency: Urgency::Awaited, since }),
            (None, Some((urgency, since))) => Some(Demand { urgency, since }),
            (None, None) => None,
        }
    }

    /// How much work stands behind it, in requests.
    pub(super) fn weight(&self, now: Moment) -> f64 {
        f64::from(self.leases) + f64::from(self.queue.len()) + self.asks_in.len() as f64 + self.rate.at(now)
    }

    /// What it holds from the moment it begins to come in.
    pub(super) fn coming_in(&self) -> Footprint {
        match (self.state, self.mechanism) {
            (State::Cold | State::Failed, _) => self.spec.starting.max(&self.resident),
            (State::Preparing, _) | (_, Some(MechanismKind::Restart)) => {
                self.spec.starting.max(&self.resident).max(&self.held)
            }
            _ => self.resident.max(&self.held),
        }
    }

    /// What it holds while it goes out: all of it, or with a `share` so much of each GPU.
    pub(super) fn going_out(&self, share: Option<Bytes>) -> Footprint {
        let mut out = self.out.clone();
        if let Some(share) = share {
            let most = Bytes((share + LARGEST_CHUNK).0.saturating_mul(self.spec.gpus.len() as u64));
            out.pool = out.pool.min(self.held.pool + most);
        }
        self.held.max(&out)
    }

    /// Whether its mechanism can free a part of its GPU memory alone.
    pub(super) fn can_go_in_part(&self) -> bool {
        self.mechanism == Some(MechanismKind::Park)
    }

    /// Whether it is out and holds GPU memory that it could free as well.
    pub(super) fn has_more_to_free(&self) -> bool {
        let more = self.held.minus(&self.out);
        self.state == State::Out && more.gpu.iter().any(|bytes| !bytes.is_zero())
    }

    /// What the move under way frees when it ends.
    pub(super) fn will_free(&self) -> Footprint {
        match self.state {
            State::SwappingIn if self.ahead.as_ref().is_some_and(|ahead| ahead.broken) => {
                self.held.minus(&self.left)
            }
            State::Starting | State::SwappingIn => self.held.minus(&self.resident),
            State::SwappingOut => {
                let all = self.held.minus(&self.out);
                self.share.map_or(all.clone(), |bytes| at_most(&all, bytes))
            }
            State::Stopping => self.held.clone(),
            State::Cold | State::Preparing | State::Resident | State::Out | State::Failed => {
                Footprint::default()
            }
        }
    }

    /// How long its next way in is expected to take; zero where nothing is known yet.
    pub(super) fn expected_in(&self) -> Duration {
        match self.state {
            State::Cold | State::Preparing | State::Failed => self.timing.start.unwrap_or_default(),
            _ => self.timing.swap_in.unwrap_or_else(|| self.guess()),
        }
    }

    /// How long its next way out is expected to take.
    pub(super) fn expected_out(&self) -> Duration {
        self.timing.swap_out.unwrap_or_else(|| self.guess())
    }

    /// A move that has never been measured: half a second and 10 GiB/s.
    fn guess(&self) -> Duration {
        Duration::from_millis(500) + Duration::from_nanos(self.resident.bytes().0 / 10)
    }

    /// Takes over what a move measured. An empty resident footprint means that it was not measured.
    pub(super) fn learn(&mut self, measure: &SwapMeasure) {
        if let Some(mechanism) = measure.mechanism {
            self.mechanism = Some(mechanism);
            self.keeps_streams = mechanism.keeps_streams();
        }
        if !measure.resident.is_zero() {
            self.resident = measure.resident.clone();
        }
        if !measure.partial {
            self.out = measure.out.clone();
        }
    }
}
