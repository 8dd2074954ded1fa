//! Parked engines: parts that go out, and switches whose two halves overlap.

use super::{super::*, kit::*};
use crate::units::{Bytes, RequestId};

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
