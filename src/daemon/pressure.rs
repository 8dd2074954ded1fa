//! The job's own memory limit: near it the idle engine that was used longest ago is stopped, before the kernel kills one that is
//! not. Of the ledger's host bytes only those count that an engine's end frees: the pool is pinned, whatever is parked in it.
//!
//! ```text
//! free ≥ headroom / 2 ──▶ the ledger has what was planned
//!      in between     ──▶ as it was
//! free < headroom / 4 ──▶ the ledger has so much less than what is held that headroom / 4 would be free: the scheduler lets go
//! ```
//!
//! What is planned (`specs`) keeps `host_headroom` for the user's command. A command that takes more, or an engine that
//! grows, is only seen in what the cgroup counts. Pages that the kernel can drop by itself (of files) do not count.

use super::Core;
use crate::{job::memory, scheduler::Event, units::Bytes};
use std::{path::Path, rc::Rc, time::Duration};

/// Time between two looks; a look reads two small files.
const INTERVAL: Duration = Duration::from_secs(1);

/// Looks for ever, and tells the scheduler. Ends at once where nothing limits the job's memory.
pub async fn watch(core: Rc<Core>) {
    let planned = core.capacity().host;
    let headroom = core.plan.memory.host_headroom;
    let mut pressed = false;
    while let Some(usage) = memory::usage(Path::new("/proc"), Path::new("/sys/fs/cgroup")) {
        if let Some(host) = host_capacity(planned, core.used().host, &usage, headroom, pressed) {
            let now = host < planned;
            if now && !pressed {
                let (held, limit) = (usage.held, usage.limit);
                tracing::warn!(%held, %limit, "the job is near its memory limit: idle engines are stopped to make room");
            } else if pressed && !now {
                tracing::info!(held = %usage.held, limit = %usage.limit, "the job has room in its memory again");
            }
            pressed = now;
            let mut capacity = core.capacity();
            if capacity.host != host {
                capacity.host = host;
                core.set_capacity(capacity);
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// What the ledger should have; `None`: as it is. `used` is what it counts as held.
fn host_capacity(
    planned: Bytes,
    used: Bytes,
    usage: &memory::Usage,
    headroom: Bytes,
    pressed: bool,
) -> Option<Bytes> {
    let free = usage.limit.saturating_sub(usage.held);
    let reserve = Bytes(headroom.0 / 4);
    if free < reserve {
        Some(planned.min(used.saturating_sub(reserve.saturating_sub(free))))
    } else if free >= Bytes(headroom.0 / 2) {
        // What is free beyond the reserve may be taken again; all that was planned, if that much is there.
        Some(planned.min(used + free.saturating_sub(reserve))).filter(|_| pressed).or(Some(planned))
    } else {
        None
    }
}

impl Core {
    /// What the ledgers have and hold, as the scheduler knows it.
    fn used(&self) -> crate::units::Footprint {
        self.look(|state| state.scheduler.ledger().used)
    }

    pub(super) fn capacity(&self) -> crate::units::Footprint {
        self.look(|state| state.scheduler.ledger().capacity)
    }

    pub(super) fn set_capacity(&self, capacity: crate::units::Footprint) {
        self.post(Event::Capacity { capacity });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ledger_shrinks_below_what_is_held_only_near_the_limit() {
        let gib = Bytes::gib;
        let at = |held: u64, used: u64, pressed: bool| {
            let usage = memory::Usage { limit: gib(64), held: gib(held) };
            host_capacity(gib(60), gib(used), &usage, gib(4), pressed)
        };
        assert_eq!(at(20, 20, false), Some(gib(60)), "as planned");
        assert_eq!(at(62, 58, false), Some(gib(60)), "half of the headroom is free");
        assert_eq!(at(63, 50, false), None, "in between");
        assert_eq!(at(64, 50, false), Some(gib(49)), "one GiB has to go");
        assert_eq!(
            at(60, 40, true),
            Some(gib(43)),
            "what was given up may come back as far as there is room"
        );
        assert_eq!(at(20, 10, true), Some(gib(53)));
    }
}
