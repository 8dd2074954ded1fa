//! The command line: clap types, one file a verb, one way to print, one table of exit codes.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `args` | the options of every verb, as clap sees them; the texts of `--help` |
//! | `output` | one trait for people, JSON and quiet |
//! | `error`, `exit` | how a verb fails, and with which code |
//! | the others | one verb each: `pub fn execute(args, &Globals) -> Outcome` |
//!
//! To add a verb: its `Args` in `args.rs`, a variant in [`Command`], a file with `execute`, an arm in [`dispatch`].
//! The man page, the completions and `--help` follow by themselves.

pub mod args;
mod client;
mod completions;
mod doctor;
mod env;
pub mod epilog;
pub mod error;
pub mod exit;
mod explain;
mod logs;
mod man;
pub mod output;
mod progress;
mod run;
mod schema;
mod serve;
mod service;
mod simulate;
mod status;
mod stop;
mod swap;
mod validate;
mod wait;

pub use args::{Cli, Command, Globals};
pub use error::Error;
pub use exit::Exit;

use clap::{CommandFactory, FromArgMatches};
use std::{ffi::OsString, process::ExitCode};

/// How long the program's end waits for its log to be written.
const LAST_LINES: std::time::Duration = std::time::Duration::from_secs(2);

/// What a verb ends with.
pub type Outcome = Result<ExitCode, Error>;

/// The whole command line, with what is not in the types: the exit codes under `--help`.
pub fn command() -> clap::Command {
    let about = Cli::command();
    let examples = about.get_after_help().map(ToString::to_string).unwrap_or_default();
    about.after_long_help(format!("{examples}\n\n{}", Exit::help()))
}

/// Parses, runs the verb, prints its error, and says what to exit with.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let parsed = command().try_get_matches_from(arguments).and_then(|found| Cli::from_arg_matches(&found));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            // A closed pipe is no reason to fail: there is nobody left to tell.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Success.into() };
        }
    };
    let globals = cli.globals;
    let outcome = dispatch(cli.command, &globals);
    crate::observe::logging::flush(LAST_LINES);
    outcome.unwrap_or_else(|error| {
        if globals.json {
            eprintln!("{}", error.json());
        } else {
            eprint!("{}", error.human(globals.color_on_stderr()));
        }
        error.exit().into()
    })
}

fn dispatch(command: Command, globals: &Globals) -> Outcome {
    match command {
        Command::Validate(args) => validate::execute(&args, globals),
        Command::Simulate(args) => simulate::execute(&args, globals),
        Command::Schema => schema::execute(),
        Command::Completions(args) => completions::execute(&args),
        Command::Man(args) => man::execute(&args),
        Command::Run(args) => run::execute(&args, globals),
        Command::Serve(args) => serve::execute(&args, globals),
        Command::Wait(args) => wait::execute(&args, globals),
        Command::Status(args) => status::execute(&args, globals),
        Command::Explain(args) => explain::execute(&args, globals),
        Command::Swap(command) => swap::execute(&command, globals),
        Command::Logs(args) => logs::execute(&args, globals),
        Command::Env(args) => env::execute(&args, globals),
        Command::Doctor => doctor::execute(globals),
        Command::Stop(args) => stop::execute(&args, globals),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        let words = line.split_whitespace().map(OsString::from);
        command().try_get_matches_from(words).and_then(|found| Cli::from_arg_matches(&found))
    }

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn run_takes_its_command_after_the_dashes() {
        let cli = parse("swapserve run --config a.toml --port 0 -- python x.py --json").unwrap();
        assert!(!cli.globals.json, "what follows -- belongs to the command");
        let Command::Run(run) = cli.command else { panic!("not run") };
        assert_eq!(run.serve.config.config, PathBuf::from("a.toml"));
        assert_eq!(run.command, ["python", "x.py", "--json"]);
        assert!(parse("swapserve run").is_err());
    }

    #[test]
    fn global_options_go_before_or_after_the_verb() {
        assert!(parse("swapserve --json status").unwrap().globals.json);
        assert!(parse("swapserve status --json").unwrap().globals.json);
        assert!(parse("swapserve status --json --quiet").is_err());
        assert_eq!(parse("swapserve -vv swap in chat").unwrap().globals.verbose, 2);
    }

    #[test]
    fn help_lists_every_exit_code() {
        let help = command().render_long_help().to_string();
        for (exit, _) in Exit::TABLE {
            assert!(help.contains(&format!("{:>3}  ", exit.code())), "{exit:?} is not in --help");
        }
    }
}
