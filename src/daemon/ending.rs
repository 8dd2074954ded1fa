//! The order in which a run ends.
//!
//! ```text
//!   Serving ──signal, stop, command done──► Draining: 503 for new requests; open streams may finish
//!      Draining ──all released, or half of the time──► Stopping: engines TERM, grace, KILL
//!      Stopping ──all gone──► Closing: keys and endpoint removed; the gpu server gives its pool back, in the time there is
//!      Closing ──► Sweeping: nothing of this run's is left in /proc, the run directory removed ──► Ended
//! ```
//!
//! The whole of it has to fit into the site's KillWait: after that Slurm kills without asking.

use std::time::Duration;

/// KillWait where no site says otherwise (slurm.conf(5)).
const DEFAULT_KILL_WAIT: Duration = Duration::from_secs(30);
/// Kept for the sweep and for Slurm's own delays (KILL was seen 300 ms before its time, and TERM late on a busy node).
const RESERVE: Duration = Duration::from_millis(2000);
/// What of that is the sweep's.
const SWEEP: Duration = Duration::from_millis(800);
/// For a pool, where nobody will kill.
const POOL_AT_LEISURE: Duration = Duration::from_secs(60);

/// How long each step of the end may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndPlan {
    /// Open streams may finish within this.
    pub drain: Duration,
    /// Engines have this long to be gone, their own grace between TERM and KILL included.
    pub stop: Duration,
    /// From the beginning until the gpu server has to be gone, whether its pool is given back or not: the kernel does the rest.
    pub gone: Duration,
}

impl EndPlan {
    /// The site will kill: its KillWait, half for open streams, half for the engines, less a reserve.
    pub fn within(kill_wait: Option<Duration>) -> Self {
        let all =
            kill_wait.unwrap_or(DEFAULT_KILL_WAIT).saturating_sub(RESERVE).max(Duration::from_millis(500));
        EndPlan { drain: all / 2, stop: all / 2, gone: all + RESERVE - SWEEP }
    }

    /// What is left of it when so much time is over: a command has had its part of the drain before the streams.
    pub fn after(self, passed: Duration) -> Self {
        let less = |time: Duration| time.saturating_sub(passed);
        EndPlan { drain: less(self.drain), gone: less(self.gone), ..self }
    }

    /// Nobody hurries, as when the command has ended: what the engines' own grace asks for.
    pub fn at_leisure(longest_grace: Duration) -> Self {
        let (drain, stop) = (DEFAULT_KILL_WAIT, longest_grace + RESERVE);
        EndPlan { drain, stop, gone: drain + stop + POOL_AT_LEISURE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_fits_into_kill_wait() {
        for seconds in [2, 5, 30, 300] {
            let kill_wait = Duration::from_secs(seconds);
            let plan = EndPlan::within(Some(kill_wait));
            assert!(plan.drain + plan.stop < kill_wait && plan.gone < kill_wait, "{seconds}: {plan:?}");
            let left = plan.after(plan.drain);
            assert!(
                plan.drain + left.drain + left.stop < kill_wait,
                "the command took the whole drain: {left:?}"
            );
        }
    }
}
