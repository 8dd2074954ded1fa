//! What the scheduler is made from, and events and effects in the order it saw them, as JSON lines: `{"at":0,"setup":…}`,
//! `{"at":µs,"event":…}`, `{"at":µs,"effect":…}`.
//!
//! A journal replays ([`crate::sim::replay`]): the events give the same effects. Lines are written by
//! a thread of their own, so that a slow file system never delays a request; when that thread falls [`BACKLOG`] lines
//! behind, the journal ends there, and the log says so, rather than growing without bound.

use crate::{
    scheduler::{Effect, Event, Setup},
    units::Moment,
};
use serde::Serialize;
use std::{
    fs::{File, OpenOptions},
    io::{self, BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    time::Duration,
};

/// How long the end of the run waits for the last lines to be written.
const LAST_LINES: Duration = Duration::from_secs(2);
/// Lines that may wait to be written.
const BACKLOG: usize = 65_536;

/// The writing end. Dropping it flushes and closes the file.
#[derive(Debug)]
pub struct Journal {
    lines: Option<SyncSender<String>>,
    written: Receiver<()>,
}

#[derive(Serialize)]
struct Line<'a> {
    at: Moment,
    #[serde(skip_serializing_if = "Option::is_none")]
    setup: Option<&'a Setup>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'a Event>,
    #[serde(skip_serializing_if = "Option::is_none")]
    effect: Option<&'a Effect>,
}

impl Journal {
    /// Creates (or truncates) the file and starts its writer.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn create(path: &Path) -> io::Result<Self> {
        // Nobody else's business: who asked for which model, and when.
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let (lines, receiver) = sync_channel(BACKLOG);
        let (done, written) = sync_channel(1);
        std::thread::Builder::new().name("journal".into()).spawn(move || {
            write_lines(file, &receiver);
            // Err: nobody waits any more.
            let _ = done.send(());
        })?;
        Ok(Journal { lines: Some(lines), written })
    }

    /// Notes what the scheduler is made from; the first line.
    pub fn setup(&mut self, setup: &Setup) {
        self.line(&Line { at: Moment::ZERO, setup: Some(setup), event: None, effect: None });
    }

    /// Notes an event before the scheduler sees it.
    pub fn event(&mut self, at: Moment, event: &Event) {
        self.line(&Line { at, setup: None, event: Some(event), effect: None });
    }

    /// Notes an effect that the scheduler asked for.
    pub fn effect(&mut self, at: Moment, effect: &Effect) {
        self.line(&Line { at, setup: None, event: None, effect: Some(effect) });
    }

    fn line(&mut self, line: &Line<'_>) {
        let Some(lines) = &self.lines else { return };
        let text = serde_json::to_string(line).expect("events and effects serialise");
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = lines.try_send(text) {
            tracing::warn!(
                backlog = BACKLOG,
                "the journal's file system is too slow or full: the journal ends here"
            );
            self.lines = None;
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.lines = None;
        if matches!(self.written.recv_timeout(LAST_LINES), Err(RecvTimeoutError::Timeout)) {
            tracing::warn!("the journal's file system does not answer: its last lines may be missing");
        }
    }
}

fn write_lines(file: File, lines: &Receiver<String>) {
    let mut file = BufWriter::new(file);
    for line in lines {
        if let Err(error) = writeln!(file, "{line}") {
            tracing::warn!(%error, "the journal cannot be written: it ends here");
            return;
        }
    }
    if let Err(error) = file.flush() {
        tracing::warn!(%error, "the journal's last lines could not be written");
    }
}
