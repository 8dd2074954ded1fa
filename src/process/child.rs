//! A running child: who it is, and how it ended.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus, waitid};
use tokio::sync::watch;

use super::handle::Handle;
use super::stat::ProcId;
use super::tree::Tree;

/// A child of this process. Clones are the same child; it is reaped whether or not anybody waits for it.
#[derive(Clone, Debug)]
pub struct Child {
    id: ProcId,
    /// `None`: it had ended before it could be held.
    handle: Option<Arc<Handle>>,
    exit: watch::Receiver<Option<ExitStatus>>,
    /// The warden above it; it is this process's child then, and the child itself is the warden's.
    warden: Option<Box<Child>>,
}

impl Child {
    /// Takes charge of a child that was just forked: from here on it is watched and will be reaped.
    pub(super) fn adopt(handle: Handle) -> Self {
        let handle = Arc::new(handle);
        let (ended, exit) = watch::channel(None);
        tokio::spawn(reap(handle.clone(), ended));
        Self { id: handle.id(), handle: Some(handle), exit, warden: None }
    }

    /// A warden's child, whose exit status the warden tells.
    pub(super) fn guarded(
        id: ProcId,
        handle: Option<Handle>,
        exit: watch::Receiver<Option<ExitStatus>>,
        warden: Child,
    ) -> Self {
        Self { id, handle: handle.map(Arc::new), exit, warden: Some(Box::new(warden)) }
    }

    /// Who it is.
    pub fn id(&self) -> ProcId {
        self.id
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.id().pid
    }

    /// How it ended, if it has.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Waits until it has ended and been reaped. May be called by many, and again.
    pub async fn exited(&self) -> ExitStatus {
        let mut exit = self.exit.clone();
        let status = exit.wait_for(Option::is_some).await.ok().and_then(|status| *status);
        // The watcher only goes without a status when the runtime is being torn down with it.
        status.unwrap_or_else(|| ExitStatus::from_raw(Signal::KILL.as_raw()))
    }

    /// Sends it a signal; `Ok(false)` if it has ended.
    ///
    /// # Errors
    /// `EPERM` when it became another user's.
    pub fn signal(&self, signal: Signal) -> io::Result<bool> {
        self.handle.as_ref().map_or(Ok(false), |handle| handle.signal(signal))
    }

    /// The tree that grows from it: everybody below its warden, or, where it has none, below itself.
    pub fn tree(&self) -> Tree {
        match &self.warden {
            Some(warden) => Tree::of(warden.id).below_root(),
            None => Tree::of(self.id),
        }
    }
}

async fn reap(handle: Arc<Handle>, ended: watch::Sender<Option<ExitStatus>>) {
    if let Err(error) = handle.exited().await {
        tracing::warn!(pid = handle.id().pid, %error, "cannot watch a child's pidfd; waiting in a thread instead");
    }
    let pid = handle.id().pid;
    // Returns at once after the exit; blocks only when the descriptor could not be watched.
    let status = tokio::task::spawn_blocking(move || wait(pid)).await;
    ended.send_replace(Some(status.unwrap_or_else(|_| lost())));
}

/// Waits for one child by its pid and reaps it. The number cannot be another's: a child keeps it until
/// it is reaped, and nobody but this function does that.
pub(super) fn wait(pid: i32) -> ExitStatus {
    let pid = Pid::from_raw(pid).expect("a child's pid is above zero");
    loop {
        match waitid(WaitId::Pid(pid), WaitIdOptions::EXITED) {
            Ok(Some(status)) => return exit_status(&status),
            Ok(None) | Err(Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%pid, %error, "a child was reaped by somebody else; its exit status is lost");
                return lost();
            }
        }
    }
}

/// The status of a child of which nothing is known: no success, at least.
fn lost() -> ExitStatus {
    ExitStatus::from_raw(0xff << 8)
}

/// The status in wait(2)'s own encoding, which `std` understands.
fn exit_status(status: &WaitIdStatus) -> ExitStatus {
    const DUMPED: i32 = 0x80;
    let raw = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => (code & 0xff) << 8,
        (None, Some(signal)) => signal | if status.dumped() { DUMPED } else { 0 },
        (None, None) => 0,
    };
    ExitStatus::from_raw(raw)
}
