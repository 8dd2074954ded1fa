//! The phases of an engine's start, each with its time: what `status` shows while it starts and afterwards.

use super::report::Stage;
use serde::{Deserialize, Serialize};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The phases of one engine's last start. Clones are the same one: the worker notes, `status` reads.
#[derive(Clone, Debug, Default)]
pub struct Timeline(Arc<Mutex<Phases>>);

#[derive(Debug, Default)]
struct Phases {
    past: Vec<(Stage, Duration)>,
    now: Option<(Stage, Instant)>,
}

/// A phase and its time so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartPhase {
    /// Which.
    pub phase: Stage,
    /// How long it took, or has taken so far; seconds.
    pub seconds: f64,
}

impl Timeline {
    /// A new start: nothing is known of it yet.
    pub fn clear(&self) {
        *self.lock() = Phases::default();
    }

    /// The start is in this phase from now on; the same one again changes nothing.
    pub fn enter(&self, stage: Stage) {
        let mut phases = self.lock();
        if phases.now.is_some_and(|(current, _)| current == stage) {
            return;
        }
        phases.leave();
        phases.now = Some((stage, Instant::now()));
    }

    /// The start is over.
    pub fn end(&self) {
        self.lock().leave();
    }

    /// What is known, in order.
    pub fn phases(&self) -> Vec<StartPhase> {
        let phases = self.lock();
        let now = phases.now.map(|(stage, since)| (stage, since.elapsed()));
        let all = phases.past.iter().copied().chain(now);
        all.map(|(phase, took)| StartPhase { phase, seconds: took.as_secs_f64() }).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Phases> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Phases {
    fn leave(&mut self) {
        if let Some((stage, since)) = self.now.take() {
            self.past.push((stage, since.elapsed()));
        }
    }
}
