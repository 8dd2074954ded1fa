//! `swapserve run -- CMD`: serve, run the command, end with its status.

use super::{Error, Exit, Globals, Outcome, args::RunArgs, service};
use crate::{
    daemon::{Session, user_command},
    process::{Child, signals::{JobSignal, JobSignals}},
};
use std::{io::IsTerminal, process::ExitCode, time::Duration};

/// Runs the verb.
pub fn execute(args: &RunArgs, globals: &Globals) -> Outcome {
    service::on_data_path(run(args, globals))
}

async fn run(args: &RunArgs, globals: &Globals) -> Outcome {
    let mut signals = JobSignals::listen()?;
    let session = service::begin(args, globals).await?;
    let outcome = serve_command(&session, args, globals, &mut signals).await;
    let report = session.end().await;
    service::tell_end(&report);
    outcome
}
