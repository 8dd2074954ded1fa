//! `swapserve swap in|out|pin|unpin MODEL`.

use super::{
    Globals, Outcome,
    args::SwapCommand,
    client::Client,
    output::{Report, Style},
};
use serde::Serialize;
use serde_json::json;
use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

/// A swap by hand may wait for requests in flight and for another engine to make room.
const LONGEST: Duration = Duration::from_secs(15 * 60);

#[derive(Serialize)]
struct Done<'a> {
    model: &'a str,
    done: &'static str,
}

/// Runs the verb.
pub fn execute(command: &SwapCommand, globals: &Globals) -> Outcome {
    let (args, verb, done) = match command {
        SwapCommand::In(args) => (args, "in", "resident"),
        SwapCommand::Out(args) => (args, "out", "out"),
        SwapCommand::Pin(args) => (args, "pin", "pinned"),
        SwapCommand::Unpin(args) => (args, "unpin", "not pinned any more"),
    };
    let client = Client::find(&args.endpoint)?;
    let path = format!("/swapserve/v1/swap/{verb}");
    let _: serde_json::Value = client.post(&path, &json!({ "model": args.model }), LONGEST)?;
    globals.output().show(&Done { model: &args.model, done })?;
    Ok(ExitCode::SUCCESS)
}

impl Report for Done<'_> {
    fn human(&self, out: &mut dyn Write, _: Style) -> io::Result<()> {
        writeln!(out, "{} is {}", self.model, self.done)
    }
}
