//! The program's own log: on standard error, as lines for people or JSON.
//!
//! Lines are written by a thread of their own. Standard error of a job is a file of the user's, often on a network file system: one
//! that stalls must not hold up a request. Past [`BACKLOG`] lines that wait, further ones are dropped and counted.

use std::{
    io::{self, Write},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};
use tracing_subscriber::EnvFilter;

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Lines that may wait to be written.
const BACKLOG: usize = 4096;

static LINES: OnceLock<SyncSender<Entry>> = OnceLock::new();
static DROPPED: AtomicU64 = AtomicU64::new(0);

enum Entry {
    Line(Vec<u8>),
    /// Answered when all before it is written.
    Flush(SyncSender<()>),
}

/// Begins to log. `SWAPSERVE_LOG` overrides what `-v` asks for, in the syntax of `RUST_LOG`.
pub fn init(verbose: u8, format: LogFormat) {
    let level = match verbose {
        0 => "warn,swapserve=info",
        1 => "info,swapserve=debug",
        2 => "debug,swapserve=trace",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("SWAPSERVE_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let (lines, receiver) = sync_channel(BACKLOG);
    let thread = std::thread::Builder::new().name("log".into()).spawn(move || write_lines(&receiver));
    if thread.is_ok() {
        // A second call (in tests) keeps the first thread.
        let _ = LINES.set(lines);
    }
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Pen).with_target(false);
    // A second call (in tests) keeps the first subscriber.
    let _ = match format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}

/// Waits until what was logged is written, at most `limit`.
pub fn flush(limit: Duration) {
    let Some(lines) = LINES.get() else { return };
    let (done, written) = sync_channel(1);
    if lines.try_send(Entry::Flush(done)).is_ok() {
        // Timeout: whoever reads standard error does not; the last lines are lost.
        let _ = written.recv_timeout(limit);
    }
}

fn write_lines(lines: &Receiver<Entry>) {
    for entry in lines {
        match entry {
            Entry::Line(line) => {
                let mut out = io::stderr().lock();
                // Nobody is left to tell.
                let _ = out.write_all(&line);
                let dropped = DROPPED.swap(0, Ordering::Relaxed);
                if dropped > 0 {
                    let _ = writeln!(
                        out,
                        "({dropped} lines of this log were dropped: standard error did not take them)"
                    );
                }
            }
            Entry::Flush(done) => drop(done.try_send(())),
        }
    }
}

/// Hands each line to the thread; without one, writes it here.
struct Pen;

impl Write for Pen {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match LINES.get() {
            Some(lines) if lines.try_send(Entry::Line(line.to_vec())).is_err() => {
                DROPPED.fetch_add(1, Ordering::Relaxed);
            }
            Some(_) => {}
            None => io::stderr().write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
