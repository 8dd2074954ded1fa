//! Stream capture and graphs of kernel launches. A launch in a stream that is being captured is noted; launching the
//! graph does all of them in order. A call that waits for the context while a stream is captured breaks the capture, as
//! with the driver.

use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::api::{driver_api, put};
use crate::context::current_gpu;
use crate::error::{Error, Outcome};
use crate::module::{Launch, launch_now};

/// A `CUstream`, `CUgraph` or `CUgraphExec`: never dereferenced.
type Handle = *mut c_void;

#[derive(Debug, Default)]
struct State {
    /// Streams being captured, and what was launched in them; nothing once the capture is broken.
    captures: BTreeMap<usize, Option<Vec<Launch>>>,
    /// Graphs that captures add to, by their streams.
    into: BTreeMap<usize, usize>,
    graphs: BTreeMap<usize, Vec<Launch>>,
}

static STATE: Mutex<State> =
    Mutex::new(State { captures: BTreeMap::new(), into: BTreeMap::new(), graphs: BTreeMap::new() });
static NEXT: AtomicUsize = AtomicUsize::new(0xa00);

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes a launch in a stream that is being captured; nothing if the stream is not.
pub(crate) fn captured(stream: Handle, launch: &Launch) -> Option<Outcome> {
    state().captures.get_mut(&(stream as usize)).map(|capture| match capture {
        Some(launches) => {
            launches.push(launch.clone());
            Ok(())
        }
        None => Err(Error::CAPTURE_INVALIDATED),
    })
}

/// Breaks every capture: the caller waits for the context.
pub(crate) fn break_captures() -> Outcome {
    let mut state = state();
    if state.captures.is_empty() {
        return Ok(());
    }
    state.captures.values_mut().for_each(|capture| *capture = None);
    Err(Error::CAPTURE_UNSUPPORTED)
}

/// `CU_STREAM_CAPTURE_STATUS_*` of a stream.
pub(crate) fn status(stream: Handle) -> c_int {
    match state().captures.get(&(stream as usize)) {
        None => 0,
        Some(Some(_)) => 1,
        Some(None) => 2,
    }
}

/// A stream is destroyed, and what was captured in it is gone.
pub(crate) fn forget_capture(stream: Handle) {
    let mut state = state();
    state.captures.remove(&(stream as usize));
    state.into.remove(&(stream as usize));
}

fn begin(stream: Handle) -> Outcome {
    current_gpu()?;
    if stream.is_null() || state().captures.contains_key(&(stream as usize)) {
        return Err(Error::ILLEGAL_STATE);
    }
    state().captures.insert(stream as usize, Some(Vec::new()));
    Ok(())
}

driver_api! {
    gated fn cuStreamBeginCapture(stream: Handle) { begin(stream) }

    gated fn cuStreamBeginCapture_v2(stream: Handle, _mode: c_int) { begin(stream) }

    gated fn cuStreamBeginCaptureToGraph(
        stream: Handle,
        graph: Handle,
        _after: *const c_void,
        _edges: *const c_void,
        _count: usize,
        _mode: c_int,
    ) {
        if !state().graphs.contains_key(&(graph as usize)) {
            return Err(Error::INVALID_VALUE);
        }
        begin(stream)?;
        state().into.insert(stream as usize, graph as usize);
        Ok(())
    }

    gated fn cuGraphCreate(out: *mut Handle, _flags: c_uint) {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        state().graphs.insert(number, Vec::new());
        put(out, number as Handle)
    }

    gated fn cuStreamEndCapture(stream: Handle, graph: *mut Handle) {
        let mut state = state();
        let launches = state.captures.remove(&(stream as usize)).ok_or(Error::ILLEGAL_STATE)?;
        let into = state.into.remove(&(stream as usize));
        let launches = launches.ok_or(Error::CAPTURE_INVALIDATED)?;
        let number = into.unwrap_or_else(|| NEXT.fetch_add(1, Ordering::Relaxed));
        state.graphs.entry(number).or_default().extend(launches);
        put(graph, number as Handle)
    }

    gated fn cuGraphInstantiate(
        out: *mut Handle,
        graph: Handle,
        failed: *mut Handle,
        text: *mut c_char,
        room: usize,
    ) {
        instantiate_with_log(out, graph, failed, text, room)
    }

    gated fn cuGraphInstantiate_v2(
        out: *mut Handle,
        graph: Handle,
        failed: *mut Handle,
        text: *mut c_char,
        room: usize,
    ) {
        instantiate_with_log(out, graph, failed, text, room)
    }

    gated fn cuGraphInstantiateWithFlags(out: *mut Handle, graph: Handle, _flags: u64) {
        instantiate(out, graph)
    }

    gated fn cuGraphInstantiateWithParams(out: *mut Handle, graph: Handle, parameters: *mut c_void) {
        if parameters.is_null() { Err(Error::INVALID_VALUE) } else { instantiate(out, graph) }
    }

    gated fn cuGraphLaunch(graph: Handle, _stream: Handle) {
        let launches = state().graphs.get(&(graph as usize)).cloned().ok_or(Error::INVALID_VALUE)?;
        launches.iter().try_for_each(launch_now)
    }

    gated fn cuGraphExecUpdate(ready: Handle, graph: Handle, failed: *mut Handle, result: *mut c_int) {
        put(failed, std::ptr::null_mut())?;
        put(result, 0)?;
        update(ready, graph)
    }

    gated fn cuGraphExecUpdate_v2(ready: Handle, graph: Handle, result: *mut UpdateResult) {
        let null = std::ptr::null_mut();
        put(result, UpdateResult { result: 0, failed: null, from: null })?;
        update(ready, graph)
    }

    gated fn cuGraphDestroy(graph: Handle) { forget(graph) }

    gated fn cuGraphExecDestroy(graph: Handle) { forget(graph) }

    open fn cuThreadExchangeStreamCaptureMode(_mode: *mut c_uint) { Ok(()) }
}

/// `CUgraphExecUpdateResultInfo`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct UpdateResult {
    result: c_int,
    failed: Handle,
    from: Handle,
}

fn instantiate(out: *mut Handle, graph: Handle) -> Outcome {
    let launches = state().graphs.get(&(graph as usize)).cloned().ok_or(Error::INVALID_VALUE)?;
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    state().graphs.insert(number, launches);
    put(out, number as Handle)
}

/// The node that failed and what is to be said of it: there is none.
fn instantiate_with_log(
    out: *mut Handle,
    graph: Handle,
    failed: *mut Handle,
    text: *mut c_char,
    room: usize,
) -> Outcome {
    instantiate(out, graph)?;
    put(failed, std::ptr::null_mut())?;
    if room > 0 { put(text, 0) } else { Ok(()) }
}

fn update(ready: Handle, graph: Handle) -> Outcome {
    let launches = state().graphs.get(&(graph as usize)).cloned().ok_or(Error::INVALID_VALUE)?;
    *state().graphs.get_mut(&(ready as usize)).ok_or(Error::INVALID_VALUE)? = launches;
    Ok(())
}

fn forget(graph: Handle) -> Outcome {
    state().graphs.remove(&(graph as usize)).map(|_| ()).ok_or(Error::INVALID_VALUE)
}
