//! Finds out that an engine is of no use any more, though its first process lives.
//!
//! | what is seen | proof that is asked for |
//! | --- | --- |
//! | no answer to a health request | the tree uses no CPU meanwhile: a server of one thread answers nothing while it computes |
//! | connections refused, or an answer that says «broken» (5xx) | none but its lasting |
//! | a process of the tree has ended (a worker, a rank) | a one-token request that is not answered either |

use crate::{
    engine::{ControlError, Engine, HealthError},
    process::Stat,
};
use std::time::{Duration, Instant};

/// Health requests in one limit.
const LOOKS: u32 = 4;
/// Longest pause between looks at who lives.
const STEP: Duration = Duration::from_secs(1);
/// How long connections may be refused.
const REFUSED: Duration = Duration::from_secs(5);
/// The share of one core that a tree may use and still count as idle: threads that only wait wake up now and then.
const IDLE: f64 = 0.02;

/// Comes back with the reason when the engine has to be started again; `limit` is how long it may be silent. `members` are
/// those that lived when it was last looked at, before it went out perhaps: who has ended since is missed at once.
pub async fn until_useless(engine: &Engine, members: &mut Vec<Stat>, limit: Duration) -> String {
    let mut silent: Option<(Instant, Duration)> = None;
    let mut pause = limit / LOOKS;
    if let Err(why) = loses_nobody(engine, members, limit).await {
        return why;
    }
    loop {
        let look = Instant::now() + pause;
        while let Some(left) = look.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            tokio::time::sleep(left.min(STEP)).await;
            if let Err(why) = loses_nobody(engine, members, limit).await {
                return why;
            }
        }
        let (asked, used) = (Instant::now(), engine.cpu_time());
        let error = match engine.health(limit / LOOKS).await {
            Ok(()) => {
                (silent, pause) = (None, limit / LOOKS);
                continue;
            }
            Err(error) => error,
        };
        let (since, used_then) = *silent.get_or_insert((asked, used));
        let (silence, used) = (since.elapsed(), engine.cpu_time().saturating_sub(used_then));
        let (bound, proven) = match &error {
            HealthError::Silent(ControlError::Connect { .. }) => (REFUSED.min(limit), true),
            HealthError::Broken { .. } => (limit, true),
            HealthError::Silent(_) => (limit, used.as_secs_f64() < IDLE * silence.as_secs_f64()),
        };
        if silence >= bound && proven {
            return format!("it has not been well for {} s: {error}", silence.as_secs());
        }
        pause = pause.min(bound / LOOKS);
    }
}

fn living(engine: &Engine) -> Vec<Stat> {
    engine.members().unwrap_or_default().into_iter().filter(|stat| !stat.is_dead()).collect()
}

/// Notes who lives now. One that has ended since may have been a helper that was done, or half of the engine: a request tells.
async fn loses_nobody(engine: &Engine, before: &mut Vec<Stat>, limit: Duration) -> Result<(), String> {
    let now = living(engine);
    let lives = |stat: &&Stat| now.iter().any(|it| it.id == stat.id);
    let gone = before.iter().find(|stat| !lives(stat)).cloned();
    // After a start all are others.
    let same = before.iter().any(|stat| lives(&stat));
    *before = now;
    let Some(gone) = gone.filter(|_| same && engine.is_alive()) else { return Ok(()) };
    let answered = engine.probe(1, limit).await;
    answered.map(drop).map_err(|error| {
        format!("its process {} ({}) ended, and it does not answer any more: {error}", gone.id, gone.comm)
    })
}
