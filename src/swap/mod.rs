//! How an engine leaves the GPUs and comes back: the mechanisms behind one trait, the trial, the ladder.
//!
//! A [`Mechanism`] is the *how*; when and who is the scheduler's. The ladder tries mechanisms in order at the engine's
//! start (swap out, see the resources free, swap in, get the same greedy answer) and falls to the next one when a
//! mechanism refuses or fails, at the trial or later in service. Loss is impossible by order: a mechanism that refuses
//! leaves the engine as it was ([`SwapError::unharmed`]); one that broke the engine says so and it is started again.
//!
//! | file | role |
//! | --- | --- |
//! | `swapper` | one engine's ladder in service: the rung in use, strikes, what was crossed out |
//! | `trial` | which rung really works, found out before anybody depends on it |
//! | `ladder` | which mechanism is built from what: the one table |
//! | `deaths` | whether an engine lost a process in a move |
//! | `memory`, `gpus` | what an engine holds, measured |
//! | `freeze`, `restart`, `hook`, `sleep`, [`checkpoint`], [`park`] | the mechanisms |
//!
//! A stranger uses [`Swapper`]; to add a mechanism: a file here, a kind in [`crate::units`], a line in `ladder`.

pub mod checkpoint;
mod deaths;
mod freeze;
mod gpus;
mod hook;
mod ladder;
mod memory;
pub mod park;
mod restart;
mod sleep;
mod swapper;
mod trial;

pub use freeze::Freeze;
pub use hook::Hook;
pub use ladder::{Deps, Missing, Parking, build};
pub use memory::{MemoryProbe, NoGpus, PerGpu};
pub use restart::Restart;
pub use sleep::Sleep;
pub use swapper::{MoveFailed, Swapper};
pub use trial::{Trial, TrialError};

use crate::{
    engine::Engine,
    gpu::park::call::Beside,
    units::{Bytes, Footprint, MechanismKind},
};
use async_trait::async_trait;
use smallvec::SmallVec;
use std::time::{Duration, Instant};

/// One way to swap an engine. Implementations hold no state of the engine; that is in [`Engine`].
#[async_trait]
pub trait Mechanism: Send + Sync {
    /// Which one it is.
    fn kind(&self) -> MechanismKind;

    /// Whether it can be tried on this engine at all, cheaply and without touching it: the reason if not.
    async fn suits(&self, engine: &Engine) -> Result<(), String>;

    /// Swaps the engine out. On return its resources beyond the returned footprint have been seen to be free.
    async fn swap_out(&self, engine: &mut Engine, log: &mut MoveLog) -> Result<Footprint, SwapError>;

    /// Swaps the engine in. On return it answers requests. The caller holds the reservation for the bytes.
    async fn swap_in(&self, engine: &mut Engine, log: &mut MoveLog) -> Result<Footprint, SwapError>;

    /// A [`SwapError`] of this mechanism.
    fn fault(&self, stage: &'static str, reason: String, unharmed: bool) -> SwapError {
        SwapError { mechanism: self.kind(), stage, reason, unharmed, short: false, died: false }
    }
}

/// What a move is to the swaps of other engines. Only `park` knows more than [`Switch::Alone`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Switch {
    /// Nothing.
    #[default]
    Alone,
    /// A swap-out whose memory another engine may take while it is under way, known to the memory server by this number.
    Gives(u64),
    /// A swap-in that takes such memory. It is done only when none of those swap-outs can fail any more, and if one fails
    /// the engine is out as before, which is no fault of its mechanism's.
    Takes(Beside),
}

/// The course of one move: its deadline going in, its phases and bytes coming out.
#[derive(Debug)]
pub struct MoveLog {
    /// When the move counts as failed.
    pub deadline: Instant,
    /// Requests still open on the engine.
    pub in_flight: u32,
    /// Bytes that a swap-out has to free on each GPU at least; nothing for all of it. Only `park` can do less than all.
    pub free: Option<Bytes>,
    /// A part of the engine is out already, and stays out if this move is refused.
    pub out: bool,
    /// What the engine is known to hold on each GPU before a swap-out, where nobody can measure it.
    pub known: PerGpu,
    /// What this move is to a swap of another engine.
    pub switch: Switch,
    /// Phases in order, each with its time.
    pub phases: SmallVec<[(String, Duration); 8]>,
    /// Bytes that crossed the bus, where the mechanism knows.
    pub moved: Option<Bytes>,
    /// What the engine held on each GPU before a swap-out, where the mechanism came to know it.
    pub resident: Option<PerGpu>,
}

impl MoveLog {
    /// A move that has until `deadline`.
    pub fn new(deadline: Instant, in_flight: u32) -> Self {
        MoveLog {
            deadline,
            in_flight,
            free: None,
            out: false,
            known: PerGpu::new(),
            switch: Switch::Alone,
            phases: SmallVec::new(),
            moved: None,
            resident: None,
        }
    }

    /// Runs one phase and notes its time, also when it fails.
    pub async fn phase<T>(&mut self, name: &str, work: impl Future<Output = T>) -> T {
        let begun = Instant::now();
        let result = work.await;
        self.phases.push((name.to_owned(), begun.elapsed()));
        result
    }

    /// Time left to the deadline.
    pub fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

/// A swap that did not happen.
#[derive(Debug, thiserror::Error)]
#[error("{mechanism}: {stage}: {reason}")]
pub struct SwapError {
    /// The mechanism that was tried.
    pub mechanism: MechanismKind,
    /// The phase it failed in.
    pub stage: &'static str,
    /// What was tried, why it failed, what to do.
    pub reason: String,
    /// Whether the engine is as it was before (resident after a failed swap-out, out after a failed swap-in); else it is
    /// lost and has to be started again.
    pub unharmed: bool,
    /// Whether all that failed is that there was too little memory, of a GPU or of the pool: another time it will do.
    pub short: bool,
    /// Whether the engine lost a process meanwhile. That may be the mechanism's doing, or somebody else's.
    pub died: bool,
}

impl SwapError {
    /// The same, for want of memory or not.
    fn short(self, short: bool) -> Self {
        SwapError { short, ..self }
    }
}
