//! The daemon's side: starts a warden, hears from it whether the engine runs, and later how it ended.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitStatus;

use rustix::process::Signal;
use std::os::unix::process::ExitStatusExt as _;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::net::unix::pipe::Receiver;
use tokio::sync::watch;

use super::{VERB, Word};
use crate::process::child::Child;
use crate::process::handle::Handle;
use crate::process::launch::{Group, Launch};
use crate::process::spawner::{SpawnError, Spawner, exec_error, exec_hint};

/// Starts `launch` under a warden, which is `program` under its hidden verb.
pub(in crate::process) async fn start(
    spawner: &Spawner,
    program: &Path,
    launch: Launch,
) -> Result<Child, SpawnError> {
    let name = launch.program.to_string_lossy().into_owned();
    let setup = |step, source| SpawnError::Setup { program: name.clone(), step, source };
    let (heard, told) = io::pipe().map_err(|source| setup("making a pipe", source))?;
    let heard =
        Receiver::from_owned_fd(OwnedFd::from(heard)).map_err(|source| setup("watching a pipe", source))?;
    let hint = exec_hint(&launch);
    let warden = spawner.fork(wrap(launch, program, told.into())).await?;
    let warden = Child::adopt(warden);
    let mut words = BufReader::new(heard).lines();
    let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "its warden ended at once");
    match next(&mut words).await {
        Some(Word::Running(id)) => {
            let handle =
                Handle::open(id).map_err(|source| SpawnError::Hold { program: name, pid: id.pid, source })?;
            let (ended, exit) = watch::channel(None);
            tokio::spawn(listen(words, ended));
            Ok(Child::guarded(id, handle, exit, warden))
        }
        Some(Word::Failed(errno)) => Err(exec_error(name, &hint, io::Error::from_raw_os_error(errno))),
        Some(Word::Ended(_)) | None => Err(setup("hearing from its warden", gone())),
    }
}

/// The launch of the warden, which passes on all that the engine is given.
fn wrap(engine: Launch, warden: &Path, told: OwnedFd) -> Launch {
    let score = engine.oom_score_adj.map_or_else(|| "-".to_owned(), |score| score.to_string());
    let own_group = group_word(engine.group);
    let mut launch = Launch {
        group: if engine.group == Group::Inherit { Group::Inherit } else { Group::Session },
        // Blocked in the warden: it is woken, and finds its parent gone.
        death_signal: Some(Signal::TERM),
        oom_score_adj: None,
        ..engine
    };
    let status = launch.inherit_fd(told);
    let program = std::mem::replace(&mut launch.program, warden.into());
    let own = [
        VERB.to_owned(),
        std::process::id().to_string(),
        status.to_string(),
        score,
        own_group.to_owned(),
        "--".to_owned(),
    ];
    let args = own.into_iter().map(OsString::from).chain([program]).chain(launch.args);
    Launch { args: args.collect(), ..launch }
}

fn group_word(group: Group) -> &'static str {
    match group {
        Group::Session => "session",
        Group::Group => "group",
        Group::Inherit => "inherit",
    }
}

async fn next(words: &mut Lines<BufReader<Receiver>>) -> Option<Word> {
    Word::parse(&words.next_line().await.ok()??)
}

async fn listen(mut words: Lines<BufReader<Receiver>>, ended: watch::Sender<Option<ExitStatus>>) {
    let status = match next(&mut words).await {
        Some(Word::Ended(status)) => status,
        // The warden was killed, and the engine with it (PR_SET_PDEATHSIG).
        _ => Signal::KILL.as_raw(),
    };
    ended.send_replace(Some(ExitStatus::from_raw(status)));
}
