//! What an engine is: its command, its process tree, its address, its readiness, its log.
//!
//! ```text
//!           launch                                    one-token answer
//!  Stopped ────────▶ Spawned ─▶ Loading ─▶ Listening ────────────────▶ Answered (running)
//!   │ ▲                 │           ▲ │         │                          │
//!   │ └─ its whole tree is ended ───┼─┴─────────┴── exit, timeout, refusal ┴── stop, exit
//!   │          ▲                    │
//!   │          └── stop, exit ──┐   │ launch
//!   └─────── launch_held ─────▶ Held (ahead of its turn: imports, then waits before its first use of a GPU, or listens)
//! ```
//!
//! An [`Engine`] belongs to one worker task; nobody else touches it. It is started and stopped here; how it leaves the
//! GPUs and comes back is [`crate::swap`]'s. Everything specific to one kind of engine is data: the preset's command and
//! environment in [`crate::config`], its control endpoints in [`crate::swap`].
//!
//! | file | role |
//! | --- | --- |
//! | `env` | what the run gives an engine: spawner, directories, GPUs, environment |
//! | `launch` | command → process → listening → answered |
//! | `error` | what can go wrong on the way |
//! | `health` | whether it is up |
//! | `hold` | where its processes ask for their turn, if it was launched ahead of it |
//! | `address` | where it listens: a Unix socket, or a loopback port that nobody else has |
//! | `probe` | the greedy request that proves readiness and, repeated, that a swap changed nothing |
//! | `http` | one request over one connection, with a deadline |
//! | `log` | its log file: tail, size bound, no keys |
//! | `memory` | host memory of a process tree |
//! | `pulse` | its processes run while they are meant to |
//! | `shared` | its files in shared memory, which outlive it |
//! | `weights` | the files it reads at its start, and reading them ahead of it |

mod address;
mod env;
mod error;
mod health;
mod hold;
mod http;
mod launch;
mod log;
mod memory;
mod probe;
mod pulse;
mod shared;
mod weights;

pub use env::{Cookie, EngineEnv};
pub use error::{HealthError, LaunchError, Seen};
pub use hold::Hold;
pub use http::{ControlError, Reply};
pub use launch::Stage;
pub use probe::{Answer, ProbeError};
pub use weights::{Reading, Weights};

use crate::{
    config::ModelPlan,
    process::{self, Child, ProcId, SHARED_LIST, Stat, StopReport, Tree},
    router::gate::Upstream,
    units::Bytes,
};
use ::http::Method;
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    io,
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// One model's engine: what is needed to start it, and what runs of it.
pub struct Engine {
    /// Its configuration.
    pub plan: Arc<ModelPlan>,
    /// What the run gives it.
    pub env: EngineEnv,
    log: log::EngineLog,
    /// Kept from one launch to the next, so that its address stays the same where it can.
    port: Option<u16>,
    running: Option<Running>,
}

/// An engine that has been launched: its process tree and how to speak to it.
pub struct Running {
    /// The process that was started; the engine is lost when it exits.
    pub child: Child,
    /// Where it listens.
    pub upstream: Upstream,
    /// Its own random key, where its command takes one.
    pub key: Option<Arc<str>>,
    /// When it was started.
    pub started: Instant,
    /// When its turn came: its start, or of one that was held its release; nothing as long as it is held.
    turn: Option<Instant>,
    /// Since when it has had nothing to do before its turn, where that was seen.
    waits: Option<Instant>,
    /// Where its lines in the log begin.
    begin: u64,
    /// Where its processes ask for their turn, if it was launched ahead of it.
    hold: Option<Hold>,
    /// Remembers who was in the tree, so that an orphan stays a member.
    tree: Arc<Mutex<Tree>>,
    /// Continues what of it is stopped from outside.
    pulse: pulse::Pulse,
    /// Notes what the tree has in shared memory.
    shared: shared::Keeper,
    /// Keeps the log file within its bound.
    _log_keeper: log::Keeper,
}

impl Running {
    /// How long its start has taken so far, without its wait for its turn.
    ///
    /// The wait begins where the engine was seen to have nothing left to do ([`Engine::waits`]); what was not seen counts as
    /// work, up to its turn. Too long is the safe side: under `auto` a start that seems quicker than it is would take the
    /// place of a swap, at each use; one that seems slower leaves a mechanism in use that works.
    pub fn start_time(&self) -> Duration {
        let waited = self
            .waits
            .map(|since| self.turn.unwrap_or_else(Instant::now).saturating_duration_since(since))
            .unwrap_or_default();
        self.started.elapsed().saturating_sub(waited)
    }
}

impl Engine {
    /// An engine that has not been started.
    pub fn new(plan: Arc<ModelPlan>, env: EngineEnv) -> Self {
        let log = log::EngineLog::new(env.log_dir.join(format!("{}.log", file_name(&plan.name))));
        Engine { plan, env, log, port: None, running: None }
    }

    /// What runs of it, if it was launched and not stopped since.
    pub fn running(&self) -> Option<&Running> {
        self.running.as_ref()
    }

    /// Where it listens, while it runs.
    pub fn upstream(&self) -> Option<&Upstream> {
        self.running().map(|running| &running.upstream)
    }

    /// Its own key, while it runs and where it has one.
    pub fn key(&self) -> Option<&Arc<str>> {
        self.running().and_then(|running| running.key.as_ref())
    }

    /// Its root process, while it runs.
    pub fn pid(&self) -> Option<i32> {
        self.running().map(|running| running.child.pid())
    }

    /// Its log file.
    pub fn log_path(&self) -> &Path {
        self.log.path()
    }

    /// The last `lines` lines of its log, its key blotted out.
    pub fn log_tail(&self, lines: usize) -> String {
        self.log.tail(lines, self.key().map(|key| &**key))
    }

    /// Every process of its tree that lives, parents before their children; empty when it does not run.
    pub fn members(&self) -> io::Result<Vec<Stat>> {
        let Some(running) = self.running() else { return Ok(Vec::new()) };
        running.tree.lock().unwrap_or_else(PoisonError::into_inner).members()
    }

    /// The same as pids with their start times. An unreadable `/proc` counts as an empty tree.
    pub fn tree(&self) -> Vec<ProcId> {
        self.members().unwrap_or_default().into_iter().map(|stat| stat.id).collect()
    }

    /// Those of its processes that were alive when somebody last looked, without another look.
    pub fn last_seen(&self) -> Vec<ProcId> {
        let Some(running) = self.running() else { return Vec::new() };
        running.tree.lock().unwrap_or_else(PoisonError::into_inner).last_seen().collect()
    }

    /// Comes back when its root process has exited; at once when it does not run. The future holds no borrow, so it can
    /// be waited for beside everything else.
    pub fn exited(&self) -> impl Future<Output = Option<ExitStatus>> + Send + use<> {
        let child = self.running().map(|running| running.child.clone());
        async move {
            match child {
                Some(child) => Some(child.exited().await),
                None => None,
            }
        }
    }

    /// Whether it was launched ahead of its turn, and that has not come.
    pub fn is_held(&self) -> bool {
        self.running().and_then(|running| running.hold.as_ref()).is_some_and(|hold| !hold.is_released())
    }

    /// One that is held has done what it can before its turn: it has come to its first use of a GPU, or is up. Said again, what
    /// was between the two was work.
    pub fn waits(&mut self) {
        if let Some(running) = self.running.as_mut().filter(|running| running.turn.is_none()) {
            running.waits = Some(Instant::now());
        }
    }

    /// Comes back when one that is held has come to its first use of a GPU; never for another one. The future holds no
    /// borrow.
    pub fn came_to_gpu(&self) -> impl Future<Output = ()> + Send + use<> {
        let asked = self.running().and_then(|running| running.hold.as_ref()).map(Hold::asked);
        async move {
            match asked {
                Some(asked) => asked.await,
                None => std::future::pending().await,
            }
        }
    }

    /// Whether its root process runs.
    pub fn is_alive(&self) -> bool {
        self.running().is_some_and(|running| running.child.exit_status().is_none())
    }

    /// Ends its whole tree: TERM, the plan's grace, KILL. On return nothing of it runs, or the report names what hangs in
    /// the kernel. Harmless when it does not run.
    ///
    /// # Errors
    /// When `/proc` cannot be read or a process cannot be signalled; the engine then still counts as running.
    pub async fn stop(&mut self) -> io::Result<StopReport> {
        let held = self.is_held();
        let Some(running) = &mut self.running else { return Ok(StopReport::default()) };
        if held {
            // Whoever waits there ends at once; a signal would wait until the driver's call comes back.
            running.hold = None;
        }
        running.shared.note_last();
        // A clone, because a lock must not be held while waiting; nobody else looks at the tree meanwhile.
        let mut tree = running.tree.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let report = process::stop(&mut tree, self.plan.stop_grace).await?;
        if let Some(running) = self.running.take() {
            running.shared.remove().await;
        }
        // A killed engine leaves its socket behind, and its files may hold its key.
        let _ = std::fs::remove_dir_all(self.own_dir());
        Ok(report)
    }

    /// One request to the engine itself, with its key, past the router. `path` may carry a query.
    ///
    /// # Errors
    /// When there is no engine, no answer before `timeout`, or no HTTP.
    pub async fn control(
        &self,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
        timeout: Duration,
    ) -> Result<Reply, ControlError> {
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        self.control_signed(method, path, &[], body, timeout).await
    }

    /// The same with headers of the caller's own over exactly these bytes.
    ///
    /// # Errors
    /// As [`Engine::control`].
    pub async fn control_signed(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, String)],
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Reply, ControlError> {
        let running = self.running().ok_or(ControlError::NotRunning)?;
        let call = http::Call { method, path, headers, body, key: running.key.as_deref() };
        http::send(&running.upstream, call, timeout).await
    }

    /// Asks for a greedy answer of `tokens` tokens (a vector, from an embedder).
    ///
    /// # Errors
    /// When the engine does not answer within `timeout`, or not as its API says.
    pub async fn probe(&self, tokens: u32, timeout: Duration) -> Result<Answer, ProbeError> {
        probe::ask(self, tokens, timeout).await
    }

    /// Asks its health path.
    ///
    /// # Errors
    /// No answer within `timeout`, or one that says that the engine is broken (5xx).
    pub async fn health(&self, timeout: Duration) -> Result<(), HealthError> {
        let path = self.plan.health_path.as_str();
        let reply = self.control(Method::GET, path, None, timeout).await?;
        if reply.status.is_server_error() {
            return Err(HealthError::Broken {
                path: path.to_owned(),
                status: reply.status,
                body: reply.excerpt(),
            });
        }
        Ok(())
    }

    /// CPU time that the living processes of the tree have used.
    pub fn cpu_time(&self) -> Duration {
        let ticks = self.members().unwrap_or_default().iter().map(|stat| stat.ticks).sum::<u64>();
        Duration::from_millis(ticks * 10)
    }

    /// Says whether its processes are meant to run from now on; while they are, one that is stopped from outside is continued.
    pub fn mean_to_run(&self, to_run: bool) {
        if let Some(running) = self.running() {
            running.pulse.mean(to_run);
        }
    }

    /// Host memory of the tree: each process's proportional share (PSS), so that pages shared between them count once.
    /// Walks page tables: not for the swap path.
    pub fn host_memory(&self) -> Bytes {
        memory::proportional(&self.tree())
    }

    /// Host memory of the tree that only its end gives back: as [`Engine::host_memory`], without pages of files.
    pub fn kept_memory(&self) -> Bytes {
        memory::kept(&self.tree())
    }

    /// Resident pages of the tree from the kernel's counters: quick, and pages shared between processes count for each.
    pub fn resident_pages(&self) -> Bytes {
        memory::resident(&self.tree())
    }

    /// The list of its files in shared memory.
    fn shared_list(&self) -> PathBuf {
        self.env.run_dir.join(format!("{}.{SHARED_LIST}", file_name(&self.plan.name)))
    }

    /// Its own directory, there while it runs: its socket, and the files that the plan gives it.
    fn own_dir(&self) -> PathBuf {
        self.env.run_dir.join(file_name(&self.plan.name))
    }
}

/// A model's name as a file name: what is not a letter, a digit, `.`, `_` or `-` becomes `_`, and so does a dot that would
/// hide it. A name that had to be changed gets a number of its own, so that `a/b` and `a_b` stay apart.
fn file_name(model: &str) -> String {
    let plain = |at: usize, c: char| c.is_ascii_alphanumeric() || "_-".contains(c) || (c == '.' && at > 0);
    if model.char_indices().all(|(at, c)| plain(at, c)) {
        return model.to_owned();
    }
    let name: String = model.char_indices().map(|(at, c)| if plain(at, c) { c } else { '_' }).collect();
    let mut number = DefaultHasher::new();
    model.hash(&mut number);
    format!("{name}-{:08x}", number.finish() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_model_has_a_file_name_of_its_own_below_the_directory() {
        assert_eq!(file_name("qwen2.5-coder_32b"), "qwen2.5-coder_32b");
        assert!(file_name("org/model").starts_with("org_model-"));
        assert_ne!(file_name("a/b"), file_name("a:b"));
        assert!(file_name("..").starts_with("_.-"));
    }
}
