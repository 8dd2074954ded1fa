//! An engine of the world.

use super::*;

/// A move that was asked for and not yet reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Move {
    Start,
    Stop,
    In,
    Out,
}

/// An engine as it really is.
#[derive(Clone, Debug, Default)]
pub(super) struct Engine {
    /// Resident and answering.
    pub(super) up: bool,
    /// What it holds.
    pub(super) holds: Footprint,
    /// What it held when it was last seen out.
    pub(super) left: Footprint,
    /// In a move out: bytes that will do on each GPU.
    pub(super) part: Option<Bytes>,
    /// In a move out: a part of it was out before.
    pub(super) again: bool,
    pub(super) moving: Option<Move>,
    /// In a move in: engines on their way out whose memory it takes.
    pub(super) from: Vec<ModelId>,
    /// One of them did not go: it cannot come in now.
    pub(super) broken: bool,
    /// In a move out: somebody has come in on its account, so it cannot be refused any more.
    pub(super) settled: bool,
    /// How many processes there have been.
    pub(super) life: u32,
    pub(super) resident_since: Moment,
    /// Its start has answered.
    pub(super) answered: bool,
    /// Its weights are being read.
    pub(super) reading: bool,
    /// It is held before its first use of a GPU, and has come there or not.
    pub(super) held: Option<bool>,
    /// Its streams have been paused since then.
    pub(super) paused: Option<Moment>,
    /// Closed to new requests since then.
    pub(super) closed: Option<Moment>,
}

impl Engine {
    /// Nothing of the process is left.
    pub(super) fn end(&mut self) {
        *self = Engine { life: self.life + 1, reading: self.reading, ..Engine::default() };
    }
}
