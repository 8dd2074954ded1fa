//! `swapserve serve`: until the job ends, a signal comes, or `swapserve stop`.

use super::{Globals, Outcome, args::ServeArgs, service};
use crate::process::signals::{JobSignal, JobSignals};
use std::process::ExitCode;

/// Runs the verb.
pub fn execute(args: &ServeArgs, globals: &Globals) -> Outcome {
    service::on_data_path(serve(args, globals))
}

async fn serve(args: &ServeArgs, globals: &Globals) -> Outcome {
    let mut signals = JobSignals::listen()?;
    let session = service::begin(args, globals).await?;
    tracing::info!(url = session.facts.url, endpoint_file = %session.endpoint_file.display(), "serving");
    let life = async {
        let failed = service::started(&session, globals.quiet).await;
        for model in &failed {
            tracing::error!(model = model.name, fault = model.note, "given up; the others are served");
        }
        session.asked_to_stop().await;
    };
    tokio::select! {
        () = life => tracing::info!("asked to stop"),
        signal = ends(&mut signals) => tracing::info!(?signal, "ending"),
    }
    let end = session.end();
    tokio::pin!(end);
    let report = tokio::select! {
        report = &mut end => report,
        // A second signal: whoever sends it is in a hurry.
        _ = ends(&mut signals) => end.at_once().await,
    };
    service::tell_end(&report);
    Ok(ExitCode::SUCCESS)
}

/// The next signal that means the end: TERM and INT, HUP, and USR1 (which `srun` forwards where it would turn TERM into KILL).
async fn ends(signals: &mut JobSignals) -> JobSignal {
    loop {
        let signal = signals.next().await;
        if signal.ends_service() {
            return signal;
        }
    }
}
