//! A world for random histories: engines that answer in any order, fail, die, and measure other than declared.
//!
//! It keeps its own account of what every engine holds and of where every request is, and judges each effect by that.

use super::{super::*, kit};
use crate::units::{Bytes, Footprint, MechanismKind, ModelId, RequestId};
use std::{collections::BTreeMap, time::Duration};

mod action;
mod answers;
mod engine;
mod judge;
mod rules;

pub(super) use action::{Action, Outcome};
use engine::{Engine, Move};

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
