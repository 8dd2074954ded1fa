//! `swapserve stop`: asks a running service to end, and waits until it has.

use super::{Error, Exit, Globals, Outcome, args::StopArgs, client::Client};
use crate::job::endpoint::this_node;
use std::{
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

/// How long to wait when the command line does not say.
const DEFAULT_WAIT: Duration = Duration::from_secs(60);

/// Runs the verb.
pub fn execute(args: &StopArgs, _: &Globals) -> Outcome {
    let client = Client::find(&args.endpoint)?;
    let _: serde_json::Value = client.post("/swapserve/v1/stop", &serde_json::json!({}), DEFAULT_WAIT)?;
    let longest = args.timeout.unwrap_or(DEFAULT_WAIT);
    let asked = Instant::now();
    while client.endpoint.is_alive() && still_answers(&client) {
        if asked.elapsed() > longest {
            let message = format!("the service has not ended within {}", humantime::format_duration(longest));
            return Err(Error::new(Exit::TryAgain, message)
                .remedy("see its log; `scancel --signal=TERM JOB.STEP` asks again"));
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(ExitCode::SUCCESS)
}

/// Of a process on another node nothing is seen but whether somebody answers there.
fn still_answers(client: &Client) -> bool {
    client.endpoint.node == this_node() || client.get::<serde_json::Value>("/health").is_ok()
}
