//! `freeze`: the whole tree of a CPU engine stops running (SIGSTOP) and goes on later (SIGCONT). Nothing moves and
//! nothing is lost: connections stay open, and a stream goes on where it was.

use super::{Mechanism, MoveLog, SwapError};
use crate::{
    engine::Engine,
    process::{Handle, ProcFs, Stat, State},
    units::{Footprint, MechanismKind},
};
use async_trait::async_trait;
use rustix::process::Signal;
use std::{io, time::Duration};

/// Pause between looks at processes that have been sent a signal; the kernel needs microseconds for most.
const LOOK_AGAIN: Duration = Duration::from_micros(500);

/// Stops and continues a process tree.
pub struct Freeze;

#[async_trait]
impl Mechanism for Freeze {
    fn kind(&self) -> MechanismKind {
        MechanismKind::Freeze
    }

    async fn suits(&self, engine: &Engine) -> Result<(), String> {
        match engine.plan.gpus {
            0 => Ok(()),
            _ => Err("a frozen engine keeps all of its GPU memory; freeze is for CPU engines (gpus = 0)"
                .to_owned()),
        }
    }

    async fn swap_out(&self, engine: &mut Engine, log: &mut MoveLog) -> Result<Footprint, SwapError> {
        let deadline = log.deadline;
        if let Err(reason) = log.phase("freeze", settle(engine, Signal::STOP, deadline)).await {
            // Half a tree that runs is worth nothing: all of it goes on.
            let undone = settle(engine, Signal::CONT, deadline).await;
            return Err(self.fault("freeze", reason, undone.is_ok() && engine.is_alive()));
        }
        Ok(Footprint::default())
    }

    async fn swap_in(&self, engine: &mut Engine, log: &mut MoveLog) -> Result<Footprint, SwapError> {
        let deadline = log.deadline;
        match log.phase("thaw", settle(engine, Signal::CONT, deadline)).await {
            Ok(()) => Ok(Footprint::default()),
            Err(reason) => Err(self.fault("thaw", reason, false)),
        }
    }
}

/// Sends `signal` to the tree again and again until a look finds nobody it has not reached: a process forked meanwhile
/// is found by the next look, and a stopped one forks no more.
async fn settle(engine: &Engine, signal: Signal, deadline: std::time::Instant) -> Result<(), String> {
    loop {
        let members =
            engine.members().map_err(|error| format!("cannot list the engine's processes: {error}"))?;
        if members.is_empty() {
            return Err("the engine has no process any more".to_owned());
        }
        let late: Vec<&Stat> = members.iter().filter(|stat| !reached(stat, signal)).collect();
        let Some(first) = late.first() else { return Ok(()) };
        if std::time::Instant::now() >= deadline {
            return Err(format!(
                "{} (pid {}) does not obey {signal:?}; it hangs in the kernel",
                first.comm, first.id
            ));
        }
        for stat in late {
            send(stat, signal)
                .map_err(|error| format!("cannot signal {} (pid {}): {error}", stat.comm, stat.id))?;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn send(stat: &Stat, signal: Signal) -> io::Result<()> {
    match Handle::open(stat.id)? {
        Some(handle) => handle.signal(signal).map(drop),
        None => Ok(()),
    }
}

/// Whether every thread of the process is where the signal wants it.
fn reached(stat: &Stat, signal: Signal) -> bool {
    let stopped = |thread: &Stat| matches!(thread.state, State::Stopped | State::Dead);
    let threads = ProcFs::default().threads(stat.id.pid);
    match signal {
        Signal::STOP => threads.iter().all(stopped),
        _ => threads.iter().all(|thread| thread.state != State::Stopped),
    }
}
