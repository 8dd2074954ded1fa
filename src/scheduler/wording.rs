//! The words for people: a sentence for each reason and each past decision.

use super::{
    Scheduler,
    explain::{Keeps, OutWhy, PutOff, Reason, What},
    state::State,
};
use crate::units::{ModelId, Moment};
use std::time::Duration;

impl Scheduler {
    fn name(&self, id: ModelId) -> &str {
        &self.model(id).spec.name
    }

    /// What to say first of one that is prepared.
    pub(super) fn prepared_text(&self, id: ModelId) -> String {
        let model = self.model(id);
        match (model.state, model.imported) {
            (State::Preparing, false) => "it was launched ahead of its turn and imports; ".to_owned(),
            (State::Preparing, true) => {
                "it was launched ahead of its turn and is held before its first use of the GPU; ".to_owned()
            }
            _ => String::new(),
        }
    }

    /// A reason as a sentence.
    pub(super) fn text(&self, reason: &Reason, now: Moment) -> String {
        let left = |until: &Moment| seconds(until.since(now));
        match reason {
            Reason::Serving { leases: 0 } => "it is resident and idle".to_owned(),
            Reason::Serving { leases } => format!("it is resident and answers {}", requests(*leases)),
            Reason::Draining { leases, room_for: Some(whom) } => {
                format!(
                    "it makes room for {}: closed to new ones, {} still running",
                    self.name(*whom),
                    requests(*leases)
                )
            }
            Reason::Draining { leases, room_for: None } => {
                format!("it was asked to go out; {} still running", requests(*leases))
            }
            Reason::Moving { since } => format!("on its way for {}", seconds(now.since(*since))),
            Reason::NotWanted => "nobody asks for it".to_owned(),
            Reason::RoomIsMade => "others are leaving to make room for it".to_owned(),
            Reason::NoRoom { lack, held_by } => {
                let holders = held_by.iter().map(|holder| {
                    let because = match &holder.because {
                        Keeps::Pinned => "pinned".to_owned(),
                        Keeps::Busy { until } => format!("busy, not closed for another {}", left(until)),
                        Keeps::Spared { until } => {
                            format!("could not be swapped out, spared for {}", left(until))
                        }
                        Keeps::Moving => "on its way".to_owned(),
                        Keeps::Leaving => "leaving".to_owned(),
                        Keeps::NotEnough => "its room alone is not enough".to_owned(),
                    };
                    format!("{} holds {} ({because})", holder.model, holder.holds)
                });
                let holders: Vec<String> = holders.collect();
                format!(
                    "it lacks {lack}; {}",
                    if holders.is_empty() {
                        "no engine holds that: another process has it, and it is waited for".to_owned()
                    } else {
                        holders.join("; ")
                    }
                )
            }
            Reason::Quiet { beside, is_measuring: true } => format!(
                "it waits until {}, which is being started on the same GPU, has taken its memory: a swap beside that would \
                 change what it finds free",
                self.name(*beside)
            ),
            Reason::Quiet { beside, is_measuring: false } => format!(
                "its start waits until {} has moved: it sizes itself by what is free on the GPU they share",
                self.name(*beside)
            ),
            Reason::Backoff { until, detail } => {
                format!("it failed ({detail}) and is tried again in {}", left(until))
            }
            Reason::GivenUp { detail } => {
                format!("it failed and was given up: {detail}; `swapserve swap in` tries again")
            }
            Reason::Refused { detail } => detail.clone(),
            Reason::Ending => "the run is ending: nothing is swapped any more".to_owned(),
        }
    }

    /// A past decision as a sentence.
    pub(super) fn past_text(&self, what: &What) -> String {
        let because = |why: &OutWhy| match why {
            OutWhy::Room { whom } => format!("to make room for {}", self.name(*whom)),
            OutWhy::Asked => "as the operator asked".to_owned(),
            OutWhy::IdleTtl => "nobody had used it for its idle_ttl".to_owned(),
            OutWhy::OverCapacity => "the engines measured more than the job has".to_owned(),
        };
        match what {
            What::CameIn { waited } => format!("brought in after {} of waiting", seconds(*waited)),
            What::Prepared => "launched ahead of its turn".to_owned(),
            What::PutOff { why } => {
                let because = match why {
                    PutOff::Unwanted => "nobody waits for it any more",
                    PutOff::Host => "the host's memory is needed for others",
                    PutOff::TooLong => "its turn did not come within its start_timeout",
                };
                format!("stopped before its turn: {because}")
            }
            What::Closed { whom, running } => {
                format!("closed for {} with {} running", self.name(*whom), requests(*running))
            }
            What::Reopened => "opened again, its room is not needed".to_owned(),
            What::WentOut { why, in_flight: 0 } => format!("swapped out: {}", because(why)),
            What::WentOut { why, in_flight } => {
                format!(
                    "swapped out with {in_flight} streams paused, its drain took too long: {}",
                    because(why)
                )
            }
            What::Stopped { why } => {
                format!("stopped, the host has no room for it while out: {}", because(why))
            }
            What::WentBack { detail } => {
                format!("went back before it was in, to wait for room ({detail})")
            }
            What::RefusedToGo { detail, spared } => {
                format!("could not be swapped out ({detail}); left alone for {}", seconds(*spared))
            }
            What::Broke { detail, again } => {
                format!("failed ({detail}); tried again after {}", seconds(*again))
            }
            What::GaveUp { detail } => format!("given up: {detail}"),
        }
    }
}

fn requests(n: u32) -> String {
    if n == 1 { "1 request".to_owned() } else { format!("{n} requests") }
}

pub(super) fn seconds(d: Duration) -> String {
    format!("{:.1} s", d.as_secs_f64())
}
