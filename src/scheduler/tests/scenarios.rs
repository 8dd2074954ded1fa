//! Scenarios: one rule each, read as a transcript.

use super::{super::*, kit::*};
use crate::units::{Bytes, Footprint};
use std::time::Duration;

#[test]
fn boot_starts_as_many_as_fit_and_brings_the_preloaded_back() {
    let mut desk = Desk::new(vec![model("chat", 30).preloaded(), model("coder", 40), model("judge", 60)]);
    desk.tell(Event::Boot);
    assert!(desk.scheduler.is_booting());
    assert_eq!(desk.transcript(), "start coder\nstart chat");
    desk.finish("coder");
    desk.finish("chat");
    assert_eq!(desk.transcript(), "out chat\nout coder");
    desk.finish("coder");
    assert_eq!(desk.transcript(), "");
    desk.finish("chat");
    assert_eq!(desk.transcript(), "start judge");
    desk.finish("judge");
    assert_eq!(desk.transcript(), "out judge", "chat is to be resident when the run begins to serve");
    desk.finish("judge");
    desk.finish("chat");
    assert_eq!(desk.transcript(), "in chat");
    assert!(!desk.scheduler.is_booting());
    assert_eq!((desk.state("chat"), desk.state("judge")), (State::Resident, State::Out));
}

#[test]
fn models_that_fit_together_stay_together() {
    let mut desk = Desk::booted(vec![model("a", 30), model("b", 40)]);
    desk.request("a");
    desk.request("b");
    assert_eq!(desk.transcript(), "dispatch 0 after 0s (0s)\ndispatch 1 after 0s (0s)");
}

#[test]
fn an_idle_engine_makes_room_at_once_and_waiting_requests_go_together() {
    let mut desk = Desk::booted(vec![model("a", 60), model("b", 60)]);
    assert_eq!((desk.state("a"), desk.state("b")), (State::Out, State::Resident));
    desk.request("a");
    desk.request("a");
    assert_eq!(desk.transcript(), "out b");
    desk.pass(1);
    desk.finish("b");
    assert_eq!(desk.transcript(), "in a");
    desk.pass(1);
    desk.finish("a");
    assert_eq!(desk.transcript(), "dispatch 0 after 2s (1s)\ndispatch 1 after 2s (1s)");
}

#[test]
fn a_busy_engine_is_closed_after_patience_and_drained() {
    let mut desk = Desk::booted(vec![model("a", 60), model("b", 60)]);
    desk.pass(100);
    let running = desk.request("b");
    desk.transcript();
    desk.request("a");
    assert_eq!(desk.transcript(), "", "b is busy");
    assert!(matches!(desk.reason("a"), Reason::NoRoom { .. }));
    desk.pass(20);
    desk.request("b");
    assert_eq!(desk.transcript(), "", "b is closed by now, its new request waits");
    assert!(desk.scheduler.view(desk.id("b")).closing);
    desk.pass(100);
    assert_eq!(desk.transcript(), "", "its streams would not survive: it is drained on");
    desk.release(running);
    assert_eq!(desk.transcript(), "out b");
    desk.finish("b");
    desk.finish("a");
    assert_eq!(desk.transcript(), "in a\ndispatch 1 after 120s (0s)");
}

#[test]
fn a_drain_that_takes_too_long_pauses_streams_that_survive_it() {
    let mut desk = Desk::booted(vec![model("a", 60), model("b", 60).keeping_streams()]);
    let running = desk.request("b");
    let short = desk.request("a");
    desk.transcript();
    desk.pass(51);
    assert_eq!(desk.transcript(), "out b with 1");
    desk.finish("b");
    desk.finish("a");
    desk.release(short);
    assert_eq!(desk.transcript(), "in a\ndispatch 1 after 51s (0s)\nout a", "the paused stream wants b back");
    desk.finish("a");
    desk.finish("b");
    desk.release(running);
    assert_eq!((desk.transcript().as_str(), desk.state("b")), ("in b", State::Resident));
}

#[test]
fn an_engine_that_was_closed_is_opened_when_nobody_needs_its_room() {
    let mut desk = Desk::booted(vec![model("a", 60), model("b", 60)]);
    desk.request("b");
    let gone = desk.request("a");
    desk.pass(25);
    desk.request("b");
    desk.transcript();
    desk.cancel(gone);
    assert_eq!(desk.transcript(), "dispatch 2 after 0s (0s)");
}

#[test]
fn what_an_older_one_needs_stays_promised_to_it() {
    let mut desk = Desk::booted(vec![model("big", 70), model("small", 20), model("busy", 50)]);
    desk.request("busy");
    desk.request("big");
    desk.request("small");
    desk.transcript();
    desk.pass(1);
    assert_eq!(desk.transcript(), "", "small would fit, but not beside what big was promised");
}

#[test]
fn a_small_one_passes_where_it_delays_nobody() {
    let mut desk = Desk::booted(vec![model("old", 50), model("busy", 60), model("small", 20)]);
    desk.tell(Event::AskOut { ask: 1, model: desk.id("small") });
    desk.finish("small");
    let last = desk.request("busy");
    desk.request("old");
    desk.pass(25);
    desk.transcript();
    desk.request("small");
    assert_eq!(
        desk.transcript(),
        "in small",
        "20 beside the 50 that are coming, and beside the 60 that are going"
    );
    desk.release(last);
    assert_eq!(desk.transcript(), "out busy");
}

#[test]
fn nobody_passes_one_that_waits_for_an_engine_on_its_way_in() {
    let mut desk = Desk::booted(vec![model("big", 70), model("small", 20), model("first", 60)]);
    let (big, small) = (desk.id("big"), desk.id("small"));
    for model in [big, small, desk.id("first")] {
        desk.tell(Event::AskOut { ask: 0, model });
        desk.run_moves();
    }
    desk.transcript();
    desk.request("first");
    assert_eq!(desk.transcript(), "in first");
    desk.pass(1);
    desk.request("big");
    desk.pass(1);
    desk.request("small");
    assert_eq!(desk.transcript(), "", "it would fit, and be in the way of the big one");
    desk.finish("first");
    assert_eq!(desk.transcript(), "dispatch 0 after 2s (2s)");
    assert_eq!((desk.state("big"), desk.state("small")), (State::Out, State::Out));
}

#[test]
fn a_refused_swap_out_spares_the_engine_and_another_goes() {
    let mut desk = Desk::booted(vec![model("a", 60), model("b", 40), model("c", 40)]);
    desk.request("a");
    assert_eq!(desk.transcript(), "out b\nout c");
    let (b, c) = (desk.id("b"), desk.id("c"));
    desk.tell(Event::SwapOutFailed { model: b, fault: Desk::fault(true), lost: false, mechanism: None });
    assert_eq!((desk.transcript().as_str(), desk.state("b")), ("", State::Resident));
    desk.tell(Event::SwappedOut { model: c, measure: desk.measure(c) });
    assert_eq!(desk.transcript(), "");
    assert!(
        matches!(desk.reason("a"), Reason::NoRoom { ref held_by, .. } if matches!(held_by[0].because, Keeps::Spared { .. }))
    );
    desk.pass(6);
    assert_eq!(desk.transcript(), "out b", "tried again when the time is over");
}

#[test]
fn a_dead_engine_is_started_again_with_growing_delays_and_given_up() {
    let mut desk = Desk::booted(vec![model("a", 60)]);
    let old = desk.request("a");
    let a = desk.id("a");
    desk.transcript();
    desk.tell(Event::EngineDied { model: a, fault: Desk::fault(true) });
    desk.request("a");
    for delay in [1, 2, 4, 8] {
        assert!(matches!(desk.reason("a"), Reason::Backoff { .. }));
        desk.pass(delay);
        assert_eq!(desk.transcript(), "start a");
        desk.tell(Event::StartFailed { model: a, fault: Desk::fault(true) });
    }
    assert_eq!(desk.transcript(), "reject 1 engine_failed");
    desk.release(old);
    desk.request("a");
    assert_eq!(desk.transcript(), "reject 2 engine_failed");
    desk.tell(Event::AskIn { ask: 7, model: a });
    desk.finish("a");
    assert_eq!(desk.transcript(), "start a\nanswer 7 ok");
}

#[test]
fn bounds_on_queue_and_wait() {
    let mut desk = Desk::booted(vec![model("a", 60), model("b", 60).pinned()]);
    for _ in 0..5 {
        desk.request("a");
    }
    assert_eq!(desk.transcript(), "reject 4 queue_full");
    assert!(
        matches!(desk.reason("a"), Reason::NoRoom { ref held_by, .. } if held_by[0].because == Keeps::Pinned)
    );
    desk.pass(300);
    assert_eq!(desk.transcript().matches("waited_too_long").count(), 4);
}

#[test]
fn what_can_never_fit_is_refused_at_once() {
    let mut desk = Desk::booted(vec![model("a", 90), model("b", 10)]);
    desk.request("a");
    assert_eq!(desk.transcript(), "reject 0 never_fits");
}

#[test]
fn nothing_comes_in_that_the_job_has_no_time_for() {
    let mut desk = Desk::booted(vec![model("a", 60), model("b", 60)]);
    desk.request("b");
    desk.request("a");
    desk.transcript();
    desk.tell(Event::JobEnds { remaining: Duration::from_secs(20) });
    assert_eq!(desk.transcript(), "");
    desk.pass(15);
    assert_eq!(desk.transcript(), "reject 1 job_ending");
    desk.request("a");
    assert_eq!(desk.transcript(), "reject 2 job_ending");
}

#[test]
fn near_the_end_only_what_can_be_done_by_then_is_admitted() {
    let mut desk = Desk::booted(vec![model("a", 30), model("b", 30)]);
    let (long, short) = (desk.request("a"), desk.request("b"));
    desk.pass(1);
    desk.release(short);
    desk.pass(40);
    desk.release(long);
    desk.transcript();
    desk.tell(Event::JobEnds { remaining: Duration::from_secs(45) });
    let (long, short) = (desk.request("a"), desk.request("b"));
    assert_eq!(desk.transcript(), "dispatch 2 after 0s (0s)\ndispatch 3 after 0s (0s)");
    desk.pass(1);
    desk.release(short);
    desk.pass(9);
    desk.request("a");
    desk.request("b");
    assert_eq!(desk.transcript(), "reject 4 job_ending\ndispatch 5 after 0s (0s)");
    desk.release(long);
}

#[test]
fn the_margin_bounds_what_is_refused() {
    let mut desk = Desk::booted(vec![model("a", 30)]);
    let long = desk.request("a");
    desk.pass(600);
    desk.release(long);
    desk.transcript();
    desk.tell(Event::JobEnds { remaining: Duration::from_secs(61) });
    desk.request("a");
    desk.pass(2);
    desk.request("a");
    assert_eq!(desk.transcript(), "dispatch 1 after 0s (0s)\nreject 2 job_ending", "the margin is 60 s");
}

#[test]
fn the_end_rejects_who_waits_and_lets_run_what_runs() {
    let mut desk = Desk::booted(vec![model("a", 60), model("b", 60)]);
    let running = desk.request("b");
    desk.request("a");
    desk.transcript();
    desk.tell(Event::Drain);
    assert_eq!((desk.transcript().as_str(), desk.scheduler.running()), ("reject 1 draining", 1));
    desk.release(running);
    desk.request("b");
    assert_eq!(desk.transcript(), "reject 2 draining");
}

#[test]
fn operators_asks_are_answered() {
    let mut desk = Desk::booted(vec![model("a", 60), model("b", 60)]);
    let running = desk.request("b");
    desk.transcript();
    desk.tell(Event::AskOut { ask: 1, model: desk.id("b") });
    assert_eq!(desk.transcript(), "");
    desk.release(running);
    desk.finish("b");
    assert_eq!(desk.transcript(), "out b\nanswer 1 ok");
    desk.tell(Event::AskIn { ask: 2, model: desk.id("b") });
    desk.tell(Event::AskOut { ask: 3, model: desk.id("b") });
    desk.finish("b");
    assert_eq!(desk.transcript(), "in b\nanswer 2 asked to go out meanwhile\nout b");
    desk.finish("b");
    assert_eq!(desk.transcript(), "answer 3 ok");
}

#[test]
fn an_idle_engine_goes_out_after_its_ttl() {
    let mut desk = Desk::booted(vec![model("a", 60).idle_ttl(60)]);
    let request = desk.request("a");
    desk.pass(100);
    desk.release(request);
    desk.transcript();
    desk.pass(59);
    assert_eq!(desk.transcript(), "");
    desk.pass(1);
    assert_eq!(desk.transcript(), "out a");
}

#[test]
fn where_the_host_has_no_room_an_engine_is_stopped_instead() {
    let mut desk = Desk::booted(vec![model("a", 60), model("b", 60)]);
    let capacity = capacity(1).with_host(Bytes::gib(100));
    desk.tell(Event::Capacity { capacity });
    desk.request("a");
    assert_eq!(desk.transcript(), "stop b", "60 of 100 GiB are a's own");
    desk.finish("b");
    assert_eq!((desk.transcript().as_str(), desk.state("b")), ("in a", State::Cold));
}

#[test]
fn near_the_jobs_memory_limit_the_coldest_idle_engine_is_stopped() {
    let cpu = |name| ModelBuilder::on_cpu(name, 30);
    let mut desk = Desk::booted(vec![cpu("cold"), cpu("warm"), cpu("busy").pinned()]);
    desk.pass(60);
    let warm = desk.request("warm");
    desk.run_moves();
    desk.release(warm);
    let busy = desk.request("busy");
    desk.run_moves();
    desk.transcript();
    // 90 GiB are held; the command takes more than was kept for it.
    desk.tell(Event::Capacity { capacity: capacity(1).with_host(Bytes::gib(80)) });
    assert_eq!(desk.transcript(), "stop cold");
    desk.finish("cold");
    desk.tell(Event::Capacity { capacity: capacity(1).with_host(Bytes::gib(20)) });
    assert_eq!(desk.transcript(), "stop warm", "not enough, but all there is: nobody loses a request");
    desk.finish("warm");
    desk.request("cold");
    assert_eq!(desk.transcript(), "", "it waits for the memory");
    desk.release(busy);
    desk.tell(Event::Capacity { capacity: capacity(1) });
    assert_eq!(desk.transcript(), "start cold");
}

#[test]
fn near_the_limit_the_coldest_engine_goes_whose_end_frees_host_memory() {
    let parked = |name, own| model(name, 20).parked(own);
    let models = vec![parked("pooled", 0), parked("cold", 3), parked("warm", 3), model("hot", 20)];
    let mut desk = Desk::new(models);
    let room = |host: u64| capacity(1).with_host(Bytes::gib(host)).with_pool(Bytes::gib(60));
    desk.tell(Event::Capacity { capacity: room(400) });
    desk.boot();
    for name in ["pooled", "cold", "warm", "hot"] {
        desk.pass(60);
        let request = desk.request(name);
        desk.run_moves();
        desk.release(request);
        let model = desk.id(name);
        desk.tell(Event::AskOut { ask: 0, model });
        desk.run_moves();
    }
    desk.transcript();
    // 26 GiB are held beside the pool, which is pinned whoever ends.
    desk.tell(Event::Capacity { capacity: room(24) });
    assert_eq!(desk.transcript(), "stop cold");
    desk.finish("cold");
    desk.tell(Event::Capacity { capacity: room(5) });
    assert_eq!(desk.transcript(), "stop hot", "a colder one would not do, and is not needed beside it");
}

#[test]
fn a_measure_over_the_capacity_lets_idle_engines_go() {
    let mut desk = Desk::booted(vec![model("a", 30), model("b", 40)]);
    let b = desk.id("b");
    for (name, ask) in [("a", 0), ("b", 1)] {
        desk.pass(10);
        desk.tell(Event::AskOut { ask, model: desk.id(name) });
        desk.finish(name);
        desk.tell(Event::AskIn { ask: 2, model: desk.id(name) });
        if name == "a" {
            desk.finish(name);
        }
    }
    desk.transcript();
    let measure = SwapMeasure { resident: Footprint::on_gpus(&[0], Bytes::gib(55)), ..desk.measure(b) };
    desk.tell(Event::SwappedIn { model: b, measure });
    assert_eq!(desk.scheduler.ledger().over.on_gpu(0), Bytes::gib(5));
    assert_eq!(desk.transcript(), "answer 2 ok\nout a");
}

#[test]
fn a_model_on_two_gpus_waits_for_both() {
    let mut desk = Desk::with_gpus(
        2,
        vec![model("left", 50), model("right", 50).on(&[1]), model("wide", 60).on(&[0, 1])],
    );
    desk.boot();
    assert_eq!(
        (desk.state("left"), desk.state("right"), desk.state("wide")),
        (State::Out, State::Out, State::Resident)
    );
    desk.request("right");
    assert_eq!(desk.transcript(), "out wide");
    desk.finish("wide");
    desk.request("left");
    desk.finish("right");
    desk.finish("left");
    assert_eq!(desk.transcript(), "in right\nin left\ndispatch 0 after 0s (0s)\ndispatch 1 after 0s (0s)");
}

#[test]
fn one_victim_may_make_room_for_two() {
    let mut desk =
        Desk::booted(vec![model("a", 40), model("b", 40), model("wide", 80), model("c", 30).on(&[1])]);
    desk.tell(Event::AskIn { ask: 0, model: desk.id("wide") });
    desk.run_moves();
    desk.transcript();
    desk.request("a");
    desk.request("b");
    assert_eq!(desk.transcript(), "out wide");
    desk.finish("wide");
    assert_eq!(desk.transcript(), "in a\nin b");
}

#[test]
fn it_says_why_in_words() {
    let mut desk = Desk::with_gpus(1, vec![model("a", 60), model("b", 60)]);
    desk.boot();
    desk.pass(10);
    desk.request("b");
    desk.request("a");
    let said = |desk: &Desk, name: &str| desk.scheduler.explain(desk.id(name), desk.now);
    assert_eq!(
        said(&desk, "a").text,
        "it lacks 40.0 GiB of GPU 0; b holds 60.0 GiB of GPU 0 (busy, not closed for another 10.0 s)"
    );
    desk.pass(10);
    assert_eq!(said(&desk, "a").text, "others are leaving to make room for it");
    assert_eq!(said(&desk, "b").text, "it makes room for a: closed to new ones, 1 request still running");
    assert_eq!(said(&desk, "b").history[0].text, "0.0 s ago: closed for a with 1 request running");
}

#[test]
fn streams_are_paused_in_time_for_the_longest_wait() {
    let mut desk = Desk::booted(vec![model("a", 60), model("b", 60).keeping_streams()]);
    desk.scheduler.bounds.drain_limit = Duration::from_secs(3600);
    desk.request("b");
    desk.request("a");
    desk.transcript();
    let moves = Duration::from_secs(2);
    desk.pass(300 - 2 * moves.as_secs());
    assert_eq!(desk.transcript(), "out b with 1", "the hour of draining would be longer than the wait");
    desk.pass(1);
    desk.finish("b");
    desk.pass(1);
    desk.finish("a");
    assert_eq!(desk.transcript(), "in a\ndispatch 1 after 298s (1s)");
}

#[test]
fn two_that_keep_streams_take_turns_of_their_least_residency() {
    let both = || vec![model("a", 60).keeping_streams(), model("b", 60).keeping_streams()];
    let mut desk = Desk::booted(both());
    let (first, second) = (desk.request("b"), desk.request("a"));
    let mut turns = Vec::new();
    for _ in 0..2_000 {
        desk.pass(1);
        let moves: Vec<&str> = ["a", "b"].into_iter().filter(|name| desk.state(name).is_moving()).collect();
        for name in moves {
            let came_in = desk.state(name) == State::SwappingIn;
            desk.finish(name);
            came_in.then(|| turns.push((name, desk.now)));
        }
    }
    assert!(turns.len() > 20, "neither is forgotten: {turns:?}");
    for pair in turns.windows(2) {
        assert_ne!(pair[0].0, pair[1].0);
        let turn = pair[1].1.since(pair[0].1);
        let longest = bounds().patience + bounds().drain_limit + Duration::from_secs(4);
        assert!(turn >= bounds().min_resident && turn <= longest, "{turn:?}");
    }
    desk.release(first);
    desk.release(second);
}
