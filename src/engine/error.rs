//! Why an engine did not start: what was tried, what happened, the end of its log, and what to do.

use super::{ControlError, ProbeError, address};
use crate::{config::TemplateError, process::SpawnError};
use std::{fmt, io, os::unix::process::ExitStatusExt, path::PathBuf, process::ExitStatus, time::Duration};

/// Why an engine does not count as well.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// It did not answer.
    #[error(transparent)]
    Silent(#[from] ControlError),
    /// It says itself that it is broken.
    #[error("{path} answered {status}: {body}")]
    Broken {
        /// Its health path.
        path: String,
        /// The status.
        status: http::StatusCode,
        /// The beginning of its body.
        body: String,
    },
}

/// Why an engine is not running.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// What an earlier launch left could not be ended.
    #[error("cannot end what is left of the engine before starting it again: {0}")]
    Leftover(io::Error),
    /// Its socket's path is too long.
    #[error(
        "the socket path {} has {length} bytes and the kernel takes {}; choose a shorter run directory, or put \
         {{{{ port }}}} in the command", path.display(), address::LONGEST_SOCKET_PATH - 1
    )]
    SocketPath {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// There is no port for it.
    #[error("the kernel gives no loopback port for the engine: {0}")]
    Port(io::Error),
    /// There is no randomness for its key.
    #[error("cannot make the engine's key: {0}")]
    Key(getrandom::Error),
    /// There is no place where its processes could ask for their turn.
    #[error("cannot launch the engine ahead of its turn on the GPU: {0}")]
    Hold(io::Error),
    /// Its command cannot be made from the templates of the config.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// Its command has no words.
    #[error("the engine's command is empty; set command = [...] for this model")]
    NoCommand,
    /// A file or directory of its own cannot be written.
    #[error("cannot write {}: {source}; check that the run directory is yours and has room", path.display())]
    Files {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It was not executed.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// It ended before it answered.
    #[error("{} ended after {:.1} s with {}; {seen}", seen.program, after.as_secs_f64(), describe(*status))]
    Exited {
        /// How it ended.
        status: ExitStatus,
        /// From launch to exit.
        after: Duration,
        /// What it was and wrote.
        seen: Box<Seen>,
    },
    /// It ended because somebody else has its port.
    #[error(
        "{} could not listen: its port is taken (it was given {port}); started again it is given another one, unless its \
         command names a port instead of {{{{ port }}}}; {seen}", seen.program
    )]
    PortTaken {
        /// The port it was given.
        port: u16,
        /// What it was and wrote.
        seen: Box<Seen>,
    },
    /// It did not become healthy in time.
    #[error(
        "{} was not ready after {} s ({health}: {last}); if it needs longer raise start_timeout, if it answers \
         elsewhere set health_path; {seen}", seen.program, within.as_secs()
    )]
    NeverReady {
        /// Its health path.
        health: String,
        /// The time it had.
        within: Duration,
        /// What the last attempt met.
        last: String,
        /// What it was and wrote.
        seen: Box<Seen>,
    },
    /// It is healthy and does not answer a request.
    #[error("{} is up but did not answer a one-token request: {source}; {seen}", seen.program)]
    NoAnswer {
        /// What it did instead.
        source: Box<ProbeError>,
        /// What it was and wrote.
        seen: Box<Seen>,
    },
    /// The port was taken by somebody else between its choice and the engine's start.
    #[error(
        "port {0} was taken by another user's process before the engine could have it; start the engine again"
    )]
    Stranger(u16),
}

/// What is known of an engine that did not start.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The program that was started.
    pub program: String,
    /// Its log file.
    pub log: PathBuf,
    /// The last lines that this launch wrote there.
    pub tail: String,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.tail.as_str() {
            "" => write!(f, "it wrote nothing to {}", self.log.display()),
            tail => write!(f, "the end of {}:\n{tail}", self.log.display()),
        }
    }
}

impl LaunchError {
    /// Whether the same launch may succeed another time; else the config has to change first.
    pub fn may_pass(&self) -> bool {
        match self {
            LaunchError::Template(_) | LaunchError::NoCommand | LaunchError::SocketPath { .. } => false,
            LaunchError::Spawn(error) => !matches!(error, SpawnError::Exec { .. }),
            LaunchError::NoAnswer { source, .. } => source.passes(),
            _ => true,
        }
    }
}

fn describe(status: ExitStatus) -> String {
    match status.signal() {
        Some(libc::SIGKILL) => "SIGKILL (was the job out of memory?)".to_owned(),
        Some(signal) => format!("signal {signal}"),
        None => format!("exit code {}", status.code().unwrap_or_default()),
    }
}
