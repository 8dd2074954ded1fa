//! `swapserve env`: the endpoint's variables as exports, for `eval "$(swapserve env)"`.

use super::{
    Globals, Outcome,
    args::EndpointArgs,
    client::Client,
    output::{Report, Style},
};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    io::{self, Write},
    process::ExitCode,
};

/// The variables by name.
#[derive(Serialize)]
#[serde(transparent)]
struct Exports(BTreeMap<&'static str, String>);

/// Runs the verb.
pub fn execute(args: &EndpointArgs, globals: &Globals) -> Outcome {
    let client = Client::find(args)?;
    globals.output().show(&Exports(variables(&client)))?;
    Ok(ExitCode::SUCCESS)
}

fn variables(client: &Client) -> BTreeMap<&'static str, String> {
    let key = client.key().unwrap_or("none").to_owned();
    BTreeMap::from([("OPENAI_BASE_URL", client.endpoint.url.clone()), ("OPENAI_API_KEY", key)])
}

impl Report for Exports {
    fn human(&self, out: &mut dyn Write, _: Style) -> io::Result<()> {
        for (name, value) in &self.0 {
            writeln!(out, "export {name}={}", shell_words::quote(value))?;
        }
        Ok(())
    }

    fn quiet(&self, out: &mut dyn Write) -> io::Result<()> {
        self.human(out, Style { color: false })
    }
}
