//! Wardens on real processes: nobody below one gets away, whoever dies first.

use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use swapserve::process::{Child, Handle, Launch, Output, ProcFs, ProcId, SpawnError, Spawner, stop};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::net::unix::pipe::Receiver;

/// Long enough for a machine that is busy with other things; nothing waits this long when all is well.
const PATIENCE: Duration = Duration::from_secs(30);

/// A double-forked daemon with an empty environment, in a session of its own; then the engine stays.
const ESCAPE: &str = "(setsid env -i /bin/sh -c 'echo $$; exec /bin/sleep 600' &); echo $$; exec sleep 600";

fn spawner() -> Spawner {
    Spawner::start().expect("a thread").with_warden(env!("CARGO_BIN_EXE_swapserve"))
}

fn sh(script: &str) -> Launch {
    Launch::new("/bin/sh").arg("-c").arg(script).env("PATH", "/usr/bin:/bin").stderr(Output::Null).guarded()
}

async fn start(launch: Launch) -> (Child, Lines<BufReader<Receiver>>) {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let child = spawner().spawn(launch.stdout(Output::To(writer.into()))).await.expect("starts");
    let reader = Receiver::from_owned_fd(OwnedFd::from(reader)).expect("a pipe");
    (child, BufReader::new(reader).lines())
}

async fn process<R: tokio::io::AsyncRead + Unpin>(lines: &mut Lines<BufReader<R>>) -> ProcId {
    let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("in time").expect("readable");
    let pid = line.expect("a line").trim().parse().expect("a pid");
    ProcFs::default().stat(pid).expect("it runs").id
}

/// Waits for the end of a process that is not this one's child.
async fn ends(id: ProcId) {
    if let Some(handle) = Handle::open(id).expect("no error") {
        tokio::time::timeout(PATIENCE, handle.exited()).await.expect("ends in time").expect("watchable");
    }
}

#[tokio::test]
async fn an_engines_status_is_told_and_its_warden_goes() {
    let child = spawner().spawn(sh("exit 7")).await.expect("starts");
    assert_eq!(child.exited().await.code(), Some(7));
    let child = spawner().spawn(sh("kill -KILL $$")).await.expect("starts");
    assert_eq!(child.exited().await.signal(), Some(libc::SIGKILL));
    ends(child.tree().root()).await;
}

#[tokio::test]
async fn a_failing_exec_says_what_is_wrong() {
    let error = spawner().spawn(Launch::new("/no/such/engine").guarded()).await.expect_err("cannot start");
    assert!(matches!(&error, SpawnError::Exec { .. }), "{error}");
    assert!(error.to_string().contains("/no/such/engine"), "{error}");
}

#[tokio::test]
async fn the_engine_has_a_session_of_its_own_and_none_of_the_wardens_files() {
    let (child, mut lines) = start(sh("ls /proc/self/fd | tr '\\n' ' '; echo")).await;
    let mut listed: Vec<_> = lines
        .next_line()
        .await
        .expect("readable")
        .expect("a line")
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    listed.sort();
    assert_eq!(listed, ["0", "1", "2", "3"], "3 is the one that ls reads by");
    // The warden has let go of the output: it ends with the engine.
    let end = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("in time");
    assert_eq!(end.expect("readable"), None);
    child.exited().await;
}

#[tokio::test]
async fn whoever_escapes_is_still_in_the_tree() {
    let (child, mut lines) = start(sh(ESCAPE)).await;
    let (one, other) = (process(&mut lines).await, process(&mut lines).await);
    let mut tree = child.tree();
    let members: Vec<ProcId> = tree.members().expect("a pass").iter().map(|stat| stat.id).collect();
    assert!(members.contains(&one) && members.contains(&other), "{members:?}");
    assert!(!members.contains(&tree.root()), "the warden itself is not the engine's");
    assert!(stop(&mut tree, PATIENCE).await.expect("stops").is_clean());
    assert_eq!(child.exited().await.signal(), Some(libc::SIGTERM));
    ends(tree.root()).await;
}

#[tokio::test]
async fn an_engine_that_crashes_leaves_a_tree_that_can_be_ended() {
    let (child, mut lines) = start(sh("(setsid /bin/sleep 600 & echo $!); echo $$; exec sleep 600")).await;
    let worker = process(&mut lines).await;
    process(&mut lines).await;
    child.signal(Signal::KILL).expect("ours");
    child.exited().await;
    let mut tree = child.tree();
    assert_eq!(tree.members().expect("a pass").iter().map(|stat| stat.id).collect::<Vec<_>>(), [worker]);
    assert!(stop(&mut tree, PATIENCE).await.expect("stops").is_clean());
    ends(worker).await;
    ends(tree.root()).await;
}

#[tokio::test]
async fn a_killed_warden_takes_the_engine_with_it() {
    let (child, mut lines) = start(sh("echo $$; exec sleep 600")).await;
    let engine = process(&mut lines).await;
    let warden = Handle::open(child.tree().root()).expect("no error").expect("it runs");
    warden.signal(Signal::KILL).expect("ours");
    assert_eq!(child.exited().await.signal(), Some(libc::SIGKILL));
    ends(engine).await;
}

/// Not a test: the daemon that [`a_killed_daemon_takes_everybody_with_it`] kills.
#[tokio::test]
#[ignore = "started by another test"]
async fn daemon() {
    for script in [ESCAPE, "trap '' TERM; echo $$; while :; do sleep 600; done", "echo $$; kill -STOP $$"] {
        let launch = sh(script).stdout(Output::Inherit);
        spawner().spawn(launch).await.expect("starts");
    }
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_killed_daemon_takes_everybody_with_it() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut daemon = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "daemon", "--ignored", "--nocapture", "--quiet"])
        .stdin(Stdio::null())
        .stdout(writer)
        .spawn()
        .expect("starts");
    let reader = Receiver::from_owned_fd(OwnedFd::from(reader)).expect("a pipe");
    let mut lines = BufReader::new(reader).lines();
    let mut ids = Vec::new();
    while ids.len() < 4 {
        let line =
            tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("in time").expect("readable");
        // The test harness writes lines of its own.
        let Ok(pid) = line.expect("a line").trim().parse() else { continue };
        ids.push(ProcFs::default().stat(pid).expect("it runs").id);
    }
    daemon.kill().expect("ours");
    daemon.wait().expect("ours");
    for id in ids {
        ends(id).await;
    }
}
