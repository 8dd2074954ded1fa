//! `swapserve simulate`: the config's models under a made-up or recorded load, faster than time; nothing is started.
//!
//! With `--replay` a run's journal is fed into this version's scheduler instead, and compared with what was decided then.

use super::{
    Error, Exit, Globals, Outcome,
    args::SimulateArgs,
    output::{Report, Style},
};
use crate::{
    config::{self, ModelPlan, Plan},
    daemon::{
        host_plan,
        specs::{self, Resources, StartFacts},
    },
    engine::Weights,
    scheduler::{Bounds, Scheduler, Setup},
    sim::{self, Call, Costs, Plain, Victim},
    units::{Bytes, MechanismKind},
};
use serde::Serialize;
use std::{
    fs::File,
    io::{self, BufReader, Write},
    path::Path,
    time::Duration,
};

pub(super) fn execute(args: &SimulateArgs, globals: &Globals) -> Outcome {
    if let Some(journal) = &args.replay {
        return replay(journal, globals);
    }
    let mut plan = config::load(
        &args.config.config,
        &config::Context { elsewhere: true, ..config::Context::default() },
    )?;
    let setup = setup(&mut plan, args)?;
    let calls = match &args.trace {
        Some(path) => sim::read(open(path)?, |name| plan.find(name)).map_err(|error| failed(path, error))?,
        None => sim::generate(args.seed, plan.models.len(), &shape(args)),
    };
    let report = simulate(&plan, &setup, &calls);
    globals.output().show(&report)?;
    Ok(Exit::Success.into())
}

fn replay(journal: &Path, globals: &Globals) -> Outcome {
    let replayed = sim::replay(open(journal)?).map_err(|error| failed(journal, error))?;
    globals.output().show(&Agrees {
        events: replayed.events,
        effects: replayed.effects,
        seconds: replayed.until.since(crate::units::Moment::ZERO).as_secs_f64(),
    })?;
    Ok(Exit::Success.into())
}

fn open(path: &Path) -> Result<BufReader<File>, Error> {
    let file = File::open(path);
    file.map(BufReader::new)
        .map_err(|error| Error::new(Exit::NoInput, format!("cannot open {}", path.display())).because(error))
}

fn failed(path: &Path, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(Exit::Data, format!("cannot go through {}", path.display())).because(error)
}

fn shape(args: &SimulateArgs) -> sim::Shape {
    sim::Shape { per_hour: args.per_hour, length: args.length, takes: args.takes, burst: args.burst }
}

/// The same way to the scheduler's setup as in a run, with the job as the arguments say it is.
fn setup(plan: &mut Plan, args: &SimulateArgs) -> Result<Setup, Error> {
    let most = plan.models.iter().map(|model| model.gpus as usize).max().unwrap_or(0);
    let totals = vec![Bytes(args.gpu_memory.as_u64()); args.gpus.map_or(most, usize::from)];
    let mut resources = Resources {
        gpu_free: totals.clone(),
        gpu_foreign: Vec::new(),
        host: Some(Bytes(args.host_memory.as_u64())),
        cores: args.cores.into(),
        pool: Bytes(0),
    };
    resources.pool = host_plan::pool(plan, &resources);
    let capacity = specs::capacity(plan, &resources);
    host_plan::keep_within_host(plan, &capacity).map_err(|error| {
        Error::new(Exit::TryAgain, error.to_string())
            .remedy("more --host-memory, or \"restart\" in its swap list")
    })?;
    let gpus = specs::assign_gpus(plan, &totals);
    specs::leave_nothing_where_it_adds_up(plan, &gpus, &capacity);
    let models = specs::specs(plan, &gpus, &starts(plan), &capacity);
    Ok(Setup { models, ceiling: capacity.clone(), capacity, bounds: Bounds::from(&plan.scheduler) })
}

/// Weights as they lie here, or most of what a GPU engine takes.
fn starts(plan: &Plan) -> Vec<StartFacts> {
    let start = |model: &ModelPlan| {
        let takes = model.gpu_memory.unwrap_or_default().0 * u64::from(model.gpus);
        let found = Weights::find(model).bytes();
        let weights = if found > Bytes(0) { found } else { Bytes(takes / 10 * 6) };
        let measures = model.gpus > 0 && specs::sizes_itself(model.engine);
        StartFacts { weights, measures, preparation: model.start_ahead.then(|| specs::preparation(model)) }
    };
    plan.models.iter().map(start).collect()
}

fn simulate(plan: &Plan, setup: &Setup, calls: &[Call]) -> Simulated {
    let cost = |at: usize| {
        let mechanism = plan.models[at].swap.first().copied().unwrap_or(MechanismKind::Restart);
        let model = &setup.models[at];
        Costs::of(mechanism, model.resident.bytes()).with_weights(model.weights)
    };
    let costs: Vec<Costs> = (0..plan.models.len()).map(cost).collect();
    let ours = sim::simulate(&mut Scheduler::new(setup.clone()), setup, &costs, calls);
    let mut without = setup.clone();
    without.models.iter_mut().for_each(|model| (model.weights, model.preparation) = (Bytes(0), None));
    let without = sim::simulate(&mut Scheduler::new(without.clone()), &without, &costs, &[]);
    let plain = |victim| sim::simulate(&mut Plain::new(setup, victim), setup, &costs, calls);
    let (lru, fifo) = (plain(Victim::LeastRecentlyUsed), plain(Victim::FirstIn));
    let models = plan.models.iter().enumerate().map(|(at, model)| Row::of(&model.name, &ours, at..at + 1));
    let all = 0..plan.models.len();
    let policies = [("swapserve", &ours), ("LRU", &lru), ("FIFO", &fifo)];
    Simulated {
        requests: calls.len(),
        start_s: ours.started.as_secs_f64(),
        start_with_nothing_ahead_s: without.started.as_secs_f64(),
        models: models.collect(),
        policies: policies.into_iter().map(|(name, outcome)| Row::of(name, outcome, all.clone())).collect(),
    }
}

/// What came out.
#[derive(Serialize)]
struct Simulated {
    requests: usize,
    /// Until every engine has been started and tried.
    start_s: f64,
    /// The same if each engine imported and read its weights in its own turn.
    start_with_nothing_ahead_s: f64,
    /// Under this scheduler, by model.
    models: Vec<Row>,
    /// All models together, by policy.
    policies: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    served: usize,
    rejected: u64,
    swaps: u64,
    wait_p50_s: f64,
    wait_p99_s: f64,
    wait_max_s: f64,
}

impl Row {
    fn of(name: &str, outcome: &sim::Outcome, models: std::ops::Range<usize>) -> Self {
        let mut waits: Vec<Duration> = outcome.waits[models.clone()].concat();
        waits.sort_unstable();
        let quantile = |share: f64| {
            let at = ((waits.len() as f64 * share).ceil() as usize).saturating_sub(1);
            waits.get(at).map_or(0.0, Duration::as_secs_f64)
        };
        Row {
            name: name.to_owned(),
            served: waits.len(),
            rejected: outcome.rejected[models.clone()].iter().sum(),
            swaps: outcome.swaps[models].iter().sum(),
            wait_p50_s: quantile(0.50),
            wait_p99_s: quantile(0.99),
            wait_max_s: quantile(1.0),
        }
    }
}

impl Report for Simulated {
    fn human(&self, out: &mut dyn Write, style: Style) -> io::Result<()> {
        let (start, without) = (self.start_s, self.start_with_nothing_ahead_s);
        writeln!(
            out,
            "every engine started and tried after {start:.0} s ({without:.0} s with nothing done ahead)"
        )?;
        writeln!(out, "{} requests", self.requests)?;
        table(out, style, "MODEL", &self.models)?;
        writeln!(out, "\nall of them, against plain policies:")?;
        table(out, style, "POLICY", &self.policies)
    }
}

fn table(out: &mut dyn Write, style: Style, head: &str, rows: &[Row]) -> io::Result<()> {
    let width = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0).max(head.len());
    let head = format!(
        "{head:width$}  {:>7}  {:>8}  {:>6}  {:>10}  {:>10}  {:>10}",
        "SERVED", "REJECTED", "SWAPS", "WAIT P50", "WAIT P99", "LONGEST"
    );
    writeln!(out, "{}", style.bold(&head))?;
    rows.iter().try_for_each(|row| {
        let Row { name, served, rejected, swaps, wait_p50_s: p50, wait_p99_s: p99, wait_max_s: longest } = row;
        writeln!(
            out,
            "{name:width$}  {served:>7}  {rejected:>8}  {swaps:>6}  {p50:>8.2} s  {p99:>8.2} s  {longest:>8.2} s"
        )
    })
}

/// A journal that this version would have written, too.
#[derive(Serialize)]
struct Agrees {
    events: u64,
    effects: u64,
    seconds: f64,
}

impl Report for Agrees {
    fn human(&self, out: &mut dyn Write, style: Style) -> io::Result<()> {
        let Agrees { events, effects, seconds } = self;
        let good = style.good("the same decisions");
        writeln!(out, "{good}: {events} events and {effects} effects of {seconds:.1} s")
    }
}
