//! The user's command: the program that `run` serves.

use super::RunFacts;
use crate::{
    job::JobSignal,
    process::{Child, Group, Launch, Output, SpawnError, Spawner, Stdin},
};
use rustix::process::Signal;
use std::{
    ffi::OsString,
    io,
    path::Path,
    process::{ExitCode, ExitStatus},
};

/// Starts it with the endpoint in its environment; its standard streams are ours.
pub async fn spawn(
    spawner: &Spawner,
    command: &[OsString],
    facts: &RunFacts,
    key: Option<&str>,
    endpoint_file: &Path,
) -> Result<Child, SpawnError> {
    let mut launch = Launch::new(&command[0])
        .args(&command[1..])
        .stdin(Stdin::Inherit)
        .group(Group::Inherit)
        .core_dumps(true);
    launch = launch.stdout(Output::Inherit).stderr(Output::Inherit).envs(std::env::vars_os());
    launch = launch
        .env("OPENAI_BASE_URL", &facts.url)
        // The client libraries insist on a key even where none is asked for.
        .env("OPENAI_API_KEY", key.unwrap_or("none"))
        .env("SWAPSERVE_ENDPOINT_FILE", endpoint_file);
    spawner.spawn(launch).await
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
