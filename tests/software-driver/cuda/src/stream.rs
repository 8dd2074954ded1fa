//! Streams and events, and what is submitted to streams. Work is done at once, by the thread that submits it, but for
//! kernels that wait: every order that a program may rely on holds.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_uint, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::api::{driver_api, put};
use crate::context::{current, current_gpu};
use crate::error::{Error, Outcome};
use crate::memory::{copy, fill};
use crate::work;

/// A `CUstream` or `CUevent`: never dereferenced.
type Handle = *mut c_void;
/// What `cuLaunchHostFunc` calls.
type HostFunction = unsafe extern "C" fn(*mut c_void);

static NEXT: AtomicUsize = AtomicUsize::new(0x100);

/// An event.
#[derive(Debug, Default)]
struct Event {
    /// Number of its context.
    context: usize,
    /// What it waits for.
    work: Vec<u64>,
}

/// Streams with the number of each one's context.
static STREAMS: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());
static EVENTS: Mutex<BTreeMap<usize, Event>> = Mutex::new(BTreeMap::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn create_stream(out: *mut Handle) -> Outcome {
    let (number, context) = (NEXT.fetch_add(1, Ordering::Relaxed), current()?);
    lock(&STREAMS).insert(number, context);
    put(out, number as Handle)
}

/// Number of a stream's context; the current one for those that every context has.
fn context_of(stream: Handle) -> Result<usize, Error> {
    /// No stream, `CU_STREAM_LEGACY` and `CU_STREAM_PER_THREAD`.
    const COMMON: usize = 2;
    if stream as usize <= COMMON {
        return current();
    }
    lock(&STREAMS).get(&(stream as usize)).copied().ok_or(Error::INVALID_HANDLE)
}

/// What runs in a stream.
fn running(stream: Handle) -> Result<Vec<u64>, Error> {
    Ok(work::in_stream(context_of(stream)?, stream as usize))
}

/// What an event waits for.
fn awaited(event: Handle) -> Result<Vec<u64>, Error> {
    lock(&EVENTS).get(&(event as usize)).map(|event| event.work.clone()).ok_or(Error::INVALID_HANDLE)
}

/// An event is of use in streams of its own context only.
fn record(event: Handle, stream: Handle) -> Outcome {
    let (context, work) = (context_of(stream)?, running(stream)?);
    let mut events = lock(&EVENTS);
    let event = events.get_mut(&(event as usize)).filter(|it| it.context == context);
    event.ok_or(Error::INVALID_HANDLE)?.work = work;
    Ok(())
}

fn elapsed() -> f32 {
    static BEGUN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    BEGUN.get_or_init(Instant::now).elapsed().as_secs_f32() * 1000.0
}

driver_api! {
    gated fn cuStreamCreate(out: *mut Handle, _flags: c_uint) { create_stream(out) }

    gated fn cuStreamCreateWithPriority(out: *mut Handle, _flags: c_uint, _priority: c_int) {
        create_stream(out)
    }

    gated fn cuStreamDestroy_v2(stream: Handle) {
        lock(&STREAMS).remove(&(stream as usize)).ok_or(Error::INVALID_HANDLE)?;
        crate::graph::forget_capture(stream);
        Ok(())
    }

    gated fn cuStreamGetCtx(stream: Handle, out: *mut Handle) { put(out, context_of(stream)? as Handle) }

    gated fn cuStreamSynchronize(stream: Handle) {
        work::wait(&running(stream)?);
        Ok(())
    }

    gated fn cuStreamQuery(stream: Handle) {
        if running(stream)?.is_empty() { Ok(()) } else { Err(Error::NOT_READY) }
    }

    gated fn cuStreamWaitEvent(stream: Handle, event: Handle, _flags: c_uint) {
        context_of(stream)?;
        awaited(event).map(|_| ())
    }

    open fn cuStreamIsCapturing(stream: Handle, status: *mut c_int) { put(status, crate::graph::status(stream)) }

    gated fn cuEventCreate(out: *mut Handle, _flags: c_uint) {
        current_gpu()?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        lock(&EVENTS).insert(number, Event { context: current()?, work: Vec::new() });
        put(out, number as Handle)
    }

    gated fn cuEventDestroy_v2(event: Handle) {
        lock(&EVENTS).remove(&(event as usize)).map(|_| ()).ok_or(Error::INVALID_HANDLE)
    }

    gated fn cuEventRecord(event: Handle, stream: Handle) { record(event, stream) }

    gated fn cuEventSynchronize(event: Handle) {
        work::wait(&awaited(event)?);
        Ok(())
    }

    gated fn cuEventQuery(event: Handle) {
        let waits = awaited(event)?;
        let running = work::in_contexts(|_| true);
        if running.iter().any(|number| waits.contains(number)) { Err(Error::NOT_READY) } else { Ok(()) }
    }

    open fn cuEventElapsedTime(out: *mut f32, _from: Handle, _to: Handle) { put(out, elapsed()) }

    gated fn cuMemcpyAsync(to: u64, from: u64, bytes: usize, _stream: Handle) { copy(to, from, bytes) }

    gated fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, _stream: Handle) {
        copy(to, from as u64, bytes)
    }

    gated fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, _stream: Handle) {
        copy(to as u64, from, bytes)
    }

    gated fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, _stream: Handle) {
        copy(to, from, bytes)
    }

    gated fn cuMemsetD8Async(to: u64, value: u8, count: usize, _stream: Handle) { fill(to, value, count) }

    gated fn cuMemsetD32Async(to: u64, value: c_uint, count: usize, _stream: Handle) {
        fill(to, value, count)
    }

    gated fn cuLaunchHostFunc(_stream: Handle, function: HostFunction, data: *mut c_void) {
        // SAFETY: the driver's contract: the function is called once with this argument.
        unsafe { function(data) };
        Ok(())
    }
}
