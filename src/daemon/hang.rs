//! Finds out that an engine hangs: its process lives and answers nothing.
//!
//! An engine may be silent for minutes with good reason: a server of one thread answers no health request while it computes.
//! So silence alone is not enough; the tree must have used no CPU meanwhile either. An engine that refuses connections, or says
//! itself that it is broken, needs no such proof.

use crate::engine::{ControlError, Engine, HealthError};
use std::time::{Duration, Instant};

/// Health requests in one limit.
const LOOKS: u32 = 4;
/// How long connections may be refused.
const REFUSED: Duration = Duration::from_secs(5);
/// The share of one core that a tree may use and still count as idle: threads that only wait wake up now and then.
const IDLE: f64 = 0.02;

/// Comes back with the reason when the engine has hung for `limit`.
pub async fn until_hung(engine: &Engine, limit: Duration) -> String {
    let mut silent: Option<(Instant, Duration)> = None;
    let mut pause = limit / LOOKS;
    loop {
        tokio::time::sleep(pause).await;
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
