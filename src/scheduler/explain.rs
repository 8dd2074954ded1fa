//! Why a model is where it is, and what was decided about it lately.
//!
//! Reasons are closed enums; [`Explanation`] adds a sentence for people to each (`wording.rs`). Nothing here decides
//! anything.

use super::{
    Scheduler,
    model::{Model, Why},
    state::State,
    wording::seconds,
};
use crate::units::{Footprint, ModelId, Moment};
use serde::Serialize;
use std::{collections::VecDeque, time::Duration};

/// The answer to "why is this model (not) resident, and why did it go".
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// The model.
    pub model: String,
    /// Its engine's state.
    pub state: State,
    /// Why it is in that state.
    pub reason: Reason,
    /// The same for people.
    pub text: String,
    /// What was decided about it, the latest first.
    pub history: Vec<Past>,
}

/// A past decision, for people and scripts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Past {
    /// When, since the run began.
    pub at: Moment,
    /// What.
    #[serde(flatten)]
    pub what: What,
    /// The same for people.
    pub text: String,
}

/// Why a model is where it is.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
#[expect(missing_docs, reason = "fields are described at their variant")]
pub enum Reason {
    /// It is resident and answers.
    Serving { leases: u32 },
    /// It is resident, closed to new requests, and its running ones finish.
    Draining { leases: u32, room_for: Option<ModelId> },
    /// A start, a swap or a stop is under way.
    Moving { since: Moment },
    /// Nobody asks for it.
    NotWanted,
    /// Room is being made: others are leaving.
    RoomIsMade,
    /// There is no room, and those who have it may not be closed yet, or ever.
    NoRoom { lack: Footprint, held_by: Vec<Holder> },
    /// Another engine moves on its GPU, and one of the two sizes itself by what is free there.
    Quiet { beside: ModelId, is_measuring: bool },
    /// It failed and is tried again.
    Backoff { until: Moment, detail: String },
    /// It failed and was given up; only an operator's ask tries again.
    GivenUp { detail: String },
    /// Requests for it are refused: it can never fit, or the job ends before it could answer.
    Refused { detail: String },
    /// The run is ending: nothing is swapped any more.
    Ending,
}

/// An engine that holds what another one lacks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Holder {
    /// Its name.
    pub model: String,
    /// What it holds.
    pub holds: Footprint,
    /// Why it has not been asked to leave.
    pub because: Keeps,
}

/// Why an engine keeps its room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "keeps", rename_all = "snake_case")]
#[expect(missing_docs, reason = "fields are described at their variant")]
pub enum Keeps {
    /// It is pinned.
    Pinned,
    /// It has requests, and patience has not passed.
    Busy { until: Moment },
    /// It refused its last swap-out and is spared for a while.
    Spared { until: Moment },
    /// It is on its way.
    Moving,
    /// It is leaving.
    Leaving,
    /// It alone would not be enough.
    NotEnough,
}

/// Something that was decided or happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
#[expect(missing_docs, reason = "fields are described at their variant")]
pub enum What {
    /// Its way in began.
    CameIn { waited: Duration },
    /// It was launched ahead of its turn, and held.
    Prepared,
    /// It was stopped again before its turn came.
    PutOff { why: PutOff },
    /// It was closed to new requests for `whom`.
    Closed { whom: ModelId, running: u32 },
    /// It was opened again: the room is not needed any more.
    Reopened,
    /// Its swap-out began.
    WentOut { why: OutWhy, in_flight: u32 },
    /// It was stopped, because the host had no room for what it would take while out.
    Stopped { why: OutWhy },
    /// It came in beside a swap-out that was to make its room, and went back.
    WentBack { detail: String },
    /// Its swap-out was refused.
    RefusedToGo { detail: String, spared: Duration },
    /// It failed.
    Broke { detail: String, again: Duration },
    /// It was given up.
    GaveUp { detail: String },
}

/// Why an engine that was launched ahead of its turn was stopped again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PutOff {
    /// Nobody waits for it any more.
    Unwanted,
    /// The host's memory is needed for others.
    Host,
    /// Its turn did not come within its bound.
    TooLong,
}

/// Why an engine left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "why", rename_all = "snake_case")]
#[expect(missing_docs, reason = "fields are described at their variant")]
pub enum OutWhy {
    /// To make room.
    Room { whom: ModelId },
    /// The operator asked.
    Asked,
    /// Nobody had used it for its `idle_ttl`.
    IdleTtl,
    /// Measured footprints, or a stranger's memory, exceed what the job has.
    OverCapacity,
}

/// The last decisions about one model.
#[derive(Clone, Debug, Default)]
pub(super) struct History(VecDeque<(Moment, What)>);

impl History {
    const KEPT: usize = 8;

    pub(super) fn note(&mut self, now: Moment, what: What) {
        self.0.truncate(Self::KEPT - 1);
        self.0.push_front((now, what));
    }
}

impl Scheduler {
    /// Why the model is where it is, seen from `now`.
    pub fn explain(&self, id: ModelId, now: Moment) -> Explanation {
        let model = self.model(id);
        let reason = self.reason(id, now);
        let history = model.history.0.iter().map(|(at, what)| Past {
            at: *at,
            what: what.clone(),
            text: format!("{} ago: {}", seconds(now.since(*at)), self.past_text(what)),
        });
        Explanation {
            model: model.spec.name.to_string(),
            state: model.state,
            text: self.prepared_text(id) + &self.text(&reason, now),
            history: history.collect(),
            reason,
        }
    }

    fn reason(&self, id: ModelId, now: Moment) -> Reason {
        let model = self.model(id);
        let detail = || model.faults.last.as_ref().map(|fault| fault.detail.clone()).unwrap_or_default();
        match (model.state, model.leaving) {
            (State::Resident, None) => Reason::Serving { leases: model.leases },
            (State::Resident, Some(leaving)) => {
                let room_for = if let Why::Room(whom) = leaving.why { Some(whom) } else { None };
                Reason::Draining { leases: model.leases, room_for }
            }
            (State::Failed, _) => Reason::GivenUp { detail: detail() },
            (State::Cold | State::Preparing | State::Out, _) => {
                match (model.demand(), self.cannot_serve(id, now)) {
                    _ if self.draining => Reason::Ending,
                    (_, Some(refusal)) => Reason::Refused { detail: refusal.to_string() },
                    (None, None) => Reason::NotWanted,
                    _ if model.faults.not_before > now => {
                        Reason::Backoff { until: model.faults.not_before, detail: detail() }
                    }
                    _ => self.why_not_quiet(id).unwrap_or_else(|| self.why_no_room(id, now)),
                }
            }
            _ => Reason::Moving { since: model.since },
        }
    }

    fn why_not_quiet(&self, id: ModelId) -> Option<Reason> {
        if let Some(beside) = self.measured_beside(id) {
            return Some(Reason::Quiet { beside, is_measuring: true });
        }
        let nothing = Footprint::default();
        let model = self.model(id);
        let need = model.coming_in().minus(&model.held);
        let fits = self.ledger.lack_after(&need, &nothing, &nothing).is_zero();
        let beside = self.moving_beside(id).filter(|_| fits && model.will_measure())?;
        Some(Reason::Quiet { beside, is_measuring: false })
    }

    fn why_no_room(&self, id: ModelId, now: Moment) -> Reason {
        let nothing = Footprint::default();
        let model = self.model(id);
        let need = model.coming_in().minus(&model.held);
        let lack = self.ledger.lack_after(&need, &nothing, &nothing);
        let holders =
            self.models_by_id().filter(|(other, m)| *other != id && !m.held.masked_by(&lack).is_zero());
        let held_by: Vec<Holder> = holders
            .map(|(other, m)| Holder {
                model: m.spec.name.to_string(),
                holds: m.held.masked_by(&lack),
                because: self.keeps(other, m, id, now),
            })
            .collect();
        if held_by.iter().any(|holder| matches!(holder.because, Keeps::Leaving)) {
            Reason::RoomIsMade
        } else {
            Reason::NoRoom { lack, held_by }
        }
    }

    fn keeps(&self, other: ModelId, model: &Model, whom: ModelId, now: Moment) -> Keeps {
        match model.state {
            State::SwappingOut | State::Stopping => Keeps::Leaving,
            State::Starting | State::SwappingIn => Keeps::Moving,
            _ if model.leaving.is_some() => Keeps::Leaving,
            _ if model.pinned => Keeps::Pinned,
            _ if model.faults.spared_until > now => Keeps::Spared { until: model.faults.spared_until },
            State::Resident if model.is_busy() => match self.model(whom).demand() {
                Some(demand) => Keeps::Busy { until: self.may_close_at(now, other, whom, demand) },
                None => Keeps::NotEnough,
            },
            _ => Keeps::NotEnough,
        }
    }
}
