//! `sleep`: the engine frees its GPU memory itself, when asked by its own control endpoints.
//!
//! Which requests in which order is data ([`table`]); here they are sent, and what the engine claims is checked: its own
//! word for its state, and the GPU memory that is really free. An engine that answers 200 and frees nothing has failed.
//! Requests that run would be aborted (vLLM) or break the engine (SGLang), so a busy engine is refused.

mod sign;
mod table;

use super::{Mechanism, MemoryProbe, MoveLog, PerGpu, SwapError, memory};
use crate::{
    engine::{ControlError, Engine, Reply},
    units::{Bytes, Footprint, MechanismKind},
};
use async_trait::async_trait;
use http::Method;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use table::{Check, Need, Recipe, Step};

/// Pause before a step that was refused for now, or a state that is not there yet, is asked for again.
const ASK_AGAIN: Duration = Duration::from_millis(5);
/// Time for one look at its state, however late it is.
const LAST_LOOK: Duration = Duration::from_secs(1);
/// How long the engine may take to say so, and NVML to show it, after the requests were answered.
const CONFIRM_LIMIT: Duration = Duration::from_secs(10);

/// Puts engines to sleep by their own endpoints.
pub struct Sleep {
    gpus: Arc<dyn MemoryProbe>,
    /// The engine's process, and the most that a sleep of it was seen to copy to host memory: it keeps that memory when it
    /// wakes, so the next sleep takes no more.
    copied: Mutex<(Option<i32>, Bytes)>,
}

impl Sleep {
    /// Sees with `gpus` whether memory was really freed.
    pub fn new(gpus: Arc<dyn MemoryProbe>) -> Self {
        Sleep { gpus, copied: Mutex::default() }
    }

    fn recipe(&self, engine: &Engine) -> Result<Recipe, SwapError> {
        table::recipe(&engine.plan).map_err(|reason| self.fault("sleep", reason, true))
    }

    /// Host memory the engine holds while asleep: a CPU engine's own, or what it copied there from the GPUs.
    fn host(&self, engine: &Engine, before: Bytes) -> Bytes {
        let now = engine.resident_pages();
        if engine.plan.gpus == 0 {
            return now;
        }
        let mut copied = self.copied.lock().unwrap_or_else(PoisonError::into_inner);
        if copied.0 != engine.pid() {
            *copied = (engine.pid(), Bytes(0));
        }
        copied.1 = copied.1.max(now.saturating_sub(before));
        copied.1
    }

    /// What the engine, which held `before`, holds on the GPUs once enough of it has been seen to be free.
    async fn confirm_freed(&self, engine: &Engine, before: &PerGpu, log: &MoveLog) -> Result<PerGpu, String> {
        let held = memory::total(before);
        let most = memory::most_left(held);
        let limit = log.deadline.min(Instant::now() + CONFIRM_LIMIT);
        let after =
            memory::wait_until_free(&engine.tree(), &*self.gpus, most, limit).await.unwrap_or_default();
        match memory::total(&after) {
            left if left <= most => Ok(after),
            left => Err(format!("the engine says it sleeps, and still holds {left} of {held} on the GPUs")),
        }
    }
}

#[async_trait]
impl Mechanism for Sleep {
    fn kind(&self) -> MechanismKind {
        MechanismKind::Sleep
    }

    async fn suits(&self, engine: &Engine) -> Result<(), String> {
        let recipe = table::recipe(&engine.plan)?;
        let missing: Vec<String> = recipe.needs.iter().filter_map(|need| missing(engine, need)).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("its endpoints need {}", missing.join(" and "))) }
    }

    async fn swap_out(&self, engine: &mut Engine, log: &mut MoveLog) -> Result<Footprint, SwapError> {
        let recipe = self.recipe(engine)?;
        if log.in_flight > 0 {
            let reason = format!("{} request(s) run, which a sleep would abort; drain first", log.in_flight);
            return Err(self.fault("sleep", reason, true));
        }
        let before = self.gpus.held(&engine.tree()).await;
        let pages = engine.resident_pages();
        let slept = async {
            run(engine, &recipe, &recipe.out, log).await?;
            confirm(engine, &recipe, true, log).await?;
            match &before {
                Some(before) => self.confirm_freed(engine, before, log).await.map(Some),
                None => Ok(None),
            }
        };
        match slept.await {
            Ok(gpu) => {
                log.resident = before;
                Ok(Footprint {
                    gpu: gpu.unwrap_or_default(),
                    host: self.host(engine, pages),
                    ..Footprint::default()
                })
            }
            Err(reason) => {
                let awake = wake_again(engine, &recipe, log).await;
                Err(self.fault("sleep", reason, awake))
            }
        }
    }

    async fn swap_in(&self, engine: &mut Engine, log: &mut MoveLog) -> Result<Footprint, SwapError> {
        let recipe = self.recipe(engine)?;
        let woken = async {
            run(engine, &recipe, &recipe.back, log).await?;
            confirm(engine, &recipe, false, log).await
        };
        if let Err(reason) = woken.await {
            // Asleep as before only if no step took: else nobody knows what is in its memory.
            return Err(self.fault("wake", reason, false));
        }
        let gpu = self.gpus.held(&engine.tree()).await.unwrap_or_default();
        Ok(Footprint { gpu, ..Footprint::default() })
    }
}

fn missing(engine: &Engine, need: &Need) -> Option<String> {
    let plan = &engine.plan;
    match *need {
        Need::Argument(wanted) => {
            let mut given = plan.command.iter().chain(&plan.args);
            let there = given.any(|arg| arg.split('=').next() == Some(wanted));
            (!there).then(|| format!("args = [\"{wanted}\"]"))
        }
        Need::Variable(name, value) => {
            let there = plan.env.get(name).is_some_and(|given| value.is_empty() || given == value);
            let shown = if value.is_empty() { "{{ api_key }}" } else { value };
            (!there).then(|| format!("env = {{ {name} = \"{shown}\" }}"))
        }
    }
}

async fn run(engine: &Engine, recipe: &Recipe, steps: &[Step], log: &mut MoveLog) -> Result<(), String> {
    for step in steps {
        let deadline = log.deadline;
        log.phase(step.phase, send(engine, recipe, step, deadline)).await?;
    }
    Ok(())
}

async fn send(engine: &Engine, recipe: &Recipe, step: &Step, deadline: Instant) -> Result<(), String> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let reply = ask(engine, recipe, Method::POST, step.path, &step.body, left)
            .await
            .map_err(|error| error.to_string())?;
        // SGLang answers 200 with `"success": false` where a weight update failed.
        if reply.status.is_success() && reply.json().pointer("/success") != Some(&false.into()) {
            return Ok(());
        }
        if !(step.until_accepted && reply.status.is_client_error()) || left.is_zero() {
            return Err(format!("POST {} answered {}: {}", step.path, reply.status, reply.excerpt()));
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

async fn ask(
    engine: &Engine,
    recipe: &Recipe,
    method: Method,
    path: &str,
    body: &serde_json::Value,
    limit: Duration,
) -> Result<Reply, ControlError> {
    let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    if !recipe.signed {
        return engine.control_signed(method, path, &[], bytes, limit).await;
    }
    let secret = engine.key().cloned().unwrap_or_default();
    let signature = sign::headers(&secret, method.as_str(), path, &bytes);
    let headers = signature.map_err(|error| ControlError::Broken {
        method: method.clone(),
        path: path.to_owned(),
        source: error.to_string().into(),
    })?;
    engine.control_signed(method, path, &headers, bytes, limit).await
}

/// Waits until the engine itself says that it sleeps, or that it is awake.
async fn confirm(engine: &Engine, recipe: &Recipe, asleep: bool, log: &mut MoveLog) -> Result<(), String> {
    let Some(check) = &recipe.check else { return Ok(()) };
    let deadline = log.deadline.min(Instant::now() + CONFIRM_LIMIT);
    let wait = async {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let state = state(engine, recipe, check, left.max(LAST_LOOK)).await?;
            if state.is(check, asleep) {
                return Ok(());
            }
            if left.is_zero() {
                let wanted = if asleep { "asleep" } else { "awake" };
                return Err(format!("GET {} shows {}, so the engine is not {wanted}", check.path, state.0));
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    };
    log.phase("confirm", wait).await
}

/// What stands at a check's pointer.
struct Shown(serde_json::Value);

impl Shown {
    fn is(&self, check: &Check, asleep: bool) -> bool {
        match (asleep, check.awake.is_null()) {
            (true, _) => self.0 == check.asleep,
            (false, true) => self.0 != check.asleep && !self.0.is_null(),
            (false, false) => self.0 == check.awake,
        }
    }
}

async fn state(engine: &Engine, recipe: &Recipe, check: &Check, limit: Duration) -> Result<Shown, String> {
    let reply = ask(engine, recipe, Method::GET, check.path, &serde_json::Value::Null, limit)
        .await
        .map_err(|error| error.to_string())?;
    if !reply.status.is_success() {
        return Err(format!("GET {} answered {}: {}", check.path, reply.status, reply.excerpt()));
    }
    Ok(Shown(reply.json().pointer(check.pointer).cloned().unwrap_or_default()))
}

/// After a sleep that failed half-way: whether the engine is awake as before, woken again if it says that it sleeps. Its
/// word is not enough, it has to answer a request.
async fn wake_again(engine: &Engine, recipe: &Recipe, log: &MoveLog) -> bool {
    // The move's own time may be over; the engine gets a little more to save it from a cold start.
    let mut log = MoveLog::new(log.deadline.max(Instant::now() + CONFIRM_LIMIT), 0);
    if let Some(check) = &recipe.check {
        let awake = match state(engine, recipe, check, CONFIRM_LIMIT).await {
            Ok(state) if state.is(check, false) => true,
            Ok(_) => {
                run(engine, recipe, &recipe.back, &mut log).await.is_ok()
                    && confirm(engine, recipe, false, &mut log).await.is_ok()
            }
            Err(_) => false,
        };
        if !awake {
            return false;
        }
    }
    engine.probe(1, CONFIRM_LIMIT).await.is_ok()
}
