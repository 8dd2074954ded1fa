//! A run from its first moment to its last: everything is made in order, and ended in the opposite order.
//!
//! Nothing is started before everything that can be refused has been checked: directories, sockets and ports first,
//! engines last. The endpoint is published once it listens; engines start behind it.

use super::{
    Core, DaemonGate, EndPlan, Journal, RunFacts, RunStatus,
    gpus::GpusError,
    ground::Ground,
    host_plan::{self, TooLittleHost},
    parking::ParkPlace,
    pressure,
    specs::{self, Resources},
    strangers,
    wiring::{self, Wiring},
};
use crate::{
    config::Plan,
    gpu::GpuClient,
    job::{self, Endpoint, Job, Pointer, Published, RunDir, RunDirError},
    process::{self, ProcFs, SpawnError, Spawner, Tree},
    router::{self, Listeners, RouterConfig, auth::Key},
    scheduler::{Bounds, Event, Scheduler, Setup},
    units::Bytes,
};
use futures_util::future::{FusedFuture as _, FutureExt as _};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::{
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet, spawn_local},
    time::timeout,
};

/// How often Slurm is asked for the job's end: it can be changed while the job runs.
const END_POLL: Duration = Duration::from_secs(60);

/// What engines still have to end in once haste is asked for; then they are killed.
const HASTE: Duration = Duration::from_millis(500);

/// What the command line adds to the plan.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where to publish the endpoint; `None`: the job's usual place.
    pub endpoint_file: Option<PathBuf>,
    /// Where sockets, logs and keys go; `None`: the node's own disk.
    pub run_dir: Option<PathBuf>,
    /// Where engines' logs are kept after the run; `None`: they go with the run directory.
    pub log_dir: Option<PathBuf>,
    /// Whether each engine's mechanisms are tried at its start.
    pub trial: bool,
    /// Where events and effects are noted.
    pub journal: Option<PathBuf>,
    /// Whether what was parked is compared with what comes back.
    pub verify: bool,
}

/// What can keep a run from beginning.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The job's facts cannot be read.
    #[error("cannot find out what this job has")]
    Job(#[source] job::JobError),
    /// The gpu server cannot be had.
    #[error(transparent)]
    Gpus(#[from] GpusError),
    /// No place for sockets and keys.
    #[error("cannot make the run directory")]
    RunDir(#[source] RunDirError),
    /// A model could never be swapped out.
    #[error(transparent)]
    TooLittleHost(#[from] TooLittleHost),
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
    /// The engines' logs cannot be kept where they are to be.
    #[error("cannot make the directory {} for the engines' logs", path.display())]
    Logs {
        /// The directory.
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
    _work: EngineThreads,
    _janitor: Option<OwnedFd>,
    /// Where the run's places are, for whoever tidies up after a kill.
    _pointer: Option<Pointer>,
    endpoint: Published,
    run_dir: RunDir,
    /// The gpu server ends with its last client: after the engines.
    gpu: Option<GpuClient>,
    /// Looks after the GPUs' memory through it.
    strangers: Option<JoinHandle<()>>,
}

impl Session {
    /// Makes everything and begins to serve; the engines' start is under way on return. Must be called in a
    /// [`tokio::task::LocalSet`].
    pub async fn start(mut plan: Plan, options: &Options, ground: Ground) -> Result<Self, SessionError> {
        let Ground { job, spawner, gpus: mut found, view, janitor } = ground;
        let view = view.map_err(wiring::WiringError::Topology)?;
        let mut resources = Resources {
            gpu_free: found.free.clone(),
            gpu_foreign: found.foreign.clone(),
            host: job.memory,
            cores: job.cores.len(),
            pool: Bytes(0),
        };
        let parking = ParkPlace::open(&plan, &mut found, &mut resources, options.verify).await;
        if let (Err(reason), Some(_)) = (&parking, &found.client) {
            tracing::info!(reason, "no engine can be parked");
        }
        let capacity = specs::capacity(&plan, &resources);
        host_plan::keep_within_host(&mut plan, &capacity)?;
        if let Some(shortage) = host_plan::shortage(&plan, &resources) {
            tracing::warn!("{shortage}");
        }
        let gpus = specs::assign_gpus(&plan, &found.totals);
        specs::leave_nothing_where_it_adds_up(&mut plan, &gpus, &capacity);
        let (plan, job) = (Arc::new(plan), Arc::new(job));
        if let Some(slurm) = job.slurm.as_ref().filter(|slurm| slurm.restarts > 0) {
            let (job, restarts) = (slurm.job, slurm.restarts);
            tracing::info!(
                "job {job} was restarted {restarts} time(s) by Slurm: nothing of an earlier run is used"
            );
        }
        for left in job::leftovers::sweep(job.id().as_deref()) {
            tracing::info!("removed {left}, left by a killed run of this job");
        }
        let run_dir =
            RunDir::create(job.id().as_deref(), options.run_dir.as_deref()).map_err(SessionError::RunDir)?;
        let key = if plan.router.require_key {
            Some(run_dir.make_key().map_err(SessionError::RunDir)?)
        } else {
            None
        };
        let log_dir = log_dir(options.log_dir.as_deref(), &run_dir)?;
        let (listeners, facts) = listen(&plan, &job, &run_dir).await?;
        let mut journal = match &options.journal {
            Some(path) => Some(
                Journal::create(path)
                    .map_err(|source| SessionError::Journal { path: path.clone(), source })?,
            ),
            None => None,
        };
        let work = EngineThreads::make().map_err(SessionError::Threads)?;
        let dirs = (&run_dir, log_dir);
        let Wiring { prepared, starts } =
            wiring::wire((&plan, &gpus), (&job, &view), &spawner, &found, dirs, &parking, options.trial)?;
        let mut models = specs::specs(&plan, &gpus, &starts, &capacity);
        if !options.trial {
            // Nobody is taken out at its start.
            models.iter_mut().for_each(|model| model.starting.pool = Bytes(0));
        }
        let ceiling = specs::ceiling(&plan, &resources);
        specs::tell_who_waits(&models, &capacity, &ceiling);
        let setup = Setup { models, capacity, ceiling, bounds: Bounds::from(&plan.scheduler) };
        if let Some(journal) = &mut journal {
            journal.setup(&setup);
        }
        let scheduler = Scheduler::new(setup);

        let (ending, ends) = watch::channel(false);
        let (reports, mut reported) = mpsc::unbounded_channel();
        let mut orders = Vec::new();
        let mut workers = JoinSet::new();
        for worker in prepared {
            let (order, ordered) = mpsc::unbounded_channel();
            orders.push(order);
            workers.spawn_on(worker.worker(ordered, reports.clone(), ends.clone()).run(), work.handle());
        }
        let core = Core::new(plan.clone(), facts.clone(), scheduler, orders, journal);
        let taking_in = core.clone();
        spawn_local(async move {
            while let Some(report) = reported.recv().await {
                taking_in.report(report);
            }
        });
        spawn_local(core.clone().keep_time());
        spawn_local(watch_end(core.clone(), job.clone()));
        spawn_local(pressure::watch(core.clone()));
        let watched = found.client.clone();
        let strangers = watched.map(|client| spawn_local(strangers::watch(core.clone(), client, resources)));

        let (asked_to_stop, stop) = watch::channel(false);
        let gate = DaemonGate::new(core.clone(), asked_to_stop);
        let (router_ending, mut router_ends) = watch::channel(false);
        let config = RouterConfig::new(&plan.router, key.as_deref().map(Key::new));
        let router = spawn_local(router::serve(listeners, gate, config, async move {
            // Also when the session is dropped: nobody is left to serve for.
            let _ = router_ends.wait_for(|ends| *ends).await;
        }));
        let endpoint = endpoint(&facts, key.as_deref(), &plan);
        let endpoint = endpoint
            .publish(options.endpoint_file.as_deref(), job.one_of_several())
            .map_err(SessionError::RunDir)?;
        // Where the sweep does not look of itself.
        let elsewhere = options.run_dir.is_some() || options.endpoint_file.is_some();
        let pointer = elsewhere
            .then(|| Pointer::leave(job.id().as_deref(), run_dir.path(), endpoint.path()))
            .transpose()
            .map_err(SessionError::RunDir)?;
        core.post(Event::Boot);
        Ok(Session {
            endpoint_file: endpoint.path().to_owned(),
            _work: work,
            _pointer: pointer,
            _janitor: janitor,
            core,
            facts,
            key,
            spawner,
            job,
            stop,
            ending,
            router_ending,
            router,
            workers,
            endpoint,
            run_dir,
            gpu: found.client,
            strangers,
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

    /// Marks every process of this run.
    pub fn cookie(&self) -> &str {
        self.run_dir.cookie()
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

    /// Stops admitting requests; those on an engine go on.
    pub fn drain(&self) {
        self.core.post(Event::Drain);
    }

    /// How long the steps of the end may take when the site will kill.
    pub fn hurried(&self) -> EndPlan {
        EndPlan::within(self.job.kill_wait)
    }

    /// How long they may take when nobody hurries.
    pub fn at_leisure(&self) -> EndPlan {
        let grace = self.core.plan.models.iter().map(|model| model.stop_grace).max();
        EndPlan::at_leisure(grace.unwrap_or_default())
    }

    /// Ends the run in order; open streams get no more time once `haste` resolves, and engines next to none.
    pub async fn end(mut self, plan: EndPlan, haste: impl Future<Output = ()>) -> EndReport {
        let begun = Instant::now();
        self.drain();
        let mut haste = std::pin::pin!(haste.fuse());
        tokio::select! {
            // Streams that take longer are ended with an error event when their engine goes.
            _ = timeout(plan.drain, self.core.idle()) => {}
            () = &mut haste => {}
        }
        self.ending.send_replace(true);
        let mut stopped = std::pin::pin!(async { while self.workers.join_next().await.is_some() {} });
        let mut in_time = None;
        if !haste.is_terminated() {
            tokio::select! {
                stopped = timeout(plan.stop, &mut stopped) => in_time = Some(stopped.is_ok()),
                () = &mut haste => {}
            }
        }
        let stopped_in_time = match in_time {
            Some(in_time) => in_time,
            None => timeout(plan.stop.min(HASTE), &mut stopped).await.is_ok(),
        };
        self.router_ending.send_replace(true);
        // The router gives its last bytes a second of their own, where the site's KillWait leaves so much.
        let time_left = || plan.gone.saturating_sub(begun.elapsed());
        let _ = timeout(Duration::from_secs(2).min(time_left() / 2), &mut self.router).await;
        self.core.close_journal();
        let mut left = Vec::new();
        if let Some(strangers) = self.strangers.take() {
            strangers.abort();
            // With it goes its handle on the gpu server.
            let _ = strangers.await;
        }
        // What opens something does not wait for what only takes memory.
        if let Err(error) = self.endpoint.remove() {
            left.push(format!("{}: {error}", self.endpoint_file.display()));
        }
        self.run_dir.remove_key();
        if let Some(gpu) = self.gpu.take() {
            let time = if haste.is_terminated() { time_left().min(HASTE) } else { time_left() };
            let mut ended = std::pin::pin!(gpu.end(time));
            tokio::select! {
                () = &mut ended => {}
                // If that is too little, the sweep kills it.
                () = &mut haste => { let _ = timeout(HASTE, ended).await; }
            }
        }
        let swept = sweep().await.unwrap_or_else(|error| {
            left.push(format!("processes below this one: {error}"));
            0
        });
        // Of engines that had to be killed; those that ended in time have been tidied up after.
        job::leftovers::sweep_shared(self.run_dir.path());
        if let Err(error) = self.run_dir.close() {
            left.push(error.to_string());
        }
        EndReport { stopped_in_time, swept, left }
    }
}

/// The threads that workers run on, apart from the data path's: nothing an engine does delays a request of another.
struct EngineThreads(Option<tokio::runtime::Runtime>);

impl EngineThreads {
    fn make() -> io::Result<Self> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder
            .worker_threads(2)
            .thread_name("engines")
            .enable_all()
            .build()
            .map(|runtime| EngineThreads(Some(runtime)))
    }

    fn handle(&self) -> &tokio::runtime::Handle {
        self.0.as_ref().expect("only taken on drop").handle()
    }
}

impl Drop for EngineThreads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Waiting for its threads is not allowed on the data path, and nothing they do is wanted any more.
            runtime.shutdown_background();
        }
    }
}

/// Ends whatever still runs below this process: as a subreaper it has inherited every orphan of the run.
async fn sweep() -> io::Result<usize> {
    let pid = std::process::id().cast_signed();
    let Some(own) = ProcFs::default().stat(pid) else { return Ok(0) };
    let report = process::stop(&mut Tree::of(own.id).below_root(), Duration::ZERO).await?;
    for survivor in &report.survivors {
        tracing::error!(pid = survivor.id.pid, name = %survivor.comm, "was killed and is not gone yet: the kernel is still giving its memory back, or it hangs in a driver");
    }
    Ok(report.ended.len())
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

/// Where engines' logs go: into the run directory, or a directory of the run's own where the user keeps them.
fn log_dir(wanted: Option<&Path>, run_dir: &RunDir) -> Result<PathBuf, SessionError> {
    let Some(wanted) = wanted else { return Ok(run_dir.logs()) };
    let path = wanted.join(run_dir.path().file_name().unwrap_or_default());
    match job::rundir::make_private_dir(&path) {
        Ok(()) => Ok(path),
        Err(source) => Err(SessionError::Logs { path, source }),
    }
}

/// Binds the endpoint's sockets; with the address that it got, the run's facts are known.
async fn listen(plan: &Plan, job: &Job, run_dir: &RunDir) -> Result<(Listeners, RunFacts), SessionError> {
    let mut listeners = Listeners::new();
    let wanted = SocketAddr::new(plan.router.host, plan.router.port);
    let failed = |address: String| move |source| SessionError::Listen { address, source };
    let bound = listeners.tcp(wanted).await.map_err(failed(wanted.to_string()))?;
    let socket = plan.router.unix_socket.then(|| run_dir.socket());
    if let Some(path) = &socket {
        listeners.unix(path).map_err(failed(path.display().to_string()))?;
    }
    // Clients on other nodes need a name, not «every address».
    let host = match bound.ip() {
        ip if ip.is_unspecified() => job.node.clone(),
        IpAddr::V6(ip) => format!("[{ip}]"),
        IpAddr::V4(ip) => ip.to_string(),
    };
    let facts = RunFacts {
        job: job.id(),
        restarts: job.slurm.as_ref().map_or(0, |slurm| slurm.restarts),
        node: job.node.clone(),
        pid: std::process::id(),
        url: format!("http://{host}:{}/v1", bound.port()),
        socket,
        run_dir: run_dir.path().to_owned(),
        begun: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    Ok((listeners, facts))
}

fn endpoint(facts: &RunFacts, key: Option<&str>, plan: &Plan) -> Endpoint {
    Endpoint {
        url: facts.url.clone(),
        socket: facts.socket.clone(),
        key: key.map(str::to_owned),
        job: facts.job.clone(),
        node: job::endpoint::this_node(),
        pid: facts.pid,
        started: job::endpoint::start_time(facts.pid).expect("this process runs"),
        models: plan.models.iter().map(|model| model.name.clone()).collect(),
    }
}

/// Tells the scheduler when the job ends, at once and whenever that changes.
async fn watch_end(core: Rc<Core>, job: Arc<Job>) {
    let Some(slurm) = &job.slurm else { return };
    loop {
        let end = job::site::end_time(slurm.job).await.or(slurm.end);
        if let Some(remaining) = end.and_then(|end| end.duration_since(SystemTime::now()).ok()) {
            core.job_ends(remaining);
        }
        tokio::time::sleep(END_POLL).await;
    }
}
