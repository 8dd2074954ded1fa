//! Two plain strategies to compare with: whoever asks first is served first, and the victim is found by age alone.
//!
//! They know no patience, no least residency, no pausing of streams and no demand: the engine in the way is closed, its
//! requests finish, it goes out, the next one comes in.

use super::Strategy;
use crate::{
    scheduler::{Effect, Event, Setup},
    units::{Footprint, ModelId, Moment, RequestId},
};
use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

/// Whose place is taken, and in what order requests are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// The engine that had no request for the longest time; whoever waits for an engine that is there is served.
    LeastRecentlyUsed,
    /// The engine that has been there for the longest time; strictly in order of arrival.
    FirstIn,
}

/// A plain strategy. Engines are out when it begins.
pub struct Plain {
    victim: Victim,
    capacity: Footprint,
    engines: Vec<Engine>,
    waiting: VecDeque<(RequestId, ModelId, Moment)>,
    leases: HashMap<RequestId, ModelId>,
}

struct Engine {
    resident: Footprint,
    place: Place,
    leases: u32,
    came_in: Moment,
    last_used: Moment,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Out,
    ComingIn,
    In,
    Closed,
    GoingOut,
}

impl Plain {
    /// A strategy over the same models and the same room; host memory is taken to be enough.
    pub fn new(setup: &Setup, victim: Victim) -> Self {
        let engines = setup.models.iter().map(|spec| Engine {
            resident: spec.resident.clone(),
            place: Place::Out,
            leases: 0,
            came_in: Moment::ZERO,
            last_used: Moment::ZERO,
        });
        Plain {
            victim,
            capacity: setup.capacity.clone(),
            engines: engines.collect(),
            waiting: VecDeque::new(),
            leases: HashMap::new(),
        }
    }

    fn serve(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        let mut passed = VecDeque::new();
        while let Some((request, model, arrived)) = self.waiting.pop_front() {
            let engine = &mut self.engines[model.index()];
            if engine.place == Place::In {
                engine.leases += 1;
                engine.last_used = now;
                self.leases.insert(request, model);
                let (waited, swapping) = (now.since(arrived), Duration::ZERO);
                effects.push(Effect::Dispatch { request, model, waited, swapping });
                continue;
            }
            passed.push_back((request, model, arrived));
            if self.victim == Victim::FirstIn {
                break;
            }
        }
        passed.append(&mut self.waiting);
        self.waiting = passed;
    }

    /// Makes room for the first that waits.
    fn make_room(&mut self, effects: &mut Vec<Effect>) {
        let Some((_, model, _)) = self.waiting.front().copied() else { return };
        if self.engines[model.index()].place == Place::Out {
            let need = self.engines[model.index()].resident.clone();
            let held = |engines: &[Engine], places: &[Place]| {
                let holders = engines.iter().filter(|engine| places.contains(&engine.place));
                holders.fold(Footprint::default(), |sum, engine| sum.plus(&engine.resident))
            };
            let all = held(&self.engines, &[Place::ComingIn, Place::In, Place::Closed, Place::GoingOut]);
            if all.plus(&need).masked_by(&need).within(&self.capacity) {
                self.engines[model.index()].place = Place::ComingIn;
                effects.push(Effect::SwapIn { model, early: None });
            } else {
                loop {
                    let staying = held(&self.engines, &[Place::ComingIn, Place::In]);
                    let lack = staying.plus(&need).minus(&self.capacity).masked_by(&need);
                    let in_the_way = |engine: &&mut Engine| {
                        engine.place == Place::In && !engine.resident.masked_by(&lack).is_zero()
                    };
                    let victim =
                        self.engines.iter_mut().filter(in_the_way).min_by_key(|engine| match self.victim {
                            Victim::LeastRecentlyUsed => engine.last_used,
                            Victim::FirstIn => engine.came_in,
                        });
                    match victim {
                        Some(victim) => victim.place = Place::Closed,
                        None => break,
                    }
                }
            }
        }
        for (at, engine) in self.engines.iter_mut().enumerate() {
            if engine.place == Place::Closed && engine.leases == 0 {
                engine.place = Place::GoingOut;
                effects.push(Effect::SwapOut { model: ModelId(at as u32), in_flight: 0, free: None });
            }
        }
    }
}

impl Strategy for Plain {
    fn step(&mut self, now: Moment, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Arrived { request, model } => {
                self.engines[model.index()].last_used = now;
                self.waiting.push_back((request, model, now));
            }
            Event::Released { request } => {
                if let Some(model) = self.leases.remove(&request) {
                    let engine = &mut self.engines[model.index()];
                    engine.leases -= 1;
                    engine.last_used = now;
                }
            }
            Event::SwappedIn { model, .. } => {
                let engine = &mut self.engines[model.index()];
                (engine.place, engine.came_in) = (Place::In, now);
            }
            Event::SwappedOut { model, .. } => self.engines[model.index()].place = Place::Out,
            _ => {}
        }
        self.serve(now, effects);
        self.make_room(effects);
    }

    fn next_wake(&self) -> Option<Moment> {
        None
    }
}
