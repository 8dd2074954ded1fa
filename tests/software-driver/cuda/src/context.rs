//! Contexts: one primary context a GPU, and those a program creates. A context's handle is its number in a list.
//!
//! A context takes the machine's `context` bytes of its GPU for as long as it lives.

use std::cell::RefCell;
use std::ffi::{c_int, c_uint, c_void};
use std::sync::Mutex;

use crate::api::{account, driver_api, put};
use crate::error::{Error, Outcome};
use crate::session;

/// A `CUcontext`: never dereferenced, null for none.
pub(crate) type Handle = *mut c_void;

#[derive(Debug, Clone, Copy)]
struct Context {
    ordinal: c_int,
    primary: bool,
    uses: u32,
}

/// Every context ever made; the handle of entry `n` is `n + 1`.
static CONTEXTS: Mutex<Vec<Context>> = Mutex::new(Vec::new());

thread_local! {
    static STACK: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

fn with<T>(action: impl FnOnce(&mut Vec<Context>) -> T) -> T {
    action(&mut CONTEXTS.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
}

fn number(handle: Handle) -> Result<usize, Error> {
    let number = handle as usize;
    let live =
        with(|contexts| number.checked_sub(1).and_then(|at| contexts.get(at)).is_some_and(|it| it.uses > 0));
    if live { Ok(number) } else { Err(Error::INVALID_CONTEXT) }
}

/// Number of the thread's current context, which is also its handle.
pub(crate) fn current() -> Result<usize, Error> {
    STACK.with_borrow(|stack| stack.last().copied()).ok_or(Error::INVALID_CONTEXT)
}

/// CUDA ordinal of a context's device.
pub(crate) fn ordinal_of(number: usize) -> Option<c_int> {
    with(|contexts| Some(contexts.get(number.checked_sub(1)?)?.ordinal))
}

/// CUDA ordinal of the thread's current context.
pub(crate) fn current_ordinal() -> Result<c_int, Error> {
    let number = current()?;
    number.checked_sub(1).map(|at| with(|contexts| contexts[at].ordinal)).ok_or(Error::INVALID_CONTEXT)
}

/// Place on the bus of the current context's GPU.
pub(crate) fn current_gpu() -> Result<usize, Error> {
    session::gpu(current_ordinal()?)
}

fn charge(ordinal: c_int) -> Outcome {
    let (table, record) = account()?;
    let bytes = table.machine().context;
    if table.charge(record, session::gpu(ordinal)?, bytes) { Ok(()) } else { Err(Error::OUT_OF_MEMORY) }
}

fn release(at: usize) -> Outcome {
    let ended = with(|contexts| {
        let context =
            contexts.get_mut(at).filter(|context| context.uses > 0).ok_or(Error::INVALID_CONTEXT)?;
        context.uses -= 1;
        Ok((context.uses == 0).then_some(context.ordinal))
    })?;
    if let Some(ordinal) = ended {
        let (table, record) = account()?;
        table.refund(record, session::gpu(ordinal)?, table.machine().context);
    }
    Ok(())
}

fn retain_primary(ordinal: c_int) -> Result<Handle, Error> {
    session::gpu(ordinal)?;
    let find = |contexts: &mut Vec<Context>| {
        contexts.iter().position(|context| context.primary && context.ordinal == ordinal)
    };
    let fresh = with(|contexts| find(contexts).is_none_or(|at| contexts[at].uses == 0));
    if fresh {
        charge(ordinal)?;
    }
    let at = with(|contexts| {
        let at = find(contexts).unwrap_or_else(|| {
            contexts.push(Context { ordinal, primary: true, uses: 0 });
            contexts.len() - 1
        });
        contexts[at].uses += 1;
        at
    });
    Ok((at + 1) as Handle)
}

fn create(out: *mut Handle, ordinal: c_int) -> Outcome {
    session::gpu(ordinal)?;
    charge(ordinal)?;
    let number = with(|contexts| {
        contexts.push(Context { ordinal, primary: false, uses: 1 });
        contexts.len()
    });
    STACK.with_borrow_mut(|stack| stack.push(number));
    put(out, number as Handle)
}

fn primary_state(device: c_int, flags: *mut c_uint, active: *mut c_int) -> Outcome {
    session::gpu(device)?;
    let live = with(|contexts| contexts.iter().any(|it| it.primary && it.ordinal == device && it.uses > 0));
    put(flags, 0)?;
    put(active, c_int::from(live))
}

fn release_primary(device: c_int) -> Outcome {
    let at =
        with(|contexts| contexts.iter().position(|context| context.primary && context.ordinal == device));
    release(at.ok_or(Error::INVALID_CONTEXT)?)
}

fn set_current(handle: Handle) -> Outcome {
    let number = if handle.is_null() { None } else { Some(number(handle)?) };
    STACK.with_borrow_mut(|stack| {
        stack.pop();
        stack.extend(number);
    });
    Ok(())
}

driver_api! {
    gated fn cuDevicePrimaryCtxRetain(out: *mut Handle, device: c_int) {
        put(out, retain_primary(device)?)
    }

    gated fn cuDevicePrimaryCtxRelease(device: c_int) { release_primary(device) }

    gated fn cuDevicePrimaryCtxRelease_v2(device: c_int) { release_primary(device) }

    open fn cuDevicePrimaryCtxGetState(device: c_int, flags: *mut c_uint, active: *mut c_int) {
        primary_state(device, flags, active)
    }

    gated fn cuCtxCreate_v2(out: *mut Handle, _flags: c_uint, device: c_int) { create(out, device) }

    gated fn cuCtxCreate_v4(out: *mut Handle, _settings: *mut c_void, _flags: c_uint, device: c_int) {
        create(out, device)
    }

    gated fn cuCtxDestroy_v2(handle: Handle) {
        let number = number(handle)?;
        STACK.with_borrow_mut(|stack| stack.retain(|&entry| entry != number));
        release(number - 1)
    }

    open fn cuCtxSetCurrent(handle: Handle) { set_current(handle) }

    open fn cuCtxGetCurrent(out: *mut Handle) {
        put(out, STACK.with_borrow(|stack| stack.last().copied().unwrap_or(0)) as Handle)
    }

    open fn cuCtxPushCurrent_v2(handle: Handle) {
        let number = number(handle)?;
        STACK.with_borrow_mut(|stack| stack.push(number));
        Ok(())
    }

    open fn cuCtxPopCurrent_v2(out: *mut Handle) {
        let popped = STACK.with_borrow_mut(Vec::pop).ok_or(Error::INVALID_CONTEXT)?;
        if out.is_null() { Ok(()) } else { put(out, popped as Handle) }
    }

    gated fn cuCtxEnablePeerAccess(peer: Handle, _flags: c_uint) {
        current_ordinal()?;
        number(peer).map(|_| ())
    }

    open fn cuCtxGetDevice(device: *mut c_int) { put(device, current_ordinal()?) }

    gated fn cuCtxSynchronize() {
        let current = current()?;
        crate::graph::break_captures()?;
        crate::work::wait(&crate::work::in_contexts(|context| context == current));
        Ok(())
    }
}
