//! A world for random histories: engines that answer in any order, fail, die, and measure other than declared.
//!
//! It keeps its own account of what every engine holds and of where every request is, and judges each effect by that.

use super::{super::*, kit};
use crate::units::{Bytes, Footprint, MechanismKind, ModelId, RequestId};
use std::{collections::BTreeMap, time::Duration};

/// Something that happens in the world. Indices are taken modulo what there is.
#[derive(Clone, Debug)]
pub(super) enum Action {
    Arrive(usize),
    Cancel(usize),
    Release(usize),
    /// The chosen start has answered; its trial begins.
    Answered(usize),
    /// The chosen model's weights have been read.
    Warmed(usize),
    /// The chosen engine that is prepared has come to its first use of a GPU.
    Imported(usize),
    /// The chosen move ends so.
    Answer(usize, Outcome),
    Die(usize),
    AskIn(usize),
    AskOut(usize),
    Pin(usize, bool),
    /// The capacity is now this percentage of the first one.
    Capacity(u64),
    JobEnds(u64),
    Drain,
    /// Milliseconds pass; every wake that falls into them is made.
    Pass(u64),
}

/// How a move ends.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outcome {
    Done,
    /// Done, and the engine takes this percentage of what was declared.
    Measured(u64),
    Refused {
        retry: bool,
    },
    /// Another process has the memory of one that was to come in; else as refused.
    NoRoom,
    Lost {
        retry: bool,
    },
}

/// A move that was asked for and not yet reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    Start,
    Stop,
    In,
    Out,
}

/// An engine as it really is.
#[derive(Clone, Debug, Default)]
struct Engine {
    /// Resident and answering.
    up: bool,
    /// What it holds.
    holds: Footprint,
    /// What it held when it was last seen out.
    left: Footprint,
    /// In a move out: bytes that will do on each GPU.
    part: Option<Bytes>,
    /// In a move out: a part of it was out before.
    again: bool,
    moving: Option<Move>,
    /// In a move in: engines on their way out whose memory it takes.
    from: Vec<ModelId>,
    /// One of them did not go: it cannot come in now.
    broken: bool,
    /// In a move out: somebody has come in on its account, so it cannot be refused any more.
    settled: bool,
    /// How many processes there have been.
    life: u32,
    resident_since: Moment,
    /// Its start has answered.
    answered: bool,
    /// Its weights are being read.
    reading: bool,
    /// It is held before its first use of a GPU, and has come there or not.
    held: Option<bool>,
    /// Its streams have been paused since then.
    paused: Option<Moment>,
    /// Closed to new requests since then.
    closed: Option<Moment>,
}

impl Engine {
    /// Nothing of the process is left.
    fn end(&mut self) {
        *self = Engine { life: self.life + 1, reading: self.reading, ..Engine::default() };
    }
}

/// The world, with the scheduler in it.
pub(super) struct World {
    pub(super) scheduler: Scheduler,
    specs: Vec<ModelSpec>,
    engines: Vec<Engine>,
    first_capacity: Footprint,
    capacity: Footprint,
    pub(super) now: Moment,
    pub(super) waiting: BTreeMap<RequestId, (ModelId, Moment)>,
    /// With the count of the model's processes at that time: a lease on an earlier one holds nothing.
    pub(super) leased: BTreeMap<RequestId, (ModelId, u32)>,
    /// Open asks, and whether they want the model out.
    asks: BTreeMap<u64, (ModelId, bool)>,
    draining: bool,
    next: u64,
    /// Longest wait of a request that was served.
    pub(super) longest: Duration,
    /// Longest time that streams were paused before their engine answered again.
    pub(super) longest_pause: Duration,
    /// Everything that was told and asked, to be replayed.
    pub(super) journal: Vec<(Moment, Event, Vec<Effect>)>,
}

impl World {
    pub(super) fn new(setup: Setup) -> Self {
        let Setup { models: specs, capacity, .. } = setup.clone();
        let engines = vec![Engine::default(); specs.len()];
        let scheduler = Scheduler::new(setup);
        let mut world = World {
            scheduler,
            specs,
            engines,
            first_capacity: capacity.clone(),
            capacity,
            now: Moment::ZERO,
            waiting: BTreeMap::new(),
            leased: BTreeMap::new(),
            asks: BTreeMap::new(),
            draining: false,
            next: 0,
            longest: Duration::ZERO,
            longest_pause: Duration::ZERO,
            journal: Vec::new(),
        };
        world.tell(Event::Boot);
        world
    }

    pub(super) fn act(&mut self, action: &Action) {
        let models = self.specs.len();
        let id = |at: usize| ModelId((at % models) as u32);
        match *action {
            Action::Arrive(at) => {
                let request = RequestId(self.ticket());
                self.waiting.insert(request, (id(at), self.now));
                self.tell(Event::Arrived { request, model: id(at) });
            }
            Action::Cancel(at) => {
                if let Some(request) = nth(self.waiting.keys(), at) {
                    self.waiting.remove(&request);
                    self.tell(Event::Cancelled { request });
                }
            }
            Action::Release(at) => {
                if let Some(request) = nth(self.leased.keys(), at) {
                    self.leased.remove(&request);
                    self.tell(Event::Released { request });
                }
            }
            Action::Answered(at) => {
                let measuring: Vec<ModelId> =
                    self.moving().into_iter().filter(|model| self.is_measuring(*model)).collect();
                if let Some(model) = nth(measuring.iter(), at) {
                    self.engines[model.index()].answered = true;
                    self.tell(Event::Answered { model });
                }
            }
            Action::Warmed(at) => {
                let reading: Vec<ModelId> = self.reading();
                if let Some(model) = nth(reading.iter(), at) {
                    self.engines[model.index()].reading = false;
                    self.tell(Event::Warmed { model });
                }
            }
            Action::Imported(at) => {
                if let Some(model) = nth(self.importing().iter(), at) {
                    self.engines[model.index()].held = Some(true);
                    self.tell(Event::Imported { model });
                }
            }
            Action::Answer(at, outcome) => {
                let moving: Vec<ModelId> = self.moving();
                if let Some(model) = nth(moving.iter(), at) {
                    self.answer(model, outcome);
                }
            }
            Action::Die(at) => self.die(id(at)),
            Action::AskIn(at) => {
                let ask = self.ticket();
                self.asks.insert(ask, (id(at), false));
                self.tell(Event::AskIn { ask, model: id(at) });
            }
            Action::AskOut(at) => {
                let ask = self.ticket();
                self.asks.insert(ask, (id(at), true));
                self.tell(Event::AskOut { ask, model: id(at) });
            }
            Action::Pin(at, pinned) => {
                self.specs[id(at).index()].pin = pinned;
                self.tell(Event::Pin { model: id(at), pinned });
            }
            Action::Capacity(percent) => {
                self.capacity = scaled(&self.first_capacity, percent);
                self.tell(Event::Capacity { capacity: self.capacity.clone() });
            }
            Action::JobEnds(seconds) => self.tell(Event::JobEnds { remaining: Duration::from_secs(seconds) }),
            Action::Drain => {
                self.draining = true;
                self.tell(Event::Drain);
            }
            Action::Pass(ms) => self.pass(Duration::from_millis(ms)),
        }
    }

    pub(super) fn moving(&self) -> Vec<ModelId> {
        let moving = self.engines.iter().enumerate().filter(|(_, engine)| engine.moving.is_some());
        moving.map(|(at, _)| ModelId(at as u32)).collect()
    }

    pub(super) fn pass(&mut self, span: Duration) {
        let until = self.now + span;
        while let Some(wake) = self.scheduler.next_wake().filter(|wake| *wake <= until) {
            assert!(wake > self.now, "asked to be woken at {wake:?}, and it is {:?}", self.now);
            self.now = wake;
            self.tell(Event::Wake);
        }
        self.now = until;
    }

    /// Everything goes well from now on until nothing is left to do.
    pub(super) fn calm_down(&mut self) {
        for _ in 0..2_000 {
            if !self.reading().is_empty() {
                self.act(&Action::Warmed(0));
            } else if !self.importing().is_empty() {
                self.act(&Action::Imported(0));
            } else if let Some(model) = self.moving().first() {
                self.now = self.now + Duration::from_millis(100);
                self.answer(*model, Outcome::Done);
            } else if !self.leased.is_empty() {
                self.act(&Action::Release(0));
            } else if let Some(wake) = self.scheduler.next_wake() {
                self.pass(wake.since(self.now));
            } else {
                return;
            }
        }
        let last = &self.journal[self.journal.len() - 12..];
        panic!("it never calms down: {last:#?}");
    }

    fn reading(&self) -> Vec<ModelId> {
        self.those(|engine| engine.reading)
    }

    fn importing(&self) -> Vec<ModelId> {
        self.those(|engine| engine.held == Some(false))
    }

    fn those(&self, so: impl Fn(&Engine) -> bool) -> Vec<ModelId> {
        let all = (0..self.engines.len()).map(|at| ModelId(at as u32));
        all.filter(|model| so(&self.engines[model.index()])).collect()
    }

    /// Whether it is sizing itself by what is free on its GPUs.
    fn is_measuring(&self, model: ModelId) -> bool {
        let engine = &self.engines[model.index()];
        self.specs[model.index()].measures && engine.moving == Some(Move::Start) && !engine.answered
    }

    /// Nothing begins beside an engine that measures, and none begins to measure beside a move.
    fn listen_for_noise(&self, model: ModelId, moving: Move) {
        let (spec, engine) = (&self.specs[model.index()], &self.engines[model.index()]);
        let silent = moving == Move::Stop && engine.holds.gpu.iter().all(|bytes| bytes.0 == 0);
        for at in (0..self.engines.len()).filter(|at| *at != model.index() && !silent) {
            let (other, its) = (&self.specs[at], &self.engines[at]);
            if !other.gpus.iter().any(|gpu| spec.gpus.contains(gpu)) {
                continue;
            }
            assert!(!self.is_measuring(ModelId(at as u32)), "{moving:?} of {model:?} beside a start");
            let loud = its
                .moving
                .is_some_and(|moving| moving != Move::Stop || its.holds.gpu.iter().any(|bytes| bytes.0 > 0));
            assert!(!(loud && spec.measures && moving == Move::Start), "{model:?} starts beside a move");
        }
    }

    /// Requests on the engine that runs now.
    fn leases(&self, model: ModelId) -> usize {
        let life = self.engines[model.index()].life;
        self.leased.values().filter(|lease| **lease == (model, life)).count()
    }

    fn asked_out(&self, model: ModelId) -> bool {
        self.asks.values().any(|ask| *ask == (model, true))
    }

    /// Nobody waits, nobody was forgotten.
    pub(super) fn assert_quiet(&self) {
        assert!(self.waiting.is_empty(), "still waiting: {:?}", self.waiting);
        assert!(self.asks.is_empty(), "never answered: {:?}", self.asks);
        assert!(self.moving().is_empty());
        assert_eq!(self.those(|engine| engine.held.is_some()), [], "held for ever");
    }

    fn ticket(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(super) fn answer(&mut self, model: ModelId, outcome: Outcome) {
        let outcome = self.as_it_can_be(model, outcome);
        let spec = &self.specs[model.index()];
        let engine = &mut self.engines[model.index()];
        let Some(moving) = engine.moving.take() else { return };
        engine.from.clear();
        (engine.broken, engine.settled) = (false, false);
        let percent = if let Outcome::Measured(percent) = outcome { percent } else { 100 };
        let mechanism = if spec.keeps_streams { MechanismKind::Park } else { MechanismKind::Sleep };
        let measure = SwapMeasure {
            mechanism: Some(mechanism),
            resident: scaled(&spec.resident, percent),
            out: spec.out.clone(),
            took: Duration::from_millis(100),
            ..SwapMeasure::default()
        };
        let fault = |retry| EngineFault { detail: "as the test wants it".to_owned(), retry };
        let event = match (moving, outcome) {
            (Move::Stop, _) => {
                engine.end();
                Event::Stopped { model }
            }
            (Move::Start, Outcome::Done | Outcome::Measured(_)) => {
                (engine.up, engine.resident_since) = (true, self.now);
                engine.holds = measure.resident.clone();
                Event::Started { model, measure }
            }
            (Move::In, Outcome::NoRoom) => {
                engine.holds = engine.left.clone();
                Event::FoundNoRoom { model, fault: fault(true) }
            }
            (_, Outcome::NoRoom) => {
                engine.moving = Some(moving);
                return self.answer(model, Outcome::Refused { retry: true });
            }
            (Move::Start, Outcome::Refused { retry } | Outcome::Lost { retry }) => {
                engine.end();
                Event::StartFailed { model, fault: fault(retry) }
            }
            (Move::In, Outcome::Done | Outcome::Measured(_)) => {
                let paused = engine.paused.take().map(|since| self.now.since(since));
                self.longest_pause = self.longest_pause.max(paused.unwrap_or_default());
                (engine.up, engine.resident_since) = (true, self.now);
                engine.holds = measure.resident.clone();
                Event::SwappedIn { model, measure }
            }
            (Move::Out, Outcome::Done | Outcome::Measured(_)) => {
                let mut measure = measure;
                if let Some(part) = engine.part.take() {
                    measure.partial = true;
                    let gpu = engine.holds.gpu.iter().enumerate();
                    let kept = gpu.map(|(at, held)| held.saturating_sub(part).max(spec.out.on_gpu(at)));
                    measure.out.gpu = kept.collect();
                }
                engine.holds = measure.out.clone();
                engine.left = measure.out.clone();
                Event::SwappedOut { model, measure }
            }
            (Move::In, Outcome::Refused { retry }) => {
                engine.holds = engine.left.clone();
                Event::SwapInFailed { model, fault: fault(retry), lost: false }
            }
            (Move::Out, Outcome::Refused { retry }) => {
                engine.part = None;
                engine.up = !engine.again;
                let resident = self.scheduler.view(model).resident;
                engine.holds = if engine.again { engine.left.clone() } else { resident };
                Event::SwapOutFailed { model, fault: fault(retry), lost: false, mechanism: None }
            }
            (Move::In | Move::Out, Outcome::Lost { retry }) => {
                engine.end();
                let lost = true;
                if moving == Move::In {
                    Event::SwapInFailed { model, fault: fault(retry), lost }
                } else {
                    Event::SwapOutFailed { model, fault: fault(retry), lost, mechanism: None }
                }
            }
        };
        self.tell(event);
    }

    fn die(&mut self, model: ModelId) {
        if self.scheduler.state(model).has_process() {
            let was_held = self.engines[model.index()].held.is_some();
            self.give_no_more(model, false);
            self.engines[model.index()].end();
            let fault = EngineFault { detail: "it died".to_owned(), retry: true };
            self.tell(if was_held {
                Event::StartFailed { model, fault }
            } else {
                Event::EngineDied { model, fault }
            });
        }
    }

    fn tell(&mut self, event: Event) {
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

    /// What can come of a move: nobody comes in on the account of one that did not go, nor goes back on it afterwards.
    fn as_it_can_be(&mut self, model: ModelId, outcome: Outcome) -> Outcome {
        let engine = &self.engines[model.index()];
        let good = matches!(outcome, Outcome::Done | Outcome::Measured(_));
        match (engine.moving, outcome) {
            (Some(Move::In), _) if engine.broken && good => return Outcome::Refused { retry: true },
            (Some(Move::In), _) if good => {
                for from in engine.from.clone() {
                    self.engines[from.index()].settled = true;
                }
            }
            (Some(Move::Out), Outcome::Refused { .. }) if engine.settled => {
                self.give_no_more(model, false);
                return Outcome::Done;
            }
            (Some(Move::Out), _) => self.give_no_more(model, matches!(outcome, Outcome::Refused { .. })),
            _ => {}
        }
        outcome
    }

    /// A swap-out is over; `failed`: whoever took of its memory cannot have it.
    fn give_no_more(&mut self, model: ModelId, failed: bool) {
        for other in &mut self.engines {
            other.broken |= failed && other.from.contains(&model);
            other.from.retain(|from| *from != model);
        }
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

    /// Whether somebody waits for another model.
    fn wanted_beside(&self, model: ModelId) -> bool {
        let waiting = self.waiting.values().map(|(other, _)| *other);
        let asked = self.asks.values().map(|(other, _)| *other);
        let paused = self.leased.values().map(|(other, _)| *other);
        waiting.chain(asked).chain(paused).any(|other| other != model)
    }

    /// Whether somebody waits for another model and has most of the longest wait behind him.
    fn somebody_loses_hope(&self, model: ModelId) -> bool {
        let old = |since: Moment| self.now.since(since) * 2 >= kit::bounds().max_wait;
        let asked = self.asks.values().any(|(other, _)| *other != model);
        asked || self.waiting.values().any(|(other, arrived)| *other != model && old(*arrived))
    }

    /// A busy engine is closed only by its rule.
    fn watch_closing(&mut self) {
        for at in 0..self.engines.len() {
            let model = ModelId(at as u32);
            let view = self.scheduler.view(model);
            let asked = self.asked_out(model);
            let engine = &self.engines[at];
            if view.closing && engine.closed.is_none() && !asked {
                let resident = self.now.since(engine.resident_since);
                assert!(resident >= kit::bounds().min_resident, "closed after only {resident:?}");
                assert!(self.wanted_beside(model), "closed for nobody");
            }
            let engine = &mut self.engines[at];
            if view.closing && engine.closed.is_none() {
                engine.closed = Some(self.now);
            } else if !view.closing {
                engine.closed = None;
            }
        }
    }
}

fn nth<'a, T: Copy + 'a>(mut items: impl ExactSizeIterator<Item = &'a T>, at: usize) -> Option<T> {
    let len = items.len();
    if len == 0 { None } else { items.nth(at % len).copied() }
}

fn scaled(footprint: &Footprint, percent: u64) -> Footprint {
    let part = |bytes: Bytes| Bytes(bytes.0 / 100 * percent);
    Footprint {
        gpu: footprint.gpu.iter().map(|bytes| part(*bytes)).collect(),
        host: part(footprint.host),
        pool: part(footprint.pool),
        slots: footprint.slots,
    }
}
