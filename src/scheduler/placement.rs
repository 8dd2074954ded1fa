//! Who comes in and who goes: the one decision, made afresh from the whole state.
//!
//! Everybody who wants in is looked at in order: the more urgent first, then who has waited longest. Each one either
//! fits and begins; or waits for frees that are under way (or takes part in them, `early.rs`); or has victims chosen for it;
//! or waits for the moment from which a busy engine may be closed. What it needs stays promised to it: whoever comes later
//! begins only if that leaves the promise whole, so small models pass a big one only where they do not delay it.
//!
//! Victims are chosen anew each time. A busy engine that was closed for somebody and is no longer needed (another one
//! became idle, the client went away) is opened again.

use super::{
    Scheduler,
    demand::{Demand, Urgency, scaled_patience},
    event::Effect,
    explain::{OutWhy, PutOff, What},
    model::{Leaving, Why},
    policy::{Candidate, Choice, Kind, Parts, at_most, choose},
    state::State,
};
use crate::units::{Bytes, Footprint, ModelId, Moment};

/// What the models ahead in the line have been given.
struct Line {
    /// What they need and do not hold yet.
    promised: Footprint,
    /// What moves under way and chosen victims free.
    freed: Footprint,
    victims: Vec<Victim>,
    /// Those who begin as soon as moves under way are over.
    next: Vec<ModelId>,
    /// Those whose turn is in sight: they are next, or wait for quiet.
    near: Vec<ModelId>,
}

/// An engine that was chosen to make room.
#[derive(Clone, Copy, Debug)]
struct Victim {
    model: ModelId,
    /// For whom; `None`: because the ledger is over its capacity.
    whom: Option<ModelId>,
    /// Bytes to free on each GPU, where that is less than all it could.
    share: Option<Bytes>,
    kind: Kind,
}

impl Scheduler {
    /// Decides and begins what can begin. Leaves the earliest moment at which patience runs out in `self.gate`.
    pub(super) fn place(&mut self, now: Moment, fx: &mut Vec<Effect>) {
        self.gate = None;
        let mut line = Line {
            promised: Footprint::default(),
            freed: self.models.iter().fold(Footprint::default(), |sum, m| sum.plus(&m.will_free())),
            victims: Vec::new(),
            next: Vec::new(),
            near: Vec::new(),
        };
        self.wanting = false;
        let mut in_order = Vec::new();
        if !self.draining {
            self.relieve(now, &mut line);
            in_order = self.line_up(now);
            for (demand, id) in &in_order {
                self.place_one(now, *id, *demand, &mut line, fx);
            }
            let ids: Vec<ModelId> = in_order.iter().map(|(_, id)| *id).collect();
            self.prepare_ahead(&ids, &line.near, (&line.promised, &line.freed), now, fx);
            self.read_ahead(&ids, fx);
        }
        self.close_and_open(now, &line.victims, fx);
        self.come_in_early(&in_order, now, fx);
        self.put_off_unwanted(now, fx);
    }

    /// Everybody who wants in and could come in, in order.
    fn line_up(&mut self, now: Moment) -> Vec<(Demand, ModelId)> {
        let mut wanting: Vec<_> = Vec::new();
        for (index, model) in self.models.iter().enumerate() {
            let id = ModelId(index as u32);
            let Some(demand) = model.demand() else { continue };
            let away = !matches!(model.state, State::Resident | State::Starting | State::SwappingIn);
            self.wanting |= away;
            if model.state.can_come_in() && model.faults.not_before <= now && !model.faults.hopeless {
                // Of those that only the config wants, the ones to be kept come last and so stay.
                let kept = model.pinned || model.spec.preload;
                wanting.push((demand, demand.urgency != Urgency::Awaited && kept, id));
            }
        }
        wanting.sort_by_key(|(demand, kept, id)| (demand.urgency, demand.since, *kept, *id));
        wanting.into_iter().map(|(demand, _, id)| (demand, id)).collect()
    }

    fn place_one(&mut self, now: Moment, id: ModelId, demand: Demand, line: &mut Line, fx: &mut Vec<Effect>) {
        if let Some(reason) = self.cannot_serve(id, now) {
            return self.turn_away(id, &reason, fx);
        }
        let model = &self.models[id.index()];
        let need = model.coming_in().minus(&model.held);
        if line.victims.iter().any(|victim| victim.model == id) {
            // It is out and gives more for somebody ahead of it.
            line.promised = line.promised.plus(&need);
            return;
        }
        if self.waits_for_quiet(id, now, line) {
            self.keep_victims(id, line);
            line.near.push(id);
            line.promised = line.promised.plus(&need);
            return;
        }
        let lack = self.ledger.lack_after(&need, &line.promised, &line.freed);
        if lack.is_zero() {
            let noisy = model.will_measure() && self.moving_beside(id).is_some();
            if !noisy && self.come_in(id, now, demand, fx) {
                return;
            }
            line.next.push(id);
            line.near.push(id);
        } else {
            let candidates = self.candidates(now, Some((id, demand)), &lack, line);
            match choose(now, &lack, &candidates) {
                Choice::Go(victims) => {
                    line.take(&victims, &candidates, &lack, Some(id));
                    if victims.iter().all(|victim| self.may_go_now(*victim, now)) {
                        line.next.push(id);
                        line.near.push(id);
                    }
                }
                Choice::NotBefore(at) => self.gate = Some(self.gate.map_or(at, |gate| gate.min(at))),
                // One on its way in can be closed for it when it is there: until then nobody passes.
                Choice::Impossible if self.will_do(id, demand, &lack, &candidates) => {}
                Choice::Impossible => return,
            }
        }
        line.promised = line.promised.plus(&need);
    }

    /// Whether the candidates and the engines that are on their way in would together make room for `id`.
    fn will_do(&self, id: ModelId, demand: Demand, lack: &Footprint, candidates: &[Candidate]) -> bool {
        let coming = self.models_by_id().filter(|(other, model)| {
            let comes = matches!(model.state, State::Starting | State::SwappingIn);
            comes && !model.pinned && *other != id && demand.urgency == Urgency::Awaited
        });
        let all = candidates.iter().fold(Footprint::default(), |sum, one| sum.plus(&one.frees));
        let all = coming.fold(all, |sum, (_, model)| sum.plus(&model.resident.minus(&model.out)));
        lack.within(&all)
    }

    /// Whether `id` may not begin for a reason other than room: an engine sizes itself on its GPUs, or it would be in the
    /// way of somebody ahead who is about to begin there, one of the two measuring.
    fn waits_for_quiet(&self, id: ModelId, now: Moment, line: &Line) -> bool {
        let model = self.model(id);
        let in_the_way = |ahead: &ModelId| {
            let ahead = self.model(*ahead);
            ahead.shares_gpu(model) && (ahead.will_measure() || model.will_measure())
        };
        let leaves = |victim: &Victim| {
            self.may_go_now(victim.model, now) && self.model(victim.model).shares_gpu(model)
        };
        self.measured_beside(id).is_some()
            || line.next.iter().any(in_the_way)
            || (model.will_measure() && line.victims.iter().any(leaves))
    }

    /// While `id` waits for quiet, who drains for it already drains on; nobody else is asked to leave.
    fn keep_victims(&self, id: ModelId, line: &mut Line) {
        for (victim, model) in self.models_by_id() {
            let taken = line.victims.iter().any(|other| other.model == victim);
            if !taken && !model.pinned && model.leaving.is_some_and(|leaving| leaving.why == Why::Room(id)) {
                line.freed = line.freed.plus(&model.held.minus(&model.out));
                line.victims.push(Victim { model: victim, whom: Some(id), share: None, kind: Kind::Idle });
            }
        }
    }

    /// Whether a victim's way out begins at once.
    fn may_go_now(&self, id: ModelId, now: Moment) -> bool {
        let model = self.model(id);
        let overdue = || model.leaving.is_some_and(|leaving| self.is_overdue(model, leaving, now));
        model.leases == 0 || model.state == State::Out || overdue()
    }

    /// Begins the way in if the ledger has the room now.
    fn come_in(&mut self, id: ModelId, now: Moment, demand: Demand, fx: &mut Vec<Effect>) -> bool {
        let model = &mut self.models[id.index()];
        let next = model.coming_in();
        if !self.ledger.reserve(&mut model.held, next) {
            return false;
        }
        let waited = now.since(demand.since);
        model.history.note(now, What::CameIn { waited });
        if model.will_start() {
            let is_held = model.state == State::Preparing;
            model.timing.waited = Some(waited);
            model.enter(State::Starting, now);
            self.warm(id, fx);
            fx.push(if is_held { Effect::Proceed { model: id } } else { Effect::Start { model: id } });
        } else {
            model.enter(State::SwappingIn, now);
            fx.push(Effect::SwapIn { model: id, early: None });
        }
        true
    }

    /// Where measured footprints or a shrunken capacity put the ledger over, idle engines go: out, or where that frees
    /// nothing (host memory), they are stopped.
    fn relieve(&self, now: Moment, line: &mut Line) {
        let mut lack = self.ledger.over().minus(&line.freed);
        if !lack.is_zero() {
            let candidates = self.candidates(now, None, &lack, line);
            // Some of what is missing is better than nothing, and each resource is missed for itself.
            let all = candidates.iter().fold(Footprint::default(), |sum, one| sum.plus(&one.frees));
            lack = lack.minus(&lack.minus(&all));
            if let Choice::Go(victims) = choose(now, &lack, &candidates) {
                line.take(&victims, &candidates, &lack, None);
            }
        }
    }

    /// The engines that could make room, for somebody or (`None`) because the ledger is over its capacity.
    fn candidates(
        &self,
        now: Moment,
        whom: Option<(ModelId, Demand)>,
        lack: &Footprint,
        line: &Line,
    ) -> Vec<Candidate> {
        let eligible = self.models_by_id().filter(|(id, model)| {
            let wanting = whom.is_some_and(|(whom, _)| whom == *id);
            let taken = line.victims.iter().any(|victim| victim.model == *id);
            // A pinned one that is only being prepared is not resident yet.
            let may = (!model.pinned || model.state == State::Preparing) && model.faults.spared_until <= now;
            !wanting && !taken && may && !self.is_held_still(*id)
        });
        let starts = whom.is_some_and(|(whom, _)| self.model(whom).will_start());
        let candidates = eligible.filter_map(|(id, model)| {
            let lacks = lack.gpu.iter().max().copied().unwrap_or_default();
            let gpus_alone = lack.host.is_zero() && lack.pool.is_zero() && lack.slots == 0;
            let share = (model.can_go_in_part() && gpus_alone && !lacks.is_zero()).then_some(lacks);
            let kind = self.kind_of_victim(now, id, whom, share)?;
            let frees = match kind {
                Kind::Stop => model.held.clone(),
                // Of the host's memory one that is out already frees none.
                Kind::Idle if model.state == State::Out => {
                    at_most(&model.held.minus(&model.out), Bytes(u64::MAX))
                }
                Kind::Idle | Kind::Busy { .. } => model.held.minus(&model.out),
            };
            let cost = match model.leaving {
                Some(_) => 0.0,
                // It serves nobody yet.
                None if model.state == State::Preparing => -1.0,
                // Out of host memory, the one that was used longest ago ends, whatever its next start costs.
                None if whom.is_none() && kind == Kind::Stop => 0.0,
                None => {
                    (model.expected_out() + model.expected_in()).as_secs_f64() * (1.0 + model.weight(now))
                }
            };
            let whole = model.going_out(None).minus(&model.held);
            let parts = match share {
                Some(_) if kind == Kind::Stop => Parts::No,
                None => Parts::No,
                // One that starts looks for more than what is reserved for it: its context, what it sizes itself by.
                Some(_) if self.ledger.has_room(&whole) && starts => Parts::No,
                Some(_) if self.ledger.has_room(&whole) => Parts::May,
                Some(_) => Parts::Must,
            };
            Some(Candidate { model: id, frees, kind, parts, cost, last_used: model.last_used })
        });
        candidates.collect()
    }

    /// Whether its leaving would be seen by an engine that is measuring.
    fn is_held_still(&self, id: ModelId) -> bool {
        let on_gpus = self.model(id).held.gpu.iter().any(|bytes| bytes.0 > 0);
        on_gpus && self.measured_beside(id).is_some()
    }

    /// What the leaving of engine `id` would mean, if it may leave at all for `whom`.
    fn kind_of_victim(
        &self,
        now: Moment,
        id: ModelId,
        whom: Option<(ModelId, Demand)>,
        share: Option<Bytes>,
    ) -> Option<Kind> {
        let model = &self.models[id.index()];
        let urgency = whom.map_or(Urgency::Preload, |(_, demand)| demand.urgency);
        let may_stop = urgency != Urgency::Preload;
        let asked = model.leaving.is_some_and(|leaving| leaving.why == Why::Asked);
        let goes_before = |demand| model.demand().is_none_or(|its| demand < its);
        match model.state {
            State::Resident if asked => Some(Kind::Idle),
            State::Resident if model.is_busy() => {
                let (whom, demand) = whom.filter(|_| urgency == Urgency::Awaited)?;
                Some(Kind::Busy { ready: self.may_close_at(now, id, whom, demand) })
            }
            // Out of host memory, only an end frees any.
            State::Resident | State::Out
                if whom.is_none() && self.ledger.over().host.0 > 0 && model.held.host.0 > 0 =>
            {
                (model.leases == 0 && model.demand().is_none()).then_some(Kind::Stop)
            }
            State::Resident if self.ledger.has_room(&model.going_out(share).minus(&model.held)) => {
                Some(Kind::Idle)
            }
            State::Resident => may_stop.then_some(Kind::Stop),
            State::Preparing if whom.is_none() => (self.ledger.over().host.0 > 0).then_some(Kind::Stop),
            State::Preparing => {
                let (_, demand) = whom.filter(|_| may_stop)?;
                goes_before(demand).then_some(Kind::Stop)
            }
            State::Out => {
                let room = model.going_out(share).minus(&model.held);
                if share.is_some() && model.has_more_to_free() && self.ledger.has_room(&room) {
                    return whom.is_none_or(|(_, demand)| goes_before(demand)).then_some(Kind::Idle);
                }
                let (_, demand) = whom.filter(|_| may_stop && model.leases == 0)?;
                goes_before(demand).then_some(Kind::Stop)
            }
            _ => None,
        }
    }

    /// The moment from which the busy engine `id` may be closed for `whom`.
    pub(super) fn may_close_at(&self, now: Moment, id: ModelId, whom: ModelId, demand: Demand) -> Moment {
        let (busy, waiting) = (&self.models[id.index()], &self.models[whom.index()]);
        match busy.leaving {
            Some(leaving) if leaving.why == Why::Room(whom) => leaving.since,
            _ => {
                let patience = scaled_patience(self.bounds.patience, busy.weight(now), waiting.weight(now));
                let borne = demand.since + patience;
                let borne = self.last_chance(busy, waiting).map_or(borne, |last| last.min(borne));
                (busy.resident_since + self.bounds.min_resident).max(borne)
            }
        }
    }

    /// Closes the chosen victims, opens those that are no longer needed, and lets go who can go.
    fn close_and_open(&mut self, now: Moment, victims: &[Victim], fx: &mut Vec<Effect>) {
        for index in 0..self.models.len() {
            let id = ModelId(index as u32);
            let model = &mut self.models[index];
            let victim = victims.iter().find(|victim| victim.model == id).copied();
            let share = victim.and_then(|victim| victim.share);
            match victim {
                Some(_) if model.state == State::Preparing => self.put_off(id, now, PutOff::Host, fx),
                Some(Victim { whom: None, kind: Kind::Stop, .. }) => {
                    self.stop(id, now, OutWhy::OverCapacity, fx);
                }
                Some(Victim { whom: None, .. }) => self.go_out(id, now, share, OutWhy::OverCapacity, fx),
                Some(Victim { whom: Some(whom), kind, .. }) if model.state == State::Out => {
                    let why = OutWhy::Room { whom };
                    match kind {
                        Kind::Stop => self.stop(id, now, why, fx),
                        Kind::Idle | Kind::Busy { .. } => self.go_out(id, now, share, why, fx),
                    }
                }
                Some(Victim { whom: Some(whom), .. }) => self.close(id, now, whom),
                None if model.leaving.is_some_and(|leaving| matches!(leaving.why, Why::Room(_))) => {
                    model.leaving = None;
                    model.history.note(now, What::Reopened);
                    self.dispatch_waiting(id, now, fx);
                }
                None => {}
            }
            if let Some(leaving) = self.models[index].leaving {
                let why = match leaving.why {
                    Why::Room(whom) => OutWhy::Room { whom },
                    Why::Asked => OutWhy::Asked,
                };
                self.go_out(id, now, share, why, fx);
            }
        }
    }

    fn close(&mut self, id: ModelId, now: Moment, whom: ModelId) {
        let model = &mut self.models[id.index()];
        match &mut model.leaving {
            Some(Leaving { why: why @ Why::Room(_), .. }) => *why = Why::Room(whom),
            Some(_) => {}
            None => {
                model.leaving = Some(Leaving { since: now, why: Why::Room(whom) });
                if model.leases > 0 {
                    model.history.note(now, What::Closed { whom, running: model.leases });
                }
            }
        }
    }

    /// Begins the swap-out of an engine if it may go now: drained, or drained for too long and its streams survive.
    /// Where the host has no room for what it takes while out, it is stopped instead. With a `share` only so much of each GPU
    /// is freed; one that went out in part frees more.
    pub(super) fn go_out(
        &mut self,
        id: ModelId,
        now: Moment,
        share: Option<Bytes>,
        why: OutWhy,
        fx: &mut Vec<Effect>,
    ) {
        if self.is_held_still(id) || !self.may_go_now(id, now) {
            return;
        }
        let model = &mut self.models[id.index()];
        let next = model.going_out(share);
        if self.ledger.reserve(&mut model.held, next) {
            let in_flight = model.leases;
            model.history.note(now, What::WentOut { why, in_flight });
            model.again = model.state == State::Out;
            model.enter(State::SwappingOut, now);
            model.share = share;
            fx.push(Effect::SwapOut { model: id, in_flight, free: share });
        } else if model.leases == 0 {
            self.stop(id, now, why, fx);
        }
    }

    /// Stops an engine, unless another one would see that: then it stays as it is for now.
    fn stop(&mut self, id: ModelId, now: Moment, why: OutWhy, fx: &mut Vec<Effect>) {
        if self.is_held_still(id) {
            return;
        }
        let model = &mut self.models[id.index()];
        model.history.note(now, What::Stopped { why });
        model.enter(State::Stopping, now);
        fx.push(Effect::Stop { model: id });
    }
}

impl Line {
    /// Takes victims on, each for the part of `lack` that those before it leave.
    fn take(
        &mut self,
        victims: &[ModelId],
        candidates: &[Candidate],
        lack: &Footprint,
        whom: Option<ModelId>,
    ) {
        let mut lack = lack.clone();
        for candidate in victims.iter().filter_map(|id| candidates.iter().find(|it| it.model == *id)) {
            let share = candidate.share_of(&lack);
            let frees = share.map_or(candidate.frees.clone(), |bytes| at_most(&candidate.frees, bytes));
            lack = lack.minus(&frees);
            self.freed = self.freed.plus(&frees);
            self.victims.push(Victim { model: candidate.model, whom, share, kind: candidate.kind });
        }
    }
}
