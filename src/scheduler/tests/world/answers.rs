//! How moves end: as an action says, so far as it can be, and as the engines that share memory then stand.

use super::*;

impl World {
    pub(in super::super) fn answer(&mut self, model: ModelId, outcome: Outcome) {
        let outcome = self.as_it_can_be(model, outcome);
        let spec = &self.specs[model.index()];
        let engine = &mut self.engines[model.index()];
        let Some(moving) = engine.moving.take() else { return };
        engine.from.clear();
        (engine.broken, engine.settled) = (false, false);
        let percent = if let Outcome::Measured(percent) = outcome { percent } else { 100 };
        let mechanism = if spec.keeps_streams { MechanismKind::Park } else { MechanismKind::Sleep };
        let measure = SwapMeasure {
            mechanism: Some(mechanism),
            resident: scaled(&spec.resident, percent),
            out: spec.out.clone(),
            took: Duration::from_millis(100),
            ..SwapMeasure::default()
        };
        let fault = |retry| EngineFault { detail: "as the test wants it".to_owned(), retry };
        let event = match (moving, outcome) {
            (Move::Stop, _) => {
                engine.end();
                Event::Stopped { model }
            }
            (Move::Start, Outcome::Done | Outcome::Measured(_)) => {
                (engine.up, engine.resident_since) = (true, self.now);
                engine.holds = measure.resident.clone();
                Event::Started { model, measure }
            }
            (Move::In, Outcome::NoRoom) => {
                engine.holds = engine.left.clone();
                Event::FoundNoRoom { model, fault: fault(true) }
            }
            (_, Outcome::NoRoom) => {
                engine.moving = Some(moving);
                return self.answer(model, Outcome::Refused { retry: true });
            }
            (Move::Start, Outcome::Refused { retry } | Outcome::Lost { retry }) => {
                engine.end();
                Event::StartFailed { model, fault: fault(retry) }
            }
            (Move::In, Outcome::Done | Outcome::Measured(_)) => {
                let paused = engine.paused.take().map(|since| self.now.since(since));
                self.longest_pause = self.longest_pause.max(paused.unwrap_or_default());
                (engine.up, engine.resident_since) = (true, self.now);
                engine.holds = measure.resident.clone();
                Event::SwappedIn { model, measure }
            }
            (Move::Out, Outcome::Done | Outcome::Measured(_)) => {
                let mut measure = measure;
                if let Some(part) = engine.part.take() {
                    measure.partial = true;
                    let gpu = engine.holds.gpu.iter().enumerate();
                    let kept = gpu.map(|(at, held)| held.saturating_sub(part).max(spec.out.on_gpu(at)));
                    measure.out.gpu = kept.collect();
                }
                engine.holds = measure.out.clone();
                engine.left = measure.out.clone();
                Event::SwappedOut { model, measure }
            }
            (Move::In, Outcome::Refused { retry }) => {
                engine.holds = engine.left.clone();
                Event::SwapInFailed { model, fault: fault(retry), lost: false }
            }
            (Move::Out, Outcome::Refused { retry }) => {
                engine.part = None;
                engine.up = !engine.again;
                let resident = self.scheduler.view(model).resident;
                engine.holds = if engine.again { engine.left.clone() } else { resident };
                Event::SwapOutFailed { model, fault: fault(retry), lost: false, mechanism: None }
            }
            (Move::In | Move::Out, Outcome::Lost { retry }) => {
                engine.end();
                let lost = true;
                if moving == Move::In {
                    Event::SwapInFailed { model, fault: fault(retry), lost }
                } else {
                    Event::SwapOutFailed { model, fault: fault(retry), lost, mechanism: None }
                }
            }
        };
        self.tell(event);
    }

    /// What can come of a move: nobody comes in on the account of one that did not go, nor goes back on it afterwards.
    fn as_it_can_be(&mut self, model: ModelId, outcome: Outcome) -> Outcome {
        let engine = &self.engines[model.index()];
        let good = matches!(outcome, Outcome::Done | Outcome::Measured(_));
        match (engine.moving, outcome) {
            (Some(Move::In), _) if engine.broken && good => return Outcome::Refused { retry: true },
            (Some(Move::In), _) if good => {
                for from in engine.from.clone() {
                    self.engines[from.index()].settled = true;
                }
            }
            (Some(Move::Out), Outcome::Refused { .. }) if engine.settled => {
                self.give_no_more(model, false);
                return Outcome::Done;
            }
            (Some(Move::Out), _) => self.give_no_more(model, matches!(outcome, Outcome::Refused { .. })),
            _ => {}
        }
        outcome
    }

    /// A swap-out is over; `failed`: whoever took of its memory cannot have it.
    fn give_no_more(&mut self, model: ModelId, failed: bool) {
        for other in &mut self.engines {
            other.broken |= failed && other.from.contains(&model);
            other.from.retain(|from| *from != model);
        }
    }

    pub(super) fn die(&mut self, model: ModelId) {
        if self.scheduler.state(model).has_process() {
            let was_held = self.engines[model.index()].held.is_some();
            self.give_no_more(model, false);
            self.engines[model.index()].end();
            let fault = EngineFault { detail: "it died".to_owned(), retry: true };
            self.tell(if was_held {
                Event::StartFailed { model, fault }
            } else {
                Event::EngineDied { model, fault }
            });
        }
    }
}
