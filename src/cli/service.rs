//! What `run` and `serve` share: load the config, begin the session, show the engines' start, end in order.

use super::{
    Error, Exit, Globals,
    args::ServeArgs,
    progress::{self, Progress},
};
use crate::{
    config::{self, Context},
    daemon::{Ground, ModelRow, Options, Session, SessionError},
    job::{Env, JobSignal, JobSignals, Tasks},
    scheduler::State,
};
use std::future::Future;

/// Runs `verb` on the one thread of the data path.
pub fn on_data_path<T>(verb: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| Error::new(Exit::Os, "cannot make the event loop").because(error))?;
    tokio::task::LocalSet::new().block_on(&runtime, verb)
}

/// Checks everything, then begins to serve.
pub async fn begin(args: &ServeArgs, globals: &Globals) -> Result<Session, Error> {
    crate::observe::logging::init(globals.verbose, args.log_format);
    alone_on_this_node()?;
    let ground = Ground::find().await?;
    let context = Context {
        limits: Some(ground.gpus.limits(&ground.job)),
        host: args.host,
        port: args.port,
        ..Context::default()
    };
    let plan = config::load(&args.config.config, &context)?;
    for model in &plan.models {
        if let Some(warning) = model.reach().warning() {
            tracing::warn!(model = %model.name, "{warning}");
        }
    }
    let options = Options {
        endpoint_file: args.endpoint_file.clone(),
        run_dir: args.run_dir.clone(),
        log_dir: args.log_dir.clone(),
        trial: !args.no_trial,
        journal: args.journal.clone(),
        verify: args.verify,
    };
    Ok(Session::start(plan, &options, ground).await?)
}

/// Several tasks of one step on one node would each start every engine.
fn alone_on_this_node() -> Result<(), Error> {
    let tasks = Tasks::read(&Env::of_process()).map_err(|error| Error::from(SessionError::Job(error)))?;
    if tasks.here == 1 {
        return Ok(());
    }
    let message =
        format!("this step has {} tasks on this node, and each would start all the engines", tasks.here);
    Err(Error::new(Exit::Usage, message)
        .because("swapserve is one process a node; it starts and binds the engines itself")
        .remedy(
            "srun --ntasks-per-node=1, with --cpus-per-task for all the cores that the engines are to have",
        ))
}

/// Shows the start of the engines until each is in service or given up; the ones that were given up.
pub async fn started(session: &Session, quiet: bool) -> Vec<ModelRow> {
    let mut progress = Progress::new(session.core.models(), quiet);
    let mut failed = Vec::new();
    session
        .watch(|status| {
            progress.update(&status.models);
            failed = status.models.iter().filter(|m| m.state == State::Failed).cloned().collect();
            status.models.iter().all(progress::settled)
        })
        .await;
    progress.finish();
    failed
}

/// The next signal that means the end of a service: TERM, INT, HUP, and USR1, which `srun` forwards where it turns TERM
/// into KILL.
pub async fn end_signal(signals: &mut JobSignals) -> JobSignal {
    loop {
        let signal = signals.next().await;
        if signal != JobSignal::Usr2 {
            return signal;
        }
    }
}

/// The next signal that means the end whatever is run: TERM, INT, HUP.
pub async fn final_signal(signals: &mut JobSignals) -> JobSignal {
    loop {
        let signal = signals.next().await;
        if !matches!(signal, JobSignal::Usr1 | JobSignal::Usr2) {
            return signal;
        }
    }
}

/// Ends the session in order, at once when another signal asks for haste, and says what was left behind.
pub async fn end(session: Session, signals: &mut JobSignals) {
    let plan = match signals.kill_follows() {
        true => session.hurried().after(signals.since_term()),
        false => session.at_leisure(),
    };
    let report = session
        .end(plan, async {
            if !signals.in_haste() {
                end_signal(signals).await;
            }
        })
        .await;
    if !report.stopped_in_time {
        tracing::warn!("not every engine ended within its time; the rest was killed");
    }
    if report.swept > 0 {
        tracing::warn!(
            processes = report.swept,
            "processes that had outlived their engine or command were ended"
        );
    }
    for left in &report.left {
        tracing::error!(left, "could not be removed");
    }
}

impl From<SessionError> for Error {
    fn from(error: SessionError) -> Self {
        let (exit, remedy) = match &error {
            SessionError::Listen { .. } => (
                Exit::CantCreate,
                "take another --port, or 0 to let the kernel choose; --host must be this node's",
            ),
            SessionError::RunDir(_) => {
                (Exit::CantCreate, "name a directory of your own with --run-dir or --endpoint-file")
            }
            SessionError::Journal { .. } | SessionError::Logs { .. } => {
                (Exit::CantCreate, "name a place that you may write to")
            }
            SessionError::Spawner(_) | SessionError::Threads(_) => {
                (Exit::Os, "see `ulimit -u` and the job's memory limit")
            }
            SessionError::TooLittleHost(_) => (
                Exit::TryAgain,
                "ask for more --mem, give the model's `swap` list \"restart\", or lower [memory] host_headroom",
            ),
            SessionError::Job(_) => (Exit::Os, "see `swapserve doctor`"),
            SessionError::Wiring(_) | SessionError::Gpus(_) => (Exit::Unavailable, "see `swapserve doctor`"),
        };
        let message = error.to_string();
        let failed = Error::new(exit, message).remedy(remedy);
        match std::error::Error::source(&error) {
            Some(cause) => failed.because(cause.to_string()),
            None => failed,
        }
    }
}
