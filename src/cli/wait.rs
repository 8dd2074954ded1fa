//! `swapserve wait`: until the models have answered a request, or one of them never will.

use super::{Error, Exit, Globals, Outcome, args::WaitArgs, client::Client, progress};
use crate::{
    daemon::{ModelRow, RunStatus},
    scheduler::State,
};
use std::{
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

/// Time between two looks. The service itself may still be starting, so there is nothing to subscribe to.
const INTERVAL: Duration = Duration::from_millis(250);

/// Runs the verb.
pub fn execute(args: &WaitArgs, globals: &Globals) -> Outcome {
    let begun = Instant::now();
    loop {
        let seen =
            Client::find(&args.endpoint).and_then(|client| client.get::<RunStatus>("/swapserve/v1/status"));
        let waiting_for = match &seen {
            Ok(status) => {
                let models = chosen(status, &args.models)?;
                if let Some(failed) = models.iter().find(|m| m.state == State::Failed) {
                    let message = format!("{} was given up: {}", failed.name, failed.note);
                    return Err(Error::new(Exit::Unavailable, message)
                        .remedy(format!("see `swapserve logs {}`", failed.name)));
                }
                let late: Vec<&str> =
                    models.iter().filter(|m| !answers(m)).map(|m| m.name.as_str()).collect();
                if late.is_empty() {
                    return Ok(ExitCode::SUCCESS);
                }
                late.join(", ")
            }
            Err(_) => "the service itself".to_owned(),
        };
        if args.timeout.is_some_and(|longest| begun.elapsed() > longest) {
            let waited = humantime::format_duration(Duration::from_secs(begun.elapsed().as_secs()));
            let error = Error::new(Exit::TryAgain, format!("still waiting for {waiting_for} after {waited}"));
            return Err(match seen {
                Err(cause) => error.because(cause),
                Ok(_) => error.remedy("`swapserve status` shows how far each start has come"),
            });
        }
        if globals.verbose > 0 {
            eprintln!("waiting for {waiting_for}");
        }
        thread::sleep(INTERVAL);
    }
}

/// Whether its engine has answered a real request and been tried.
fn answers(model: &ModelRow) -> bool {
    model.state != State::Failed && progress::settled(model)
}

fn chosen<'a>(status: &'a RunStatus, names: &[String]) -> Result<Vec<&'a ModelRow>, Error> {
    if names.is_empty() {
        return Ok(status.models.iter().collect());
    }
    let find = |name: &String| {
        let found = status.models.iter().find(|m| m.name == *name || m.aliases.contains(name));
        found.ok_or_else(|| {
            let known: Vec<&str> = status.models.iter().map(|m| m.name.as_str()).collect();
            Error::new(Exit::Usage, format!("no model is called {name:?}"))
                .remedy(format!("the models are {}", known.join(", ")))
        })
    };
    names.iter().map(find).collect()
}
