//! The vocabulary every room shares: bytes, moments, names and footprints.
//!
//! Plain data without behaviour of its own; no I/O, no clock. [`Moment`] is an argument wherever time matters,
//! so that a schedule can be replayed and simulated faster than time.

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::{fmt, ops, time::Duration};

/// A point in time: microseconds since the run began, on the monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(pub u64);

impl Moment {
    /// The run's beginning.
    pub const ZERO: Moment = Moment(0);

    /// The moment `d` after the run began.
    pub fn after_start(d: Duration) -> Self {
        Moment(u64::try_from(d.as_micros()).unwrap_or(u64::MAX))
    }

    /// Time passed since `earlier`; zero if `earlier` is later.
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl ops::Add<Duration> for Moment {
    type Output = Moment;
    fn add(self, d: Duration) -> Moment {
        Moment(self.0.saturating_add(u64::try_from(d.as_micros()).unwrap_or(u64::MAX)))
    }
}

/// A number of bytes. Printed in binary units (`24.0 GiB`), serialised as a plain number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    /// `n` MiB.
    pub const fn mib(n: u64) -> Bytes {
        Bytes(n << 20)
    }

    /// `n` GiB.
    pub const fn gib(n: u64) -> Bytes {
        Bytes(n << 30)
    }

    /// `self - other`, zero where that would be negative.
    pub fn saturating_sub(self, other: Bytes) -> Bytes {
        Bytes(self.0.saturating_sub(other.0))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u64); 4] =
            [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        match UNITS.iter().find(|(_, size)| self.0 >= *size) {
            Some((unit, size)) => write!(f, "{:.1} {unit}", self.0 as f64 / *size as f64),
            None => write!(f, "{} B", self.0),
        }
    }
}

impl ops::Add for Bytes {
    type Output = Bytes;
    fn add(self, other: Bytes) -> Bytes {
        Bytes(self.0.saturating_add(other.0))
    }
}

impl std::iter::Sum for Bytes {
    fn sum<I: Iterator<Item = Bytes>>(items: I) -> Bytes {
        items.fold(Bytes(0), ops::Add::add)
    }
}

/// A model's place in [`crate::config::Plan::models`]; stable for the whole run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ModelId(pub u32);

impl ModelId {
    /// The index into a slice that has one entry a model.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// One request at the router; never reused within a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(pub u64);

/// What an engine takes of each resource in one of its states.
///
/// `gpu[i]` belongs to the job's i-th GPU (in the order of `CUDA_VISIBLE_DEVICES`); missing entries are zero.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footprint {
    /// Bytes on each GPU of the job.
    pub gpu: SmallVec<[Bytes; 8]>,
    /// Bytes of the job's host memory: a CPU engine's own, or an engine's that is out (parked, checkpointed).
    pub host: Bytes,
    /// Running slots: how many engines compute on the job's cores at once (CPU engines only).
    pub slots: u32,
}

/// How an engine is swapped, fastest first. Compound ones run in the order of their name.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum MechanismKind {
    /// Device memory to the job's pinned pool, through the preload library.
    Park,
    /// `park`, then the driver's checkpoint of the small rest.
    #[serde(rename = "park+checkpoint")]
    ParkCheckpoint,
    /// What the engine itself frees (vLLM, SGLang, TensorRT-LLM).
    Sleep,
    /// `sleep`, then the driver's checkpoint of the rest.
    #[serde(rename = "sleep+checkpoint")]
    SleepCheckpoint,
    /// Everything, by the driver (`cuCheckpointProcess*`).
    Checkpoint,
    /// The processes stop running and keep their memory: CPU engines.
    Freeze,
    /// The engine is stopped and started again.
    Restart,
    /// The user's own commands.
    Hook,
}

impl MechanismKind {
    /// Every mechanism, in the order of the ladder under `swap = "auto"`.
    pub const ALL: [MechanismKind; 8] = [
        Self::Park,
        Self::ParkCheckpoint,
        Self::Sleep,
        Self::SleepCheckpoint,
        Self::Checkpoint,
        Self::Freeze,
        Self::Restart,
        Self::Hook,
    ];

    /// The name in configs, logs and `status`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Park => "park",
            Self::ParkCheckpoint => "park+checkpoint",
            Self::Sleep => "sleep",
            Self::SleepCheckpoint => "sleep+checkpoint",
            Self::Checkpoint => "checkpoint",
            Self::Freeze => "freeze",
            Self::Restart => "restart",
            Self::Hook => "hook",
        }
    }

    /// Whether requests in flight survive a swap out and in again: their streams pause and go on.
    pub fn keeps_streams(self) -> bool {
        matches!(self, Self::Park | Self::ParkCheckpoint | Self::Checkpoint | Self::Freeze)
    }
}

impl fmt::Display for MechanismKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
