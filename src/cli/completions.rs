//! `swapserve completions SHELL`.

use super::{Exit, Outcome, args::CompletionsArgs, output};

pub(super) fn execute(args: &CompletionsArgs) -> Outcome {
    // clap_complete panics where the pipe is closed; so it writes to memory.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "swapserve", &mut script);
    output::print(&script)?;
    Ok(Exit::Success.into())
}
