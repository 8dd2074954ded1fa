//! Starts: one after another where engines size themselves, read and launched ahead where they do not mind.

use super::{super::*, kit::*};
use crate::units::{Bytes, Footprint};

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
