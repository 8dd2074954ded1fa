//! `cuCheckpointProcess*`: one process drives another through the states of [`software_gpu`]'s picture.
//!
//! As in the real driver the work itself is done by a thread of the target (its restore thread): a target that is
//! stopped with `SIGSTOP` neither checkpoints nor restores until it is continued, and one that dies in the middle
//! fails the call.

use std::ffi::{c_int, c_void};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use software_gpu::futex;
use software_gpu::record::{Record, Request, State, UNANSWERED, stopped};

use crate::api::{account, driver_api, put};
use crate::error::{Error, Outcome};

/// The first field of `CUcheckpointLockArgs`: a timeout in milliseconds, 0 for none.
type LockArguments = *const u32;

/// The record of a process. As with the real driver, no call about a process comes back while it is stopped.
fn target(pid: c_int) -> Result<&'static Record, Error> {
    let (table, _) = account()?;
    let record = table.find(pid).ok_or(Error::NOT_INITIALIZED)?;
    while stopped(pid) {
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(record)
}

/// Moves `record` from one state to another, if it is in the first.
fn step(record: &Record, from: State, to: State) -> Outcome {
    let (table, _) = account()?;
    let _guard = table.lock();
    if record.state() != from {
        return Err(Error::ILLEGAL_STATE);
    }
    record.set_state(to);
    Ok(())
}

fn lock(pid: c_int, limit: Duration) -> Outcome {
    let record = target(pid)?;
    step(record, State::Running, State::Locked)?;
    let begun = Instant::now();
    loop {
        let inside = record.in_flight.load(Ordering::SeqCst);
        if inside == 0 {
            return Ok(());
        }
        if !record.alive() {
            return Err(Error::OPERATING_SYSTEM);
        }
        if !limit.is_zero() && begun.elapsed() >= limit {
            step(record, State::Locked, State::Running)?;
            return Err(Error::NOT_READY);
        }
        futex::wait(&record.in_flight, inside, Duration::from_millis(5));
    }
}

/// Has the target's restore thread do `request`, which starts in state `from`.
fn ask(pid: c_int, request: Request, from: State) -> Outcome {
    let record = target(pid)?;
    {
        let (table, _) = account()?;
        let _guard = table.lock();
        let previous = record.request.load(Ordering::SeqCst);
        if record.state() != from || record.moves() {
            return Err(Error::ILLEGAL_STATE);
        }
        record.answer.store(UNANSWERED, Ordering::SeqCst);
        record.request.store(request.after(previous), Ordering::SeqCst);
    }
    futex::wake(&record.request);
    let answer = loop {
        let answer = record.answer.load(Ordering::SeqCst);
        if answer != UNANSWERED {
            break answer;
        }
        if !record.alive() {
            return Err(Error::OPERATING_SYSTEM);
        }
        futex::wait(&record.answer, UNANSWERED, Duration::from_millis(5));
    };
    if answer == 0 { Ok(()) } else { Err(Error(answer as i32)) }
}

driver_api! {
    open(pid) fn cuCheckpointProcessGetState(pid: c_int, state: *mut c_int) {
        let record = target(pid)?;
        // The real driver answers when the move under way has ended, whoever asked for it.
        while record.moves() && record.alive() {
            futex::wait(&record.answer, UNANSWERED, Duration::from_millis(5));
        }
        put(state, record.state() as c_int)
    }

    open(pid) fn cuCheckpointProcessGetRestoreThreadId(pid: c_int, thread: *mut c_int) {
        put(thread, target(pid)?.restore_thread.load(Ordering::SeqCst))
    }

    open(pid) fn cuCheckpointProcessLock(pid: c_int, arguments: LockArguments) {
        // SAFETY: null is allowed; otherwise the driver's contract has the caller pass the argument struct.
        let milliseconds = unsafe { arguments.as_ref() }.copied().unwrap_or(0);
        lock(pid, Duration::from_millis(u64::from(milliseconds)))
    }

    open(pid) fn cuCheckpointProcessCheckpoint(pid: c_int, _arguments: *const c_void) {
        ask(pid, Request::Checkpoint, State::Locked)
    }

    open(pid) fn cuCheckpointProcessRestore(pid: c_int, _arguments: *const c_void) {
        ask(pid, Request::Restore, State::Checkpointed)
    }

    open(pid) fn cuCheckpointProcessUnlock(pid: c_int, _arguments: *const c_void) {
        step(target(pid)?, State::Locked, State::Running)
    }
}
