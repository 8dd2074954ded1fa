//! Journals: what the daemon wrote down of a run, read back and replayed.
//!
//! One JSON object a line: `{"at":0,"setup":…}` first, then `{"at":µs,"event":…}` and, after each event, its
//! `{"at":µs,"effect":…}`s. A run that was killed may end in the middle of a line.

use crate::{
    scheduler::{Effect, Event, Scheduler, Setup},
    units::Moment,
};
use serde::Deserialize;
use std::io::{self, BufRead};

/// What one line says.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Said {
    Setup(Box<Setup>),
    Event(Box<Event>),
    Effect(Effect),
}

#[derive(Deserialize)]
struct Line {
    at: Moment,
    #[serde(flatten)]
    said: Said,
}

/// A journal that agreed with its replay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Events fed into the scheduler.
    pub events: u64,
    /// Effects that came out of it, each the same as in the journal.
    pub effects: u64,
    /// When the last event happened.
    pub until: Moment,
}

/// Why a journal was not replayed to its end.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// It cannot be read.
    #[error("cannot read the journal after line {after}")]
    Read {
        /// The last line that was read.
        after: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A line is none of a journal's.
    #[error("line {line} of the journal is not one that swapserve writes; was it made by another version?")]
    Line {
        /// Which.
        line: u64,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// It does not begin as a journal does.
    #[error("line {line} of the journal comes before its setup; was the beginning cut off?")]
    NoSetup {
        /// Which.
        line: u64,
    },
    /// The scheduler decides differently now.
    #[error(transparent)]
    Diverged(#[from] Box<Divergence>),
}

/// Where the replay and the journal part.
#[derive(Debug, thiserror::Error)]
#[error(
    "line {line} of the journal, {} s into the run: after {event:?} it says {recorded:?}, and this version decides \
     {replayed:?}", at.0 as f64 / 1e6
)]
pub struct Divergence {
    /// The first line that differs.
    pub line: u64,
    /// When.
    pub at: Moment,
    /// The event that was being answered.
    pub event: Option<Event>,
    /// What the journal has; `None`: another event.
    pub recorded: Option<Effect>,
    /// What the scheduler asks for; `None`: nothing more.
    pub replayed: Option<Effect>,
}

/// Feeds a journal's events into a scheduler of the same setup and compares what it asks for, line by line.
///
/// # Errors
/// The journal is unreadable, or the scheduler decides differently.
pub fn replay(journal: impl BufRead) -> Result<Replayed, JournalError> {
    let mut replay: Option<Replay> = None;
    let mut lines = journal.lines().zip(1u64..).peekable();
    while let Some((text, line)) = lines.next() {
        let text = text.map_err(|source| JournalError::Read { after: line - 1, source })?;
        let Line { at, said } = match serde_json::from_str(&text) {
            Ok(parsed) => parsed,
            // The run was killed while it wrote.
            Err(error) if error.is_eof() && lines.peek().is_none() => break,
            Err(source) => return Err(JournalError::Line { line, source }),
        };
        match (said, &mut replay) {
            (Said::Setup(setup), _) => replay = Some(Replay::new(*setup)),
            (_, None) => return Err(JournalError::NoSetup { line }),
            (Said::Event(event), Some(replay)) => replay.event(line, at, *event)?,
            (Said::Effect(effect), Some(replay)) => replay.effect(line, at, effect)?,
        }
    }
    Ok(replay.map(|replay| replay.done).unwrap_or_default())
}

struct Replay {
    scheduler: Scheduler,
    effects: Vec<Effect>,
    /// Of those, how many the journal had.
    seen: usize,
    event: Option<Event>,
    done: Replayed,
}

impl Replay {
    fn new(setup: Setup) -> Self {
        let scheduler = Scheduler::new(setup);
        Replay { scheduler, effects: Vec::new(), seen: 0, event: None, done: Replayed::default() }
    }

    fn event(&mut self, line: u64, at: Moment, event: Event) -> Result<(), Box<Divergence>> {
        if self.seen < self.effects.len() {
            return Err(self.diverged(line, at, None));
        }
        self.effects.clear();
        self.seen = 0;
        self.scheduler.step(at, event.clone(), &mut self.effects);
        self.event = Some(event);
        self.done.events += 1;
        self.done.until = at;
        Ok(())
    }

    fn effect(&mut self, line: u64, at: Moment, effect: Effect) -> Result<(), Box<Divergence>> {
        if self.effects.get(self.seen) != Some(&effect) {
            return Err(self.diverged(line, at, Some(effect)));
        }
        self.seen += 1;
        self.done.effects += 1;
        Ok(())
    }

    fn diverged(&self, line: u64, at: Moment, recorded: Option<Effect>) -> Box<Divergence> {
        let replayed = self.effects.get(self.seen).cloned();
        Box::new(Divergence { line, at, event: self.event.clone(), recorded, replayed })
    }
}
