//! What the scheduler is told before it begins: the models and the bounds.

use crate::{
    config::plan::SchedulerPlan,
    units::{Bytes, Footprint},
};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::{sync::Arc, time::Duration};

/// Everything a scheduler is made from. With the events that followed it, it replays a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    /// One a model; [`crate::units::ModelId`] is the index.
    pub models: Vec<ModelSpec>,
    /// What the job has.
    pub capacity: Footprint,
    /// What the job would have if nobody else used its GPUs: what fits this is waited for. Counts where it is more.
    #[serde(default)]
    pub ceiling: Footprint,
    /// The bounds.
    pub bounds: Bounds,
}

/// One model, as the scheduler needs to know it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelSpec {
    /// Its name, for texts.
    pub name: Arc<str>,
    /// Never chosen as a victim.
    pub pin: bool,
    /// Resident when the run begins to serve, as far as the room allows.
    pub preload: bool,
    /// Indices of the job's GPUs it runs on; empty for a CPU engine.
    pub gpus: SmallVec<[usize; 8]>,
    /// What it takes while resident: declared or estimated, until [`super::SwapMeasure`] tells better.
    pub resident: Footprint,
    /// What it takes while out: declared or estimated, until measured.
    pub out: Footprint,
    /// What it takes from launch to the end of its trial, the trial's swap-out included.
    pub starting: Footprint,
    /// Whether requests in flight survive a swap, until the trial has chosen the mechanism.
    pub keeps_streams: bool,
    /// Swapped out after this long without a request.
    pub idle_ttl: Option<Duration>,
    /// How often and how fast it is started again after a failure.
    pub restart: RestartPolicy,
    /// Whether it sizes itself by what its GPUs have free while it starts: then nothing else may move there meanwhile.
    #[serde(default)]
    pub measures: bool,
    /// Bytes of the files that it reads while it starts; zero where that is not known.
    #[serde(default)]
    pub weights: Bytes,
    /// What it takes to launch it ahead of its turn; `None` where it is started in its turn alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preparation: Option<Preparation>,
}

/// An engine that can be launched ahead of its turn and held before its first use of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preparation {
    /// Host memory that it takes meanwhile.
    pub host: Bytes,
    /// Longest time from its launch until its turn comes; then it is stopped, and started in its turn.
    pub longest: Duration,
}

/// How an engine that failed is started again: after `first`, then twice that, and so on up to `longest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    /// Delay after the first failure.
    pub first: Duration,
    /// Longest delay.
    pub longest: Duration,
    /// Given up at this many failures within `window`.
    pub give_up: u32,
    /// Failures older than this are forgotten.
    pub window: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        RestartPolicy {
            first: Duration::from_secs(1),
            longest: Duration::from_secs(60),
            give_up: 5,
            window: Duration::from_secs(600),
        }
    }
}

/// The bounds a user can rely on; each one is explained at [`SchedulerPlan`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// Requests that may wait for one model.
    pub queue_limit: u32,
    /// Longest wait.
    pub max_wait: Duration,
    /// Least residency of an engine that has work.
    pub min_resident: Duration,
    /// How long a waiting model bears a busy one.
    pub patience: Duration,
    /// Longest drain before a busy engine is swapped out in mid-generation.
    pub drain_limit: Duration,
    /// How long before the job's end requests that would not be done by then are refused, also on resident engines.
    #[serde(default)]
    pub end_margin: Duration,
}

impl From<&SchedulerPlan> for Bounds {
    fn from(plan: &SchedulerPlan) -> Self {
        Bounds {
            queue_limit: plan.queue_limit,
            max_wait: plan.max_wait,
            min_resident: plan.min_resident,
            patience: plan.patience,
            drain_limit: plan.drain_limit,
            end_margin: plan.end_margin,
        }
    }
}
