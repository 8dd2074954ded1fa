//! `swapserve run -- CMD`: serve, run the command, end with its status.
//!
//! ```text
//!   engines start ──all answered──► command runs ──exits──► end in order ──► its status
//!        │ one given up                  │ TERM, INT, HUP: passed on; then it has the grace, then KILL
//!        ▼                               │ USR1, USR2: passed on, nothing else
//!   end, exit 69                         ▼
//! ```

use super::{Error, Exit, Globals, Outcome, args::RunArgs, service};
use crate::{
    daemon::{Session, user_command},
    job::{JobSignal, JobSignals},
    process::{self, Child},
};
use std::{io::IsTerminal, process::ExitStatus, time::Duration};

/// Runs the verb.
pub fn execute(args: &RunArgs, globals: &Globals) -> Outcome {
    service::on_data_path(run(args, globals))
}

async fn run(args: &RunArgs, globals: &Globals) -> Outcome {
    let mut signals = JobSignals::listen()?;
    let session = service::begin(&args.serve, globals).await?;
    let outcome = serve_command(&session, args, globals, &mut signals).await;
    service::end(session, &mut signals).await;
    outcome
}

async fn serve_command(
    session: &Session,
    args: &RunArgs,
    globals: &Globals,
    signals: &mut JobSignals,
) -> Outcome {
    let failed = tokio::select! {
        failed = service::started(session, globals.quiet) => failed,
        signal = service::end_signal(signals) => {
            let message = format!("ended by {signal:?} before the engines had started; the command was not run");
            return Err(Error::new(Exit::TryAgain, message));
        }
        () = session.asked_to_stop() => {
            return Err(Error::new(Exit::TryAgain, "stopped before the engines had started; the command was not run"));
        }
    };
    if let Some(model) = failed.first() {
        let message = format!("{} cannot be started, so the command was not run: {}", model.name, model.note);
        return Err(Error::new(Exit::Unavailable, message)
            .remedy("mend models.toml; `swapserve validate` checks its paths"));
    }
    let key = session.key.as_deref();
    let spawned =
        user_command::spawn(&session.spawner, &args.command, &session.facts, key, &session.endpoint_file)
            .await;
    let command = spawned.map_err(|error| {
        Error::new(Exit::NoInput, format!("cannot run {}", args.command[0].to_string_lossy())).because(error)
    })?;
    let status = attend(session, &command, signals).await?;
    Ok(user_command::exit_code(status))
}

/// Waits for the command, and passes signals on to it.
async fn attend(session: &Session, command: &Child, signals: &mut JobSignals) -> Result<ExitStatus, Error> {
    loop {
        let signal = tokio::select! {
            status = command.exited() => return Ok(status),
            () = session.asked_to_stop() => JobSignal::Term,
            signal = signals.next() => signal,
        };
        let by_terminal = signal == JobSignal::Int && std::io::stdin().is_terminal();
        if !by_terminal {
            // The terminal's Ctrl-C has reached the command already; everything else reaches only this process.
            user_command::pass_on(command, signal)?;
        }
        if matches!(signal, JobSignal::Usr1 | JobSignal::Usr2) {
            continue;
        }
        session.drain();
        let mut tree = command.tree();
        if tokio::time::timeout(session.hurried().drain, command.exited()).await.is_err() {
            tracing::warn!(grace = ?session.hurried().drain, "the command does not end: it is killed");
            process::stop(&mut tree, Duration::ZERO).await?;
        }
        return Ok(command.exited().await);
    }
}
