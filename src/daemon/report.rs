//! What passes between the core and the workers.

use super::Timeline;
use crate::{
    engine::Reading,
    router::gate::Upstream,
    scheduler::Event,
    swap::Switch,
    units::{Bytes, MechanismKind, ModelId},
};
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, sync::Arc, time::Duration};

/// What the core asks of a model's worker. One at a time: the scheduler gives no second order before the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Read the files it will read at its start; the next order does not wait for that.
    Warm,
    /// Launch the engine ahead of its turn, to be held before its first use of a GPU; the next order does not wait for
    /// that.
    Prepare,
    /// Let the one that is held go on; then as [`Order::Start`]. One that has ended meanwhile has been reported.
    Proceed,
    /// Launch the engine, wait until it answers, try its mechanisms.
    Start,
    /// Stop it and free what it holds.
    Stop,
    /// Swap it out; `in_flight` requests are still open on it.
    SwapOut {
        /// Requests still open on the engine.
        in_flight: u32,
        /// Bytes to free on each GPU at least, where the mechanism can do less than all.
        free: Option<Bytes>,
        /// For others to take part in.
        switch: Switch,
    },
    /// Swap it in.
    SwapIn {
        /// What it takes part in.
        switch: Switch,
    },
}

/// What a worker tells the core.
#[derive(Debug)]
pub struct Report {
    /// Whose engine.
    pub model: ModelId,
    /// What is now known of it; `None` when that did not change.
    pub view: Option<EngineView>,
    /// What the scheduler has to know; `None` when only the view changed.
    pub event: Option<Event>,
}

/// How far a start has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Not started.
    #[default]
    Idle,
    /// Wanted; it waits for its turn on the GPU.
    Waiting,
    /// The same, and its weights are being read ahead.
    Warming,
    /// Launched ahead of its turn; it has not come to its first use of a GPU, and does not listen.
    Importing,
    /// It has, and waits there for its turn; or it listens already and waits for it.
    Held,
    /// The process runs and has not said anything.
    Launched,
    /// Its log says what it is doing; it does not listen yet.
    Loading,
    /// It listens; the first request is being answered.
    Listening,
    /// It answered; its mechanisms are being tried.
    Trial,
    /// In service.
    Ready,
}

impl Stage {
    /// The name in `status`.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Idle => "idle",
            Stage::Waiting => "waiting",
            Stage::Warming => "warming",
            Stage::Importing => "importing",
            Stage::Held => "held",
            Stage::Launched => "launched",
            Stage::Loading => "loading",
            Stage::Listening => "listening",
            Stage::Trial => "trial",
            Stage::Ready => "ready",
        }
    }
}

/// A copy of what the worker knows of its engine, for routing and for `status`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct EngineView {
    /// How far its start has come.
    pub stage: Stage,
    /// Root process.
    pub pid: Option<i32>,
    /// Where it listens.
    #[serde(skip)]
    pub upstream: Option<Upstream>,
    /// Its own key.
    #[serde(skip)]
    pub key: Option<Arc<str>>,
    /// How it is swapped.
    pub mechanism: Option<MechanismKind>,
    /// Mechanisms that were crossed out, each with the reason.
    pub crossed: Vec<(MechanismKind, String)>,
    /// Its log file.
    pub log: Option<PathBuf>,
    /// From launch to the first answer, the last time it was started; without its wait for its turn.
    pub cold_start: Option<Duration>,
    /// Cores, memory nodes and GPUs it is bound to, for people.
    pub placement: String,
    /// The phases of its last start.
    #[serde(skip)]
    pub timeline: Timeline,
    /// Its weights, if they were read ahead.
    #[serde(skip)]
    pub reading: Option<Reading>,
    /// Last line of its log while it starts, or the last fault.
    pub note: String,
}
