//! The task that owns the gpu server: pending calls, their deadlines, and the restart after a death or a hang.
//!
//! ```text
//!            started                 end of stream, or a deadline passed (the child is killed)
//!  Down ───────────────▶ Up ───────────────────────────────────────────────▶ Down, backoff
//!   │ calls wait                calls sent fail as Lost; calls not sent wait for the next server
//! ```
//!
//! A call's clock starts when it is sent; a call that waits for a server fails as `Unavailable` after
//! [`PATIENCE`].

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;

use rustix::process::Signal;

use super::client::GpuError;
use super::launch::ServerCommand;
use super::park::{setup::ParkSetup, unpin};
use crate::process::{Child, Spawner};

use super::protocol::{Answer, Call, Numbered, Outcome, checked_length, frame};

/// How long a call waits for a server that cannot be started.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a killed server may take to be gone before the next one is started beside it.
const END_LIMIT: Duration = Duration::from_secs(1);
/// For a server to see the end of its socket, and to be gone when it has given its pool back.
const MARGIN: Duration = Duration::from_millis(500);
/// Wait before the second start; doubled for each further one …
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
/// … up to this.
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);

/// A call on its way in.
#[derive(Debug)]
pub(super) struct Submit {
    pub(super) call: Call,
    pub(super) limit: Duration,
    pub(super) reply: oneshot::Sender<Result<Answer, GpuError>>,
}

/// A call that has no answer yet.
#[derive(Debug)]
struct Pending {
    submit: Submit,
    sent: bool,
    deadline: Instant,
}

/// A running server.
#[derive(Debug)]
struct Server {
    child: Child,
    writer: OwnedWriteHalf,
    answers: mpsc::UnboundedReceiver<Numbered<Outcome>>,
}

/// The task's state.
#[derive(Debug)]
pub(super) struct Keeper {
    spawner: Spawner,
    command: ServerCommand,
    submitted: mpsc::UnboundedReceiver<Submit>,
    generation: watch::Sender<u64>,
    pending: HashMap<u64, Pending>,
    next_id: u64,
    failures: u32,
    last_failure: String,
    end: Arc<End>,
}

/// Told once, when the run ends.
#[derive(Debug)]
pub(super) struct End {
    told: Notify,
    /// What the run has left for it.
    time: OnceLock<Duration>,
    /// What is to be given back.
    park: Option<ParkSetup>,
}

impl End {
    pub(super) fn new(park: Option<ParkSetup>) -> Self {
        Self { told: Notify::new(), time: OnceLock::new(), park }
    }

    /// How long giving the pool back may take.
    pub(super) fn limit(&self) -> Duration {
        let pool = unpin::limit(self.park.as_ref().map_or(0, ParkSetup::bytes));
        self.time.get().map_or(pool, |time| pool.min(*time))
    }

    /// Tells it.
    pub(super) fn tell(&self, time: Duration) {
        // The first word counts.
        let _ = self.time.set(time);
        self.told.notify_one();
    }
}

impl Keeper {
    pub(super) fn new(
        spawner: Spawner,
        command: ServerCommand,
        submitted: mpsc::UnboundedReceiver<Submit>,
        generation: watch::Sender<u64>,
        end: Arc<End>,
    ) -> Self {
        Self {
            spawner,
            command,
            submitted,
            generation,
            pending: HashMap::new(),
            next_id: 0,
            failures: 0,
            last_failure: String::new(),
            end,
        }
    }

    /// Keeps a server until it is told to end it, or the last client is gone.
    pub(super) async fn run(mut self) {
        loop {
            let why = match self.start().await {
                Ok(mut server) => {
                    let why = self.serve(&mut server).await;
                    if why.is_none() {
                        // Whoever waits for an answer is told that there will be none.
                        self.pending.clear();
                        close(&mut server, self.end.limit()).await;
                    }
                    end(server).await;
                    match why {
                        Some(why) => why,
                        None => return,
                    }
                }
                Err(error) => format!("{} cannot be started: {error}", self.command.program.display()),
            };
            tracing::warn!(generation = *self.generation.borrow(), "gpu server: {why}");
            self.fail_sent(&why);
            self.failures += 1;
            self.last_failure = why;
            if !self.wait_out_backoff().await {
                return;
            }
        }
    }

    async fn start(&mut self) -> std::io::Result<Server> {
        let (child, socket) = self.command.start(&self.spawner).await?;
        let (mut reader, writer) = UnixStream::from_std(socket)?.into_split();
        let (forward, answers) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok(answer) = read_answer(&mut reader).await {
                if forward.send(answer).is_err() {
                    return;
                }
            }
        });
        self.generation.send_modify(|generation| *generation += 1);
        Ok(Server { child, writer, answers })
    }

    /// Serves until the server is gone (why), or it is to end or the last client is gone (nothing).
    async fn serve(&mut self, server: &mut Server) -> Option<String> {
        let waiting: Vec<u64> = self.pending.keys().copied().collect();
        for id in waiting {
            if let Err(error) = self.send(server, id).await {
                return Some(format!("its socket broke: {error}"));
            }
        }
        loop {
            let next = self.pending.values().map(|pending| pending.deadline).min();
            tokio::select! {
                () = self.end.told.notified() => return None,
                submit = self.submitted.recv() => {
                    let id = self.accept(submit?);
                    if let Err(error) = self.send(server, id).await {
                        return Some(format!("its socket broke: {error}"));
                    }
                }
                answer = server.answers.recv() => match answer {
                    Some(answer) => self.settle(answer),
                    None => return Some("it ended by itself".to_owned()),
                },
                () = until(next) => {
                    if let Some(why) = self.overdue() {
                        return Some(why);
                    }
                }
            }
        }
    }

    fn accept(&mut self, submit: Submit) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.pending.insert(id, Pending { submit, sent: false, deadline: Instant::now() + PATIENCE });
        id
    }

    async fn send(&mut self, server: &mut Server, id: u64) -> std::io::Result<()> {
        let Some(pending) = self.pending.get_mut(&id) else { return Ok(()) };
        pending.sent = true;
        pending.deadline = Instant::now() + pending.submit.limit;
        let bytes = frame(&Numbered { id, body: &pending.submit.call })?;
        server.writer.write_all(&bytes).await
    }

    fn settle(&mut self, answer: Numbered<Outcome>) {
        self.failures = 0;
        if let Some(pending) = self.pending.remove(&answer.id) {
            // Whoever asked may have gone away.
            let _ = pending.submit.reply.send(answer.body.map_err(GpuError::from));
        }
    }

    /// Fails the calls that waited too long for a server; says which call, once sent, is past its deadline.
    fn overdue(&mut self) -> Option<String> {
        let now = Instant::now();
        let late = |pending: &Pending| pending.deadline <= now;
        let why = self.last_failure.clone();
        for (_, pending) in self.pending.extract_if(|_, pending| late(pending) && !pending.sent) {
            let call = pending.submit.call.name();
            let _ = pending.submit.reply.send(Err(GpuError::Unavailable { call, why: why.clone() }));
        }
        self.pending.values().find(|pending| late(pending)).map(|pending| {
            format!("{} took more than {:?}: it was killed", pending.submit.call.name(), pending.submit.limit)
        })
    }

    fn fail_sent(&mut self, why: &str) {
        for (_, pending) in self.pending.extract_if(|_, pending| pending.sent) {
            let call = pending.submit.call.name();
            let _ = pending.submit.reply.send(Err(GpuError::Lost { call, why: why.to_owned() }));
        }
    }

    /// Waits before the next start, taking calls in; false when none is wanted any more.
    async fn wait_out_backoff(&mut self) -> bool {
        let doubled = FIRST_BACKOFF * 2u32.saturating_pow(self.failures.saturating_sub(1).min(10));
        let begin =
            if self.failures <= 1 { Instant::now() } else { Instant::now() + doubled.min(LONGEST_BACKOFF) };
        loop {
            let next = self.pending.values().map(|pending| pending.deadline).min();
            tokio::select! {
                biased;
                () = self.end.told.notified() => return false,
                () = tokio::time::sleep_until(begin) => return true,
                () = until(next) => { self.overdue(); }
                submit = self.submitted.recv() => match submit {
                    Some(submit) => { self.accept(submit); }
                    None => return false,
                },
            }
        }
    }
}

/// Ends a server that is wanted no more and may have a pool to give back: closes its socket, and waits so long.
async fn close(server: &mut Server, limit: Duration) {
    if limit.is_zero() {
        return;
    }
    // One that is stopped would not see it.
    let _ = server.child.signal(Signal::CONT);
    if server.writer.shutdown().await.is_ok() {
        let _ = tokio::time::timeout(limit + MARGIN, server.child.exited()).await;
    }
}

/// Kills a server; its memory and contexts are gone on return, unless it hangs in the kernel.
async fn end(server: Server) {
    // It may have ended by itself.
    let _ = server.child.signal(Signal::KILL);
    let _ = tokio::time::timeout(END_LIMIT, server.child.exited()).await;
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn read_answer(reader: &mut (impl AsyncReadExt + Unpin)) -> std::io::Result<Numbered<Outcome>> {
    let mut bytes = vec![0; checked_length(reader.read_u32_le().await? as usize)?];
    reader.read_exact(&mut bytes).await?;
    Ok(serde_json::from_slice(&bytes)?)
}
