//! `swapserve completions SHELL`.

use super::{Exit, Outcome, args::CompletionsArgs};
use std::io::Write;

pub(super) fn execute(args: &CompletionsArgs) -> Outcome {
    // clap_complete panics where the pipe is closed; so it writes to memory.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "swapserve", &mut script);
    std::io::stdout().lock().write_all(&script)?;
    Ok(Exit::Success.into())
}
