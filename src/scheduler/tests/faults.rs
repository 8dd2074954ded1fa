//! What goes wrong: reports that come too late, moves that are refused, memory that is not there.

use super::{super::*, kit::*};
use crate::units::{Bytes, Footprint, MechanismKind};

#[test]
fn a_late_report_of_a_loss_says_nothing_of_the_next_start() {
    let mut desk = Desk::booted(vec![model("a", 30), model("b", 30)]);
    let model = desk.id("b");
    desk.tell(Event::AskOut { ask: 1, model });
    assert_eq!(desk.transcript(), "out b");
    desk.tell(Event::EngineDied { model, fault: Desk::fault(true) });
    desk.pass(2);
    assert_eq!(desk.state("b"), State::Starting);
    desk.tell(Event::SwapOutFailed { model, fault: Desk::fault(true), lost: true, mechanism: None });
    desk.tell(Event::SwapInFailed { model, fault: Desk::fault(true), lost: true });
    assert_eq!(desk.state("b"), State::Starting);
}

#[test]
fn one_that_finds_a_strangers_memory_in_its_place_waits_and_is_not_given_up() {
    let mut desk = Desk::booted(vec![model("a", 60), model("b", 60)]);
    desk.request("a");
    desk.finish("b");
    let found = Event::FoundNoRoom { model: desk.id("a"), fault: Desk::fault(true) };
    for again in [1, 2, 4, 8, 10, 10, 10] {
        assert_eq!(desk.state("a"), State::SwappingIn);
        desk.tell(found.clone());
        assert!(matches!(desk.reason("a"), Reason::Backoff { .. }));
        desk.pass(again - 1);
        assert_eq!(desk.state("a"), State::Out);
        desk.pass(1);
    }
    desk.transcript();
    desk.finish("a");
    assert_eq!(desk.transcript(), "dispatch 0 after 45s (0s)");
}

#[test]
fn one_that_is_out_in_part_and_frees_no_more_is_out_as_far_as_it_was() {
    let models = [model("a", 45), model("b", 30), model("c", 70)];
    let mut desk = Desk::new(models.into_iter().map(ModelBuilder::keeping_streams).collect());
    desk.parks = true;
    desk.boot();
    let c = desk.id("c");
    desk.request("a");
    desk.run_moves();
    assert_eq!((desk.state("a"), desk.state("c")), (State::Resident, State::Out));
    assert_eq!(desk.scheduler.model(c).held.on_gpu(0), Bytes::gib(35));
    desk.transcript();
    desk.request("b");
    assert!(desk.transcript().contains("out c"), "a is busy");
    let request = desk.request("c");
    desk.tell(Event::SwapOutFailed { model: c, fault: Desk::fault(true), lost: false, mechanism: None });
    assert_eq!(desk.state("c"), State::Out);
    assert_eq!(desk.scheduler.model(c).held.on_gpu(0), Bytes::gib(35));
    let told = desk.transcript();
    assert!(!told.contains(&format!("dispatch {}", request.0)), "its gate is closed: {told}");
}

#[test]
fn the_end_waits_for_paused_streams_that_are_on_their_way_back() {
    let mut desk = Desk::booted(vec![model("a", 60).keeping_streams(), model("b", 60).keeping_streams()]);
    desk.request("b");
    let short = desk.request("a");
    desk.pass(51);
    desk.finish("b");
    desk.finish("a");
    assert_eq!((desk.state("b"), desk.scheduler.running()), (State::Out, 1), "a's alone");
    desk.release(short);
    desk.finish("a");
    assert_eq!((desk.state("b"), desk.scheduler.running()), (State::SwappingIn, 1));
    desk.tell(Event::Drain);
    desk.finish("b");
    assert_eq!(desk.scheduler.running(), 1);
}

#[test]
fn over_the_capacity_what_can_go_goes_though_it_is_not_enough() {
    let mut desk = Desk::with_gpus(2, vec![model("a", 30), model("b", 30).on(&[1]), model("c", 30)]);
    desk.boot();
    desk.request("b");
    desk.request("c");
    desk.transcript();
    // On either GPU more is missing than idle engines hold: on the second one there is none.
    let little = Footprint::on_gpus(&[0, 1], Bytes::gib(20)).with_host(Bytes::gib(400)).with_slots(2);
    desk.tell(Event::Capacity { capacity: little });
    assert_eq!(desk.transcript(), "out a");
}

#[test]
fn over_the_capacity_one_that_refused_is_asked_again_though_nobody_waits() {
    let mut desk = Desk::booted(vec![model("a", 60)]);
    let little = Footprint::on_gpus(&[0], Bytes::gib(50)).with_host(Bytes::gib(400)).with_slots(2);
    desk.tell(Event::Capacity { capacity: little });
    assert_eq!(desk.transcript(), "out a");
    desk.tell(Event::SwapOutFailed {
        model: desk.id("a"),
        fault: Desk::fault(true),
        lost: false,
        mechanism: None,
    });
    desk.pass(4);
    assert_eq!(desk.transcript(), "");
    desk.pass(2);
    assert_eq!(desk.transcript(), "out a");
}

#[test]
fn after_a_fall_down_the_ladder_streams_that_it_would_cut_are_drained() {
    let mut desk = Desk::booted(vec![model("a", 60), model("b", 60).keeping_streams()]);
    let running = desk.request("b");
    desk.request("a");
    desk.pass(51);
    assert_eq!(desk.transcript(), "dispatch 0 after 0s (0s)\nout b with 1");
    let (model, mechanism) = (desk.id("b"), Some(MechanismKind::Restart));
    desk.tell(Event::SwapOutFailed { model, fault: Desk::fault(true), lost: false, mechanism });
    desk.pass(200);
    assert_eq!(desk.transcript(), "", "it is drained");
    desk.release(running);
    assert_eq!(desk.transcript(), "out b");
}
