//! The scheduler's port: what it is told and what it asks for. Both serialise, so a journal of a real job replays.

use crate::units::{Bytes, Footprint, MechanismKind, ModelId, RequestId};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::time::Duration;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[expect(missing_docs, reason = "fields are described at their variant")]
pub enum Event {
    /// The run begins: every engine is to be started once, as many at a time as fit. Each one is resident after its trial
    /// and goes out when another one needs the room; the preloaded and pinned ones are brought back when all are through.
    Boot,
    /// A request for a model arrived and its body has been read.
    Arrived { request: RequestId, model: ModelId },
    /// A waiting request's client went away.
    Cancelled { request: RequestId },
    /// A dispatched request's last byte was sent, or its client or engine went away: the lease ends.
    Released { request: RequestId },
    /// An engine that was launched by [`Effect::Prepare`] has come to its first use of a GPU and waits there, or listens
    /// and waits for its first request.
    Imported { model: ModelId },
    /// The files that [`Effect::Warm`] named have been read, or cannot be.
    Warmed { model: ModelId },
    /// An engine that is being started has answered its first request: it has taken its memory, its trial begins.
    Answered { model: ModelId },
    /// An engine is up, has answered its first request and passed its trial; it is resident.
    Started { model: ModelId, measure: SwapMeasure },
    /// An engine could not be started, or ended while it was held.
    StartFailed { model: ModelId, fault: EngineFault },
    /// A swap-out is done; the resources beyond `measure.out` are free, and have been seen to be.
    SwappedOut { model: ModelId, measure: SwapMeasure },
    /// A swap-out was refused or failed. `lost`: the engine is gone; else it is as before: resident, or out in part.
    /// `mechanism`: what is used from now on, since this one may have been crossed out.
    SwapOutFailed {
        model: ModelId,
        fault: EngineFault,
        lost: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mechanism: Option<MechanismKind>,
    },
    /// A swap-in is done; the engine answers.
    SwappedIn { model: ModelId, measure: SwapMeasure },
    /// A swap-in failed. `lost`: the engine is gone and its resources free; else it is out as before.
    SwapInFailed { model: ModelId, fault: EngineFault, lost: bool },
    /// A swap-in found less free than the ledger says: another process has it. The engine is out as before, and as good.
    FoundNoRoom { model: ModelId, fault: EngineFault },
    /// An engine's process ended by itself; nothing of it holds a resource any more.
    EngineDied { model: ModelId, fault: EngineFault },
    /// An engine has been stopped as asked; its resources are free.
    Stopped { model: ModelId },
    /// The operator or a peer's API asks for a model to be resident; answered with [`Effect::Answer`].
    AskIn { ask: u64, model: ModelId },
    /// The operator asks for a model to be out.
    AskOut { ask: u64, model: ModelId },
    /// The operator pins or unpins a model.
    Pin { model: ModelId, pinned: bool },
    /// The capacity of the ledgers changed (a stranger's memory on a shared GPU, the job's limit).
    Capacity { capacity: Footprint },
    /// The job's end is known or has changed; remaining time from now.
    JobEnds { remaining: Duration },
    /// Admission ends for good: waiting requests are rejected with [`Rejection::Draining`], no swap begins.
    Drain,
    /// The moment asked for by `next_wake` has come.
    Wake,
}

/// Something to carry out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "effect", rename_all = "snake_case")]
#[expect(missing_docs, reason = "fields are described at their variant")]
pub enum Effect {
    /// Read the files that the engine will read when it starts, so that they lie in the page cache by then. The model's
    /// other moves do not wait for it.
    Warm { model: ModelId },
    /// Launch the engine, and hold its processes before their first use of a GPU: it takes host memory alone.
    Prepare { model: ModelId },
    /// Let the engine that was prepared go on; its resident footprint is reserved.
    Proceed { model: ModelId },
    /// Start the engine; its resident footprint is reserved.
    Start { model: ModelId },
    /// Stop the engine and free everything it holds.
    Stop { model: ModelId },
    /// Swap the engine out. With `in_flight` requests still open, only a mechanism that keeps streams is asked. `free`: at
    /// least so many bytes on each GPU, where less than all of it will do; an engine that is out in part frees more.
    SwapOut {
        model: ModelId,
        in_flight: u32,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        free: Option<Bytes>,
    },
    /// Swap the engine in; the bytes are reserved and were seen to be free, or (`early`) are being freed.
    SwapIn {
        model: ModelId,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        early: Option<Early>,
    },
    /// Grant the request its lease. `waited`: from arrival; `swapping`: the part of it in which the model swapped in.
    Dispatch { request: RequestId, model: ModelId, waited: Duration, swapping: Duration },
    /// Refuse or give up the request.
    Reject { request: RequestId, reason: Rejection },
    /// The outcome of [`Event::AskIn`] / [`Event::AskOut`]; `Err` is a sentence for a person.
    Answer { ask: u64, result: Result<(), String> },
}

/// A swap-in beside the swap-outs that make its room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Early {
    /// Whose memory it takes. It may be reported done only when none of them can fail any more, and has to be reported
    /// failed, with nothing taken, if one of them did.
    pub from: SmallVec<[ModelId; 2]>,
    /// Bytes on each of the job's GPUs that it may take before any of them has freed anything.
    pub room: SmallVec<[Bytes; 8]>,
}

/// Why a request is not served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
#[expect(missing_docs, reason = "fields are described at their variant")]
pub enum Rejection {
    /// The model's queue is at its limit (429); `retry_after` is an estimate, at most 120 s.
    QueueFull { limit: u32, retry_after: Duration },
    /// It waited longer than the bound (504).
    WaitedTooLong { bound: Duration },
    /// The engine failed and was given up, or broke while the request waited (502).
    EngineFailed { detail: String },
    /// The model can never fit what the job has (503).
    NeverFits { detail: String },
    /// The run is ending (503, do not retry).
    Draining,
    /// The job ends before an answer could be had (503, do not retry).
    JobEnding { remaining: Duration },
}

impl std::fmt::Display for Rejection {
    /// A sentence for the client.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = |d: &Duration| d.as_secs_f64();
        match self {
            Rejection::QueueFull { limit, retry_after } => {
                write!(
                    f,
                    "{limit} requests wait for the model already; try again in {:.0} s",
                    seconds(retry_after)
                )
            }
            Rejection::WaitedTooLong { bound } => {
                write!(f, "the model could not be had within {:.0} s", seconds(bound))
            }
            Rejection::EngineFailed { detail } => write!(f, "the engine failed: {detail}"),
            Rejection::NeverFits { detail } => write!(f, "the model can never fit: {detail}"),
            Rejection::Draining => f.write_str("the run is ending and takes no more requests"),
            Rejection::JobEnding { remaining } => {
                write!(f, "the job ends in {:.0} s, before the model could answer", seconds(remaining))
            }
        }
    }
}

/// What went wrong with an engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EngineFault {
    /// For people: what was tried, what happened, what to do.
    pub detail: String,
    /// Whether starting it again may help; else it is given up at once.
    pub retry: bool,
}

/// What a swap (or a start with its trial) measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SwapMeasure {
    /// How it was or will be swapped.
    pub mechanism: Option<MechanismKind>,
    /// What it takes while resident, as measured.
    pub resident: Footprint,
    /// What it takes while out, as measured or expected.
    pub out: Footprint,
    /// Whether `out` is not what a whole swap-out leaves: a part of it is still where it computes, or nobody has seen one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// How long this move took.
    pub took: Duration,
    /// Bytes that crossed the bus, where known.
    pub moved: Option<Bytes>,
    /// The move's phases in order: drain, sleep, lock, checkpoint, freeze, thaw, restore, unlock, wake, first_token…
    pub phases: SmallVec<[(String, Duration); 8]>,
}
