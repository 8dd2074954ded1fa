//! What happens in the world.

/// Something that happens in the world. Indices are taken modulo what there is.
#[derive(Clone, Debug)]
pub(in super::super) enum Action {
    Arrive(usize),
    Cancel(usize),
    Release(usize),
    /// The chosen start has answered; its trial begins.
    Answered(usize),
    /// The chosen model's weights have been read.
    Warmed(usize),
    /// The chosen engine that is prepared has come to its first use of a GPU.
    Imported(usize),
    /// The chosen move ends so.
    Answer(usize, Outcome),
    Die(usize),
    AskIn(usize),
    AskOut(usize),
    Pin(usize, bool),
    /// The capacity is now this percentage of the first one.
    Capacity(u64),
    JobEnds(u64),
    Drain,
    /// Milliseconds pass; every wake that falls into them is made.
    Pass(u64),
}

/// How a move ends.
#[derive(Clone, Copy, Debug)]
pub(in super::super) enum Outcome {
    Done,
    /// Done, and the engine takes this percentage of what was declared.
    Measured(u64),
    Refused {
        retry: bool,
    },
    /// Another process has the memory of one that was to come in; else as refused.
    NoRoom,
    Lost {
        retry: bool,
    },
}
