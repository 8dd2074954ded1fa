//! One model's engine, from its first start to the end of the run.
//!
//! A worker is the only owner of its [`Engine`] and [`Swapper`]. It takes one [`Order`] at a time, answers each with one
//! event, and between orders watches for the engine's own death, and for one that is held to have nothing left to do before
//! its turn. When the run ends its orders are closed: it drops what it is doing, stops the engine's tree, and returns.

use super::{
    Timeline, hang,
    report::{EngineView, Order, Report, Stage},
    stray,
};
use crate::{
    engine::{self, Engine, Reading, Running, Weights},
    process::Stat,
    scheduler::{EngineFault, Event, SwapMeasure},
    swap::{MoveFailed, Swapper, TrialError},
    units::{MechanismKind, ModelId},
};
use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, watch};

/// Lines of an engine's log that go into a fault.
const TAIL: usize = 20;

/// What is said of one that is up before its turn.
const LISTENS: &str = "it listens; waits for its turn";

/// An engine that has never answered is given up after so many starts: its config is more likely wrong than its luck.
const VAIN_STARTS: u32 = 2;

/// What a worker needs.
pub struct Worker {
    /// Which model.
    pub model: ModelId,
    /// Its engine, not started.
    pub engine: Engine,
    /// Its ladder.
    pub swapper: Swapper,
    /// Whether mechanisms are tried at the start.
    pub trial: bool,
    /// From the core.
    pub orders: mpsc::UnboundedReceiver<Order>,
    /// To the core.
    pub reports: mpsc::UnboundedSender<Report>,
    /// True when the run ends.
    pub ending: watch::Receiver<bool>,
    /// Cores, memory nodes and GPUs, for people.
    pub placement: String,
    /// How far it has come ahead of its turn; `None` once that has come.
    pub prepared: Option<Prepared>,
    /// From launch to first answer, the last time; without its wait for its turn.
    pub cold_start: Option<Duration>,
    /// Starts in a row that came to nothing.
    pub vain_starts: u32,
    /// The files it reads at its start.
    pub weights: Weights,
    /// Those, being read ahead.
    pub reading: Option<Reading>,
    /// The phases of its start.
    pub timeline: Timeline,
    /// Its processes when it was last looked at.
    pub members: Vec<Stat>,
    /// What was last reported in words.
    pub note: String,
}

/// A launch ahead of the engine's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prepared {
    /// It does what it can without a GPU.
    Importing,
    /// It is up, and loads its model on its first request.
    Listens,
    /// It has come to its first use of a GPU.
    AtGpu,
}

/// What ended a wait.
enum Next {
    Order(Order),
    CameToGpu,
    UpEarly,
    Strayed,
    Died(Option<std::process::ExitStatus>),
    Hung(String),
    End,
}

impl Worker {
    /// Works until the run ends; on return nothing of the engine runs.
    pub async fn run(mut self) {
        let mut ending = self.ending.clone();
        loop {
            match self.next(&mut ending).await {
                Next::Order(order) => {
                    tokio::select! {
                        biased;
                        _ = ending.wait_for(|ending| *ending) => break,
                        () = self.carry_out(order) => {}
                    }
                }
                Next::CameToGpu => self.imported(Prepared::AtGpu, ""),
                Next::UpEarly => self.imported(Prepared::Listens, LISTENS),
                Next::Strayed => self.strayed().await,
                Next::Died(status) if self.engine.is_held() => {
                    let error = self.engine.ended_early(status);
                    self.launch_failed(&error).await;
                }
                Next::Died(status) => {
                    let how = status.map_or("ended".to_owned(), |status| status.to_string());
                    self.lost(&format!("ended by itself ({how})")).await;
                }
                Next::Hung(why) => self.lost(&format!("is started again: {why}")).await,
                Next::End => break,
            }
        }
        self.stop().await;
    }

    async fn next(&mut self, ending: &mut watch::Receiver<bool>) -> Next {
        let alive = self.engine.running().is_some();
        let exited = self.engine.exited();
        let held = self.engine.is_held();
        let limit = self.engine.plan.hang_timeout.filter(|_| alive && !held && !self.swapper.is_out());
        let imports = self.prepared == Some(Prepared::Importing);
        let came_to_gpu = self.engine.came_to_gpu();
        tokio::select! {
            biased;
            _ = ending.wait_for(|ending| *ending) => Next::End,
            status = exited, if alive => Next::Died(status),
            why = hang::until_useless(&self.engine, &mut self.members, limit.unwrap_or_default()), if limit.is_some() => Next::Hung(why),
            () = came_to_gpu, if imports || self.prepared == Some(Prepared::Listens) => Next::CameToGpu,
            () = self.engine.up_early(), if imports => Next::UpEarly,
            () = stray::until_on_gpu(&self.engine, &self.swapper), if held => Next::Strayed,
            order = self.orders.recv() => order.map_or(Next::End, Next::Order),
        }
    }

    async fn carry_out(&mut self, order: Order) {
        let model = self.model;
        match order {
            Order::Warm => self.warm(),
            Order::Prepare => self.prepare().await,
            // One that has ended meanwhile has been reported.
            Order::Proceed if !self.engine.is_held() => {}
            Order::Proceed | Order::Start => self.start().await,
            Order::Stop => {
                self.stop().await;
                self.report(Event::Stopped { model }, Stage::Idle, "");
            }
            // The engine has ended since this was asked for, and that has been reported.
            Order::SwapOut { .. } if self.engine.running().is_none() => {}
            Order::SwapIn { .. } if !self.swapper.is_out() => {}
            Order::SwapOut { in_flight, free, switch } => {
                self.swapper.take_part(switch);
                match self.swapper.swap_out(&mut self.engine, in_flight, free).await {
                    Ok(measure) => self.report(Event::SwappedOut { model, measure }, Stage::Ready, ""),
                    Err(fault) => {
                        let (fault, lost) = told(fault);
                        let note = fault.detail.clone();
                        let mechanism = self.swapper.current();
                        let event = Event::SwapOutFailed { model, fault, lost, mechanism };
                        self.report(event, Stage::Ready, &note);
                    }
                }
            }
            Order::SwapIn { switch } => {
                self.swapper.take_part(switch);
                match self.swapper.swap_in(&mut self.engine).await {
                    Ok(measure) => self.report(Event::SwappedIn { model, measure }, Stage::Ready, ""),
                    Err(MoveFailed { detail, short: true, .. }) => {
                        let note = detail.clone();
                        let fault = EngineFault { detail, retry: true };
                        self.report(Event::FoundNoRoom { model, fault }, Stage::Ready, &note);
                    }
                    Err(fault) => {
                        let (fault, lost) = told(fault);
                        let note = fault.detail.clone();
                        self.report(Event::SwapInFailed { model, fault, lost }, Stage::Ready, &note);
                    }
                }
            }
        }
    }

    /// Begins to read the engine's weights; the report of their end comes by itself.
    fn warm(&mut self) {
        let (model, reports) = (self.model, self.reports.clone());
        let reading = self.weights.read_ahead();
        let over = reading.over();
        self.reading = Some(reading);
        let view = Some(self.view(Stage::Idle, &self.note));
        let _ = self.reports.send(Report { model, view, event: None });
        tokio::spawn(async move {
            over.await;
            let _ = reports.send(Report { model, view: None, event: Some(Event::Warmed { model }) });
        });
    }

    /// Launches the engine ahead of its turn.
    async fn prepare(&mut self) {
        self.timeline.clear();
        if let Err(error) = self.engine.launch_held().await {
            return self.launch_failed(&error).await;
        }
        self.prepared = Some(Prepared::Importing);
        self.timeline.enter(Stage::Importing);
        let (model, view) = (self.model, Some(self.view(Stage::Importing, "")));
        let _ = self.reports.send(Report { model, view, event: None });
    }

    /// One that is held has nothing left to do before its turn. It may be up, and come to a GPU later: what it did
    /// in between is counted, and nobody has to know.
    fn imported(&mut self, so_far: Prepared, note: &str) {
        self.engine.waits();
        if self.prepared.replace(so_far) == Some(Prepared::Importing) {
            self.timeline.enter(Stage::Held);
            self.report(Event::Imported { model: self.model }, Stage::Held, note);
        }
    }

    /// One that is held has come to a GPU all the same.
    async fn strayed(&mut self) {
        let name = &self.engine.plan.name;
        let detail = format!(
            "the engine of {name} was launched ahead of its turn and is on a GPU already: it reaches the driver past the \
             preload library; it was stopped and is started in its turn from now on (set start_ahead = false for {name})"
        );
        self.start_failed(EngineFault { detail, retry: true }).await;
    }

    /// It has not come as far as its first answer.
    async fn launch_failed(&mut self, error: &engine::LaunchError) {
        self.vain_starts += 1;
        let hope = self.cold_start.is_some() || self.vain_starts < VAIN_STARTS;
        self.start_failed(EngineFault { retry: hope && error.may_pass(), detail: error.to_string() }).await;
    }

    /// Whatever is there of it is stopped.
    async fn start_failed(&mut self, fault: EngineFault) {
        self.stop().await;
        let note = fault.detail.clone();
        self.report(Event::StartFailed { model: self.model, fault }, Stage::Idle, &note);
    }

    /// Launch, or what is left of it for one that was held; first answer, trial.
    async fn start(&mut self) {
        let model = self.model;
        let begun = Instant::now();
        let ahead = self.prepared.take().and(self.engine.running()).map(Running::start_time);
        if ahead.is_none() {
            self.timeline.clear();
        }
        let took = || ahead.unwrap_or_default() + begun.elapsed();
        let launched = self.launch().await;
        // Whatever has not been read by now, the engine has read itself or will not need.
        self.reading.iter().for_each(Reading::stop);
        if let Err(error) = launched {
            return self.launch_failed(&error).await;
        }
        self.cold_start = Some(took());
        self.timeline.enter(Stage::Trial);
        self.report(Event::Answered { model }, Stage::Trial, "");
        let outcome = if self.trial {
            self.swapper.trial(&mut self.engine).await
        } else {
            self.swapper.adopt(&self.engine).await
        };
        self.timeline.end();
        match outcome {
            Ok(trial) => {
                self.vain_starts = 0;
                let measure = SwapMeasure { took: took(), ..trial.measure };
                self.report(Event::Started { model, measure }, Stage::Ready, "");
            }
            Err(fault) => {
                // That no mechanism works will not change; that the engine was killed meanwhile may be somebody else's doing.
                let passes = !matches!(fault, TrialError::NoMechanism(_)) || !self.engine.is_alive();
                self.vain_starts += 1;
                let retry = passes && self.vain_starts < VAIN_STARTS;
                self.start_failed(EngineFault { detail: fault.to_string(), retry }).await;
            }
        }
    }

    async fn launch(&mut self) -> Result<(), engine::LaunchError> {
        let (reports, model, view) = (self.reports.clone(), self.model, self.view(Stage::Launched, ""));
        let timeline = self.timeline.clone();
        let started = OnceLock::new();
        if let Some(pid) = view.pid {
            let _ = started.set(pid);
        }
        let progress = move |stage: engine::Stage| {
            let mut view = view.clone();
            view.pid = started.get().copied();
            (view.stage, view.note) = match stage {
                engine::Stage::Spawned { pid } => {
                    view.pid = Some(*started.get_or_init(|| pid));
                    (Stage::Launched, String::new())
                }
                engine::Stage::Loading { line } => (Stage::Loading, line),
                engine::Stage::Listening => (Stage::Listening, String::new()),
                engine::Stage::Answered => (Stage::Trial, String::new()),
            };
            timeline.enter(view.stage);
            // Nobody listens any more when the run is torn down.
            let _ = reports.send(Report { model, view: Some(view), event: None });
        };
        self.engine.launch(&progress).await
    }

    /// The engine is of no use any more.
    async fn lost(&mut self, how: &str) {
        let detail = format!(
            "the engine of {} {how}. The end of its log:\n{}",
            self.engine.plan.name,
            self.engine.log_tail(TAIL)
        );
        self.stop().await;
        self.swapper.forget();
        let note = detail.lines().next().unwrap_or_default().to_owned();
        let fault = EngineFault { detail, retry: true };
        self.report(Event::EngineDied { model: self.model, fault }, Stage::Idle, &note);
    }

    async fn stop(&mut self) {
        self.prepared = None;
        self.timeline.end();
        match self.engine.stop().await {
            Ok(report) if !report.is_clean() => {
                tracing::error!(model = %self.engine.plan.name, ?report, "processes of this engine hang in the kernel");
            }
            Ok(_) => {}
            Err(error) => {
                tracing::error!(model = %self.engine.plan.name, %error, "the engine's processes cannot be ended")
            }
        }
    }

    fn report(&mut self, event: Event, stage: Stage, note: &str) {
        note.clone_into(&mut self.note);
        let (model, view) = (self.model, self.view(stage, note));
        let _ = self.reports.send(Report { model, view: Some(view), event: Some(event) });
    }

    fn view(&self, stage: Stage, note: &str) -> EngineView {
        EngineView {
            stage,
            pid: self.engine.pid(),
            upstream: self.engine.upstream().cloned(),
            key: self.engine.key().cloned(),
            mechanism: self.swapper.current(),
            crossed: self.swapper.crossed().to_vec() as Vec<(MechanismKind, String)>,
            log: Some(self.engine.log_path().to_owned()),
            cold_start: self.cold_start,
            placement: self.placement.clone(),
            timeline: self.timeline.clone(),
            reading: self.reading.clone(),
            note: note.to_owned(),
        }
    }
}

/// A failed move as the scheduler is told; an engine that was lost has been stopped by the swapper.
fn told(failed: MoveFailed) -> (EngineFault, bool) {
    (EngineFault { detail: failed.detail, retry: true }, failed.lost)
}
