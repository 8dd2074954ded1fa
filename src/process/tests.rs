//! Tests on real processes.

use std::collections::HashSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::AsyncBufReadExt as _;

use super::*;

/// Long enough for a machine that is busy with other things; nothing waits this long when all is well.
const PATIENCE: Duration = Duration::from_secs(30);

fn sh(script: &str) -> Launch {
    Launch::new("/bin/sh").arg("-c").arg(script).env("PATH", "/usr/bin:/bin").stderr(Output::Null)
}

async fn spawn(launch: Launch) -> Child {
    Spawner::start().expect("a thread").spawn(launch).await.expect("starts")
}

/// The lines that a child writes.
struct Lines(tokio::io::Lines<tokio::io::BufReader<tokio::net::unix::pipe::Receiver>>);

impl Lines {
    /// Starts the child with its output going here.
    async fn of(launch: Launch) -> (Child, Self) {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let child = spawn(launch.stdout(Output::To(writer.into()))).await;
        let reader = tokio::net::unix::pipe::Receiver::from_owned_fd(OwnedFd::from(reader)).expect("a pipe");
        (child, Self(tokio::io::BufReader::new(reader).lines()))
    }

    async fn next(&mut self) -> Option<String> {
        tokio::time::timeout(PATIENCE, self.0.next_line()).await.expect("a line in time").expect("readable")
    }

    async fn number(&mut self) -> i32 {
        self.next().await.expect("a line").trim().parse().expect("a number")
    }
}

fn is_gone(pid: i32) -> bool {
    ProcFs::default().stat(pid).is_none_or(|stat| stat.is_dead())
}

#[tokio::test]
async fn a_child_is_given_exactly_what_the_launch_says() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = dir.path().join("out.log");
    let launch = Launch::new("env").env("PATH", "/usr/bin:/bin").env("A", "1").cwd(dir.path()).log(&log);
    let child = spawn(launch).await;
    assert!(child.exited().await.success());
    assert!(child.exit_status().is_some());
    let lines = fs::read_to_string(&log).expect("a log");
    let vars: HashSet<_> = lines.lines().collect();
    assert_eq!(vars, HashSet::from(["PATH=/usr/bin:/bin", "A=1"]));
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(&log).expect("a log").permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn the_exit_status_is_the_childs() {
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(spawn(sh("exit 7")).await.exited().await.code(), Some(7));
    let child = spawn(sh("kill -SEGV $$")).await;
    assert_eq!(child.exited().await.signal(), Some(libc::SIGSEGV));
    assert!(!child.signal(Signal::TERM).expect("no error"), "a reaped child cannot be signalled");
}

#[tokio::test]
async fn an_ended_child_leaves_no_zombie_though_nobody_waits() {
    let child = spawn(sh("exit 0")).await;
    let id = child.id();
    let mut exit = child.clone();
    drop(child);
    tokio::time::timeout(PATIENCE, exit_of(&mut exit)).await.expect("reaped");
    assert_eq!(ProcFs::default().same(id), None);
}

async fn exit_of(child: &mut Child) {
    child.exited().await;
}

#[tokio::test]
async fn a_failing_exec_says_what_is_wrong() {
    let spawner = Spawner::start().expect("a thread");
    let dir = tempfile::tempdir().expect("a directory");
    let script = |name: &str, text: &str, mode: u32| {
        use std::os::unix::fs::PermissionsExt;
        let path = dir.path().join(name);
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
        path
    };
    let cases = [
        (
            Launch::new("no-such-engine").env("PATH", "/usr/bin:/bin"),
            "no no-such-engine in PATH=/usr/bin:/bin",
        ),
        (Launch::new("/no/such/engine"), "no such file"),
        (Launch::new(script("a", "#!/no/such/python\n", 0o700)), "interpreter"),
        (Launch::new(script("b", "#!/bin/sh\n", 0o600)), "chmod +x"),
        (Launch::new("/bin/true").cwd("/no/such/dir"), "working directory /no/such/dir"),
        (Launch::new("/bin/true").log("/no/such/dir/log"), "cannot open /no/such/dir/log"),
        (Launch::new("/bin/true").oom_score_adj(4000), "setting its out-of-memory score failed"),
    ];
    for (launch, said) in cases {
        let error = spawner.spawn(launch).await.expect_err("cannot start").to_string();
        assert!(error.contains(said), "{error:?} does not say {said:?}");
    }
}

#[tokio::test]
async fn an_open_file_is_handed_down_to_one_child_only() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let spawner = Spawner::start().expect("a thread");
    let other = spawner.spawn(sh("exec sleep 600")).await.expect("starts");
    let mut launch = sh("echo through > /proc/self/fd/$FD");
    let number = launch.inherit_fd(writer.into());
    let child = spawner.spawn(launch.env("FD", number.to_string())).await.expect("starts");
    assert!(child.exited().await.success());
    // Ends only because nobody else holds the writing end.
    assert_eq!(std::io::read_to_string(reader).expect("readable"), "through\n");
    other.signal(Signal::KILL).expect("ours");
}

#[tokio::test]
async fn a_child_outlives_the_runtime_thread_that_asked_for_it() {
    let spawner = Spawner::start().expect("a thread");
    let asked = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async { spawner.spawn(sh("exec sleep 600")).await.expect("starts").id() })
    });
    let id = asked.join().expect("no panic");
    // The asking thread is gone. Were it the child's parent, the child would have been killed with it.
    let handle = Handle::open(id).expect("no error").expect("alive");
    let child = Child::adopt(handle);
    assert!(ProcFs::default().same(id).is_some_and(|stat| !stat.is_dead()));
    child.signal(Signal::KILL).expect("ours");
    child.exited().await;
}

#[tokio::test]
async fn a_tree_holds_grandchildren_that_left_the_session() {
    let (child, mut lines) =
        Lines::of(sh("setsid sh -c 'echo $$; setsid sleep 600 & echo $!; wait' & wait")).await;
    let expected = [child.pid(), lines.number().await, lines.number().await];
    let mut tree = child.tree();
    let found: HashSet<i32> = tree.members().expect("a pass").iter().map(|stat| stat.id.pid).collect();
    assert!(expected.iter().all(|pid| found.contains(pid)), "{expected:?} in {found:?}");
    assert!(stop(&mut tree, PATIENCE).await.expect("stops").is_clean());
    assert!(expected.into_iter().all(is_gone));
}

#[tokio::test]
async fn a_double_forked_daemon_is_found_by_its_marker() {
    // The daemon's parent ends before the first look, so no pedigree leads to it.
    let script = "(setsid sh -c 'echo $$; exec sleep 600' &); read never";
    let (keep, stdin) = {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        (writer, Stdin::From(reader.into()))
    };
    let marker = format!("test/{}", std::process::id());
    let (child, mut lines) = Lines::of(sh(script).stdin(stdin).env("SWAPSERVE_TEST", &marker)).await;
    let daemon = lines.number().await;
    let mut blind = child.tree();
    assert!(blind.members().expect("a pass").iter().all(|stat| stat.id.pid != daemon));
    let mut tree = child.tree().with_marker("SWAPSERVE_TEST", &marker);
    assert!(tree.members().expect("a pass").iter().any(|stat| stat.id.pid == daemon));
    let report = stop(&mut tree, PATIENCE).await.expect("stops");
    assert!(report.is_clean() && is_gone(daemon), "{report:?}");
    drop(keep);
}

#[tokio::test]
async fn a_known_member_stays_one_when_its_parent_ends() {
    let (child, mut lines) = Lines::of(sh("setsid sleep 600 & echo $!; exec sleep 600")).await;
    let orphan = lines.number().await;
    let mut tree = child.tree();
    assert_eq!(tree.members().expect("a pass").len(), 2);
    child.signal(Signal::KILL).expect("ours");
    child.exited().await;
    let left = tree.members().expect("a pass");
    assert_eq!(left.iter().map(|stat| stat.id.pid).collect::<Vec<_>>(), [orphan]);
    assert!(stop(&mut tree, PATIENCE).await.expect("stops").is_clean());
    assert!(is_gone(orphan));
}

#[tokio::test]
async fn whoever_ignores_term_is_killed() {
    let (child, mut lines) =
        Lines::of(sh("sleep 600 & trap '' TERM; echo $!; while :; do sleep 600; done")).await;
    let obedient = lines.number().await;
    let report = stop(&mut child.tree(), Duration::from_millis(200)).await.expect("stops");
    assert!(report.is_clean());
    let how = |pid: i32| report.ended.iter().find(|ended| ended.id.pid == pid).map(|ended| ended.how);
    assert_eq!(how(child.pid()), Some(How::Kill));
    assert_eq!(how(obedient), Some(How::Term));
    child.exited().await;
}

#[tokio::test]
async fn a_stopped_process_gets_to_obey() {
    use std::os::unix::process::ExitStatusExt;
    let (child, mut lines) =
        Lines::of(sh("trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done")).await;
    lines.next().await;
    child.signal(Signal::STOP).expect("ours");
    let report = stop(&mut child.tree(), PATIENCE).await.expect("stops");
    assert!(report.is_clean());
    let status = child.exited().await;
    assert_eq!((status.code(), status.signal()), (Some(5), None));
}

#[tokio::test]
async fn a_tree_that_keeps_forking_is_ended() {
    let script = "trap 'setsid sleep 600 & setsid sh -c \"sleep 600\" & exit' TERM; echo ready; \
                  while :; do sleep 0.01; done";
    let marker = format!("forking/{}", std::process::id());
    let (child, mut lines) = Lines::of(sh(script).env("SWAPSERVE_TEST", &marker)).await;
    lines.next().await;
    let mut tree = child.tree().with_marker("SWAPSERVE_TEST", &marker);
    assert!(stop(&mut tree, PATIENCE).await.expect("stops").is_clean());
    let marked = |stat: &Stat| {
        let environ = ProcFs::default().environ(stat.id.pid).unwrap_or_default();
        stat::value_in(&environ, "SWAPSERVE_TEST") == Some(marker.as_bytes())
    };
    assert!(!ProcFs::default().scan().expect("a pass").iter().any(marked));
}

#[test]
fn a_recorded_tree_is_read_without_the_real_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let put = |pid: i32, state: char, ppid: i32, group: i32, session: i32| {
        let at = dir.path().join(pid.to_string());
        fs::create_dir_all(&at).expect("made");
        let line =
            format!("{pid} (p) {state} {ppid} {group} {session} 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {pid}0 0");
        fs::write(at.join("stat"), line).expect("written");
    };
    put(2_000_010, 'S', 1, 2_000_010, 2_000_010); // the root
    put(2_000_005, 'S', 2_000_010, 2_000_010, 2_000_010); // a child with a lower number
    put(2_000_011, 'Z', 2_000_010, 2_000_010, 2_000_010); // dead
    put(2_000_012, 'S', 1, 2_000_012, 2_000_010); // an orphan in the root's session
    put(2_000_013, 'S', 2_000_012, 2_000_013, 2_000_013); // its child, in a session of its own
    put(2_000_020, 'S', 1, 2_000_020, 2_000_020); // a stranger
    let root = ProcId { pid: 2_000_010, start: 20_000_100 };
    let mut tree = Tree::of(root).in_proc(ProcFs::at(dir.path()));
    let look = |tree: &mut Tree| {
        let mut pids: Vec<i32> =
            tree.members().expect("a pass").iter().map(|s| s.id.pid - 2_000_000).collect();
        pids.sort_unstable();
        pids
    };
    assert_eq!(look(&mut tree), [5, 10, 12, 13]);
    // The root's number goes to a stranger: what is known stays, the stranger is not taken for it.
    fs::write(
        dir.path().join("2000010/stat"),
        "2000010 (other) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 99999999 0",
    )
    .expect("written");
    put(2_000_021, 'S', 2_000_010, 2_000_021, 2_000_021);
    assert_eq!(look(&mut tree), [5, 12, 13]);
}

#[tokio::test]
async fn a_child_gets_the_limit_on_open_files_that_the_job_gave() {
    let before = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    raise_open_files().expect("soft to hard is allowed");
    let given = super::limits::open_files_of_children().expect("it was raised");
    assert!(given.current <= before.current || before.current.is_none());
    let (_child, mut lines) = Lines::of(sh("ulimit -Sn; ulimit -Hn")).await;
    let said = |limit: Option<u64>| limit.map_or("unlimited".to_owned(), |n| n.to_string());
    assert_eq!(lines.next().await, Some(said(given.current)));
    assert_eq!(lines.next().await, Some(said(given.maximum)));
}
