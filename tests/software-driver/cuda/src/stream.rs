//! Streams and events, and what is submitted to streams. Work is done at once, by the thread that submits it:
//! every order that a program may rely on holds.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::api::{driver_api, put};
use crate::context::current_gpu;
use crate::error::Outcome;
use crate::memory::{copy, fill};

/// A `CUstream` or `CUevent`: never dereferenced.
type Handle = *mut c_void;
/// What `cuLaunchHostFunc` calls.
type HostFunction = unsafe extern "C" fn(*mut c_void);

static NEXT: AtomicUsize = AtomicUsize::new(0x100);

fn fresh(out: *mut Handle) -> Outcome {
    current_gpu()?;
    put(out, NEXT.fetch_add(1, Ordering::Relaxed) as Handle)
}

fn elapsed() -> f32 {
    static BEGUN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    BEGUN.get_or_init(Instant::now).elapsed().as_secs_f32() * 1000.0
}

driver_api! {
    gated fn cuStreamCreate(out: *mut Handle, _flags: c_uint) { fresh(out) }

    gated fn cuStreamCreateWithPriority(out: *mut Handle, _flags: c_uint, _priority: c_int) { fresh(out) }

    gated fn cuStreamDestroy_v2(_stream: Handle) { Ok(()) }

    gated fn cuStreamSynchronize(_stream: Handle) { Ok(()) }

    gated fn cuStreamQuery(_stream: Handle) { Ok(()) }

    gated fn cuStreamWaitEvent(_stream: Handle, _event: Handle, _flags: c_uint) { Ok(()) }

    open fn cuStreamIsCapturing(stream: Handle, status: *mut c_int) { put(status, crate::graph::status(stream)) }

    gated fn cuEventCreate(out: *mut Handle, _flags: c_uint) { fresh(out) }

    gated fn cuEventDestroy_v2(_event: Handle) { Ok(()) }

    gated fn cuEventRecord(_event: Handle, _stream: Handle) { Ok(()) }

    gated fn cuEventSynchronize(_event: Handle) { Ok(()) }

    gated fn cuEventQuery(_event: Handle) { Ok(()) }

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
