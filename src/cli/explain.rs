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
        let text = |key: &str| self.0[key].as_str().unwrap_or_default().to_owned();
        writeln!(out, "{}: {}", style.bold(&text("model")), text("summary"))?;
        for line in self.0["because"].as_array().into_iter().flatten() {
            writeln!(out, "  {}", line.as_str().unwrap_or_default())?;
        }
        Ok(())
    }
}
