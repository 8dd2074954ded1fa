//! Exit codes: one table, used by `main`, printed by `--help` and in `docs/exit-codes.md`.
//!
//! The numbers are those of BSD's `sysexits.h`, so that a batch script can tell «try again» from «mend the config».

use std::{
    fmt::Write,
    os::unix::process::ExitStatusExt,
    process::{ExitCode, ExitStatus},
};

/// Why the program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Exit {
    /// All is well.
    Success = 0,
    /// The command line is wrong.
    Usage = 64,
    /// A file other than the config cannot be understood.
    Data = 65,
    /// A file that should be there is not, or cannot be read.
    NoInput = 66,
    /// Something that is needed does not answer: an engine, a running swapserve.
    Unavailable = 69,
    /// A fault in swapserve itself.
    Software = 70,
    /// The operating system refused.
    Os = 71,
    /// A file, directory or socket cannot be made.
    CantCreate = 73,
    /// It may work later.
    TryAgain = 75,
    /// The config has mistakes.
    Config = 78,
}

impl Exit {
    /// Every code with what it means, for people.
    pub const TABLE: [(Exit, &'static str); 10] = [
        (Exit::Success, "success"),
        (Exit::Usage, "usage: an unknown option or a missing argument"),
        (Exit::Data, "data: a file other than the config cannot be understood (an endpoint file, a journal)"),
        (Exit::NoInput, "no input: a file cannot be found or read (the config, an endpoint file)"),
        (Exit::Unavailable, "unavailable: an engine did not get ready, or no swapserve answers"),
        (Exit::Software, "internal error: please report it"),
        (Exit::Os, "system error: the operating system refused (no process, no memory, no permission)"),
        (
            Exit::CantCreate,
            "cannot create: the run directory, a file in it, the directory of `--log-dir`, or the endpoint's port or socket",
        ),
        (Exit::TryAgain, "try again: too little time or memory is left now; the same command may work later"),
        (Exit::Config, "config: models.toml has mistakes; each is listed with its line and remedy"),
    ];

    /// The number.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The table as plain text, for `--help`.
    pub fn help() -> String {
        let mut text = String::from("Exit codes:\n");
        for (exit, meaning) in Exit::TABLE {
            writeln!(text, "  {:>3}  {meaning}", exit.code()).expect("writing to a String cannot fail");
        }
        text.push_str("  `run` ends with its command's own status, 128 + N where signal N ended it.");
        text
    }

    /// The table as Markdown, for `docs/exit-codes.md`.
    pub fn markdown() -> String {
        let mut text = String::from("| code | meaning |\n| --- | --- |\n");
        for (exit, meaning) in Exit::TABLE {
            writeln!(text, "| {} | {meaning} |", exit.code()).expect("writing to a String cannot fail");
        }
        text
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// The status that `run` passes on for its command: the command's own, or 128 + the signal that ended it, as a shell does.
pub fn of_command(status: ExitStatus) -> ExitCode {
    let number = status.code().or_else(|| status.signal().map(|s| 128 + s));
    ExitCode::from(number.and_then(|n| u8::try_from(n).ok()).unwrap_or(Exit::Software.code()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commands_own_status_passes_through() {
        assert_eq!(of_command(ExitStatus::from_raw(7 << 8)), ExitCode::from(7));
        assert_eq!(of_command(ExitStatus::from_raw(15)), ExitCode::from(143));
        assert_eq!(of_command(ExitStatus::from_raw(0)), ExitCode::SUCCESS);
    }

    #[test]
    fn the_document_holds_the_table() {
        let document = include_str!("../../docs/exit-codes.md");
        assert!(
            document.contains(&Exit::markdown()),
            "docs/exit-codes.md is out of date; it should hold:\n{}",
            Exit::markdown()
        );
    }
}
