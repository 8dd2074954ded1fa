//! `swapserve serve`: until the job ends, a signal comes, or `swapserve stop`.

use super::{Globals, Outcome, args::ServeArgs, service};
use crate::job::JobSignals;
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
        for model in service::started(&session, globals.quiet).await {
            tracing::error!(model = model.name, fault = model.note, "given up; the others are served");
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = life => {}
        // Also while engines start.
        () = session.asked_to_stop() => tracing::info!("asked to stop"),
        signal = service::end_signal(&mut signals) => tracing::info!(?signal, "ending"),
    }
    service::end(session, &mut signals).await;
    Ok(ExitCode::SUCCESS)
}
