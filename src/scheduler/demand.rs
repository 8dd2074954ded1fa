//! How much a model is wanted: since when, how urgently, and how often.

use crate::units::Moment;
use std::time::Duration;

/// How urgently a model is wanted; the smaller one is placed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Urgency {
    /// Somebody waits: a request, an operator, a stream that was paused by a swap. May close a busy engine.
    Awaited,
    /// It has to be started (again) so that it can be swapped in quickly when somebody asks. Takes room from idle ones.
    Start,
    /// The config wants it resident. Takes room from idle ones, stops none.
    Preload,
}

/// A model's wish to be resident.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Demand {
    pub(super) urgency: Urgency,
    pub(super) since: Moment,
}

/// An estimate of arrivals a second that forgets.
///
/// It decays by `τ / (τ + Δt)` rather than by an exponential: only basic arithmetic, so a replay on another machine
/// computes the same bits.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rate {
    per_second: f64,
    at: Moment,
}

impl Rate {
    const TAU: f64 = 30.0;

    pub(super) fn arrival(&mut self, now: Moment) {
        *self = Rate { per_second: self.at(now) + 1.0 / Self::TAU, at: now };
    }

    /// Arrivals a second, seen from `now`.
    pub(super) fn at(&self, now: Moment) -> f64 {
        self.per_second * Self::TAU / (Self::TAU + now.since(self.at).as_secs_f64())
    }
}

/// How long `patience` is borne when `running` (the busy side's demand) stands against `waiting`: the more the waiting
/// side outweighs the busy one, the sooner; never longer than `patience`.
pub(super) fn scaled_patience(patience: Duration, running: f64, waiting: f64) -> Duration {
    let share = running / (running + waiting).max(f64::MIN_POSITIVE);
    patience.mul_f64(share.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_with_arrivals_and_decays_without() {
        let mut rate = Rate::default();
        (0..600).for_each(|n| rate.arrival(Moment(n * 100_000)));
        let busy = rate.at(Moment(60_000_000));
        assert!((5.0..15.0).contains(&busy), "ten a second, estimated {busy}");
        assert!(rate.at(Moment(600_000_000)) < busy / 10.0);
    }

    #[test]
    fn patience_shrinks_for_the_many_and_never_grows() {
        let patience = Duration::from_secs(10);
        assert!(scaled_patience(patience, 1.0, 99.0) <= Duration::from_millis(101));
        assert!(scaled_patience(patience, 99.0, 1.0) <= patience);
        assert_eq!(scaled_patience(patience, 0.0, 0.0), Duration::ZERO);
    }
}
