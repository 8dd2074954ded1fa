//! The warden: a small process between the daemon and an engine, so that no process of the engine can get away. The
//! user's command has one too.
//!
//! ```text
//! daemon (spawner thread) ── warden ── engine ── workers, whoever they fork, in whatever session
//!                              │ reaps every orphan of the tree (PR_SET_CHILD_SUBREAPER)
//!                              │ outlives the daemon (PR_SET_PDEATHSIG = TERM, blocked and waited for)
//!
//! starting ── exec failed ──▶ tells it, ends
//!    │ tells pid and start time
//!    ▼
//! watching ── engine ended ─▶ tells its status, goes on reaping ── nobody left ──▶ ends
//!    │ daemon gone
//!    ▼
//! killing ── KILL to everybody below it until a look at /proc finds nobody ──▶ tidies up after the run, ends
//! ```
//!
//! Why: `PR_SET_PDEATHSIG` reaches only the daemon's own children, and a site with `proctrack/linuxproc` loses whoever
//! called `setsid`. Below the warden nobody is lost: an orphan is adopted by the nearest subreaper above it
//! (prctl(2)), so an engine's tree is exactly what descends from its warden, even a double-forked daemon with
//! an empty environment.
//!
//! It is this same program under a hidden verb ([`VERB`]); `main` hands over to [`main`] before it parses anything.

mod run;
mod start;

pub use run::main;
pub(super) use start::start;

/// The hidden verb: `swapserve warden PARENT STATUS_FD OOM_SCORE session|group|inherit -- PROGRAM ARG…`; the last word says
/// what the child gets of its own.
pub const VERB: &str = "warden";

/// Its name in `ps`; the kernel keeps 15 bytes.
pub(super) const NAME: &str = "engine-warden";

/// What the warden tells the daemon, a line each, through a pipe that nobody else has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    /// The engine has been executed.
    Running(super::ProcId),
    /// It could not be, for this `errno`.
    Failed(i32),
    /// It has ended, with this status in the encoding of wait(2).
    Ended(i32),
}

impl std::fmt::Display for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Running(id) => writeln!(f, "running {} {}", id.pid, id.start),
            Self::Failed(errno) => writeln!(f, "failed {errno}"),
            Self::Ended(status) => writeln!(f, "ended {status}"),
        }
    }
}

impl Word {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let (verb, first) = (words.next()?, words.next()?);
        match verb {
            "running" => {
                let start = words.next()?.parse().ok()?;
                Some(Self::Running(super::ProcId { pid: first.parse().ok()?, start }))
            }
            "failed" => Some(Self::Failed(first.parse().ok()?)),
            "ended" => Some(Self::Ended(first.parse().ok()?)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ProcId;
    use super::*;

    #[test]
    fn words_read_as_they_are_written() {
        for word in [Word::Running(ProcId { pid: 7, start: 99 }), Word::Failed(2), Word::Ended(0x8b)] {
            assert_eq!(Word::parse(&word.to_string()), Some(word));
        }
        assert_eq!(Word::parse("runs 7"), None);
    }
}
