//! The swaps that happened: the last ones in full for `status`, all of them counted.

use crate::units::{Bytes, MechanismKind, Moment};
use serde::{Deserialize, Serialize};
use std::{collections::VecDeque, sync::Arc, time::Duration};

/// How many rows are kept in full.
const KEPT: usize = 256;

/// One move of one engine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SwapRow {
    /// When it ended, seconds since the run began.
    pub at_s: f64,
    /// The model.
    pub model: Arc<str>,
    /// `start`, `in` or `out`.
    pub direction: std::borrow::Cow<'static, str>,
    /// The mechanism used.
    pub mechanism: Option<MechanismKind>,
    /// How long it took, seconds.
    pub seconds: f64,
    /// Bytes that crossed the bus, where known.
    pub moved: Option<Bytes>,
    /// Its phases in order, seconds each.
    pub phases: Vec<(String, f64)>,
    /// What went wrong, if it failed.
    pub fault: Option<String>,
}

/// The run's moves.
#[derive(Debug, Default)]
pub struct History {
    rows: VecDeque<SwapRow>,
    total: u64,
}

impl History {
    /// Adds a row; the oldest one goes when there are too many.
    pub fn push(&mut self, row: SwapRow) {
        self.total += 1;
        if self.rows.len() == KEPT {
            self.rows.pop_front();
        }
        self.rows.push_back(row);
    }

    /// The rows that are kept, oldest first.
    pub fn rows(&self) -> impl Iterator<Item = &SwapRow> {
        self.rows.iter()
    }

    /// How many moves there were in all.
    pub fn total(&self) -> u64 {
        self.total
    }
}

/// A row's time stamp.
pub fn seconds(at: Moment) -> f64 {
    at.since(Moment::ZERO).as_secs_f64()
}

/// Phases as `status` shows them.
pub fn phases(of: &[(String, Duration)]) -> Vec<(String, f64)> {
    of.iter().map(|(name, took)| (name.clone(), took.as_secs_f64())).collect()
}
