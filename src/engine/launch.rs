//! Command → process → listening → answered.
//!
//! An engine that is launched ahead of its turn is held between the second and the third ([`Hold`]); its time for the
//! rest begins with its release.
//!
//! The health path says that the engine is up ([`health`](super::health)), and a real one-token request that it works; the
//! exit of the process is noticed at once through its pidfd. Whatever goes wrong, nothing of the engine is left running.

use super::{
    Engine, Hold, LaunchError, ProbeError, Running, Seen, address,
    health::{Asking, FIRST_PAUSE, LONGEST_PAUSE, NotUp},
    pulse, shared,
};
use crate::{
    config::TemplateValues,
    process::{Launch, SharedFiles},
    router::gate::Upstream,
};
use std::{
    fs,
    io::{self, Write},
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::Path,
    process::ExitStatus,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

/// When the job's memory runs out, an engine goes before the user's command or the daemon of the same size: it can be
/// started again. In thousandths of the job's limit, added to its size.
const OOM_SCORE: i16 = 200;
/// Lines of the log in an error.
const TAIL: usize = 12;

/// How far a launch has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The process runs.
    Spawned {
        /// Its pid.
        pid: i32,
    },
    /// It does not listen yet; the newest line of its log.
    Loading {
        /// The line.
        line: String,
    },
    /// Its health path answers; the one-token request is under way.
    Listening,
    /// The one-token request was answered.
    Answered,
}

impl Engine {
    /// Launches the engine ahead of its turn on its GPUs: before their first use of a GPU its processes wait, until
    /// [`Engine::launch`]. Comes back when its first process runs. After an error nothing of it runs.
    ///
    /// # Errors
    /// [`LaunchError`]. How one that ends while it is held is told: [`Engine::ended_early`].
    pub async fn launch_held(&mut self) -> Result<(), LaunchError> {
        self.stop().await.map_err(LaunchError::Leftover)?;
        let hold = Hold::open().map_err(LaunchError::Hold)?;
        self.spawn(Some(hold)).await
    }

    /// What is to be said of one that has ended with `status` while it was held.
    pub fn ended_early(&self, status: Option<ExitStatus>) -> LaunchError {
        let begin = self.running().map(|running| running.begin).unwrap_or_default();
        self.explain(status.map_or(Trouble::Gone, Trouble::Exited), begin)
    }

    /// Starts the engine, or releases it where it is held, and comes back when it has answered a one-token request.
    /// `stages` is told how far it has come. After an error nothing of it runs. When the future is dropped what was
    /// started keeps running: [`Engine::stop`] ends it.
    ///
    /// # Errors
    /// [`LaunchError`], with the end of the engine's log.
    pub async fn launch(&mut self, stages: &(dyn Fn(Stage) + Send + Sync)) -> Result<(), LaunchError> {
        if self.is_held() {
            self.release(stages);
        } else {
            self.stop().await.map_err(LaunchError::Leftover)?;
            self.spawn(None).await?;
            if let Some(pid) = self.pid() {
                stages(Stage::Spawned { pid });
            }
        }
        let begin = self.running().map(|running| running.begin).unwrap_or_default();
        let outcome = match self.become_ready(begin, stages).await {
            Ok(()) => return Ok(()),
            Err(trouble) => self.explain(trouble, begin),
        };
        if let Err(error) = self.stop().await {
            tracing::error!(model = %self.plan.name, %error, "cannot end an engine that did not start");
        }
        Err(outcome)
    }

    /// The turn of one that is held has come.
    fn release(&mut self, stages: &(dyn Fn(Stage) + Send + Sync)) {
        let Some(running) = &mut self.running else { return };
        running.turn = Some(Instant::now());
        let (begin, key) = (running.begin, running.key.clone());
        if let Some(hold) = &running.hold {
            hold.release();
        }
        stages(Stage::Loading { line: self.log.tail_from(begin, 1, key.as_deref()) });
    }

    async fn spawn(&mut self, hold: Option<Hold>) -> Result<(), LaunchError> {
        let begin = self.log.length();
        let upstream = self.choose_address()?;
        let key = random_key().map_err(LaunchError::Key)?;
        let dir = self.own_dir();
        for shared in [&self.env.run_dir, &self.env.log_dir] {
            make_private(shared).map_err(|source| LaunchError::Files { path: shared.clone(), source })?;
        }
        make_own_dir(&dir)?;
        let command = self.plan.render(&self.values(&upstream, &key))?;
        for (path, text) in &command.files {
            write_private(path, text).map_err(|source| LaunchError::Files { path: path.clone(), source })?;
        }
        let [program, args @ ..] = command.argv.as_slice() else { return Err(LaunchError::NoCommand) };
        let mut variables = self.env.variables(&command.env);
        if let Some(hold) = &hold {
            variables.extend(self.env.held.clone().unwrap_or_default());
            variables.extend(hold.environment(self.plan.apptainer.is_some()));
        }
        let launch = Launch::new(program)
            .args(args)
            .envs(variables)
            .log(self.log.path())
            .binding(self.env.binding.clone())
            .oom_score_adj(OOM_SCORE)
            .guarded();
        let before = SharedFiles::before();
        let child = self.env.spawner.spawn(launch).await?;
        let tree = child.tree().with_marker(&self.env.cookie.name, &self.env.cookie.value);
        let shared = shared::Keeper::of(tree.clone(), before, self.shared_list());
        let tree = Arc::new(Mutex::new(tree));
        let started = Instant::now();
        self.running = Some(Running {
            child,
            upstream,
            key: self.plan.api_key.then(|| key.into()),
            started,
            turn: hold.is_none().then_some(started),
            waits: None,
            begin,
            hold,
            pulse: pulse::Pulse::begin(&self.plan.name, tree.clone()),
            tree,
            shared,
            _log_keeper: self.log.keep(),
        });
        Ok(())
    }

    fn values(&self, upstream: &Upstream, key: &str) -> TemplateValues {
        let (port, socket) = match upstream {
            Upstream::Unix(path) => (None, Some(path.clone())),
            Upstream::Tcp(at) => (Some(at.port()), None),
        };
        TemplateValues {
            port,
            socket,
            api_key: key.to_owned(),
            gpu_memory_fraction: self.env.gpu_memory_fraction,
            threads: self.env.threads,
            rundir: self.own_dir(),
        }
    }

    fn choose_address(&mut self) -> Result<Upstream, LaunchError> {
        if self.plan.unix_socket {
            let path = self.own_dir().join("engine.sock");
            let length = path.as_os_str().len();
            if length >= address::LONGEST_SOCKET_PATH {
                return Err(LaunchError::SocketPath { path, length });
            }
            return Ok(Upstream::Unix(path));
        }
        let port = address::free_port(self.port).map_err(LaunchError::Port)?;
        self.port = Some(port);
        Ok(Upstream::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port))))
    }

    async fn become_ready(&self, begin: u64, stages: &(dyn Fn(Stage) + Send + Sync)) -> Result<(), Trouble> {
        let Some(running) = self.running() else { return Err(Trouble::Gone) };
        let deadline = running.turn.unwrap_or(running.started) + self.plan.start_timeout;
        let ready = async {
            self.wait_until_healthy(running, deadline, begin, stages).await?;
            stages(Stage::Listening);
            self.wait_for_answer(deadline).await?;
            stages(Stage::Answered);
            Ok(())
        };
        tokio::select! {
            biased;
            outcome = ready => outcome,
            status = running.child.exited() => Err(Trouble::Exited(status)),
        }
    }

    async fn wait_until_healthy(
        &self,
        running: &Running,
        deadline: Instant,
        begin: u64,
        stages: &(dyn Fn(Stage) + Send + Sync),
    ) -> Result<(), Trouble> {
        let mut asking = Asking::begin();
        let mut shown = String::new();
        loop {
            let last = match asking.again(self, running, Some(deadline)).await {
                Ok(()) => return Ok(()),
                Err(NotUp::Stranger(port)) => return Err(Trouble::Stranger(port)),
                Err(NotUp::Yet(last)) => last,
            };
            if left(deadline).is_zero() {
                return Err(Trouble::NeverReady { last });
            }
            if asking.is_slow() {
                let line = self.log.tail_from(begin, 1, running.key.as_deref());
                if line != shown {
                    stages(Stage::Loading { line: line.clone() });
                    shown = line;
                }
            }
        }
    }

    async fn wait_for_answer(&self, deadline: Instant) -> Result<(), Trouble> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.probe(1, left(deadline)).await {
                Ok(_) => return Ok(()),
                Err(error) if error.passes() && !left(deadline).is_zero() => {
                    tokio::time::sleep(pause.min(left(deadline))).await;
                    pause = (pause * 3 / 2).min(LONGEST_PAUSE);
                }
                Err(error) => return Err(Trouble::NoAnswer(error)),
            }
        }
    }

    fn explain(&self, trouble: Trouble, begin: u64) -> LaunchError {
        let seen = Box::new(Seen {
            program: self.plan.command.first().unwrap_or(&self.plan.name).clone(),
            log: self.log.path().to_owned(),
            tail: self.log.cause_from(begin, TAIL, self.key().map(|key| &**key)),
        });
        match trouble {
            Trouble::Exited(_) if self.port.is_some() && says_port_taken(&seen.tail) => {
                LaunchError::PortTaken { port: self.port.unwrap_or_default(), seen }
            }
            Trouble::Exited(status) => {
                let after = self.running().map(|running| running.started.elapsed()).unwrap_or_default();
                LaunchError::Exited { status, after, seen }
            }
            Trouble::Gone => LaunchError::Leftover(io::Error::from(io::ErrorKind::NotFound)),
            Trouble::Stranger(port) => LaunchError::Stranger(port),
            Trouble::NoAnswer(source) => LaunchError::NoAnswer { source: Box::new(source), seen },
            Trouble::NeverReady { last } => {
                let (health, within) = (self.plan.health_path.clone(), self.plan.start_timeout);
                LaunchError::NeverReady { health, within, last, seen }
            }
        }
    }
}

/// What ended a wait for readiness.
enum Trouble {
    Exited(ExitStatus),
    NeverReady { last: String },
    NoAnswer(ProbeError),
    Stranger(u16),
    Gone,
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// Whether an engine's last words are the kernel's text for EADDRINUSE, which every runtime passes on.
fn says_port_taken(tail: &str) -> bool {
    tail.to_lowercase().contains("address already in use")
}

/// 32 random bytes in hexadecimal.
fn random_key() -> Result<String, getrandom::Error> {
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A fresh directory for this launch alone: what an engine that was killed left in an older one is gone.
fn make_own_dir(dir: &Path) -> Result<(), LaunchError> {
    let _ = fs::remove_dir_all(dir);
    fs::DirBuilder::new()
        .mode(0o700)
        .create(dir)
        .map_err(|source| LaunchError::Files { path: dir.to_owned(), source })
}

/// Makes a directory of the run anew if it was swept away under it (a cleaner of /tmp, a hand), and sees that it is ours alone:
/// whoever sweeps it could be the one who puts another there.
fn make_private(dir: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = fs::symlink_metadata(dir)?;
    let ours =
        found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o022 == 0;
    ours.then_some(()).ok_or_else(|| io::Error::other("it is not a directory of this user alone"))
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(text.as_bytes())
}
