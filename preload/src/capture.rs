//! Stream captures that are under way.
//!
//! A capture begins in one stream and ends there, or with it: a stream that is destroyed takes its capture along. Streams
//! that join by waiting for its events end nothing. While one is under way the gate does not close and what is freed waits.

use std::ffi::{c_int, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::driver::{Handle, SUCCESS};
use crate::gate;
use crate::hook::hooks;
use crate::memory;
use crate::pool;
use crate::process;

/// A pointer that is passed on unseen.
type Any = *mut c_void;

/// The stream that each capture has begun in. Threads' own streams share a handle: it stands here once for each capture.
static BEGUN: Mutex<Vec<usize>> = Mutex::new(Vec::new());

fn begun() -> MutexGuard<'static, Vec<usize>> {
    BEGUN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn begin(stream: Handle, real: impl FnOnce() -> c_int) -> c_int {
    if !process::enabled() {
        return real();
    }
    let _inside = gate::pass();
    // Before the call: from then on no device may be waited for.
    gate::capture_begins();
    begun().push(stream as usize);
    let code = real();
    if code != SUCCESS {
        ended(stream);
    }
    code
}

/// Ends a capture. A call that is refused has ended one if it was broken, and none if there was none or if it is not this
/// stream's or thread's to end: the stream tells.
fn end(stream: Handle, real: impl FnOnce() -> c_int) -> c_int {
    let captured = process::enabled() && pool::captured(stream);
    let code = real();
    if captured && !pool::captured(stream) {
        ended(stream);
    }
    code
}

/// Destroys a stream, and with it the capture that has begun in it and not ended.
fn destroy(stream: Handle, real: impl FnOnce() -> c_int) -> c_int {
    let code = real();
    // The stream cannot be asked any more.
    if code == SUCCESS && process::enabled() {
        ended(stream);
    }
    code
}

/// A capture that has begun in the stream has ended; nothing if none is known.
fn ended(stream: Handle) {
    let mut begun = begun();
    let Some(at) = begun.iter().position(|it| *it == stream as usize) else { return };
    begun.swap_remove(at);
    drop(begun);
    gate::capture_ends();
    memory::free_later();
}

hooks! {
    fn cuStreamBeginCapture(stream: Handle) {
        // SAFETY: the caller's own argument.
        begin(stream, || unsafe { real::cuStreamBeginCapture(stream) })
    }

    fn cuStreamBeginCapture_ptsz(stream: Handle) {
        // SAFETY: the caller's own argument.
        begin(pool::own(stream), || unsafe { real::cuStreamBeginCapture_ptsz(stream) })
    }

    fn cuStreamBeginCapture_v2(stream: Handle, mode: c_int) {
        // SAFETY: the caller's own arguments.
        begin(stream, || unsafe { real::cuStreamBeginCapture_v2(stream, mode) })
    }

    fn cuStreamBeginCapture_v2_ptsz(stream: Handle, mode: c_int) {
        // SAFETY: the caller's own arguments.
        begin(pool::own(stream), || unsafe { real::cuStreamBeginCapture_v2_ptsz(stream, mode) })
    }

    fn cuStreamBeginCaptureToGraph(stream: Handle, graph: Any, after: Any, edges: Any, count: usize, mode: c_int) {
        // SAFETY: the caller's own arguments.
        begin(stream, || unsafe { real::cuStreamBeginCaptureToGraph(stream, graph, after, edges, count, mode) })
    }

    fn cuStreamBeginCaptureToGraph_ptsz(
        stream: Handle, graph: Any, after: Any, edges: Any, count: usize, mode: c_int,
    ) {
        // SAFETY: the caller's own arguments.
        begin(pool::own(stream), || unsafe {
            real::cuStreamBeginCaptureToGraph_ptsz(stream, graph, after, edges, count, mode)
        })
    }

    fn cuStreamBeginRecaptureToGraph(stream: Handle, mode: c_int, graph: Any, differs: Any, data: Any) {
        // SAFETY: the caller's own arguments.
        begin(stream, || unsafe { real::cuStreamBeginRecaptureToGraph(stream, mode, graph, differs, data) })
    }

    fn cuStreamBeginRecaptureToGraph_ptsz(stream: Handle, mode: c_int, graph: Any, differs: Any, data: Any) {
        // SAFETY: the caller's own arguments.
        begin(pool::own(stream), || unsafe {
            real::cuStreamBeginRecaptureToGraph_ptsz(stream, mode, graph, differs, data)
        })
    }

    fn cuStreamEndCapture(stream: Handle, out: Any) {
        // SAFETY: the caller's own arguments.
        end(stream, || unsafe { real::cuStreamEndCapture(stream, out) })
    }

    fn cuStreamEndCapture_ptsz(stream: Handle, out: Any) {
        // SAFETY: the caller's own arguments.
        end(pool::own(stream), || unsafe { real::cuStreamEndCapture_ptsz(stream, out) })
    }

    fn cuStreamDestroy_v2(stream: Handle) {
        // SAFETY: the caller's own argument.
        destroy(stream, || unsafe { real::cuStreamDestroy_v2(stream) })
    }
}
