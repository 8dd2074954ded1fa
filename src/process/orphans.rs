//! Orphans of the run come to this process instead of init, and leave no zombies here.
//!
//! As a subreaper (prctl(2), `PR_SET_CHILD_SUBREAPER`) the daemon becomes the parent of whoever its children leave
//! behind, such as a daemon that the user's command started. So the last sweep finds it below this process. What
//! such an orphan leaves when it ends, nobody waits for: it is reaped here, by its pid. A child that somebody does wait for is
//! left to them: only what has been a zombie for [`UNCLAIMED`] is taken.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use rustix::process::{Pid, WaitId, WaitIdOptions, set_child_subreaper, waitid};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use super::stat::{ProcFs, ProcId};

/// Whoever waits for a child takes its status long before this.
const UNCLAIMED: Duration = Duration::from_secs(10);

/// Makes this process the subreaper of the run and begins to reap what nobody waits for. Needs a runtime.
///
/// # Errors
/// When the kernel knows no subreapers (before 3.4), or takes no handler for `SIGCHLD`.
pub fn adopt_orphans() -> io::Result<()> {
    set_child_subreaper(Some(rustix::process::getpid()))?;
    let mut child_ended = signal(SignalKind::child())?;
    tokio::spawn(async move {
        let mut zombies = HashMap::new();
        while child_ended.recv().await.is_some() {
            // Looks until each zombie is somebody's or has been reaped; a burst of ends needs one look.
            loop {
                tokio::time::sleep(UNCLAIMED / 2).await;
                look(&ProcFs::default(), &mut zombies, Instant::now());
                if zombies.is_empty() {
                    break;
                }
            }
        }
    });
    Ok(())
}

/// Notes this process's zombies, each with when it was first seen, and reaps those that nobody has claimed.
fn look(proc: &ProcFs, zombies: &mut HashMap<ProcId, Instant>, now: Instant) {
    let me = std::process::id().cast_signed();
    let table = proc.scan().unwrap_or_default();
    let dead: Vec<ProcId> =
        table.iter().filter(|stat| stat.ppid == me && stat.is_dead()).map(|s| s.id).collect();
    zombies.retain(|id, _| dead.contains(id));
    for id in dead {
        let since = *zombies.entry(id).or_insert(now);
        if now.duration_since(since) < UNCLAIMED {
            continue;
        }
        if let Some(pid) = Pid::from_raw(id.pid) {
            // Somebody may have claimed it in this moment, which is as well.
            let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
            tracing::debug!(%pid, "reaped an orphan");
        }
        zombies.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Handle;

    #[tokio::test]
    async fn only_an_unclaimed_zombie_is_reaped() {
        // Never waited for: what an adopted orphan is like.
        #[expect(clippy::zombie_processes, reason = "the zombie is the point")]
        let child = std::process::Command::new("/bin/true").spawn().expect("starts");
        let proc = ProcFs::default();
        let id = proc.stat(child.id().cast_signed()).expect("nobody reaps it").id;
        let handle = Handle::open(id).expect("no error").expect("a zombie can be held");
        handle.exited().await.expect("watchable");
        let (mut zombies, now) = (HashMap::new(), Instant::now());
        look(&proc, &mut zombies, now);
        assert!(zombies.contains_key(&id) && proc.same(id).is_some());
        look(&proc, &mut zombies, now + UNCLAIMED);
        assert!(!zombies.contains_key(&id) && proc.same(id).is_none());
    }
}
