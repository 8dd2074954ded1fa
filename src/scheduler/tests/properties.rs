//! Random histories. What holds in every one of them is judged in [`super::world`]; here is what holds of the whole.

use super::{
    super::*,
    kit::{ModelBuilder, bounds, model, setup},
    world::{Action, Outcome, World},
};
use crate::units::Bytes;
use proptest::{prelude::*, test_runner::FileFailurePersistence};
use std::time::Duration;

/// As many cases as `PROPTEST_CASES` says; what failed once is kept beside this file and tried first.
fn config() -> ProptestConfig {
    let persistence = FileFailurePersistence::WithSource("regressions");
    ProptestConfig {
        max_shrink_iters: 300,
        failure_persistence: Some(Box::new(persistence)),
        ..ProptestConfig::default()
    }
}

fn specs() -> impl Strategy<Value = Vec<ModelSpec>> {
    let gpus = prop_oneof![3 => Just(vec![0]), 2 => Just(vec![1]), 1 => Just(vec![0, 1])];
    let preparation = prop::option::weighted(0.6, (0u64..100, 1u64..100));
    let starts = (prop::bool::weighted(0.7), prop_oneof![Just(0u64), 1u64..500], preparation);
    let one = (5u64..85, gpus, any::<bool>(), 0u8..10, prop::option::weighted(0.2, 10u64..100), starts);
    let one = one.prop_map(|(gib, gpus, keeps_streams, rare, idle_ttl, (measures, weights, preparation))| {
        let model = if rare == 9 { ModelBuilder::on_cpu("cpu", gib) } else { model("gpu", gib).on(&gpus) };
        let spec = model.build();
        let idle_ttl = idle_ttl.map(Duration::from_secs);
        let measures = measures && !spec.gpus.is_empty();
        let weights = Bytes::gib(weights);
        let preparation = preparation.filter(|_| !spec.gpus.is_empty()).map(|(host, longest)| Preparation {
            host: Bytes::gib(host),
            longest: Duration::from_secs(longest),
        });
        ModelSpec {
            keeps_streams,
            idle_ttl,
            pin: rare == 0,
            preload: rare == 1,
            measures,
            weights,
            preparation,
            ..spec
        }
    });
    prop::collection::vec(one, 1..7)
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        12 => Just(Outcome::Done),
        2 => (80u64..130).prop_map(Outcome::Measured),
        1 => any::<bool>().prop_map(|retry| Outcome::Refused { retry }),
        1 => Just(Outcome::NoRoom),
        1 => (0u8..8).prop_map(|n| Outcome::Lost { retry: n > 0 }),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    let one = 0usize..64;
    prop_oneof![
        20 => one.clone().prop_map(Action::Arrive),
        3 => one.clone().prop_map(Action::Cancel),
        10 => one.clone().prop_map(Action::Release),
        20 => (one.clone(), outcome()).prop_map(|(at, outcome)| Action::Answer(at, outcome)),
        6 => one.clone().prop_map(Action::Answered),
        6 => one.clone().prop_map(Action::Warmed),
        6 => one.clone().prop_map(Action::Imported),
        20 => (0u64..40_000).prop_map(Action::Pass),
        1 => one.clone().prop_map(Action::Die),
        1 => one.clone().prop_map(Action::AskIn),
        1 => one.clone().prop_map(Action::AskOut),
        1 => (one.clone(), any::<bool>()).prop_map(|(at, pinned)| Action::Pin(at, pinned)),
        1 => (50u64..120).prop_map(Action::Capacity),
    ]
}

/// A history; some end with the job.
fn history() -> impl Strategy<Value = Vec<Action>> {
    let end = prop_oneof![
        3 => Just(vec![]),
        1 => (0u64..60).prop_map(|seconds| vec![Action::JobEnds(seconds)]),
        1 => Just(vec![Action::Drain]),
    ];
    let actions = |len| prop::collection::vec(action(), 0..len);
    (actions(150), end, actions(30)).prop_map(|(mut all, end, rest)| {
        all.extend(end);
        all.extend(rest);
        all
    })
}

proptest! {
    #![proptest_config(config())]

    /// Never over a ledger, nobody evicted against the rules, every request ends once and in order, no wait beyond the
    /// bound; and once nothing goes wrong any more, everything comes to rest.
    #[test]
    fn every_history_keeps_the_rules(specs in specs(), history in history()) {
        let mut world = World::new(setup(specs, 2));
        history.iter().for_each(|action| world.act(action));
        world.calm_down();
        world.assert_quiet();
    }

    /// The same events bring the same effects.
    #[test]
    fn a_history_replays(specs in specs(), history in history()) {
        let mut world = World::new(setup(specs.clone(), 2));
        history.iter().for_each(|action| world.act(action));
        let mut again = Scheduler::new(setup(specs, 2));
        for (now, event, effects) in &world.journal {
            let mut replayed = Vec::new();
            again.step(*now, event.clone(), &mut replayed);
            prop_assert_eq!(effects, &replayed);
        }
    }

    /// Where every engine's streams survive a swap and nothing fails, a wait is bounded by the bounds, however long the
    /// requests are: each other model takes its turn once at most. The same holds for streams that were paused.
    #[test]
    fn waits_are_bounded_by_the_bounds(models in 2usize..5, arrivals in prop::collection::vec((0usize..8, 0u64..30_000), 1..60)) {
        let specs = (0..models).map(|_| model("one", 60).keeping_streams().build()).collect();
        let mut world = World::new(setup(specs, 1));
        world.calm_down();
        let promptly = |world: &mut World| while let Some(model) = world.moving().first().copied() {
            world.pass(Duration::from_millis(100));
            world.answer(model, Outcome::Done);
        };
        for (model, pause) in arrivals {
            world.act(&Action::Arrive(model));
            for _ in 0..pause / 500 {
                promptly(&mut world);
                world.pass(Duration::from_millis(500));
            }
        }
        for _ in 0..2_000 {
            promptly(&mut world);
            world.pass(Duration::from_millis(500));
        }
        let turn = bounds().patience.max(bounds().min_resident) + bounds().drain_limit + Duration::from_secs(2);
        let bound = turn * models as u32;
        prop_assert!(world.longest <= bound, "{:?} of at most {bound:?}", world.longest);
        let pause = world.longest_pause;
        prop_assert!(pause <= bound, "streams were paused for {pause:?} of at most {bound:?}");
        prop_assert!(world.waiting.is_empty());
    }
}
