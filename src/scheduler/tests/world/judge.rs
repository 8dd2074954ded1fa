//! Tells the scheduler what happens and carries its effects out, each one against the world's own account.

use super::*;

impl World {
    pub(super) fn tell(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.scheduler.step(self.now, event.clone(), &mut effects);
        self.judge(event, effects);
    }

    /// Carries the effects out, each one against the world's own account.
    fn judge(&mut self, event: Event, effects: Vec<Effect>) {
        self.scheduler.check_invariants().unwrap_or_else(|broken| panic!("{broken}, after {event:?}"));
        for effect in &effects {
            if let Effect::Warm { model } = effect
                && !effects.contains(&Effect::Start { model: *model })
                && !effects.contains(&Effect::Proceed { model: *model })
            {
                assert_eq!(self.reading(), [], "two are read ahead at once");
            }
            self.carry_out(effect);
        }
        self.journal.push((self.now, event, effects));
        self.watch_closing();
        let bound = kit::bounds().max_wait;
        if let Some((request, _)) = self.waiting.iter().find(|(_, (_, arrived))| *arrived + bound < self.now)
        {
            panic!("{request:?} waits longer than the bound");
        }
    }

    fn carry_out(&mut self, effect: &Effect) {
        match *effect {
            Effect::Warm { model } => {
                let room = self.capacity.host.max(self.first_capacity.host);
                assert!(self.specs[model.index()].weights <= room, "more is read than there is memory");
                let engine = &mut self.engines[model.index()];
                assert!(!engine.reading && engine.moving.is_none(), "read twice, or too late");
                engine.reading = true;
            }
            Effect::Prepare { model } => self.prepare(model),
            Effect::Start { model } | Effect::Proceed { model } => {
                let engine = &mut self.engines[model.index()];
                let proceeds = matches!(effect, Effect::Proceed { .. });
                assert_eq!(engine.held.take().is_some(), proceeds, "only who is held proceeds");
                let starting = self.specs[model.index()].starting.max(&engine.holds);
                let next = starting.max(&self.scheduler.view(model).resident);
                self.begin(model, Move::Start, next);
            }
            Effect::SwapIn { model, ref early } => {
                let view = self.scheduler.view(model);
                let next = view.resident.max(&view.out);
                match early {
                    Some(early) => self.begin_early(model, early, next),
                    None => self.begin(model, Move::In, next),
                }
            }
            Effect::Stop { model } => {
                let holds = self.engines[model.index()].holds.clone();
                self.begin(model, Move::Stop, holds);
                let engine = &mut self.engines[model.index()];
                (engine.up, engine.held) = (false, None);
            }
            Effect::SwapOut { model, in_flight, free } => self.swap_out(model, in_flight, free),
            Effect::Dispatch { request, model, waited, .. } => {
                let (wanted, arrived) = self.waiting.remove(&request).expect("only who waits is dispatched");
                assert_eq!((wanted, self.now.since(arrived)), (model, waited));
                let earlier = self.waiting.range(..request).find(|(_, (other, _))| *other == model);
                assert_eq!(earlier, None, "{request:?} overtook");
                assert!(self.engines[model.index()].up, "dispatched to an engine that is not there");
                self.longest = self.longest.max(waited);
                self.leased.insert(request, (model, self.engines[model.index()].life));
            }
            Effect::Reject { request, .. } => {
                self.waiting.remove(&request).expect("only who waits is rejected");
            }
            Effect::Answer { ask, .. } => {
                self.asks.remove(&ask).expect("an ask is answered once");
            }
        }
    }

    /// Launched ahead of its turn: it takes what the host has left, nothing of a GPU, and one at a time does on each GPU.
    fn prepare(&mut self, model: ModelId) {
        let spec = &self.specs[model.index()];
        let preparation = spec.preparation.expect("only who can be held is prepared");
        assert!(!self.draining, "launched though the run is ending");
        for other in self.those(|engine| engine.held.is_some()) {
            let shares = self.specs[other.index()].gpus.iter().any(|gpu| spec.gpus.contains(gpu));
            assert!(!shares, "two are held before the same GPU");
        }
        let engine = &mut self.engines[model.index()];
        assert!(engine.holds.is_zero() && !engine.up && engine.moving.is_none(), "it runs already");
        engine.held = Some(false);
        engine.holds = Footprint::default().with_host(preparation.host);
        let host: Bytes = self.engines.iter().map(|engine| engine.holds.host).sum();
        assert!(host <= self.capacity.host, "launched with no memory for it");
    }

    fn swap_out(&mut self, model: ModelId, in_flight: u32, free: Option<Bytes>) {
        let spec = &self.specs[model.index()];
        let engine = &self.engines[model.index()];
        let more = engine.holds.minus(&self.scheduler.view(model).out);
        let again = !engine.up && more.gpu.iter().any(|bytes| !bytes.is_zero());
        assert!(engine.up || again, "swapped out twice");
        assert!(!spec.pin || self.asked_out(model), "a pinned engine was chosen");
        let leases = self.leases(model);
        assert_eq!(leases, in_flight as usize);
        if in_flight > 0 && !again {
            assert!(spec.keeps_streams, "its streams would be lost");
            let resident = self.now.since(engine.resident_since);
            let drained =
                engine.closed.is_some_and(|closed| self.now.since(closed) >= kit::bounds().drain_limit);
            let in_time = resident >= kit::bounds().min_resident && self.somebody_loses_hope(model);
            assert!(drained || in_time, "not drained for long enough");
        }
        let mut out = self.scheduler.view(model).out;
        if let Some(free) = free {
            let most = (free.0 + Bytes::mib(256).0) * spec.gpus.len() as u64;
            out.pool = out.pool.min(engine.holds.pool + Bytes(most));
        }
        let next = out.max(&engine.holds);
        self.begin(model, Move::Out, next);
        let engine = &mut self.engines[model.index()];
        engine.up = false;
        (engine.part, engine.again) = (free, again);
        if !again {
            engine.paused = (in_flight > 0).then_some(self.now);
        }
    }

    /// A move in begins that takes what others give up: it goes over by no more, and what one gives up goes to one.
    fn begin_early(&mut self, model: ModelId, early: &Early, next: Footprint) {
        let is_parked = |id: ModelId| self.specs[id.index()].keeps_streams;
        assert!(is_parked(model) && !early.from.is_empty());
        let mut freed = Footprint::default();
        for from in &early.from {
            let giver = &self.engines[from.index()];
            assert!(is_parked(*from) && giver.moving == Some(Move::Out), "{from:?} gives nothing up");
            assert!(!self.engines.iter().any(|it| it.from.contains(from)), "{from:?} gives to two");
            let all = giver.holds.minus(&self.scheduler.view(*from).out);
            let most = giver.part.unwrap_or(Bytes(u64::MAX));
            let gpu = all.gpu.iter().map(|bytes| *bytes.min(&most)).collect();
            freed = freed.plus(&Footprint { gpu, ..Footprint::default() });
        }
        let grows = next.minus(&self.engines[model.index()].holds);
        let room = Footprint { gpu: early.room.clone(), ..Footprint::default() };
        let gpu = Footprint { gpu: grows.gpu.clone(), ..Footprint::default() };
        assert!(gpu.within(&room.plus(&freed)), "{model:?} is never let take all it needs");
        let sum = self.engines.iter().fold(Footprint::default(), |sum, engine| sum.plus(&engine.holds));
        let over = sum.plus(&room).minus(&self.capacity).masked_by(&room);
        assert!(over.is_zero(), "{model:?} may take {over} that is not free");
        let capacity = self.capacity.clone();
        self.capacity = capacity.plus(&freed);
        self.begin(model, Move::In, next);
        self.capacity = capacity;
        self.engines[model.index()].from = early.from.to_vec();
    }

    /// A move begins. What it takes more is there.
    fn begin(&mut self, model: ModelId, moving: Move, next: Footprint) {
        assert!(!self.draining || moving == Move::Stop, "a swap began though the run is ending");
        self.listen_for_noise(model, moving);
        let engine = &mut self.engines[model.index()];
        assert_eq!(engine.moving, None, "two moves at once");
        let grows = next.minus(&engine.holds);
        engine.moving = Some(moving);
        engine.holds = next;
        let sum = self.engines.iter().fold(Footprint::default(), |sum, engine| sum.plus(&engine.holds));
        let over = sum.minus(&self.capacity).masked_by(&grows);
        assert!(over.is_zero(), "{moving:?} of {model:?} goes over by {over}");
    }
}
