//! `swapserve run -- CMD`: serve, run the command, end with its status.
//!
//! ```text
//!   engines start ──all answered──► command runs ──exits──► end in order ──► its status
//!        │ one given up                  │ TERM, INT, HUP: passed on; then it has the grace, then KILL;
//!        │                               │                 a second one: KILL at once
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

/// What a command leaves behind has this long between TERM and KILL when nobody hurries.
const LEFT_BEHIND_GRACE: Duration = Duration::from_secs(2);

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
    let spawned = user_command::spawn(session, &args.command).await;
    let command = spawned.map_err(|error| {
        Error::new(Exit::NoInput, format!("cannot run {}", args.command[0].to_string_lossy())).because(error)
    })?;
    let status = attend(session, &command, signals).await?;
    tidy_up(&command, signals).await?;
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
        let grace = session.hurried().drain;
        let ended = tokio::select! {
            ended = tokio::time::timeout(grace, command.exited()) => ended.is_ok(),
            again = service::final_signal(signals) => {
                tracing::warn!("{again} again: the command is killed");
                false
            }
        };
        if !ended {
            if !signals.in_haste() {
                tracing::warn!(?grace, "the command does not end: it is killed");
            }
            process::stop(&mut command.tree(), Duration::ZERO).await?;
        }
        return Ok(command.exited().await);
    }
}

/// Ends what the command has left behind: it is not needed any more, and would be lost sight of.
async fn tidy_up(command: &Child, signals: &JobSignals) -> Result<(), Error> {
    let grace = if signals.kill_follows() { Duration::ZERO } else { LEFT_BEHIND_GRACE };
    let report = process::stop(&mut command.tree(), grace).await?;
    if let Some(first) = report.ended.first() {
        let (name, processes) = (&first.comm, report.ended.len());
        tracing::warn!(%name, processes, "the command left processes behind, which were ended");
    }
    Ok(())
}
