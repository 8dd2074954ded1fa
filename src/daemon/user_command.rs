//! The user's command: the program that `run` serves.

use super::Session;
use crate::{
    job::{JobSignal, rundir::COOKIE},
    process::{Child, Group, Launch, Output, SpawnError, Stdin},
};
use rustix::process::Signal;
use std::{
    ffi::OsString,
    io,
    process::{ExitCode, ExitStatus},
};

/// Starts it with the endpoint in its environment; its standard streams, its session and group are ours. Nobody below it
/// outlives this process.
pub async fn spawn(session: &Session, command: &[OsString]) -> Result<Child, SpawnError> {
    let mut launch = Launch::new(&command[0])
        .args(&command[1..])
        .stdin(Stdin::Inherit)
        .group(Group::Inherit)
        .guarded()
        .core_dumps(true);
    launch = launch.stdout(Output::Inherit).stderr(Output::Inherit).envs(std::env::vars_os());
    launch = launch
        .env("OPENAI_BASE_URL", &session.facts.url)
        // The client libraries insist on a key even where none is asked for.
        .env("OPENAI_API_KEY", session.key.as_deref().unwrap_or("none"))
        .env("SWAPSERVE_ENDPOINT_FILE", &session.endpoint_file)
        .env(COOKIE, format!("{}/", session.cookie()));
    session.spawner.spawn(launch).await
}

/// Passes a signal on to it; nothing, if it has ended.
pub fn pass_on(command: &Child, signal: JobSignal) -> io::Result<()> {
    let signal = Signal::from_named_raw(signal.number()).expect("job signals have names");
    command.signal(signal).map(drop)
}

/// Its status as ours: the code, or 128 + the signal that ended it, as shells have it.
pub fn exit_code(status: ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
