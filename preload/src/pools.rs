//! Pools of stream-ordered allocations: which there are, which is each GPU's current one, and what the engine asks of them.
//!
//! ```text
//!  cuMemAllocAsync ────────────▶ the current pool of the stream's GPU ─┐
//!                                                                      ├─▶ parkable: this library's memory
//!  cuMemAllocFromPoolAsync ────▶ that pool ────────────────────────────┘   other:    the driver's, which stays
//! ```
//!
//! Memory of a pool that can be exported, is of a limited size, or is for more than plain device memory is the driver's to
//! give. Parkable pools of a GPU share what is kept for the next allocation, and who reaches one of them reaches all.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_ushort, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::driver::{self, Access, Handle, Location, SUCCESS};
use crate::gate;
use crate::hook::hooks;
use crate::pool;
use crate::process;
use crate::registry;

/// `CU_MEM_ALLOCATION_TYPE_PINNED`: not managed.
const PINNED: c_int = 1;

/// `CUmemPoolProps`, as far as it is looked at.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct PoolProperties {
    kind: c_int,
    handle_types: c_int,
    location: Location,
    win32: *mut c_void,
    largest: usize,
    usage: c_ushort,
}

impl PoolProperties {
    /// Whether it gives out plain device memory of this process alone, as much as there is.
    fn is_plain(&self) -> bool {
        self.kind == PINNED && self.handle_types == 0 && self.largest == 0 && self.usage == 0
    }
}

/// A pool of a GPU's memory.
#[derive(Debug, Clone, Copy)]
struct Pool {
    device: c_int,
    /// Whether this library's memory is given out in its place.
    parkable: bool,
    /// Bytes that it may keep (`CU_MEMPOOL_ATTR_RELEASE_THRESHOLD`).
    threshold: usize,
}

#[derive(Debug)]
struct State {
    pools: BTreeMap<usize, Pool>,
    /// Current pools of devices, where the engine has set them; else it is the default one.
    current: BTreeMap<c_int, usize>,
}

static STATE: Mutex<State> = Mutex::new(State { pools: BTreeMap::new(), current: BTreeMap::new() });

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The device whose memory a parkable pool gives out.
pub(crate) fn device_of(pool: Handle) -> Option<c_int> {
    state().pools.get(&(pool as usize)).filter(|pool| pool.parkable).map(|pool| pool.device)
}

/// Whether a pool gives out memory of a GPU that stays there.
pub(crate) fn stays(pool: Handle) -> bool {
    state().pools.get(&(pool as usize)).is_some_and(|pool| !pool.parkable)
}

/// The pool that the engine has made a device's current one; nothing where it is the default one.
pub(crate) fn current(device: c_int) -> Option<Handle> {
    state().current.get(&device).map(|pool| *pool as Handle)
}

/// The largest release threshold of a device's parkable pools.
pub(crate) fn threshold(device: c_int) -> usize {
    let state = state();
    let parkable = state.pools.values().filter(|pool| pool.parkable && pool.device == device);
    parkable.map(|pool| pool.threshold).max().unwrap_or(0)
}

/// Notes a pool that the driver has named.
fn note(code: c_int, pool: *const Handle, device: c_int, plain: bool) -> c_int {
    if code == SUCCESS && process::enabled() && !pool.is_null() && driver::can_back(device) {
        let noted = Pool { device, parkable: plain, threshold: 0 };
        // SAFETY: not null, and the driver has written it.
        state().pools.entry(unsafe { *pool } as usize).or_insert(noted);
    }
    code
}

/// Notes the default pool of a location, or its current one, which is the default one or known.
///
/// # Safety
/// The location is null or points to one.
unsafe fn note_of(code: c_int, pool: *const Handle, location: *const Location, kind: c_int) -> c_int {
    // SAFETY: the caller's promise.
    match unsafe { location.as_ref() } {
        Some(it) if it.is_device() => note(code, pool, it.id, kind == PINNED),
        _ => code,
    }
}

fn set_current(code: c_int, device: c_int, pool: Handle) -> c_int {
    if code == SUCCESS && process::enabled() {
        state().current.insert(device, pool as usize);
    }
    code
}

/// Destroys a pool. A device whose current one it was has its default one again.
fn destroy(pool: Handle, real: impl FnOnce() -> c_int) -> c_int {
    if !process::enabled() {
        return real();
    }
    let number = pool as usize;
    // Before the call: right afterwards the handle may be a new pool's.
    let mut before = state();
    let known = before.pools.remove(&number);
    let those = before.current.iter().filter(|(_, current)| **current == number);
    let current: Vec<c_int> = those.map(|(device, _)| *device).collect();
    before.current.retain(|_, current| *current != number);
    drop(before);
    let code = real();
    if code != SUCCESS {
        let mut state = state();
        state.pools.extend(known.map(|pool| (number, pool)));
        state.current.extend(current.into_iter().map(|device| (device, number)));
    }
    code
}

hooks! {
    fn cuMemPoolCreate(out: *mut Handle, properties: *const PoolProperties) {
        // SAFETY: the caller's own arguments.
        let code = unsafe { real::cuMemPoolCreate(out, properties) };
        // SAFETY: the driver's contract: null, or the properties.
        match unsafe { properties.as_ref() } {
            Some(it) if it.location.is_device() => note(code, out, it.location.id, it.is_plain()),
            _ => code,
        }
    }

    fn cuMemPoolDestroy(pool: Handle) {
        // SAFETY: the caller's own argument.
        destroy(pool, || unsafe { real::cuMemPoolDestroy(pool) })
    }

    fn cuDeviceGetDefaultMemPool(out: *mut Handle, device: c_int) {
        // SAFETY: the caller's own arguments.
        note(unsafe { real::cuDeviceGetDefaultMemPool(out, device) }, out, device, true)
    }

    fn cuDeviceGetMemPool(out: *mut Handle, device: c_int) {
        // SAFETY: the caller's own arguments.
        note(unsafe { real::cuDeviceGetMemPool(out, device) }, out, device, true)
    }

    fn cuDeviceSetMemPool(device: c_int, pool: Handle) {
        // SAFETY: the caller's own arguments.
        set_current(unsafe { real::cuDeviceSetMemPool(device, pool) }, device, pool)
    }

    fn cuMemGetDefaultMemPool(out: *mut Handle, location: *const Location, kind: c_int) {
        // SAFETY: the caller's own arguments, and the driver's contract: null, or a location.
        unsafe { note_of(real::cuMemGetDefaultMemPool(out, location, kind), out, location, kind) }
    }

    fn cuMemGetMemPool(out: *mut Handle, location: *const Location, kind: c_int) {
        // SAFETY: as above.
        unsafe { note_of(real::cuMemGetMemPool(out, location, kind), out, location, kind) }
    }

    fn cuMemSetMemPool(location: *const Location, kind: c_int, pool: Handle) {
        // SAFETY: the caller's own arguments.
        let code = unsafe { real::cuMemSetMemPool(location, kind, pool) };
        // SAFETY: the driver's contract: null, or a location.
        match unsafe { location.as_ref() } {
            Some(it) if it.is_device() && kind == PINNED => set_current(code, it.id, pool),
            _ => code,
        }
    }

    fn cuMemPoolSetAttribute(pool: Handle, attribute: c_int, value: *mut c_void) {
        /// `CU_MEMPOOL_ATTR_RELEASE_THRESHOLD`.
        const RELEASE_THRESHOLD: c_int = 4;
        // SAFETY: the caller's own arguments.
        let code = unsafe { real::cuMemPoolSetAttribute(pool, attribute, value) };
        if code == SUCCESS
            && attribute == RELEASE_THRESHOLD
            && process::enabled()
            && let Some(pool) = state().pools.get_mut(&(pool as usize))
        {
            // SAFETY: the driver's contract: 64 bits for this attribute, which it has read.
            pool.threshold = usize::try_from(unsafe { value.cast::<u64>().read() }).unwrap_or(usize::MAX);
        }
        code
    }

    fn cuMemPoolSetAccess(pool: Handle, access: *const Access, count: usize) {
        let _inside = process::enabled().then(gate::pass);
        // SAFETY: the caller's own arguments.
        let code = unsafe { real::cuMemPoolSetAccess(pool, access, count) };
        if code != SUCCESS || !process::enabled() || access.is_null() {
            return code;
        }
        let Some(whose) = device_of(pool) else { return code };
        // SAFETY: the driver's contract has the caller pass `count` of them, which it has read.
        let access = unsafe { std::slice::from_raw_parts(access, count) };
        // What a pool gives out lies among the device's other memory. An access that is taken back does no harm.
        let reaching = access.iter().filter(|it| it.location.is_device() && it.may_write());
        let reached = reaching.map(|it| it.location.id).try_for_each(|who| registry::lock().let_reach(who, whose));
        reached.err().unwrap_or(SUCCESS)
    }

    fn cuMemPoolTrimTo(pool: Handle, keep: usize) {
        if process::enabled() && let Some(device) = device_of(pool) {
            pool::trim(device, keep);
        }
        // SAFETY: the caller's own arguments.
        unsafe { real::cuMemPoolTrimTo(pool, keep) }
    }
}
