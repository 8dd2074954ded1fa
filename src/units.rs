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

    /// The moment `d` earlier; the run's beginning if that is later.
    pub fn before(self, d: Duration) -> Moment {
        Moment(self.0.saturating_sub(u64::try_from(d.as_micros()).unwrap_or(u64::MAX)))
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

    /// Whether there is none.
    pub fn is_zero(&self) -> bool {
        self.0 == 0
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
    /// Bytes of the job's host memory: a CPU engine's own, or an engine's that is out (checkpointed, asleep).
    pub host: Bytes,
    /// Bytes of the pinned pool, which is host memory set aside at the start: an engine's that is parked.
    #[serde(default, skip_serializing_if = "Bytes::is_zero")]
    pub pool: Bytes,
    /// Running slots: how many engines compute on the job's cores at once (CPU engines only).
    pub slots: u32,
}

impl Footprint {
    /// `each` bytes on every one of `gpus` (indices of the job's GPUs).
    pub fn on_gpus(gpus: &[usize], each: Bytes) -> Self {
        let len = gpus.iter().max().map_or(0, |last| last + 1);
        let mut gpu = SmallVec::from_elem(Bytes(0), len);
        gpus.iter().for_each(|&at| gpu[at] = each);
        Footprint { gpu, ..Footprint::default() }
    }

    /// The same with `host` bytes of host memory.
    pub fn with_host(self, host: Bytes) -> Self {
        Footprint { host, ..self }
    }

    /// The same with `pool` bytes of the pinned pool.
    pub fn with_pool(self, pool: Bytes) -> Self {
        Footprint { pool, ..self }
    }

    /// The same with `slots` running slots.
    pub fn with_slots(self, slots: u32) -> Self {
        Footprint { slots, ..self }
    }

    /// Bytes on the job's GPU `at`.
    pub fn on_gpu(&self, at: usize) -> Bytes {
        self.gpu.get(at).copied().unwrap_or_default()
    }

    /// The larger of the two, resource by resource.
    pub fn max(&self, other: &Footprint) -> Footprint {
        self.zip(other, Bytes::max, u32::max)
    }

    /// The sum, resource by resource.
    pub fn plus(&self, other: &Footprint) -> Footprint {
        self.zip(other, |a, b| a + b, u32::saturating_add)
    }

    /// What is left of `self` after `other`, resource by resource; zero where that would be negative.
    pub fn minus(&self, other: &Footprint) -> Footprint {
        self.zip(other, Bytes::saturating_sub, u32::saturating_sub)
    }

    /// `self` on the resources that `other` takes any of; zero on the rest.
    pub fn masked_by(&self, other: &Footprint) -> Footprint {
        let keep = |a: Bytes, b: Bytes| if b.0 > 0 { a } else { Bytes(0) };
        self.zip(other, keep, |a, b| if b > 0 { a } else { 0 })
    }

    /// Whether it is at most `room` on every resource.
    pub fn within(&self, room: &Footprint) -> bool {
        self.minus(room).is_zero()
    }

    /// Whether it takes nothing of any resource.
    pub fn is_zero(&self) -> bool {
        self.host.0 == 0 && self.pool.0 == 0 && self.slots == 0 && self.gpu.iter().all(|b| b.0 == 0)
    }

    /// Bytes in all, over GPUs and host.
    pub fn bytes(&self) -> Bytes {
        self.gpu.iter().copied().sum::<Bytes>() + self.host + self.pool
    }

    fn zip(
        &self,
        other: &Footprint,
        bytes: impl Fn(Bytes, Bytes) -> Bytes,
        slots: impl Fn(u32, u32) -> u32,
    ) -> Footprint {
        let len = self.gpu.len().max(other.gpu.len());
        Footprint {
            gpu: (0..len).map(|at| bytes(self.on_gpu(at), other.on_gpu(at))).collect(),
            host: bytes(self.host, other.host),
            pool: bytes(self.pool, other.pool),
            slots: slots(self.slots, other.slots),
        }
    }
}

impl fmt::Display for Footprint {
    /// `24.0 GiB of GPU 0, 3.0 GiB of host memory`; `nothing` where all is zero.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gpus = self.gpu.iter().enumerate().filter(|(_, b)| b.0 > 0);
        let mut parts: Vec<String> = gpus.map(|(at, b)| format!("{b} of GPU {at}")).collect();
        if self.host.0 > 0 {
            parts.push(format!("{} of host memory", self.host));
        }
        if self.pool.0 > 0 {
            parts.push(format!("{} of the pinned pool", self.pool));
        }
        match self.slots {
            0 => {}
            1 => parts.push("1 running slot".to_owned()),
            n => parts.push(format!("{n} running slots")),
        }
        f.write_str(if parts.is_empty() { "nothing".to_owned() } else { parts.join(", ") }.as_str())
    }
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

    /// Whether an engine that is out by it has its processes stopped (SIGSTOP).
    pub fn stops_processes(self) -> bool {
        matches!(self, Self::ParkCheckpoint | Self::SleepCheckpoint | Self::Checkpoint | Self::Freeze)
    }

    /// Whether the engine's memory goes to the pinned pool.
    pub fn parks(self) -> bool {
        matches!(self, Self::Park | Self::ParkCheckpoint)
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
