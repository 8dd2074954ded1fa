//! A discrete-event world: engines whose moves take their time, requests that take theirs, and a strategy in the middle.

use super::{Call, Costs};
use crate::{
    scheduler::{Effect, Event, Scheduler, Setup, SwapMeasure},
    units::{ModelId, Moment, RequestId},
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    time::Duration,
};

/// Whoever decides: takes events, asks for effects.
pub trait Strategy {
    /// Takes in what happened.
    fn step(&mut self, now: Moment, event: Event, effects: &mut Vec<Effect>);
    /// When it wants to be woken.
    fn next_wake(&self) -> Option<Moment>;
}

impl Strategy for Scheduler {
    fn step(&mut self, now: Moment, event: Event, effects: &mut Vec<Effect>) {
        Scheduler::step(self, now, event, effects);
    }

    fn next_wake(&self) -> Option<Moment> {
        Scheduler::next_wake(self)
    }
}

/// What a simulated run was like; one entry a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// From arrival to dispatch, of each request that was served.
    pub waits: Vec<Vec<Duration>>,
    /// Requests that were refused or given up.
    pub rejected: Vec<u64>,
    /// Swaps in, after the start.
    pub swaps: Vec<u64>,
    /// From the run's begin until every engine has been started and tried.
    pub started: Duration,
    /// When the last request ended, since the endpoint opened.
    pub length: Duration,
}

/// Something that is going to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Arrives(usize),
    Moved(ModelId, Move),
    /// A start is over but for its trial.
    Answers(ModelId),
    /// A model's weights lie in the page cache.
    Read(ModelId),
    /// One that was launched ahead has come to its first use of a GPU.
    Imported(ModelId),
    /// A request's last byte, unless its engine was swapped out since (another turn of the engine).
    Ends(RequestId, u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Move {
    Start,
    Stop,
    In,
    Out,
}

/// A request on an engine.
struct Running {
    model: ModelId,
    left: Duration,
    since: Moment,
}

struct World<'a, S> {
    strategy: &'a mut S,
    setup: &'a Setup,
    costs: &'a [Costs],
    calls: &'a [Call],
    now: Moment,
    coming: BinaryHeap<Reverse<(Moment, u64, Happening)>>,
    sequence: u64,
    running: BTreeMap<RequestId, Running>,
    /// How often each engine has come in.
    turns: Vec<u32>,
    /// When each engine that was launched ahead of its turn has imported what it needs.
    imported: Vec<Option<Moment>>,
    /// When each model's weights lie in the page cache, where they are being read ahead or have been.
    read: Vec<Option<Moment>>,
    moving: usize,
    outcome: Outcome,
    effects: Vec<Effect>,
}

/// Runs `calls` against a strategy, once its engines have been started.
pub fn simulate(strategy: &mut impl Strategy, setup: &Setup, costs: &[Costs], calls: &[Call]) -> Outcome {
    let models = setup.models.len();
    let mut world = World {
        strategy,
        setup,
        costs,
        calls,
        now: Moment::ZERO,
        coming: BinaryHeap::new(),
        sequence: 0,
        running: BTreeMap::new(),
        turns: vec![0; models],
        imported: vec![None; models],
        read: vec![None; models],
        moving: 0,
        outcome: Outcome::default(),
        effects: Vec::new(),
    };
    world.outcome.waits = vec![Vec::new(); models];
    world.outcome.rejected = vec![0; models];
    world.tell(Event::Boot);
    while world.moving > 0 && world.advance() {}
    world.outcome.swaps = vec![0; models];
    let opened = world.now;
    world.outcome.started = opened.since(Moment::ZERO);
    for (at, call) in calls.iter().enumerate() {
        world.expect(opened + call.at.since(Moment::ZERO), Happening::Arrives(at));
    }
    while !world.coming.is_empty() && world.advance() {}
    world.outcome.length = world.now.since(opened);
    world.outcome
}

impl<S: Strategy> World<'_, S> {
    /// Goes to the next thing that happens, or to the moment the strategy wants to be woken.
    fn advance(&mut self) -> bool {
        let next = self.coming.peek().map(|Reverse((at, ..))| *at);
        let wake = self.strategy.next_wake().filter(|wake| next.is_none_or(|next| *wake < next));
        if let Some(wake) = wake {
            self.now = wake;
            self.tell(Event::Wake);
        } else if let Some(Reverse((at, _, happening))) = self.coming.pop() {
            self.now = at;
            self.happen(happening);
        }
        wake.is_some() || next.is_some()
    }

    fn expect(&mut self, at: Moment, happening: Happening) {
        self.sequence += 1;
        self.coming.push(Reverse((at, self.sequence, happening)));
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Arrives(at) => {
                self.tell(Event::Arrived { request: RequestId(at as u64), model: self.calls[at].model });
            }
            Happening::Moved(model, moved) => self.moved(model, moved),
            Happening::Answers(model) => self.tell(Event::Answered { model }),
            Happening::Imported(model) => self.tell(Event::Imported { model }),
            Happening::Read(model) => self.tell(Event::Warmed { model }),
            Happening::Ends(request, turn) => {
                let current = |running: &Running| self.turns[running.model.index()] == turn;
                if self.running.get(&request).is_some_and(current) {
                    self.running.remove(&request);
                    self.tell(Event::Released { request });
                }
            }
        }
    }

    fn moved(&mut self, model: ModelId, moved: Move) {
        self.moving -= 1;
        let spec = &self.setup.models[model.index()];
        let costs = self.costs[model.index()];
        let took = match moved {
            Move::Start => costs.start,
            Move::Stop => costs.stop,
            Move::In => costs.swap_in,
            Move::Out => costs.swap_out,
        };
        let (resident, out) = (spec.resident.clone(), spec.out.clone());
        let measure = SwapMeasure { resident, out, took, ..SwapMeasure::default() };
        if matches!(moved, Move::Start | Move::In) {
            self.resume(model);
        }
        if matches!(moved, Move::Start | Move::Stop) {
            self.imported[model.index()] = None;
        }
        self.tell(match moved {
            Move::Start => Event::Started { model, measure },
            Move::Stop => Event::Stopped { model },
            Move::In => Event::SwappedIn { model, measure },
            Move::Out => Event::SwappedOut { model, measure },
        });
    }

    /// How long a start that begins now takes: the engine waits for what of its weights has not been read when it wants
    /// them. What it has imported already is no part of it.
    fn starts_in(&self, model: ModelId) -> Duration {
        let costs = self.costs[model.index()];
        let imported = self.imported[model.index()].unwrap_or(self.now + costs.imports);
        let wanted = imported.max(self.now);
        let read = self.read[model.index()].unwrap_or(wanted + costs.reading);
        wanted.since(self.now) + (costs.start - costs.imports) + read.since(wanted)
    }

    /// Paused requests go on where they were.
    fn resume(&mut self, model: ModelId) {
        let turn = &mut self.turns[model.index()];
        *turn += 1;
        let turn = *turn;
        let mut ends = Vec::new();
        for (request, running) in self.running.iter_mut().filter(|(_, running)| running.model == model) {
            running.since = self.now;
            ends.push((self.now + running.left, Happening::Ends(*request, turn)));
        }
        ends.into_iter().for_each(|(at, happening)| self.expect(at, happening));
    }

    fn pause(&mut self, model: ModelId) {
        self.turns[model.index()] += 1;
        for running in self.running.values_mut().filter(|running| running.model == model) {
            running.left = running.left.saturating_sub(self.now.since(running.since));
        }
    }

    fn tell(&mut self, event: Event) {
        let mut effects = std::mem::take(&mut self.effects);
        self.strategy.step(self.now, event, &mut effects);
        for effect in effects.drain(..) {
            self.carry_out(effect);
        }
        self.effects = effects;
    }

    /// A swap-in ends after the swap-outs that it takes its memory from.
    fn begin_in(&mut self, model: ModelId, from: &[ModelId]) {
        let outs = self.coming.iter().filter_map(|Reverse((at, _, happening))| match happening {
            Happening::Moved(other, Move::Out) if from.contains(other) => Some(*at),
            _ => None,
        });
        let end = outs.fold(self.now + self.costs[model.index()].swap_in, Moment::max);
        self.moving += 1;
        self.expect(end, Happening::Moved(model, Move::In));
    }

    fn carry_out(&mut self, effect: Effect) {
        let start = match effect {
            Effect::Start { model } | Effect::Proceed { model } => self.starts_in(model),
            _ => Duration::ZERO,
        };
        let mut begin = |model: ModelId, moved| {
            let costs = self.costs[model.index()];
            let takes = match moved {
                Move::Start => start,
                Move::Stop => costs.stop,
                Move::In => costs.swap_in,
                Move::Out => costs.swap_out,
            };
            self.moving += 1;
            self.expect(self.now + takes, Happening::Moved(model, moved));
        };
        match effect {
            Effect::Warm { model } => {
                let end = self.now + self.costs[model.index()].reading;
                self.read[model.index()] = Some(end);
                self.expect(end, Happening::Read(model));
            }
            Effect::Prepare { model } => {
                let end = self.now + self.costs[model.index()].imports;
                self.imported[model.index()] = Some(end);
                self.expect(end, Happening::Imported(model));
            }
            Effect::Start { model } | Effect::Proceed { model } => {
                begin(model, Move::Start);
                let costs = self.costs[model.index()];
                let trial = costs.swap_out + costs.swap_in;
                self.expect(self.now + start.saturating_sub(trial), Happening::Answers(model));
            }
            Effect::Stop { model } => begin(model, Move::Stop),
            Effect::SwapIn { model, early } => {
                let from = early.map(|early| early.from).unwrap_or_default();
                self.begin_in(model, &from);
                if let Some(swaps) = self.outcome.swaps.get_mut(model.index()) {
                    *swaps += 1;
                }
            }
            Effect::SwapOut { model, .. } => {
                begin(model, Move::Out);
                self.pause(model);
            }
            Effect::Dispatch { request, model, waited, .. } => {
                let left = self.calls[request.0 as usize].takes;
                self.running.insert(request, Running { model, left, since: self.now });
                self.expect(self.now + left, Happening::Ends(request, self.turns[model.index()]));
                self.outcome.waits[model.index()].push(waited);
            }
            Effect::Reject { request, .. } => {
                self.outcome.rejected[self.calls[request.0 as usize].model.index()] += 1;
            }
            Effect::Answer { .. } => {}
        }
    }
}
