//! One engine's ladder in service: which rung it stands on, what was crossed out and why.
//!
//! ```text
//!            trial, adopt                 swap_out                     swap_in
//!  (no rung) ───────────▶ Resident ─────────────────────▶ Out ─────────────────────▶ Resident
//!                            │  refused, unharmed           │  refused, unharmed
//!                            │  ├─ once: resident, a strike │  ├─ once: out, a strike
//!                            │  └─ again: crossed out,      │  └─ again: crossed out, engine lost
//!                            │     the next rung swaps out  │
//!                            └─ harmed ─────────────────────┴─▶ stopped; the next start tries the rungs that are left
//!                               ├─ a process died, the first time with this rung: it is not to blame
//!                               └─ else: crossed out
//! ```
//!
//! A rung is crossed out for good after [`STRIKES`] refusals in a row, or the first time it loses the engine; where a
//! process of the engine died in the move, only the second time in the run, in a trial or in service ([`DEATHS`]): the first may
//! have been somebody else's doing, the kernel's for want of memory or a hand's. For want of
//! memory none is crossed out on the way in, for that passes; on the way out only after [`SHORTAGES`] in a row, since
//! somebody waits for the room. One that is out in part and refuses to give more stays so: no other rung can take over. `restart`
//! is never crossed out: there is nothing below it, and whether an engine that cannot be started is given up is the
//! scheduler's to say.

use super::{Deps, Mechanism, MemoryProbe, MoveLog, PerGpu, SwapError, Switch, deaths, ladder, memory};
use crate::{
    config::ModelPlan,
    engine::Engine,
    process::ProcId,
    scheduler::SwapMeasure,
    units::{Bytes, Footprint, MechanismKind},
};
use std::{sync::Arc, time::Instant};

/// Refusals in a row after which a mechanism is crossed out.
pub const STRIKES: u32 = 2;
/// Moves by one mechanism in which a process of the engine died, after which that is crossed out. They need not follow one
/// another: after each the engine is started again, and a trial goes well.
pub const DEATHS: u32 = 2;
/// Swap-outs in a row that found no room for what goes out, after which the next mechanism is used; the scheduler asks
/// for them at growing intervals, two minutes in all.
const SHORTAGES: u32 = 5;

/// One mechanism of the ladder.
struct Rung {
    mechanism: Arc<dyn Mechanism>,
    strikes: u32,
    shortages: u32,
    deaths: u32,
    crossed: bool,
}

/// Swaps one engine; outlives the engine's processes.
pub struct Swapper {
    rungs: Vec<Rung>,
    /// The rung in use.
    current: Option<usize>,
    /// The rung that swapped the engine out, while it is out: only it can bring it back.
    out_by: Option<usize>,
    crossed: Vec<(MechanismKind, String)>,
    /// The engine's processes before its move, or before the first of those that were refused in a row.
    before: Vec<ProcId>,
    /// What the next move is to other engines' swaps.
    switch: Switch,
    pub(super) gpus: Arc<dyn MemoryProbe>,
    pub(super) resident: Footprint,
    /// What a whole swap-out was seen to leave.
    pub(super) out: Option<Footprint>,
    /// What the last swap-out left on each GPU.
    left: PerGpu,
}

/// A swap that did not happen, whatever was tried.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
pub struct MoveFailed {
    /// What was tried and why it failed.
    pub detail: String,
    /// The engine is gone and was stopped; else it is where it was before.
    pub lost: bool,
    /// Memory was missing, of a GPU or of the pool, and nothing else is wrong.
    pub short: bool,
}

/// Which way a move goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// With so many requests open; all of it, or at least so many bytes on each GPU.
    Out {
        in_flight: u32,
        free: Option<Bytes>,
    },
    In,
}

impl Swapper {
    /// The plan's ladder; nothing is tried yet.
    pub fn new(plan: &ModelPlan, deps: &Deps) -> Self {
        let rung = |&kind| Rung {
            mechanism: ladder::build(kind, deps),
            strikes: 0,
            shortages: 0,
            deaths: 0,
            crossed: false,
        };
        Swapper {
            rungs: plan.swap.iter().map(rung).collect(),
            current: None,
            out_by: None,
            crossed: Vec::new(),
            before: Vec::new(),
            switch: Switch::Alone,
            gpus: deps.gpus.clone(),
            resident: Footprint::default(),
            out: None,
            left: PerGpu::new(),
        }
    }

    /// The mechanism in use; `None` before the trial.
    pub fn current(&self) -> Option<MechanismKind> {
        self.current.map(|at| self.rungs[at].mechanism.kind())
    }

    /// The mechanisms that were crossed out, in that order, each with the reason.
    pub fn crossed(&self) -> &[(MechanismKind, String)] {
        &self.crossed
    }

    /// Whether the engine is out.
    pub fn is_out(&self) -> bool {
        self.out_by.is_some()
    }

    /// What the engine's processes hold on each GPU; `None` where that cannot be told.
    pub async fn gpu_memory(&self, engine: &Engine) -> Option<PerGpu> {
        self.gpus.held(&engine.tree()).await
    }

    /// The engine was stopped or has died: it is no longer out.
    pub fn forget(&mut self) {
        self.out_by = None;
        self.before.clear();
    }

    /// The next move, and no later one, is part of a switch.
    pub fn take_part(&mut self, switch: Switch) {
        self.switch = switch;
    }

    /// Swaps the engine out, by the next rung if this one is refused for the last time.
    ///
    /// # Errors
    /// When the engine stays resident, or is lost; it has been stopped then.
    pub async fn swap_out(
        &mut self,
        engine: &mut Engine,
        in_flight: u32,
        free: Option<Bytes>,
    ) -> Result<SwapMeasure, MoveFailed> {
        loop {
            let Some(at) = self.current else {
                // Nobody else could ever have its room.
                let detail = "no mechanism is left that can swap this engine".to_owned();
                return Err(self.lose(engine, detail).await);
            };
            let kind = self.rungs[at].mechanism.kind();
            if in_flight > 0 && !kind.keeps_streams() {
                let detail = format!("{in_flight} request(s) run, and {kind} would cut them off");
                return Err(MoveFailed { detail, lost: false, short: false });
            }
            let way = Way::Out { in_flight, free };
            match self.attempt(at, engine, way).await {
                Ok(measure) => return Ok(measure),
                Err(error) => match self.judge(at, engine, way, error).await {
                    Some(failed) => return Err(failed),
                    None => self.current = self.first_that_suits(engine).await,
                },
            }
        }
    }

    /// Swaps the engine in again, by the rung that swapped it out.
    ///
    /// # Errors
    /// When the engine stays out, or is lost; it has been stopped then.
    pub async fn swap_in(&mut self, engine: &mut Engine) -> Result<SwapMeasure, MoveFailed> {
        let Some(at) = self.out_by else {
            let lost = !engine.is_alive();
            return Err(MoveFailed { detail: "the engine is not out".to_owned(), lost, short: false });
        };
        let takes = matches!(self.switch, Switch::Takes(_));
        match self.attempt(at, engine, Way::In).await {
            Ok(measure) => Ok(measure),
            // The room that it was promised did not come.
            Err(error) if takes && error.unharmed => {
                Err(MoveFailed { detail: error.to_string(), lost: false, short: error.short })
            }
            Err(error) => match self.judge(at, engine, Way::In, error).await {
                Some(failed) => Err(failed),
                None => {
                    // What this rung took out no other can bring back.
                    let detail = self.crossed.last().map(|(_, reason)| reason.clone()).unwrap_or_default();
                    Err(self.lose(engine, detail).await)
                }
            },
        }
    }

    /// Counts a failure against its rung. `None`: the rung is crossed out and the engine unharmed, so another may try.
    async fn judge(
        &mut self,
        at: usize,
        engine: &mut Engine,
        way: Way,
        error: SwapError,
    ) -> Option<MoveFailed> {
        let (detail, short) = (error.to_string(), error.short);
        if !error.unharmed {
            self.blame(at, error.died, detail.clone());
            return Some(self.lose(engine, detail).await);
        }
        let was_out = self.out_by.is_some();
        let rung = &mut self.rungs[at];
        let bearable = match (way, short) {
            (Way::Out { .. }, _) if was_out => true,
            (Way::In, true) => true,
            (Way::Out { .. }, true) => {
                rung.shortages += 1;
                rung.shortages < SHORTAGES
            }
            (_, false) => {
                rung.strikes += 1;
                rung.strikes < STRIKES
            }
        };
        if bearable || rung.mechanism.kind() == MechanismKind::Restart {
            return Some(MoveFailed { detail, lost: false, short });
        }
        self.cross_out(at, detail);
        None
    }

    /// A rung has lost the engine: it is crossed out, but for the first time that a process of the engine died.
    pub(super) fn blame(&mut self, at: usize, died: bool, reason: String) {
        let rung = &mut self.rungs[at];
        rung.deaths += u32::from(died);
        if died && rung.deaths < DEATHS {
            tracing::warn!(mechanism = %rung.mechanism.kind(), %reason, "a process of the engine died in its move; used again");
        } else {
            self.cross_out(at, reason);
        }
    }

    /// Ends what is left of an engine that cannot go on.
    async fn lose(&mut self, engine: &mut Engine, mut detail: String) -> MoveFailed {
        self.forget();
        if let Err(error) = engine.stop().await {
            detail = format!("{detail}; and its processes cannot be ended: {error}");
        }
        MoveFailed { detail, lost: true, short: false }
    }

    /// One move by one rung, measured.
    async fn attempt(&mut self, at: usize, engine: &mut Engine, way: Way) -> Result<SwapMeasure, SwapError> {
        let mechanism = self.rungs[at].mechanism.clone();
        let kind = mechanism.kind();
        let begun = Instant::now();
        let mut log = MoveLog::new(begun + engine.plan.swap_timeout, 0);
        log.switch = std::mem::take(&mut self.switch);
        if let Way::Out { in_flight, free } = way {
            (log.in_flight, log.free, log.out) = (in_flight, free, self.out_by.is_some());
            log.known = if log.out { self.left.clone() } else { self.resident.gpu.clone() };
        }
        // The two mechanisms that end the engine's process on purpose are not watched for its end.
        let watched = !matches!(kind, MechanismKind::Restart | MechanismKind::Hook);
        let exited = engine.exited();
        if self.before.is_empty() {
            self.before = engine.last_seen();
        }
        let partial = log.free.is_some() && kind == MechanismKind::Park;
        // A process that is stopped from outside would keep the driver waiting. Other mechanisms than `freeze` stop the tree only
        // when all else is done, which is too short before the line below to be taken for somebody else's doing.
        engine.mean_to_run(way == Way::In || kind != MechanismKind::Freeze);
        let outcome = tokio::select! {
            biased;
            outcome = async {
                match way {
                    Way::Out { .. } => mechanism.swap_out(engine, &mut log).await,
                    Way::In => mechanism.swap_in(engine, &mut log).await,
                }
            } => outcome,
            _ = exited, if watched => {
                Err(mechanism.fault("move", "the engine's process ended meanwhile".to_owned(), false))
            }
        };
        let is_out = match &outcome {
            Ok(_) => way != Way::In,
            Err(error) => way == Way::In && error.unharmed,
        };
        engine.mean_to_run(!(is_out && kind.stops_processes()));
        let measured = match outcome {
            Ok(measured) => measured,
            Err(error) => {
                let died = watched && !error.unharmed && deaths::one_of(&self.before).await;
                return Err(SwapError { died, ..error });
            }
        };
        let took = begun.elapsed();
        self.before.clear();
        (self.rungs[at].strikes, self.rungs[at].shortages) = (0, 0);
        let measure = match way {
            Way::Out { .. } => {
                // One that was out already held only what was left of it.
                if let Some(held) = log.resident.take().filter(|_| self.out_by.is_none()) {
                    self.resident.gpu = held;
                }
                self.out_by = Some(at);
                let left = self.out_footprint(kind, measured);
                self.left = left.gpu.clone();
                if partial {
                    SwapMeasure { out: left, partial, ..self.measure() }
                } else {
                    self.out = Some(left);
                    self.measure()
                }
            }
            Way::In => {
                self.out_by = None;
                if kind == MechanismKind::Restart {
                    self.resident = memory::resident(engine, &*self.gpus).await;
                } else if memory::total(&measured.gpu) > Bytes(0) {
                    self.resident.gpu = measured.gpu;
                }
                self.measure()
            }
        };
        Ok(SwapMeasure { took, moved: log.moved, phases: log.phases, ..measure })
    }

    /// What is known of the engine's footprints under the rung in use; a move's own times are left zero.
    pub(super) fn measure(&self) -> SwapMeasure {
        let mechanism = self.current();
        let mut resident = self.resident.clone();
        // The bound on CPU engines that stay in memory is how many of them compute at once.
        resident.slots = u32::from(mechanism == Some(MechanismKind::Freeze));
        let partial = self.out.is_none();
        let out = self.out.clone().unwrap_or_default();
        SwapMeasure { mechanism, resident, out, partial, ..SwapMeasure::default() }
    }

    /// What an engine swapped out by this mechanism takes.
    pub(super) fn out_footprint(&self, kind: MechanismKind, measured: Footprint) -> Footprint {
        match kind {
            MechanismKind::Freeze => Footprint { slots: 0, ..self.resident.clone() },
            MechanismKind::Restart | MechanismKind::Hook => measured,
            // Its processes are there as before.
            _ => Footprint { host: measured.host + self.resident.host, ..measured },
        }
    }

    pub(super) fn cross_out(&mut self, at: usize, reason: String) {
        let rung = &mut self.rungs[at];
        let kind = rung.mechanism.kind();
        if kind == MechanismKind::Restart {
            return;
        }
        tracing::warn!(mechanism = %kind, %reason, "crossed out for this engine");
        rung.crossed = true;
        self.crossed.push((kind, reason));
        if self.current == Some(at) {
            self.current = None;
        }
    }

    /// The first rung that is not crossed out and suits; those before it that do not are crossed out.
    pub(super) async fn first_that_suits(&mut self, engine: &Engine) -> Option<usize> {
        for at in 0..self.rungs.len() {
            if self.rungs[at].crossed {
                continue;
            }
            let mechanism = self.rungs[at].mechanism.clone();
            match mechanism.suits(engine).await {
                Ok(()) => return Some(at),
                Err(reason) => self.cross_out(at, reason),
            }
        }
        None
    }

    /// Takes a rung into use.
    pub(super) fn settle_on(&mut self, at: usize) {
        self.current = Some(at);
        match self.rungs[at].mechanism.kind() {
            MechanismKind::Freeze => {
                self.out = Some(self.out_footprint(MechanismKind::Freeze, Footprint::default()));
            }
            // Whatever another rung has left.
            MechanismKind::Restart => self.out = Some(Footprint::default()),
            _ => {}
        }
    }

    pub(super) fn kind_of(&self, at: usize) -> MechanismKind {
        self.rungs[at].mechanism.kind()
    }

    pub(super) async fn attempt_out(
        &mut self,
        at: usize,
        engine: &mut Engine,
    ) -> Result<SwapMeasure, SwapError> {
        self.attempt(at, engine, Way::Out { in_flight: 0, free: None }).await
    }

    pub(super) async fn attempt_in(
        &mut self,
        at: usize,
        engine: &mut Engine,
    ) -> Result<SwapMeasure, SwapError> {
        self.attempt(at, engine, Way::In).await
    }
}
