//! How long a move takes: a fixed part and a rate for each mechanism.
//!
//! Measured on one H100 (PCIe 5 x16) with vLLM and 27 GiB resident, dummy weights: good for comparing policies and for
//! seeing what a config would feel like, not for promising a number on another machine.

use crate::units::{Bytes, MechanismKind};
use std::time::Duration;

/// How long one model's moves take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Costs {
    /// From launch to the end of the trial, its weights in the page cache.
    pub start: Duration,
    /// The part of `start` that is over before the engine wants its weights.
    pub imports: Duration,
    /// How long its weights take to be read where they are not in the page cache.
    pub reading: Duration,
    /// A swap in.
    pub swap_in: Duration,
    /// A swap out.
    pub swap_out: Duration,
    /// Leaving for good.
    pub stop: Duration,
}

impl Costs {
    /// The costs of a model that takes `resident` bytes in all and is swapped by `mechanism`.
    pub fn of(mechanism: MechanismKind, resident: Bytes) -> Self {
        let start = Duration::from_secs(120);
        let (imports, reading) = (Duration::from_secs(25), Duration::ZERO);
        let stop = Duration::from_secs(5);
        // Fixed milliseconds and GiB/s, out and in; 0 GiB/s: the size does not matter.
        let (out, back) = match mechanism {
            MechanismKind::Park => ((40, 50), (40, 50)),
            MechanismKind::ParkCheckpoint => ((1_000, 50), (1_400, 50)),
            MechanismKind::Sleep => ((360, 0), (400, 0)),
            MechanismKind::SleepCheckpoint => ((760, 0), (1_000, 0)),
            MechanismKind::Checkpoint => ((330, 2), (230, 4)),
            MechanismKind::Freeze => ((2, 0), (2, 0)),
            MechanismKind::Restart => ((5_000, 0), (120_000, 0)),
            MechanismKind::Hook => ((1_000, 0), (1_000, 0)),
        };
        Costs { start, imports, reading, stop, swap_out: time(out, resident), swap_in: time(back, resident) }
    }

    /// The same with weights of so many bytes on a file system that gives 1 GiB/s: what one reader has of a busy parallel
    /// one.
    pub fn with_weights(self, weights: Bytes) -> Self {
        Costs { reading: time((0, 1), weights), ..self }
    }
}

fn time((fixed, gib_per_second): (u64, u64), size: Bytes) -> Duration {
    let moving = if gib_per_second == 0 { 0 } else { (size.0 >> 20) * 1_000 / (gib_per_second << 10) };
    Duration::from_millis(fixed + moving)
}
