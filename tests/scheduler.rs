//! The scheduler outside a job: a real run's journal replayed, and simulated runs.

use std::time::Duration;
use swapserve::{
    scheduler::{Bounds, ModelSpec, RestartPolicy, Scheduler, Setup},
    sim::{Costs, JournalError, Outcome, Plain, Shape, Victim, generate, read, replay, simulate},
    units::{Bytes, Footprint, MechanismKind, ModelId, Moment},
};

/// Three CPU engines that took turns in one running slot, by freezing; one has an `idle_ttl`. Written by
/// `swapserve run --journal`.
const RUN: &str = include_str!("scheduler/three-engines.jsonl");

#[test]
fn a_real_run_replays() {
    let replayed = replay(RUN.as_bytes()).unwrap();
    let lines = RUN.lines().count() as u64;
    assert_eq!(replayed.events + replayed.effects + 1, lines, "each line after the setup was compared");
}

#[test]
fn a_run_that_was_killed_replays_to_its_last_whole_line() {
    replay(&RUN.as_bytes()[..RUN.len() - 20]).unwrap();
}

#[test]
fn a_different_decision_is_found_where_it_was_made() {
    let at = RUN.lines().position(|line| line.contains("swap_in")).unwrap();
    let other: Vec<&str> = RUN.lines().enumerate().filter(|(n, _)| *n != at).map(|(_, line)| line).collect();
    let error = replay(other.join("\n").as_bytes()).unwrap_err();
    let JournalError::Diverged(divergence) = error else { panic!("{error}") };
    assert_eq!(divergence.line, at as u64 + 1);
    assert_ne!(divergence.recorded, divergence.replayed);
}

#[test]
fn what_is_no_journal_is_refused_with_its_line() {
    let events = RUN.split_once('\n').unwrap().1;
    assert!(matches!(replay(events.as_bytes()), Err(JournalError::NoSetup { line: 1 })));
    let error = replay(RUN.replacen("boot", "shoe", 1).as_bytes()).unwrap_err();
    assert!(matches!(error, JournalError::Line { line: 2, .. }), "{error}");
}

/// Four models of 50 GiB on one GPU of 80 GiB.
fn setup() -> Setup {
    let model = |at: usize| {
        let resident = Footprint::on_gpus(&[0], Bytes::gib(50));
        ModelSpec {
            name: format!("m{at}").into(),
            pin: false,
            preload: false,
            gpus: [0].into_iter().collect(),
            starting: resident.clone(),
            out: Footprint::default().with_host(Bytes::gib(50)),
            resident,
            keeps_streams: true,
            idle_ttl: None,
            restart: RestartPolicy::default(),
            measures: false,
            weights: Bytes(0),
            preparation: None,
        }
    };
    Setup {
        models: (0..4).map(model).collect(),
        capacity: Footprint::on_gpus(&[0], Bytes::gib(80)).with_host(Bytes::gib(500)),
        ceiling: Footprint::default(),
        bounds: Bounds {
            queue_limit: 1_000,
            max_wait: Duration::from_secs(600),
            min_resident: Duration::from_secs(5),
            patience: Duration::from_secs(10),
            drain_limit: Duration::from_secs(10),
            end_margin: Duration::from_secs(60),
        },
    }
}

fn costs() -> Vec<Costs> {
    vec![Costs::of(MechanismKind::Park, Bytes::gib(50)); 4]
}

fn load() -> Shape {
    let (length, takes) = (Duration::from_secs(3600), Duration::from_secs(15));
    Shape { per_hour: 900.0, length, takes, burst: 3 }
}

fn longest(outcome: &Outcome) -> Duration {
    outcome.waits.iter().flatten().max().copied().unwrap_or_default()
}

#[test]
fn a_simulation_is_the_same_every_time() {
    let (setup, calls) = (setup(), generate(7, 4, &load()));
    let run = || simulate(&mut Scheduler::new(setup.clone()), &setup, &costs(), &calls);
    let outcome = run();
    assert_eq!(outcome, run());
    assert_eq!(outcome.waits.iter().map(Vec::len).sum::<usize>(), calls.len(), "everybody was served");
    assert_ne!(calls, generate(8, 4, &load()));
}

#[test]
fn under_contention_waits_stay_bounded_where_plain_policies_let_them_grow() {
    let (setup, calls) = (setup(), generate(7, 4, &load()));
    let ours = simulate(&mut Scheduler::new(setup.clone()), &setup, &costs(), &calls);
    // Each of the three others takes one turn at most: patience, drain, and the two moves.
    assert!(longest(&ours) <= Duration::from_secs(3 * 24), "{:?}", longest(&ours));
    for victim in [Victim::LeastRecentlyUsed, Victim::FirstIn] {
        let plain = simulate(&mut Plain::new(&setup, victim), &setup, &costs(), &calls);
        assert!(longest(&ours) < longest(&plain), "{victim:?}: {:?}", longest(&plain));
    }
}

#[test]
fn a_trace_is_read_and_its_mistakes_have_their_line() {
    let find = |name: &str| (name == "chat").then_some(ModelId(0));
    let text = "{\"at\": 2, \"model\": \"chat\", \"takes\": 1.5}\n\n{\"at\": 0.5, \"model\": \"chat\", \"takes\": 1}\n";
    let calls = read(text.as_bytes(), find).unwrap();
    assert_eq!(calls[0].at, Moment(500_000), "in the order of time");
    for (line, says) in [
        ("{\"at\": 1, \"model\": \"coder\", \"takes\": 1}", "line 1 of the trace asks for coder"),
        ("{\"at\": -1, \"model\": \"chat\", \"takes\": 1}", "line 1 of the trace has a time below zero"),
        ("at 1 chat", "line 1 of the trace is not {"),
    ] {
        let error = read(line.as_bytes(), find).unwrap_err().to_string();
        assert!(error.starts_with(says), "{error}");
    }
}
