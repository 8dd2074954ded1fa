//! Whether an engine is up: its health path is asked again and again while it starts, and while one that was launched
//! ahead of its turn is held.
//!
//! The first request goes out 20 ms after the launch; the pauses between them grow to a quarter of a second.

use super::{ControlError, Engine, Running, address, http::Call, http::send};
use crate::router::gate::Upstream;
use ::http::{Method, StatusCode};
use std::time::{Duration, Instant};

/// Pause before the first attempt; each following one is half as long again.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// Longest pause between attempts.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// Time the first health request has; each one that is not answered gives the next one twice as long. A server that is
/// still starting may accept a connection and never look at it.
const FIRST_PATIENCE: Duration = Duration::from_millis(250);
/// Longest time one health request may take.
const LONGEST_PATIENCE: Duration = Duration::from_secs(5);

/// Why an engine does not count as up.
pub(super) enum NotUp {
    /// Not yet: what the last request met.
    Yet(String),
    /// Another user's process answers on its port.
    Stranger(u16),
}

/// Requests to one engine's health path, one after the other.
pub(super) struct Asking {
    pause: Duration,
    patience: Duration,
}

impl Asking {
    /// Nothing was asked yet.
    pub(super) fn begin() -> Self {
        Asking { pause: FIRST_PAUSE, patience: FIRST_PATIENCE }
    }

    /// Whether it has been asked for a while.
    pub(super) fn is_slow(&self) -> bool {
        self.pause == LONGEST_PAUSE
    }

    /// A pause and a request, both over by `deadline` where there is one.
    pub(super) async fn again(
        &mut self,
        engine: &Engine,
        running: &Running,
        deadline: Option<Instant>,
    ) -> Result<(), NotUp> {
        let at_most = |time: Duration| {
            deadline.map_or(time, |at| time.min(at.saturating_duration_since(Instant::now())))
        };
        tokio::time::sleep(at_most(self.pause)).await;
        self.pause = (self.pause * 3 / 2).min(LONGEST_PAUSE);
        let (path, key) = (engine.plan.health_path.as_str(), running.key.as_deref());
        let call = Call { method: Method::GET, path, headers: &[], body: vec![], key };
        match send(&running.upstream, call, at_most(self.patience)).await {
            // Up, under another health path than the plan's: the request that follows decides.
            Ok(reply) if reply.status.is_success() || reply.status == StatusCode::NOT_FOUND => {
                match running.upstream {
                    Upstream::Tcp(at) if !address::belongs_to_us(at) => Err(NotUp::Stranger(at.port())),
                    _ => Ok(()),
                }
            }
            Ok(reply) => {
                Err(NotUp::Yet(format!("{} {}", reply.status, reply.excerpt()).trim_end().to_owned()))
            }
            Err(error) => {
                if matches!(error, ControlError::Timeout { .. }) {
                    self.patience = (self.patience * 2).min(LONGEST_PATIENCE);
                }
                Err(NotUp::Yet(error.to_string()))
            }
        }
    }
}

impl Engine {
    /// Comes back when one that is held is up, before its turn: it will load its model on its first request. Never for
    /// another one.
    pub async fn up_early(&self) {
        let Some(running) = self.running().filter(|_| self.is_held()) else {
            return std::future::pending().await;
        };
        let mut asking = Asking::begin();
        while asking.again(self, running, None).await.is_err() {}
    }
}
