//! Who goes: the choice of victims, as a pure function.
//!
//! The cheapest set that covers what is missing on every resource, idle engines before busy ones, busy ones only when
//! the waiting model's patience has passed, and an engine is stopped (to be started again later) only when nothing else
//! could ever make the room.

use crate::units::{Bytes, Footprint, ModelId, Moment};
use smallvec::SmallVec;

/// The victims, in the order in which they leave.
pub(super) type Victims = SmallVec<[ModelId; 8]>;

/// An engine that could make room.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) model: ModelId,
    /// What its leaving frees.
    pub(super) frees: Footprint,
    pub(super) kind: Kind,
    /// Whether it can free a part of its GPU memory alone.
    pub(super) parts: Parts,
    /// Seconds of work and of expected delay that its leaving costs.
    pub(super) cost: f64,
    /// When it last had a request; of two that cost the same the one that was used longer ago goes.
    pub(super) last_used: Moment,
}

/// Whether an engine can free a part of its GPU memory alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parts {
    /// All of it or nothing.
    No,
    /// It can.
    May,
    /// It must: the pool has no room for all of it.
    Must,
}

impl Candidate {
    /// What it has to free on each GPU, where a part of it covers `lack`: the coldest first, and the rest need not move. A
    /// small remainder is not worth a second move.
    pub(super) fn share_of(&self, lack: &Footprint) -> Option<Bytes> {
        let wanted = lack.masked_by(&self.frees);
        if self.parts == Parts::No || !wanted.host.is_zero() || !wanted.pool.is_zero() || wanted.slots > 0 {
            return None;
        }
        let share = wanted.gpu.iter().max().copied().filter(|share| !share.is_zero())?;
        let most = self.frees.gpu.iter().max().copied().unwrap_or_default();
        (self.parts == Parts::Must || share.0 <= most.0 / 8 * 7).then_some(share.min(most))
    }
}

/// The GPU bytes of a footprint, at most `bytes` on each GPU.
pub(super) fn at_most(frees: &Footprint, bytes: Bytes) -> Footprint {
    Footprint { gpu: frees.gpu.iter().map(|its| *its.min(&bytes)).collect(), ..Footprint::default() }
}

/// What its leaving means for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Nobody uses it: it can go at once.
    Idle,
    /// It has requests; it may be closed and drained from `ready` on.
    Busy { ready: Moment },
    /// Nobody uses it, but it can only be stopped: its next use is a start.
    Stop,
}

/// What to do about missing room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// These leave now (busy ones: as soon as they are drained).
    Go(Victims),
    /// Busy engines would do, but none may be closed before then.
    NotBefore(Moment),
    /// Not even all candidates together would do.
    Impossible,
}

/// Chooses who makes room for `lack`.
pub(super) fn choose(now: Moment, lack: &Footprint, candidates: &[Candidate]) -> Choice {
    let ready = |c: &&Candidate| match c.kind {
        Kind::Idle => true,
        Kind::Busy { ready } => ready <= now,
        Kind::Stop => false,
    };
    let later = candidates
        .iter()
        .filter_map(|c| match c.kind {
            Kind::Busy { ready } if ready > now => Some(ready),
            _ => None,
        })
        .min();
    let go = |pass: &dyn Fn(&&Candidate) -> bool| cover(lack, candidates.iter().filter(pass).collect());

    if let Some(victims) = go(&|c| c.kind == Kind::Idle).or_else(|| go(&ready)) {
        return Choice::Go(victims);
    }
    let without_stops = go(&|c| c.kind != Kind::Stop).is_some();
    if !without_stops && let Some(victims) = go(&|c| c.kind == Kind::Stop || ready(c)) {
        return Choice::Go(victims);
    }
    match later {
        Some(at) if without_stops || go(&|_| true).is_some() => Choice::NotBefore(at),
        _ => Choice::Impossible,
    }
}

/// The cheapest cover: greedily the cheapest first, less those that prove unneeded; or one alone, where that is cheaper.
fn cover(lack: &Footprint, mut candidates: Vec<&Candidate>) -> Option<Victims> {
    candidates.retain(|c| !c.frees.masked_by(lack).is_zero());
    candidates.sort_by(|a, b| {
        (a.kind.class().cmp(&b.kind.class()))
            .then(a.cost.total_cmp(&b.cost))
            .then(a.last_used.cmp(&b.last_used))
            .then(a.model.cmp(&b.model))
    });
    let alone = candidates.iter().find(|c| lack.within(&c.frees));

    let mut set: Vec<&Candidate> = Vec::new();
    let mut left = lack.clone();
    for candidate in &candidates {
        if left.is_zero() {
            break;
        }
        if !candidate.frees.masked_by(&left).is_zero() {
            left = left.minus(&candidate.frees);
            set.push(candidate);
        }
    }
    if !left.is_zero() {
        return None;
    }
    for at in (0..set.len()).rev() {
        let others = set.iter().enumerate().filter(|(n, _)| *n != at);
        let freed = others.fold(Footprint::default(), |sum, (_, c)| sum.plus(&c.frees));
        if lack.within(&freed) {
            set.remove(at);
        }
    }
    let weight = |set: &[&Candidate]| {
        let worst = set.iter().map(|c| c.kind.class()).max().unwrap_or(0);
        (worst, set.iter().map(|c| c.cost).sum::<f64>())
    };
    match alone {
        Some(one) if weight(&[one]) < weight(&set) => Some(SmallVec::from_elem(one.model, 1)),
        _ => Some(set.iter().map(|c| c.model).collect()),
    }
}

impl Kind {
    /// Idle before busy before stopped, whenever the busy one becomes ready.
    fn class(self) -> u8 {
        match self {
            Kind::Idle => 0,
            Kind::Busy { .. } => 1,
            Kind::Stop => 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(model: u32, gib: u64, kind: Kind, cost: f64) -> Candidate {
        let frees = Footprint::on_gpus(&[0], Bytes::gib(gib));
        Candidate {
            model: ModelId(model),
            frees,
            kind,
            parts: Parts::No,
            cost,
            last_used: Moment(u64::from(model)),
        }
    }

    fn chosen(lack: u64, candidates: &[Candidate]) -> Choice {
        choose(Moment(100), &Footprint::on_gpus(&[0], Bytes::gib(lack)), candidates)
    }

    fn go(models: &[u32]) -> Choice {
        Choice::Go(models.iter().copied().map(ModelId).collect())
    }

    const BUSY: Kind = Kind::Busy { ready: Moment(50) };
    const BUSY_LATER: Kind = Kind::Busy { ready: Moment(500) };

    #[test]
    fn idle_goes_before_busy_even_if_dearer() {
        let all = [candidate(0, 40, BUSY, 0.1), candidate(1, 40, Kind::Idle, 9.0)];
        assert_eq!(chosen(30, &all), go(&[1]));
        assert_eq!(chosen(60, &all), go(&[1, 0]));
    }

    #[test]
    fn the_cheapest_set_leaves_out_what_proves_unneeded() {
        let all = [candidate(0, 5, Kind::Idle, 1.0), candidate(1, 40, Kind::Idle, 2.0)];
        assert_eq!(chosen(30, &all), go(&[1]));
        let three = [0, 1, 2].map(|n| candidate(n, 10, Kind::Idle, 1.0));
        let one = candidate(3, 30, Kind::Idle, 2.5);
        assert_eq!(
            chosen(30, &[three.as_slice(), &[one]].concat()),
            go(&[3]),
            "one that is cheaper than three"
        );
    }

    #[test]
    fn a_part_is_enough_where_it_covers_the_lack() {
        let parked = Candidate { parts: Parts::May, ..candidate(0, 40, Kind::Idle, 1.0) };
        let lack = |gib| Footprint::on_gpus(&[0], Bytes::gib(gib));
        assert_eq!(parked.share_of(&lack(10)), Some(Bytes::gib(10)));
        assert_eq!(parked.share_of(&lack(39)), None, "all of it, for the little that would stay");
        assert_eq!(parked.share_of(&lack(60)), None);
        assert_eq!(candidate(0, 40, Kind::Idle, 1.0).share_of(&lack(10)), None);
        let squeezed = Candidate { parts: Parts::Must, ..parked };
        assert_eq!(squeezed.share_of(&lack(39)), Some(Bytes::gib(39)));
    }

    #[test]
    fn of_equal_cost_the_least_recently_used_goes() {
        let all = [candidate(7, 40, Kind::Idle, 1.0), candidate(2, 40, Kind::Idle, 1.0)];
        assert_eq!(chosen(40, &all), go(&[2]));
    }

    #[test]
    fn a_busy_engine_is_waited_for_and_preferred_to_a_stop() {
        let stop = candidate(1, 40, Kind::Stop, 1.0);
        assert_eq!(
            chosen(30, &[candidate(0, 40, BUSY_LATER, 1.0), stop.clone()]),
            Choice::NotBefore(Moment(500))
        );
        assert_eq!(chosen(30, &[candidate(0, 10, BUSY_LATER, 1.0), stop.clone()]), go(&[1]));
        assert_eq!(chosen(45, &[candidate(0, 10, BUSY_LATER, 1.0), stop]), Choice::NotBefore(Moment(500)));
    }

    #[test]
    fn more_than_all_together_is_impossible() {
        assert_eq!(
            chosen(90, &[candidate(0, 40, BUSY, 1.0), candidate(1, 40, Kind::Stop, 1.0)]),
            Choice::Impossible
        );
    }
}
