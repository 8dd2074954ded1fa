//! The run as data: what `swapserve status` shows and `/swapserve/v1/status` answers.

use super::{
    Core, StartPhase, SwapRow,
    report::{EngineView, Stage},
};
use crate::{
    router::gate::ModelView,
    scheduler::{self, ModelStatus, State},
    units::{Bytes, Footprint, MechanismKind, ModelId, Moment},
};
use serde::{Deserialize, Serialize};
use std::{fmt::Write, path::PathBuf, time::Duration};

/// What is known of the run from its start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunFacts {
    /// Slurm's job id; `None` outside Slurm.
    pub job: Option<String>,
    /// Times Slurm has requeued the job.
    pub restarts: u32,
    /// This node's name.
    pub node: String,
    /// The daemon's process.
    pub pid: u32,
    /// `http://HOST:PORT/v1`.
    pub url: String,
    /// The Unix socket beside it.
    pub socket: Option<PathBuf>,
    /// Sockets, logs and keys.
    pub run_dir: PathBuf,
    /// When the run began, Unix seconds.
    pub begun: u64,
    /// The program's version.
    pub version: String,
}

/// The whole run at one moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunStatus {
    /// What does not change.
    pub run: RunFacts,
    /// Seconds since the run began.
    pub uptime_s: f64,
    /// Seconds until the job's end, where that is known.
    pub remaining_s: Option<f64>,
    /// Whether requests are admitted.
    pub accepting: bool,
    /// The models in the config's order.
    pub models: Vec<ModelRow>,
    /// What the job has of each resource.
    pub capacity: Footprint,
    /// What is held and promised of it.
    pub used: Footprint,
    /// Moves in all.
    pub swaps_total: u64,
    /// The last moves, oldest first.
    pub swaps: Vec<SwapRow>,
}

/// One model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModelRow {
    /// Its name.
    pub name: String,
    /// Its other names.
    pub aliases: Vec<String>,
    /// The kind of engine.
    pub engine: String,
    /// The scheduler's state.
    pub state: State,
    /// How far a start has come.
    pub stage: Stage,
    /// Never chosen to make room.
    pub pinned: bool,
    /// Requests that wait.
    pub waiting: u32,
    /// Requests on the engine.
    pub running: u32,
    /// What it takes while resident.
    pub resident: Footprint,
    /// What it takes while out.
    pub out: Footprint,
    /// How it is swapped.
    pub mechanism: Option<MechanismKind>,
    /// Mechanisms that were crossed out, each with the reason.
    pub crossed: Vec<(MechanismKind, String)>,
    /// Swaps in and out so far.
    pub swaps_in: u64,
    /// See `swaps_in`.
    pub swaps_out: u64,
    /// How long the last swap-in took, seconds.
    pub last_in_s: Option<f64>,
    /// How long the last swap-out took, seconds.
    pub last_out_s: Option<f64>,
    /// From launch to the first answer, seconds; without its wait for its turn.
    pub cold_start_s: Option<f64>,
    /// The phases of its start, the one under way last. `warming` is beside the others, `importing` and `held` are within
    /// `waiting`.
    #[serde(default)]
    pub start: Vec<StartPhase>,
    /// Bytes of its weights that were read ahead, and of how many.
    #[serde(default)]
    pub weights_read: Option<(Bytes, Bytes)>,
    /// Root process.
    pub pid: Option<i32>,
    /// Its log file.
    pub log: Option<PathBuf>,
    /// Cores, memory nodes and GPUs it is bound to.
    pub placement: String,
    /// The last fault, or how its start is going.
    pub note: String,
}

impl Core {
    /// The run now.
    pub fn status(&self) -> RunStatus {
        let now = self.now();
        self.look(|state| RunStatus {
            run: self.facts.clone(),
            uptime_s: now.since(Moment::ZERO).as_secs_f64(),
            remaining_s: self.remaining().map(|left| left.as_secs_f64()),
            accepting: state.accepting,
            models: (0..state.slots.len()).map(|at| self.row(state, ModelId(at as u32))).collect(),
            capacity: state.scheduler.ledger().capacity,
            used: state.scheduler.ledger().used,
            swaps_total: state.history.total(),
            swaps: state.history.rows().cloned().collect(),
        })
    }

    fn row(&self, state: &super::core::State, model: ModelId) -> ModelRow {
        let (plan, slot, seen) =
            (self.plan.model(model), &state.slots[model.index()], state.scheduler.view(model));
        let seconds = |took: Option<Duration>| took.map(|took| took.as_secs_f64());
        let start = start(&slot.view, &seen, self.now());
        ModelRow {
            name: plan.name.clone(),
            aliases: plan.aliases.clone(),
            engine: plan.engine.name().to_owned(),
            state: seen.state,
            stage: stage(&slot.view, &seen),
            pinned: seen.pinned,
            waiting: seen.waiting,
            running: seen.leases,
            resident: seen.resident,
            out: seen.out,
            mechanism: slot.view.mechanism,
            crossed: slot.view.crossed.clone(),
            swaps_in: seen.swaps_in,
            swaps_out: seen.swaps_out,
            last_in_s: seconds(seen.last_swap_in),
            last_out_s: seconds(seen.last_swap_out),
            cold_start_s: seconds(slot.view.cold_start),
            start,
            weights_read: slot.view.reading.as_ref().map(|reading| (reading.read(), reading.total)),
            pid: slot.view.pid,
            log: slot.view.log.clone(),
            placement: slot.view.placement.clone(),
            note: if slot.view.note.is_empty() {
                seen.fault.map(|fault| fault.detail).unwrap_or_default()
            } else {
                slot.view.note.clone()
            },
        }
    }

    /// The models as `/v1/models` shows them.
    pub(super) fn model_views(&self) -> Vec<ModelView> {
        self.look(|state| {
            let views = self.plan.models.iter().enumerate().map(|(at, plan)| {
                let row = self.row(state, ModelId(at as u32));
                ModelView {
                    name: plan.name.clone(),
                    aliases: plan.aliases.clone(),
                    state: row.state.name().to_owned(),
                    created: self.facts.begun,
                    detail: row.note,
                }
            });
            views.collect()
        })
    }

    /// Why a model is where it is.
    pub(super) fn explain(&self, model: ModelId) -> scheduler::Explanation {
        let now = self.now();
        self.look(|state| state.scheduler.explain(model, now))
    }

    /// What the scheduler knows, in Prometheus text format. Engines are not asked: one that is out stays out.
    pub(super) fn metrics(&self) -> String {
        let status = self.status();
        let mut text = String::new();
        if let Some(left) = status.remaining_s {
            let name = "swapserve_job_remaining_seconds";
            // Writing to a String cannot fail.
            let _ =
                writeln!(text, "# HELP {name} Time until the job's end.\n# TYPE {name} gauge\n{name} {left}");
        }
        let mut gauge = |name: &str, help: &str, kind: &str, value: &dyn Fn(&ModelRow) -> f64| {
            let _ = writeln!(text, "# HELP swapserve_{name} {help}\n# TYPE swapserve_{name} {kind}");
            for model in &status.models {
                let _ =
                    writeln!(text, "swapserve_{name}{{model=\"{}\"}} {}", label(&model.name), value(model));
            }
        };
        gauge("model_resident", "Whether the model's engine is resident.", "gauge", &|m| {
            f64::from(u8::from(m.state == State::Resident))
        });
        gauge("model_waiting_requests", "Requests that wait for the model.", "gauge", &|m| {
            f64::from(m.waiting)
        });
        gauge("model_running_requests", "Requests on the model's engine.", "gauge", &|m| {
            f64::from(m.running)
        });
        gauge("model_swaps_in_total", "Swaps in.", "counter", &|m| m.swaps_in as f64);
        gauge("model_swaps_out_total", "Swaps out.", "counter", &|m| m.swaps_out as f64);
        gauge("model_swap_in_seconds", "How long the last swap-in took.", "gauge", &|m| {
            m.last_in_s.unwrap_or(0.0)
        });
        gauge("model_swap_out_seconds", "How long the last swap-out took.", "gauge", &|m| {
            m.last_out_s.unwrap_or(0.0)
        });
        text
    }
}

/// How far its start has come: before the worker has anything to say, what the scheduler waits for.
fn stage(view: &EngineView, seen: &ModelStatus) -> Stage {
    match (view.stage, &view.reading) {
        (Stage::Idle, _) if seen.state != State::Cold || seen.wanted_since.is_none() => Stage::Idle,
        (Stage::Idle, Some(reading)) if !reading.is_over() => Stage::Warming,
        (Stage::Idle, _) => Stage::Waiting,
        (stage, _) => stage,
    }
}

/// The phases of its start: waiting for its turn, reading ahead, and what the worker noted.
fn start(view: &EngineView, seen: &ModelStatus, now: Moment) -> Vec<StartPhase> {
    let waited = match (seen.state, seen.wanted_since) {
        (State::Cold | State::Preparing, Some(since)) => Some(now.since(since)),
        _ => seen.start_waited,
    };
    let phase = |phase, took: Duration| StartPhase { phase, seconds: took.as_secs_f64() };
    let waiting = waited.map(|took| phase(Stage::Waiting, took));
    let warming = view.reading.as_ref().map(|reading| phase(Stage::Warming, reading.time()));
    let begun = if seen.state == State::Cold { Vec::new() } else { view.timeline.phases() };
    waiting.into_iter().chain(warming).chain(begun).collect()
}

/// A label's value in Prometheus text format.
fn label(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
