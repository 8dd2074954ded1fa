//! The trial: which rung of the ladder really works for this engine, found out before anybody depends on it.
//!
//! For each rung in order: does it suit → swap out → is the memory free → swap in → is the greedy answer the same. The
//! first that passes is used; each one before it is crossed out with its reason. A rung that loses the engine costs
//! another start; one in whose move a process of the engine died is tried a second time (see `swapper`). `restart` passes
//! unexercised: the start that led here was its trial, and another would only cost time.
//!
//! Under `auto` a rung that works is crossed out all the same where a start is much quicker ([`Start::is_better_than`]):
//! a small model on an engine that starts in half a second is not worth a driver's checkpoint of two.

use super::{SwapError, Swapper, memory};
use crate::{
    engine::{Answer, Engine, LaunchError, ProbeError, Running},
    scheduler::SwapMeasure,
    units::{Bytes, MechanismKind},
};
use std::time::{Duration, Instant};

/// Tokens of the answer that is compared.
const TOKENS: u32 = 8;
/// How long one such answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);

/// A swap-in may take so many times as long as a start before the engine is rather started: it brings the KV cache and
/// the prefix cache back, and open streams survive it.
const WORTH: u32 = 2;
/// A difference that nobody notices.
const UNNOTICED: Duration = Duration::from_millis(250);

/// How long the engine's own start took, from launch to first answer without its wait for its turn; nothing if `restart` may not
/// be chosen for it.
#[derive(Clone, Copy)]
struct Start(Option<Duration>);

impl Start {
    /// Of the engine that has just been started.
    fn of(engine: &Engine) -> Self {
        let plan = &engine.plan;
        let may = plan.swap_auto && plan.swap.contains(&MechanismKind::Restart);
        Start(engine.running().filter(|_| may).map(Running::start_time))
    }

    /// Whether a swap-in that took so long is so much slower that the engine is rather started, and why in words.
    fn is_better_than(self, swap_in: Duration) -> Option<String> {
        let start = self.0.filter(|start| swap_in > *start * WORTH && swap_in - *start > UNNOTICED)?;
        Some(format!(
            "it works, but its swap-in takes {:.1} s and a start of this engine {:.1} s; name it in `swap` to use it all the \
             same: it keeps the KV cache",
            swap_in.as_secs_f64(),
            start.as_secs_f64()
        ))
    }
}

/// What a trial found.
#[derive(Clone, Debug)]
pub struct Trial {
    /// The mechanism that will be used.
    pub chosen: MechanismKind,
    /// What it costs: footprints, and the time and phases of the trial's swap-in.
    pub measure: SwapMeasure,
    /// The greedy answer before and after, for the log.
    pub answer: Option<String>,
    /// How long the trial took in all.
    pub took: Duration,
}

/// Why there is no mechanism.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// The engine does not answer, so nothing can be compared.
    #[error("the engine did not answer before its trial: {0}")]
    NoAnswer(#[from] ProbeError),
    /// A mechanism lost the engine and it could not be started again.
    #[error("the engine was lost in the trial of {mechanism} and cannot be started again: {source}")]
    Lost {
        /// The mechanism that lost it.
        mechanism: MechanismKind,
        /// Why it cannot be started.
        source: LaunchError,
    },
    /// No rung passed.
    #[error("no mechanism can swap this engine: {}; add \"restart\" to its swap list", reasons(.0))]
    NoMechanism(Vec<(MechanismKind, String)>),
}

impl Swapper {
    /// Tries the rungs on a running engine and settles on the first that works. The engine is resident afterwards.
    ///
    /// # Errors
    /// [`TrialError`]; the engine may be gone then.
    pub async fn trial(&mut self, engine: &mut Engine) -> Result<Trial, TrialError> {
        let begun = Instant::now();
        let mut start = Start::of(engine);
        self.forget();
        self.resident = memory::resident(engine, &*self.gpus).await;
        self.out = None;
        let reference = Reference::of(engine).await?;
        while let Some(at) = self.first_that_suits(engine).await {
            if self.kind_of(at) == MechanismKind::Restart {
                self.settle_on(at);
                return Ok(self.passed(self.measure(), &reference, begun));
            }
            let setback = match self.exercise(at, engine, &reference).await {
                Ok(measure) => {
                    if let Some(reason) = start.is_better_than(measure.took) {
                        self.cross_out(at, reason);
                        continue;
                    }
                    self.settle_on(at);
                    let SwapMeasure { took, moved, phases, .. } = measure;
                    let measure = SwapMeasure { took, moved, phases, ..self.measure() };
                    return Ok(self.passed(measure, &reference, begun));
                }
                Err(setback) => setback,
            };
            let mechanism = self.kind_of(at);
            self.blame(at, setback.died, setback.reason);
            // A rung that was refused has perhaps touched the engine all the same.
            if setback.harmed || reference.check(engine).await.is_err() {
                engine.stop().await.map_err(|error| lost(mechanism, LaunchError::Leftover(error)))?;
                engine.launch(&|_| {}).await.map_err(|error| lost(mechanism, error))?;
                start = Start::of(engine);
                self.forget();
            }
        }
        Err(TrialError::NoMechanism(self.crossed().to_vec()))
    }

    /// Settles on the first rung that suits, untried.
    ///
    /// # Errors
    /// When none does.
    pub async fn adopt(&mut self, engine: &Engine) -> Result<Trial, TrialError> {
        let begun = Instant::now();
        self.forget();
        self.resident = memory::resident(engine, &*self.gpus).await;
        self.out = None;
        match self.first_that_suits(engine).await {
            Some(at) => {
                self.settle_on(at);
                Ok(Trial {
                    chosen: self.kind_of(at),
                    measure: self.measure(),
                    answer: None,
                    took: begun.elapsed(),
                })
            }
            None => Err(TrialError::NoMechanism(self.crossed().to_vec())),
        }
    }

    /// One rung, out and in; what the swap-in measured.
    async fn exercise(
        &mut self,
        at: usize,
        engine: &mut Engine,
        reference: &Reference,
    ) -> Result<SwapMeasure, Setback> {
        let before = memory::total(&self.resident.gpu);
        let out = self.attempt_out(at, engine).await.map_err(Setback::of)?;
        let left = memory::total(&out.out.gpu);
        // A hook's work is the user's to judge.
        let freed = left <= memory::most_left(before) || self.kind_of(at) == MechanismKind::Hook;
        // Whatever happens from here on, the engine is out or in doubt.
        let measure = self
            .attempt_in(at, engine)
            .await
            .map_err(|error| Setback { harmed: true, ..Setback::of(error) })?;
        let harmed = |reason| Setback { reason, harmed: true, died: false };
        reference.check(engine).await.map_err(harmed)?;
        if before > Bytes(0) && !freed {
            let reason = format!("it freed too little to be of use: {left} of {before} stayed on the GPUs");
            return Err(Setback { reason, harmed: false, died: false });
        }
        Ok(measure)
    }

    fn passed(&self, measure: SwapMeasure, reference: &Reference, begun: Instant) -> Trial {
        let chosen = self.current().expect("a rung was settled on just before");
        Trial { chosen, measure, answer: Some(reference.first.excerpt()), took: begun.elapsed() }
    }
}

/// Why a rung did not pass.
struct Setback {
    reason: String,
    /// The engine cannot go on as it is.
    harmed: bool,
    /// It lost a process.
    died: bool,
}

impl Setback {
    fn of(error: SwapError) -> Self {
        Setback { reason: error.to_string(), harmed: !error.unharmed, died: error.died }
    }
}

/// What the engine says before it is swapped: twice, because the second request meets filled caches, and may be computed
/// in another order of sums than the first.
struct Reference {
    first: Answer,
    second: Answer,
}

impl Reference {
    async fn of(engine: &Engine) -> Result<Self, ProbeError> {
        let first = engine.probe(TOKENS, ANSWER_LIMIT).await?;
        let second = engine.probe(TOKENS, ANSWER_LIMIT).await?;
        if !first.same(&second) {
            let (first, second) = (first.excerpt(), second.excerpt());
            tracing::warn!(model = %engine.plan.name, first, second, "greedy answers of this engine differ by themselves");
        }
        Ok(Reference { first, second })
    }

    /// The same answer again; at the second time of asking, if the first met emptied caches.
    async fn check(&self, engine: &Engine) -> Result<(), String> {
        let mut answer = Answer::Healthy;
        for _ in 0..2 {
            answer = engine
                .probe(TOKENS, ANSWER_LIMIT)
                .await
                .map_err(|error| format!("the engine did not answer after its swap: {error}"))?;
            if answer.same(&self.first) || answer.same(&self.second) {
                return Ok(());
            }
        }
        let (before, after) = (self.first.excerpt(), answer.excerpt());
        Err(format!("the greedy answer changed: {before} before the swap, {after} after it"))
    }
}

fn lost(mechanism: MechanismKind, source: LaunchError) -> TrialError {
    TrialError::Lost { mechanism, source }
}

fn reasons(crossed: &[(MechanismKind, String)]) -> String {
    if crossed.is_empty() {
        return "its swap list is empty".to_owned();
    }
    crossed.iter().map(|(kind, reason)| format!("{kind}: {reason}")).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_has_to_be_much_quicker() {
        let start = |ms| Start(Some(Duration::from_millis(ms)));
        let ms = Duration::from_millis;
        assert!(start(500).is_better_than(ms(1900)).is_some(), "llama.cpp with a small model");
        assert!(start(500).is_better_than(ms(1000)).is_none(), "its caches are worth that");
        assert!(start(50).is_better_than(ms(290)).is_none(), "nobody notices");
        assert!(start(120_000).is_better_than(ms(8000)).is_none(), "vLLM");
        assert!(Start(None).is_better_than(ms(9000)).is_none(), "restart may not be chosen");
    }
}
