//! `swapserve logs MODEL`: an engine's own output, on the node where it runs.

use super::{Error, Exit, Globals, Outcome, args::LogsArgs, client::Client};
use crate::daemon::RunStatus;
use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
    process::ExitCode,
    thread,
    time::Duration,
};

/// How much of the file's end is searched for lines.
const TAIL: u64 = 1 << 20;

/// Runs the verb.
pub fn execute(args: &LogsArgs, _: &Globals) -> Outcome {
    let client = Client::find(&args.model.endpoint)?;
    let status: RunStatus = client.get("/swapserve/v1/status")?;
    let name = &args.model.model;
    let model =
        status.models.iter().find(|m| m.name == *name || m.aliases.contains(name)).ok_or_else(|| {
            let known: Vec<&str> = status.models.iter().map(|m| m.name.as_str()).collect();
            Error::new(Exit::Usage, format!("no model is called {name:?}"))
                .remedy(format!("the models are {}", known.join(", ")))
        })?;
    let path = model
        .log
        .as_deref()
        .ok_or_else(|| Error::new(Exit::NoInput, format!("{name} has not been started yet")))?;
    show(path, args.lines, args.follow.then_some(&client)).map_err(|error| {
        Error::new(Exit::NoInput, format!("cannot read {}", path.display())).because(error).remedy(format!(
            "the log is on {}; run this there (srun --overlap --jobid=… swapserve logs …)",
            status.run.node
        ))
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the last lines and, while the service lives, what follows.
fn show(path: &Path, lines: usize, follow: Option<&Client>) -> io::Result<()> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(TAIL)))?;
    let mut end = Vec::new();
    file.read_to_end(&mut end)?;
    let text = String::from_utf8_lossy(&end);
    let all: Vec<&str> = text.lines().collect();
    let mut out = io::stdout().lock();
    for line in &all[all.len().saturating_sub(lines)..] {
        writeln!(out, "{line}")?;
    }
    while let Some(client) = follow {
        let mut more = Vec::new();
        if file.read_to_end(&mut more)? > 0 {
            out.write_all(&more)?;
            out.flush()?;
        } else if !client.endpoint.is_alive() {
            break;
        }
        thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}
