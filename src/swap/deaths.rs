//! Whether an engine lost a process in a move: somebody killed it (the kernel for want of memory, a hand), or the mechanism did.

use crate::process::{ProcFs, ProcId};
use std::time::{Duration, Instant};

/// How long a process that was killed may take to be gone: the kernel frees its memory first.
const DYING: Duration = Duration::from_secs(1);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// Whether one of these processes has ended, or is about to.
pub(super) async fn one_of(before: &[ProcId]) -> bool {
    let proc = ProcFs::default();
    let lives = |id: &ProcId| proc.stat(id.pid).is_some_and(|stat| stat.id == *id && !stat.is_dead());
    let deadline = Instant::now() + DYING;
    loop {
        if !before.iter().all(lives) {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[tokio::test]
    async fn one_that_has_ended_is_seen_and_one_that_lives_is_not_waited_for_long() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep is there");
        let pid = i32::try_from(child.id()).expect("a pid");
        let id = ProcFs::default().stat(pid).expect("it runs").id;
        assert!(!one_of(&[id]).await);
        child.kill().expect("it is ours");
        assert!(one_of(&[id]).await, "before anybody has waited for it");
        child.wait().expect("it has ended");
        assert!(one_of(&[id]).await && !one_of(&[]).await);
    }
}
