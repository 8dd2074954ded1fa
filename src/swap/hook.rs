//! `hook`: the user's own commands swap the engine.
//!
//! Each command gets the job's environment and, about the engine, `SWAPSERVE_MODEL` (its name), `SWAPSERVE_PID` (its root
//! process), `SWAPSERVE_ADDRESS` (`http://127.0.0.1:PORT` or `unix:PATH`) and, where it has one, `SWAPSERVE_ENGINE_KEY`.
//! Exit status 0 means done; anything else, or no exit before the deadline, means that the move failed. What the
//! commands wrote last is in the error.

use super::{Mechanism, MemoryProbe, MoveLog, SwapError};
use crate::{
    engine::Engine,
    process::{self, Launch},
    router::gate::Upstream,
    units::{Footprint, MechanismKind},
};
use async_trait::async_trait;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// Bytes of a command's output that are shown when it fails.
const SHOWN: usize = 2000;
/// How long a command that is past its deadline has between TERM and KILL.
const GRACE: Duration = Duration::from_secs(2);
/// How long an engine has to answer after a failed `out` to count as unharmed.
const STILL_ANSWERS: Duration = Duration::from_secs(10);

/// Runs the plan's commands.
pub struct Hook {
    gpus: Arc<dyn MemoryProbe>,
}

impl Hook {
    /// Measures with `gpus` what the commands left.
    pub fn new(gpus: Arc<dyn MemoryProbe>) -> Self {
        Hook { gpus }
    }

    async fn run(&self, engine: &Engine, command: &[String], log: &MoveLog) -> Result<(), String> {
        let (program, args) = command.split_first().ok_or("the command is empty")?;
        let output = output_path(engine);
        // Each run has a fresh file: what it says belongs to this move.
        let _ = fs::remove_file(&output);
        let launch = Launch::new(program)
            .args(args)
            .envs(engine.env.inherited.clone())
            .envs(about(engine))
            .env(&engine.env.cookie.name, &engine.env.cookie.value)
            .log(&output);
        let child = engine.env.spawner.spawn(launch).await.map_err(|error| error.to_string())?;
        let limit = log.left();
        match tokio::time::timeout(limit, child.exited()).await {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("{program} failed ({status}); {}", said(&output))),
            Err(_) => {
                let _ = process::stop(&mut child.tree(), GRACE).await;
                Err(format!("{program} was not done within {:.1} s; {}", limit.as_secs_f64(), said(&output)))
            }
        }
    }
}

#[async_trait]
impl Mechanism for Hook {
    fn kind(&self) -> MechanismKind {
        MechanismKind::Hook
    }

    async fn suits(&self, engine: &Engine) -> Result<(), String> {
        match &engine.plan.hooks {
            Some(hooks) if !hooks.out.is_empty() && !hooks.back.is_empty() => Ok(()),
            _ => Err("the config has no hooks = { out = [...], in = [...] } for this model".to_owned()),
        }
    }

    async fn swap_out(&self, engine: &mut Engine, log: &mut MoveLog) -> Result<Footprint, SwapError> {
        self.turn(engine, log, "out").await
    }

    async fn swap_in(&self, engine: &mut Engine, log: &mut MoveLog) -> Result<Footprint, SwapError> {
        self.turn(engine, log, "in").await
    }
}

impl Hook {
    async fn turn(
        &self,
        engine: &mut Engine,
        log: &mut MoveLog,
        direction: &'static str,
    ) -> Result<Footprint, SwapError> {
        let hooks =
            engine.plan.hooks.as_ref().map(|hooks| if direction == "out" { &hooks.out } else { &hooks.back });
        let command = hooks.cloned().unwrap_or_default();
        let begun = std::time::Instant::now();
        let outcome = self.run(engine, &command, log).await;
        log.phases.push((format!("hook {direction}"), begun.elapsed()));
        if let Err(reason) = outcome {
            // A command that failed may have done half of its work; an engine that still answers was not harmed by `out`.
            let unharmed = direction == "out" && engine.probe(1, STILL_ANSWERS).await.is_ok();
            return Err(self.fault("hook", reason, unharmed));
        }
        let gpu = self.gpus.held(&engine.tree()).await.unwrap_or_default();
        let host = if engine.plan.gpus == 0 { engine.resident_pages() } else { Default::default() };
        Ok(Footprint { gpu, host, ..Footprint::default() })
    }
}

fn about(engine: &Engine) -> Vec<(&'static str, String)> {
    let mut about = vec![("SWAPSERVE_MODEL", engine.plan.name.clone())];
    if let Some(running) = engine.running() {
        about.push(("SWAPSERVE_PID", running.child.pid().to_string()));
        let address = match &running.upstream {
            Upstream::Unix(path) => format!("unix:{}", path.display()),
            Upstream::Tcp(at) => format!("http://{at}"),
        };
        about.push(("SWAPSERVE_ADDRESS", address));
        about.extend(running.key.as_ref().map(|key| ("SWAPSERVE_ENGINE_KEY", key.to_string())));
    }
    about
}

fn output_path(engine: &Engine) -> PathBuf {
    engine.log_path().with_extension("hook.log")
}

fn said(output: &Path) -> String {
    let text = fs::read(output).unwrap_or_default();
    let end = String::from_utf8_lossy(&text[text.len().saturating_sub(SHOWN)..]).trim().to_owned();
    if end.is_empty() { "it wrote nothing".to_owned() } else { format!("it wrote:\n{end}") }
}
