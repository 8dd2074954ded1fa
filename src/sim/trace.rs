//! Who asks for what, when, and for how long.

use crate::units::{ModelId, Moment};
use serde::Deserialize;
use std::{
    io::{self, BufRead},
    time::Duration,
};

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// When it arrives, since the endpoint opened.
    pub at: Moment,
    /// What it asks for.
    pub model: ModelId,
    /// How long the engine works on it.
    pub takes: Duration,
}

/// How requests arrive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Requests an hour, over all models.
    pub per_hour: f64,
    /// How long arrivals go on.
    pub length: Duration,
    /// Mean time an engine works on one.
    pub takes: Duration,
    /// Requests that come together for the same model; 1 is a Poisson process.
    pub burst: u32,
}

/// A trace from a seed: bursts at random moments, each for one model; models differ in how often they are asked for, the
/// n-th one 1/n as often as the first.
pub fn generate(seed: u64, models: usize, shape: &Shape) -> Vec<Call> {
    let mut random = Random(seed);
    let weights: Vec<f64> = (1..=models).map(|rank| 1.0 / rank as f64).collect();
    let burst = shape.burst.max(1);
    let gap = 3600.0 / shape.per_hour * f64::from(burst);
    let mut calls = Vec::new();
    let mut at = Duration::ZERO;
    if models == 0 || !gap.is_finite() || gap <= 0.0 {
        return calls;
    }
    loop {
        at += Duration::from_secs_f64(random.exponential(gap));
        if at >= shape.length {
            return calls;
        }
        let model = random.choose(&weights);
        for _ in 0..burst {
            let takes = Duration::from_secs_f64(random.exponential(shape.takes.as_secs_f64()));
            calls.push(Call { at: Moment::after_start(at), model: ModelId(model as u32), takes });
        }
    }
}

/// A line of a trace file that is none.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file cannot be read.
    #[error("cannot read the trace")]
    Read(#[from] io::Error),
    /// The line is not `{"at": seconds, "model": "name", "takes": seconds}`.
    #[error("line {line} of the trace is not {{\"at\": seconds, \"model\": \"name\", \"takes\": seconds}}")]
    Line {
        /// Which.
        line: usize,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A time that is none.
    #[error("line {line} of the trace has a time below zero or without end")]
    Time {
        /// Which.
        line: usize,
    },
    /// The config has no such model.
    #[error("line {line} of the trace asks for {model}, which the config does not have")]
    Model {
        /// Which.
        line: usize,
        /// What it asks for.
        model: String,
    },
}

/// Reads a trace, one JSON object a line; `find` knows the models' names and aliases.
///
/// # Errors
/// The first line that is none.
pub fn read(lines: impl BufRead, find: impl Fn(&str) -> Option<ModelId>) -> Result<Vec<Call>, TraceError> {
    #[derive(Deserialize)]
    struct Line {
        at: f64,
        model: String,
        takes: f64,
    }
    let mut calls = Vec::new();
    for (text, line) in lines.lines().zip(1..) {
        let text = text?;
        if text.trim().is_empty() {
            continue;
        }
        let Line { at, model, takes } =
            serde_json::from_str(&text).map_err(|source| TraceError::Line { line, source })?;
        let time = |seconds| Duration::try_from_secs_f64(seconds).map_err(|_| TraceError::Time { line });
        let id = find(&model).ok_or(TraceError::Model { line, model })?;
        calls.push(Call { at: Moment::after_start(time(at)?), model: id, takes: time(takes)? });
    }
    calls.sort_by_key(|call| call.at);
    Ok(calls)
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// In (0, 1].
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * self.unit().ln()
    }

    fn choose(&mut self, weights: &[f64]) -> usize {
        let mut left = self.unit() * weights.iter().sum::<f64>();
        let passed = |weight: &f64| {
            left -= weight;
            left <= 0.0
        };
        weights.iter().position(passed).unwrap_or(weights.len() - 1)
    }
}
