//! Keeps an engine's processes running while they are meant to run.
//!
//! A process that somebody stopped (SIGSTOP, a shell's job control, a debugger that went away) answers nothing and ends
//! nothing: its requests would wait for ever. It is continued at the second look that finds it stopped; the first may have
//! come in the middle of something short.

use crate::process::{Handle, ProcId, Stat, State, Tree};
use rustix::process::Signal;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::task::JoinHandle;

/// How often processes are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Looks for as long as it lives.
pub(super) struct Pulse {
    /// Whether the processes are meant to run. Held while they are continued, so that nobody stops them in between.
    meant: Arc<Mutex<bool>>,
    task: JoinHandle<()>,
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Pulse {
    /// Begins to look at a tree that is meant to run.
    pub(super) fn begin(model: &str, tree: Arc<Mutex<Tree>>) -> Self {
        let meant = Arc::new(Mutex::new(true));
        let task = tokio::spawn(keep(model.to_owned(), tree, meant.clone()));
        Pulse { meant, task }
    }

    /// Says whether the processes are meant to run from now on.
    pub(super) fn mean(&self, to_run: bool) {
        *self.meant.lock().unwrap_or_else(PoisonError::into_inner) = to_run;
    }
}

async fn keep(model: String, tree: Arc<Mutex<Tree>>, meant: Arc<Mutex<bool>>) {
    let mut before = Vec::new();
    loop {
        tokio::time::sleep(LOOK).await;
        let meant = meant.lock().unwrap_or_else(PoisonError::into_inner);
        if !*meant {
            before.clear();
            continue;
        }
        let members = tree.lock().unwrap_or_else(PoisonError::into_inner).members().unwrap_or_default();
        let stopped: Vec<Stat> = members.into_iter().filter(|stat| stat.state == State::Stopped).collect();
        for stat in stopped.iter().filter(|stat| before.contains(&stat.id)) {
            match Handle::open(stat.id)
                .and_then(|handle| handle.map_or(Ok(false), |it| it.signal(Signal::CONT)))
            {
                Ok(_) => {
                    tracing::warn!(%model, pid = stat.id.pid, name = %stat.comm, "was stopped from outside; continued")
                }
                Err(error) => {
                    tracing::warn!(%model, pid = stat.id.pid, %error, "was stopped from outside and cannot be continued")
                }
            }
        }
        before = stopped.iter().map(|stat| stat.id).collect::<Vec<ProcId>>();
    }
}
