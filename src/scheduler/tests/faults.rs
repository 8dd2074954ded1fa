//! What goes wrong: reports that come too late, moves that are refused, memory that is not there.

use super::{super::*, kit::*};

#[test]
fn a_late_report_of_a_loss_says_nothing_of_the_next_start() {
    let mut desk = Desk::booted(vec![model("a", 30), model("b", 30)]);
    let model = desk.id("b");
    desk.tell(Event::AskOut { ask: 1, model });
    assert_eq!(desk.transcript(), "out b");
    desk.tell(Event::EngineDied { model, fault: Desk::fault(true) });
    desk.pass(2);
    assert_eq!(desk.state("b"), State::Starting);
    desk.tell(Event::SwapOutFailed { model, fault: Desk::fault(true), lost: true });
    desk.tell(Event::SwapInFailed { model, fault: Desk::fault(true), lost: true });
    assert_eq!(desk.state("b"), State::Starting);
}
