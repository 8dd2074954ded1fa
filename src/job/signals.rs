//! The signals a job sends, as a stream.
//!
//! Slurm sends TERM to the step's processes at the end of a job (twice within 3 ms at the time limit), whatever
//! `--signal` names before it, and nothing but KILL after `KillWait`. `srun` itself turns TERM, HUP and QUIT into KILL of
//! the step and INT into nothing, but forwards USR1 and USR2: that is the gentle way to end a step from outside.

use std::{io, time::Duration};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::Instant,
};

/// The same signal within this time is the same message: Slurm's own double TERM.
const ECHO: Duration = Duration::from_millis(500);

/// A signal that means something to a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobSignal {
    /// The job's or step's end, or an operator.
    Term,
    /// Ctrl-C, or `scancel --signal=INT`.
    Int,
    /// The terminal has gone.
    Hup,
    /// `--signal=USR1@N`, `scancel --signal=USR1`, or a signal to `srun`.
    Usr1,
    /// The same, the other one.
    Usr2,
}

impl std::fmt::Display for JobSignal {
    /// Its name in capitals, as `kill -l` has it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            JobSignal::Term => "TERM",
            JobSignal::Int => "INT",
            JobSignal::Hup => "HUP",
            JobSignal::Usr1 => "USR1",
            JobSignal::Usr2 => "USR2",
        })
    }
}

impl JobSignal {
    /// Whether it asks for the end whatever is run: one more of these asks for haste.
    fn is_final(self) -> bool {
        matches!(self, JobSignal::Term | JobSignal::Int | JobSignal::Hup)
    }

    /// Its number.
    pub fn number(self) -> i32 {
        match self {
            JobSignal::Term => libc::SIGTERM,
            JobSignal::Int => libc::SIGINT,
            JobSignal::Hup => libc::SIGHUP,
            JobSignal::Usr1 => libc::SIGUSR1,
            JobSignal::Usr2 => libc::SIGUSR2,
        }
    }
}

/// The stream. Made before anything else is, so that an early signal is not the default's (sudden death).
#[derive(Debug)]
pub struct JobSignals {
    listeners: Vec<(JobSignal, Signal)>,
    last: Option<(JobSignal, Instant)>,
    term: Option<Instant>,
    finals: u32,
}

impl JobSignals {
    /// Begins to listen.
    ///
    /// # Errors
    /// When the kernel refuses a handler.
    pub fn listen() -> io::Result<Self> {
        let all = [JobSignal::Term, JobSignal::Int, JobSignal::Hup, JobSignal::Usr1, JobSignal::Usr2];
        let listen = |kind: JobSignal| Ok((kind, signal(SignalKind::from_raw(kind.number()))?));
        Ok(JobSignals {
            listeners: all.into_iter().map(listen).collect::<io::Result<_>>()?,
            last: None,
            term: None,
            finals: 0,
        })
    }

    /// Whether TERM has come: unless it was sent by hand, Slurm kills after the site's KillWait.
    pub fn kill_follows(&self) -> bool {
        self.term.is_some()
    }

    /// How much of KillWait is over: time since the first TERM, zero where none has come.
    pub fn since_term(&self) -> Duration {
        self.term.map(|term| term.elapsed()).unwrap_or_default()
    }

    /// Whether the end has been asked for more than once: whoever asks again does not want to wait.
    pub fn in_haste(&self) -> bool {
        self.finals > 1
    }

    /// The next signal; echoes are left out.
    pub async fn next(&mut self) -> JobSignal {
        loop {
            let waiting = self.listeners.iter_mut().map(|(kind, listener)| {
                Box::pin(async move {
                    listener.recv().await;
                    *kind
                })
            });
            let (kind, ..) = futures_util::future::select_all(waiting).await;
            let now = Instant::now();
            let echo = self.last.is_some_and(|(last, at)| last == kind && now.duration_since(at) < ECHO);
            if kind == JobSignal::Term {
                self.term.get_or_insert(now);
            }
            if !echo {
                self.last = Some((kind, now));
                self.finals += u32::from(kind.is_final());
                tracing::info!("received {kind}");
                return kind;
            }
        }
    }
}
