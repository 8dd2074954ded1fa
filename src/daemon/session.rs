//! A run from its first moment to its last: everything is made in order, and ended in the opposite order.
//!
//! Nothing is started before everything that can be refused has been checked: directories, sockets and ports first,
//! engines last. The endpoint is published once it listens; engines start behind it.

use super::{
    Core, DaemonGate, EndPlan, Journal, RunFacts, RunStatus,
    specs::{self, Resources},
    wiring::{self, Wiring},
};
use crate::{
    config::Plan,
    job::{self, Endpoint, Job, RunDir},
    process::{self, SpawnError, Spawner},
    router::{self, RouterConfig},
    scheduler::{Bounds, Event, Scheduler},
    units::{Bytes, ModelId},
};
use std::{
    io,
    path::PathBuf,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::timeout,
};

/// What the command line adds to the plan.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where to publish the endpoint; `None`: the job's usual place.
    pub endpoint_file: Option<PathBuf>,
    /// Where sockets, logs and keys go; `None`: the node's own disk.
    pub run_dir: Option<PathBuf>,
    /// Whether each engine's mechanisms are tried at its start.
    pub trial: bool,
    /// Where events and effects are noted.
    pub journal: Option<PathBuf>,
}

/// What can keep a run from beginning.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The job's facts cannot be read.
    #[error("cannot find out what this job has")]
    Job(#[source] job::JobError),
    /// No place for sockets and keys.
    #[error("cannot make the run directory")]
    RunDir(#[source] job::RunDirError),
    /// The endpoint's address is taken or not ours.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The journal cannot be made.
    #[error("cannot make the journal {}", path.display())]
    Journal {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No process can be started.
    #[error("cannot start processes")]
    Spawner(#[source] SpawnError),
    /// The engines cannot be placed on the job's cores and GPUs.
    #[error(transparent)]
    Wiring(#[from] wiring::WiringError),
    /// The threads for the engines cannot be made.
    #[error("cannot make the threads that tend the engines")]
    Threads(#[source] io::Error),
}

/// A run that serves.
pub struct Session {
    /// The run's state.
    pub core: Rc<Core>,
    /// What is known of it.
    pub facts: RunFacts,
    /// The key clients need; `None` where none is asked for.
    pub key: Option<Arc<str>>,
    /// Starts processes.
    pub spawner: Spawner,
    /// The job it runs in.
    pub job: Arc<Job>,
    /// Where the endpoint is published.
    pub endpoint_file: PathBuf,
    stop: watch::Receiver<bool>,
    ending: watch::Sender<bool>,
    router_ending: watch::Sender<bool>,
    router: JoinHandle<()>,
    workers: JoinSet<()>,
    work: Option<tokio::runtime::Runtime>,
    endpoint: job::Published,
    run_dir: RunDir,
    end: EndPlan,
}

impl Session {
    /// Makes everything and begins to serve; the engines' start is under way on return. Must be called in a
    /// [`tokio::task::LocalSet`].
    pub async fn start(plan: Plan, options: &Options, job: Job) -> Result<Self, SessionError> {
        let (plan, job) = (Arc::new(plan), Arc::new(job));
        process::become_subreaper().map_err(|source| SessionError::Threads(source))?;
        let spawner = Spawner::start().map_err(SessionError::Spawner)?;
        let run_dir = RunDir::create(&job, options.run_dir.as_deref()).map_err(SessionError::RunDir)?;
        let key = if plan.router.require_key { Some(run_dir.make_key().map_err(SessionError::RunDir)?) } else { None };
        let listeners = listen(&plan, &run_dir).await?;
        let facts = facts(&plan, &job, &listeners, &run_dir);
        let journal = options.journal.as_ref().map(|path| open_journal(path)).transpose()?;
        let work = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("engines")
            .enable_all()
            .build()
            .map_err(SessionError::Threads)?;

        let wired = wiring::wire(&plan, &job, &spawner, &run_dir, options.trial).await?;
        let Wiring { resources, gpus, workers: makers } = wired;
        let capacity = specs::capacity(&plan, &resources);
        let specs = specs::specs(&plan, &gpus, &capacity);
        let scheduler = Scheduler::new(specs, capacity, Bounds::from(&plan.scheduler));

        let (ending, ends) = watch::channel(false);
        let (reports, mut reported) = mpsc::unbounded_channel();
        let mut orders = Vec::new();
        let mut workers = JoinSet::new();
        for maker in makers {
            let (order, ordered) = mpsc::unbounded_channel();
            orders.push(order);
            let worker = maker.worker(ordered, reports.clone(), ends.clone());
            workers.spawn_on(worker.run(), work.handle());
        }
        let core = Core::new(plan.clone(), facts.clone(), scheduler, orders, journal);
        let taking_in = core.clone();
        tokio::task::spawn_local(async move {
            while let Some(report) = reported.recv().await {
                taking_in.report(report);
            }
        });
        tokio::task::spawn_local(core.clone().keep_time());
        tokio::task::spawn_local(watch_end(core.clone(), job.clone()));

        let (asked_to_stop, stop) = watch::channel(false);
        let gate = DaemonGate::new(core.clone(), asked_to_stop);
        let (router_ending, router_ends) = watch::channel(false);
        let config = RouterConfig::new(&plan.router, key.clone());
        let router = tokio::task::spawn_local(router::serve(listeners, gate, config, router_ends));
        let endpoint = Endpoint::new(&facts, run_dir.key_file(), &plan);
        let endpoint = job::publish(&endpoint, options.endpoint_file.as_deref(), &job).map_err(SessionError::RunDir)?;
        core.boot();
        let end = EndPlan::within(job.kill_wait);
        let endpoint_file = endpoint.path().to_owned();
        Ok(Session {
            core, facts, key, spawner, job, endpoint_file, stop, ending, router_ending, router, workers,
            work: Some(work), endpoint, run_dir, end,
        })
    }

    /// Resolves when an operator asks the run to end.
    pub async fn asked_to_stop(&self) {
        let mut stop = self.stop.clone();
        if stop.wait_for(|stop| *stop).await.is_err() {
            // Nobody can ask any more.
            std::future::pending::<()>().await;
        }
    }

    /// Calls `look` at once and after each change, until it says that it has seen enough.
    pub async fn watch(&self, mut look: impl FnMut(&RunStatus) -> bool) {
        let mut changes = self.core.changes();
        while !look(&self.core.status()) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Ends the run in order; `at_once` gives open streams no time.
    pub async fn end(mut self, at_once: bool) -> EndReport {
        self.core.post(Event::Drain);
        if !at_once {
            let idle = self.watch(|status| status.models.iter().all(|m| m.running == 0));
            // Streams that take longer are ended with an error event when their engine goes.
            let _ = timeout(self.end.drain, idle).await;
        }
        self.ending.send_replace(true);
        let stopped = async { while self.workers.join_next().await.is_some() {} };
        let stopped_in_time = timeout(self.end.stop, stopped).await.is_ok();
        self.router_ending.send_replace(true);
        let _ = timeout(Duration::from_secs(1), &mut self.router).await;
        self.core.close_journal();
        let swept = process::sweep(&self.run_dir.cookie()).await;
        let mut left = Vec::new();
        if let Err(error) = self.endpoint.remove() {
            left.push(format!("{}: {error}", self.endpoint_file.display()));
        }
        if let Err(error) = self.run_dir.close() {
            left.push(error.to_string());
        }
        if let Some(work) = self.work.take() {
            work.shutdown_background();
        }
        EndReport { stopped_in_time, swept, left }
    }
}

/// How a run ended.
#[derive(Debug)]
pub struct EndReport {
    /// Whether every engine ended within its time.
    pub stopped_in_time: bool,
    /// Processes that only the last sweep found.
    pub swept: usize,
    /// Files that could not be removed, each with the reason.
    pub left: Vec<String>,
}
