//! What an engine has in shared memory: noted as soon as it is made, because whoever kills the run gives no notice.
//!
//! The kernel tells of each new file in `/dev/shm` (inotify(7)); a look at the tree then says whether it is this engine's.
//! What is found is written down in the run directory, where the epilog and the job's next run find it.

use crate::process::{Handle, SharedFiles, Tree};
use rustix::{
    fs::inotify::{self, CreateFlags, WatchFlags},
    process::Signal,
};
use std::{
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{io::unix::AsyncFd, task::JoinHandle};

/// A file is made first and mapped a moment later, or on a busy machine a while: when to look after one was made.
const LOOKS_MS: [u64; 5] = [1, 15, 60, 250, 1000];
/// Least time between looks at all processes, however many files are made.
const PAUSE: Duration = Duration::from_millis(10);

/// Notes what one tree has in shared memory, for as long as it lives.
pub(super) struct Keeper {
    notes: Arc<Mutex<Notes>>,
    watching: Option<JoinHandle<()>>,
}

struct Notes {
    tree: Tree,
    files: SharedFiles,
    list: PathBuf,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Some(watching) = &self.watching {
            watching.abort();
        }
    }
}

impl Keeper {
    /// Begins with the tree; `before` was taken before it was there, `list` is where the notes go.
    pub(super) fn of(tree: Tree, before: SharedFiles, list: PathBuf) -> Self {
        let notes = Arc::new(Mutex::new(Notes { tree, files: before, list }));
        let watching = match events() {
            Ok(events) => Some(tokio::spawn(watch(events, notes.clone()))),
            Err(error) => {
                tracing::debug!(%error, "new files in shared memory are only looked for at an engine's end");
                None
            }
        };
        Keeper { notes, watching }
    }

    /// Looks for the last time, before the tree is ended. It is stopped for that (SIGSTOP), so that nothing is made between this
    /// look and its end.
    pub(super) fn note_last(&self) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        for stat in notes.tree.members().unwrap_or_default() {
            if let Ok(Some(handle)) = Handle::open(stat.id) {
                // One that cannot be stopped is ended all the same.
                let _ = handle.signal(Signal::STOP);
            }
        }
        notes.look();
    }

    /// The tree is gone: removes what it left. Looks at every process where there is something to remove.
    pub(super) async fn remove(self) {
        let notes = self.notes.clone();
        let remove = move || {
            let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
            for path in notes.files.remove() {
                tracing::debug!(path = %path.display(), "removed what an engine left in shared memory");
            }
            let _ = std::fs::remove_file(&notes.list);
        };
        if tokio::task::spawn_blocking(remove).await.is_err() {
            tracing::debug!("the run is torn down; its end removes what engines left in shared memory");
        }
    }
}

impl Notes {
    fn look(&mut self) {
        let members = self.tree.members().unwrap_or_default();
        if self.files.note(members.iter().map(|stat| stat.id.pid))
            && let Ok(text) = serde_json::to_vec(&self.files.noted())
            && let Err(error) = std::fs::write(&self.list, text)
        {
            tracing::debug!(%error, list = %self.list.display(), "cannot note what an engine has in shared memory");
        }
    }
}

fn events() -> io::Result<AsyncFd<OwnedFd>> {
    let events = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    inotify::add_watch(&events, SharedFiles::DIR, WatchFlags::CREATE | WatchFlags::MOVED_TO)?;
    // SAFETY: the descriptor is owned by the registration, and stays open and the same for as long as that lives.
    Ok(unsafe { AsyncFd::register(events) }?)
}

async fn watch(events: AsyncFd<OwnedFd>, notes: Arc<Mutex<Notes>>) {
    // Begins with a look: a file may have been made between the launch and now.
    let mut at = 0;
    loop {
        let pause = LOOKS_MS.get(at).copied().map(Duration::from_millis);
        tokio::select! {
            () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {
                notes.lock().unwrap_or_else(PoisonError::into_inner).look();
                at += 1;
            }
            made = made(&events) => {
                if made.is_err() {
                    return;
                }
                at = 0;
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Comes back when files have been made; which ones does not matter, the look tells.
async fn made(events: &AsyncFd<OwnedFd>) -> io::Result<()> {
    loop {
        let mut ready = events.readable().await?;
        // Else it was nothing after all.
        if let Ok(read) = ready.try_io(|events| Ok(rustix::io::read(events, &mut [0; 4096])?)) {
            return read.map(drop);
        }
    }
}
