//! `swapserve explain MODEL`: why it is where it is.

use super::{
    Globals, Outcome,
    args::ModelArgs,
    client::Client,
    output::{Report, Style},
};
use serde::Serialize;
use std::{
    io::{self, Write},
    process::ExitCode,
};

/// The scheduler's explanation as it came.
#[derive(Serialize)]
#[serde(transparent)]
struct Explained(serde_json::Value);

/// Runs the verb.
pub fn execute(args: &ModelArgs, globals: &Globals) -> Outcome {
    let client = Client::find(&args.endpoint)?;
    let explained = Explained(client.get(&format!("/swapserve/v1/explain/{}", args.model))?);
    globals.output().show(&explained)?;
    Ok(ExitCode::SUCCESS)
}

impl Report for Explained {
    fn human(&self, out: &mut dyn Write, style: Style) -> io::Result<()> {
        let text = |value: &serde_json::Value| value["text"].as_str().unwrap_or_default().to_owned();
        let name = self.0["model"].as_str().unwrap_or_default();
        writeln!(out, "{}: {}", style.bold(name), text(&self.0))?;
        for past in self.0["history"].as_array().into_iter().flatten() {
            let seconds = past["at"].as_f64().unwrap_or_default() / 1e6;
            writeln!(out, "  at {seconds:.1} s: {}", text(past))?;
        }
        Ok(())
    }
}
