//! Scenarios: one rule each, read as a transcript.

use super::{super::*, kit::*};
use crate::units::{Bytes, Footprint, RequestId};
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
fn engines_that_measure_start_one_after_another_on_a_gpu() {
    let on = |name, gpu| model(name, 30).on(&[gpu]).measuring();
    let mut desk = Desk::with_gpus(2, vec![on("a", 0), on("b", 0), on("other", 1)]);
    desk.tell(Event::Boot);
    assert_eq!(desk.transcript(), "start a\nstart other", "b would count a's memory as its own");
    desk.tell(Event::Answered { model: desk.id("a") });
    assert_eq!(desk.transcript(), "", "a's trial would change what b finds free");
    assert!(matches!(desk.reason("b"), Reason::Quiet { is_measuring: false, .. }));
    desk.finish("a");
    assert_eq!(desk.transcript(), "start b");
    assert_eq!(desk.state("a"), State::Resident);
}

#[test]
fn nothing_is_swapped_beside_a_start_that_measures_until_it_has_answered() {
    let mut desk = Desk::booted(vec![model("a", 30), model("b", 20), model("new", 20).measuring()]);
    let (a, new) = (desk.id("a"), desk.id("new"));
    for (ask, name) in [(0, "a"), (1, "new")] {
        desk.tell(Event::AskOut { ask, model: desk.id(name) });
        desk.run_moves();
    }
    desk.tell(Event::EngineDied { model: new, fault: Desk::fault(true) });
    desk.pass(1);
    assert_eq!(desk.state("new"), State::Starting);
    desk.transcript();
    desk.request("a");
    desk.tell(Event::AskOut { ask: 2, model: desk.id("b") });
    desk.pass(10);
    assert_eq!(desk.transcript(), "", "one would take what it finds free, the other would free more");
    assert_eq!(
        desk.scheduler.explain(a, desk.now).text,
        "it waits until new, which is being started on the same GPU, has taken its memory: a swap beside that would \
         change what it finds free"
    );
    desk.tell(Event::Answered { model: new });
    assert_eq!(desk.transcript(), "in a\nout b", "its trial bears both");
}

#[test]
fn the_next_in_line_is_read_ahead_while_another_starts() {
    let mut desk = Desk::new(vec![
        model("a", 60).measuring().weighing(50),
        model("b", 60).measuring().weighing(50),
        model("huge", 60).weighing(500),
        model("c", 60).measuring().weighing(50),
    ]);
    desk.tell(Event::Boot);
    assert_eq!(desk.transcript(), "warm a\nstart a", "a's own imports take longer than its first bytes");
    desk.tell(Event::Warmed { model: desk.id("a") });
    assert_eq!(desk.transcript(), "warm b");
    desk.tell(Event::Warmed { model: desk.id("b") });
    assert_eq!(desk.transcript(), "warm c", "huge would push out what the others need");
    desk.finish("a");
    desk.finish("a");
    assert_eq!(desk.transcript(), "out a\nstart b");
    desk.tell(Event::Warmed { model: desk.id("c") });
    assert_eq!(desk.transcript(), "");
}

/// Three of 60 GiB that measure and can be launched ahead, in a run that begins.
fn three_ahead() -> Desk {
    let one = |name| model(name, 60).measuring().preparable();
    let mut desk = Desk::new(vec![one("a"), one("b"), one("c")]);
    desk.tell(Event::Boot);
    desk
}

#[test]
fn the_next_one_imports_while_another_starts_and_goes_on_in_its_turn() {
    let mut desk = three_ahead();
    assert_eq!(desk.transcript(), "start a\nprepare b", "one at a time on a GPU");
    let b = desk.id("b");
    assert_eq!(desk.scheduler.view(b).held, Footprint::default().with_host(Bytes::gib(2)));
    assert!(
        desk.scheduler
            .explain(b, desk.now)
            .text
            .starts_with("it was launched ahead of its turn and imports; ")
    );
    desk.tell(Event::Imported { model: b });
    assert_eq!(desk.transcript(), "", "c's turn is not in sight");
    assert!(
        desk.scheduler
            .explain(b, desk.now)
            .text
            .contains("held before its first use of the GPU; it waits until a,")
    );
    desk.tell(Event::Answered { model: desk.id("a") });
    desk.finish("a");
    assert_eq!(desk.transcript(), "out a", "b is held until a is out");
    assert_eq!(desk.state("b"), State::Preparing);
    desk.finish("a");
    assert_eq!(desk.transcript(), "proceed b\nprepare c");
    assert_eq!(desk.scheduler.view(b).held.on_gpu(0), Bytes::gib(60));
}

#[test]
fn one_whose_imports_take_longer_than_the_start_before_it_goes_on_at_once() {
    let mut desk = three_ahead();
    desk.finish("a");
    desk.finish("a");
    assert_eq!(desk.transcript(), "start a\nprepare b\nout a\nproceed b\nprepare c");
    desk.tell(Event::Imported { model: desk.id("b") });
    assert_eq!(desk.transcript(), "", "late, and of no interest");
}

#[test]
fn one_that_ends_while_it_is_held_is_started_from_nothing() {
    let mut desk = three_ahead();
    desk.transcript();
    desk.tell(Event::StartFailed { model: desk.id("b"), fault: Desk::fault(true) });
    assert_eq!(desk.transcript(), "prepare c", "b is tried again later");
    desk.finish("a");
    desk.finish("a");
    desk.pass(1);
    assert_eq!(desk.transcript(), "out a\nproceed c", "b is behind now");
    desk.finish("c");
    desk.finish("c");
    assert_eq!(desk.transcript(), "out c\nstart b", "not held again");
}

#[test]
fn one_that_was_put_off_in_the_same_moment_is_not_lost() {
    let mut desk = three_ahead();
    desk.transcript();
    desk.finish("a");
    desk.finish("a");
    assert_eq!(desk.transcript(), "out a\nproceed b\nprepare c");
    // It had ended before it was told to go on.
    desk.tell(Event::StartFailed { model: desk.id("b"), fault: Desk::fault(true) });
    assert_eq!(desk.transcript(), "proceed c");
}

#[test]
fn one_is_prepared_while_the_room_for_it_is_made_and_put_off_when_nobody_waits() {
    let mut desk = Desk::booted(vec![model("a", 60), model("b", 60).preparable()]);
    desk.tell(Event::EngineDied { model: desk.id("b"), fault: Desk::fault(true) });
    desk.scheduler.models[1].wish = None;
    let stream = desk.request("a");
    desk.run_moves();
    desk.pass(5);
    desk.transcript();
    let waits = desk.request("b");
    assert_eq!(desk.transcript(), "", "a is busy, and for how long nobody knows");
    desk.release(stream);
    assert_eq!(desk.transcript(), "prepare b\nout a");
    desk.cancel(waits);
    assert_eq!(desk.transcript(), "stop b");
    desk.finish("b");
    desk.finish("a");
    assert_eq!(desk.state("b"), State::Cold);
    desk.request("b");
    assert_eq!(desk.transcript(), "start b", "the GPU is free");
}

#[test]
fn one_whose_turn_does_not_come_in_time_is_stopped_and_not_held_again() {
    let mut desk = three_ahead();
    desk.tell(Event::Imported { model: desk.id("b") });
    desk.transcript();
    desk.pass(60);
    assert_eq!(desk.transcript(), "stop b\nprepare c");
    desk.finish("b");
    desk.finish("a");
    desk.finish("a");
    assert_eq!(desk.transcript(), "out a\nstart b", "its turn is before c's all the same");
    let history = desk.scheduler.explain(desk.id("b"), desk.now).history;
    assert!(
        history[1].text.ends_with("its turn did not come within its start_timeout"),
        "{}",
        history[1].text
    );
}

#[test]
fn what_is_prepared_gives_way_to_what_the_host_is_needed_for() {
    let mut desk = three_ahead();
    desk.transcript();
    desk.tell(Event::Capacity { capacity: capacity(1).with_host(Bytes::gib(61)) });
    assert_eq!(desk.transcript(), "stop b", "a may leave 60 GiB there when it goes out");
    desk.finish("b");
    assert_eq!(desk.transcript(), "", "and there is still no room");
    let mut ending = three_ahead();
    ending.transcript();
    ending.tell(Event::Drain);
    assert_eq!(ending.transcript(), "stop b", "its turn never comes");
}

#[test]
fn gpus_have_one_ahead_each_and_two_import_at_a_time() {
    let on = |name, gpu: usize| model(name, 60).on(&[gpu]).measuring().preparable();
    let first = ["a", "b", "c"].iter().enumerate().map(|(gpu, name)| on(name, gpu));
    let next = ["d", "e", "f"].iter().enumerate().map(|(gpu, name)| on(name, gpu));
    let mut desk = Desk::with_gpus(3, first.chain(next).collect());
    desk.scheduler.ledger.set_capacity(capacity(3).with_host(Bytes::gib(1000)));
    desk.tell(Event::Boot);
    assert_eq!(desk.transcript(), "start a\nstart b\nstart c\nprepare d\nprepare e");
    desk.tell(Event::Imported { model: desk.id("e") });
    assert_eq!(desk.transcript(), "prepare f");
}

#[test]
fn a_start_gets_its_quiet_though_others_swap_all_the_time() {
    let mut desk = Desk::booted(vec![model("a", 20), model("b", 20), model("new", 30).measuring()]);
    let new = desk.id("new");
    desk.tell(Event::AskOut { ask: 0, model: desk.id("a") });
    desk.finish("a");
    desk.tell(Event::AskOut { ask: 1, model: desk.id("b") });
    desk.transcript();
    desk.tell(Event::EngineDied { model: new, fault: Desk::fault(true) });
    desk.pass(1);
    desk.request("new");
    assert_eq!(desk.transcript(), "", "b is on its way out");
    desk.pass(1);
    desk.request("a");
    assert_eq!(desk.transcript(), "", "new came first, and needs it quiet");
    desk.finish("b");
    assert_eq!(desk.transcript(), "answer 1 ok\nstart new");
    desk.tell(Event::Answered { model: new });
    assert_eq!(desk.transcript(), "in a");
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

/// Parked engines of these sizes, each started.
fn parked(models: Vec<ModelBuilder>) -> Desk {
    let mut desk = Desk::new(models.into_iter().map(ModelBuilder::keeping_streams).collect());
    desk.parks = true;
    desk.boot();
    desk
}

#[test]
fn of_two_parked_engines_only_what_does_not_fit_moves() {
    let mut desk = parked(vec![model("a", 45), model("b", 45)]);
    assert_eq!((desk.state("a"), desk.state("b")), (State::Out, State::Resident));
    // The first time all of it is out, later 35 GiB of it are there.
    for (wanted, other, room) in [("a", "b", "35.0 GiB"), ("b", "a", "0 B"), ("a", "b", "0 B")] {
        let request = desk.request(wanted);
        let early = format!("in {wanted} from {other}, {room} at once");
        assert_eq!(desk.transcript(), format!("out {other}, 10.0 GiB of it\n{early}"));
        let out =
            desk.done(&Effect::SwapOut { model: desk.id(other), in_flight: 0, free: Some(Bytes::gib(10)) });
        desk.tell(out.expect("a swap-out ends"));
        assert_eq!(desk.transcript(), "", "it is on its way already");
        assert_eq!(desk.scheduler.model(desk.id(other)).held.on_gpu(0), Bytes::gib(35));
        desk.finish(wanted);
        desk.release(request);
        desk.transcript();
        desk.pass(10);
    }
}

#[test]
fn on_a_switch_of_parked_engines_one_comes_in_while_the_other_goes_out() {
    let mut desk = parked(vec![model("a", 60), model("b", 60)]);
    assert_eq!((desk.state("a"), desk.state("b")), (State::Out, State::Resident));
    let request = desk.request("a");
    assert_eq!(desk.transcript(), "out b, 40.0 GiB of it\nin a from b, 20.0 GiB at once");
    // The report of the one who comes may be the first of the two: it is made when the other one cannot fail any more.
    desk.finish("a");
    assert_eq!(desk.transcript(), format!("dispatch {} after 0s (0s)", request.0));
    assert_eq!((desk.state("a"), desk.state("b")), (State::Resident, State::SwappingOut));
    desk.finish("b");
    assert!(desk.scheduler.ledger().over.is_zero());
}

#[test]
fn who_came_early_for_nothing_is_out_as_before_and_waits_for_room() {
    let mut desk = parked(vec![model("a", 60), model("b", 60)]);
    let (a, b) = (desk.id("a"), desk.id("b"));
    desk.request("a");
    desk.transcript();
    desk.tell(Event::SwapOutFailed { model: b, fault: Desk::fault(true), lost: false, mechanism: None });
    assert_eq!((desk.state("a"), desk.state("b")), (State::SwappingIn, State::Resident));
    desk.tell(Event::SwapInFailed { model: a, fault: Desk::fault(true), lost: false });
    assert_eq!((desk.state("a"), desk.scheduler.view(a).failures), (State::Out, 0), "it is not its fault");
    assert!(desk.scheduler.ledger().over.is_zero());
    assert_eq!(desk.transcript(), "", "b is spared for a while");
    desk.pass(6);
    assert_eq!(desk.transcript(), "out b, 40.0 GiB of it", "and now a waits for the report");
    desk.run_moves();
    desk.finish("b");
    assert_eq!(desk.transcript(), "in a");
    desk.finish("a");
    assert_eq!(desk.state("a"), State::Resident);
}

#[test]
fn nobody_comes_in_before_an_engine_that_the_driver_takes_out_is_gone() {
    let models = [model("a", 60), model("b", 60)];
    let mut desk = Desk::booted(models.into_iter().map(ModelBuilder::keeping_streams).collect());
    desk.request("a");
    assert_eq!(desk.transcript(), "out b");
}

#[test]
fn what_is_freed_for_who_waits_longest_is_not_taken_by_another() {
    let parked = [model("a", 20).keeping_streams(), model("b", 75).keeping_streams()];
    let mut desk = Desk::new(parked.into_iter().chain([model("c", 70)]).collect());
    desk.parks = true;
    desk.boot();
    desk.request("b");
    desk.run_moves();
    desk.release(RequestId(0));
    desk.pass(10);
    desk.transcript();
    desk.request("c");
    desk.pass(1);
    desk.request("a");
    let asked = desk.transcript();
    assert_eq!(asked, "out b, 65.0 GiB of it", "c is not parked and waits for the report, a waits behind it");
    desk.finish("b");
    assert_eq!(desk.transcript(), "in c");
}

#[test]
fn what_a_parked_engine_kept_goes_when_somebody_needs_it_too() {
    let mut desk = parked(vec![model("a", 45), model("b", 45), model("c", 70)]);
    for name in ["a", "b"] {
        let request = desk.request(name);
        desk.run_moves();
        desk.release(request);
        desk.pass(10);
    }
    desk.transcript();
    // a has 35 GiB left on the GPU, b all of its 45: neither alone makes room for 70.
    desk.request("c");
    desk.run_moves();
    let asked = desk.transcript();
    assert_eq!(desk.state("c"), State::Resident);
    assert!(!asked.contains("stop"), "nobody has to start again: {asked}");
}

#[test]
fn paused_streams_keep_no_memory_from_who_waited_before_they_were_paused() {
    let mut desk = parked(vec![model("a", 60), model("b", 30), model("c", 70)]);
    let stream = desk.request("a");
    desk.run_moves();
    desk.transcript();
    desk.request("b");
    desk.request("c");
    desk.pass(51);
    desk.run_moves();
    let asked = desk.transcript();
    assert!(
        asked.starts_with("out a with 1, 30.0 GiB of it\nin b from a, 0 B at once\ndispatch 1"),
        "{asked}"
    );
    desk.pass(60);
    desk.run_moves();
    let asked = desk.transcript();
    assert_eq!(desk.state("c"), State::Resident, "a and b have what c lacks, and c came first: {asked}");
    desk.release(stream);
}

#[test]
fn for_one_that_starts_a_parked_engine_goes_whole() {
    let models = [model("a", 45), model("b", 45)];
    let mut desk = Desk::new(models.into_iter().map(ModelBuilder::keeping_streams).collect());
    desk.parks = true;
    desk.tell(Event::Boot);
    assert_eq!(desk.transcript(), "start a");
    desk.finish("a");
    assert_eq!(desk.transcript(), "out a", "all of it: who starts looks for more than is reserved for it");
}
