//! Plain allocations, and what is asked about them.
//!
//! A plain free waits for the work of the memory's own device, whichever is the caller's. While a stream is captured no
//! device can be waited for, which would break the capture: the memory goes when the last one has ended.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::control;
use crate::driver::{self, Context, INVALID_VALUE, OUT_OF_MEMORY, SUCCESS};
use crate::gate;
use crate::hook::hooks;
use crate::pool;
use crate::process;
use crate::registry::{self, SMALLEST};

/// Bytes that the engine may hold on a GPU: all there is, as `cuMemGetInfo` tells it.
const BUDGET: &str = "SWAPSERVE_GPU_BUDGET";
/// `CU_DEVICE_ATTRIBUTE_TEXTURE_PITCH_ALIGNMENT` of every GPU so far is smaller or equal.
const PITCH: usize = 512;

/// Regions that were freed while a stream was being captured.
static LATER: Mutex<Vec<u64>> = Mutex::new(Vec::new());

/// Managed allocations made: memory that cannot be parked.
static MANAGED: AtomicU64 = AtomicU64::new(0);
/// Legacy IPC handles wanted for parkable memory, which has none.
static IPC_REFUSED: AtomicU64 = AtomicU64::new(0);
/// Memory of other processes that was opened here.
static IMPORTED: AtomicU64 = AtomicU64::new(0);
/// Allocations from pools whose memory stays.
static POOLED: AtomicU64 = AtomicU64::new(0);

/// `CUipcMemHandle`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct IpcHandle([u8; 64]);

/// Managed allocations, refused IPC handles, foreign memory opened, and allocations from pools whose memory stays.
pub(crate) fn in_the_way() -> [u64; 4] {
    [&MANAGED, &IPC_REFUSED, &IMPORTED, &POOLED].map(|count| count.load(Ordering::Relaxed))
}

/// Memory of another process has been opened.
pub(crate) fn note_import() {
    IMPORTED.fetch_add(1, Ordering::Relaxed);
    tell();
}

/// Memory has come from a pool whose memory stays.
pub(crate) fn note_pooled() {
    POOLED.fetch_add(1, Ordering::Relaxed);
    tell();
}

/// Meets the memory server also with nothing that can be parked, so that it can be said why.
fn tell() {
    if process::enabled() {
        control::start();
    }
}

/// Device memory in chunks, on the current context's device; nothing where that cannot be, so that the driver is asked.
pub(crate) fn in_chunks(bytes: usize) -> Option<Result<u64, c_int>> {
    if !process::enabled() || bytes < SMALLEST {
        return None;
    }
    let device = driver::current_device()?;
    let _inside = gate::pass();
    Some(on_device(bytes, device))
}

/// Device memory in chunks. The caller is inside the gate.
pub(crate) fn on_device(bytes: usize, device: c_int) -> Result<u64, c_int> {
    let mut result = registry::lock().allocate(bytes, device);
    if result == Err(OUT_OF_MEMORY) && pool::drop_idle() {
        result = registry::lock().allocate(bytes, device);
    }
    control::start();
    result
}

/// Has the driver allocate, which waits while the engine is out: the memory is not the engine's to take then.
pub(crate) fn in_driver(allocate: impl FnMut() -> c_int) -> c_int {
    let _inside = process::enabled().then(gate::pass);
    or_without_idle(allocate)
}

/// Has the driver allocate; if it has too little memory once more without what is kept for the next use.
pub(crate) fn or_without_idle(mut allocate: impl FnMut() -> c_int) -> c_int {
    let code = allocate();
    if code == OUT_OF_MEMORY && pool::drop_idle() { allocate() } else { code }
}

fn allocate(out: *mut u64, bytes: usize, otherwise: impl FnMut() -> c_int) -> c_int {
    match in_chunks(bytes) {
        Some(Ok(address)) if !out.is_null() => {
            // SAFETY: not null, and the driver's contract has the caller pass room for an address.
            unsafe { out.write(address) };
            SUCCESS
        }
        Some(Err(code)) => code,
        _ => in_driver(otherwise),
    }
}

/// Gives a region back once the device has done with it; nothing if the address is not one.
pub(crate) fn free_region(address: u64) -> Option<c_int> {
    if !process::enabled() {
        return None;
    }
    let (_, region) = registry::lock().region_at(address).filter(|(start, _)| *start == address)?;
    let mut later = later();
    if later.contains(&address) {
        return Some(INVALID_VALUE);
    }
    if gate::capturing() {
        later.push(address);
        return Some(SUCCESS);
    }
    drop(later);
    let mut contexts = registry::lock().contexts_on(region.device);
    contexts.extend(driver::current_context().map(|context| context as usize));
    contexts.dedup();
    for context in contexts {
        // A refusal is for the caller's next call to tell.
        // SAFETY: takes nothing.
        driver::within(context as Context, || unsafe { driver::cuCtxSynchronize() });
    }
    Some(registry::lock().free(address).err().unwrap_or(SUCCESS))
}

fn later() -> MutexGuard<'static, Vec<u64>> {
    LATER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives back what was freed while a stream was being captured, unless one still is.
pub(crate) fn free_later() {
    if gate::capturing() {
        return;
    }
    let waiting = std::mem::take(&mut *later());
    for address in waiting {
        // What cannot be given back stays.
        free_region(address);
    }
}

fn budget() -> Option<usize> {
    static VALUE: OnceLock<Option<usize>> = OnceLock::new();
    *VALUE.get_or_init(|| std::env::var(BUDGET).ok()?.parse().ok())
}

hooks! {
    fn cuMemAlloc_v2(out: *mut u64, bytes: usize) {
        // SAFETY: the caller's own arguments.
        allocate(out, bytes, || unsafe { real::cuMemAlloc_v2(out, bytes) })
    }

    fn cuMemAllocPitch_v2(out: *mut u64, pitch: *mut usize, width: usize, height: usize, element: c_uint) {
        let row = width.next_multiple_of(PITCH);
        let Some(bytes) = row.checked_mul(height).filter(|bytes| *bytes >= SMALLEST && !pitch.is_null()) else {
            // SAFETY: the caller's own arguments.
            return in_driver(|| unsafe { real::cuMemAllocPitch_v2(out, pitch, width, height, element) });
        };
        let mut plain = false;
        let code = allocate(out, bytes, || {
            plain = true;
            // SAFETY: the caller's own arguments.
            unsafe { real::cuMemAllocPitch_v2(out, pitch, width, height, element) }
        });
        if code == SUCCESS && !plain {
            // SAFETY: not null, and the driver's contract has the caller pass room for the pitch.
            unsafe { pitch.write(row) };
        }
        code
    }

    fn cuMemFree_v2(address: u64) {
        // SAFETY: the caller's own argument.
        free_region(address).unwrap_or_else(|| unsafe { real::cuMemFree_v2(address) })
    }

    fn cuMemGetAddressRange_v2(base: *mut u64, bytes: *mut usize, address: u64) {
        let region = if process::enabled() { registry::lock().region_at(address) } else { None };
        let Some((start, region)) = region else {
            // SAFETY: the caller's own arguments.
            return unsafe { real::cuMemGetAddressRange_v2(base, bytes, address) };
        };
        // SAFETY: the driver's contract: each is null or has room for its value.
        unsafe {
            if let Some(base) = base.as_mut() {
                *base = start;
            }
            if let Some(bytes) = bytes.as_mut() {
                *bytes = region.bytes;
            }
        }
        SUCCESS
    }

    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        let _inside = process::enabled().then(gate::pass);
        // SAFETY: the caller's own arguments.
        let code = unsafe { real::cuMemGetInfo_v2(free, total) };
        let limit = budget().filter(|_| code == SUCCESS && process::enabled() && !free.is_null());
        if let (Some(budget), Some(device)) = (limit, driver::current_device()) {
            // What waits for its next use is the engine's to take.
            let idle = pool::idle_bytes(device);
            let left = budget.saturating_sub(registry::lock().held(device).saturating_sub(idle));
            // SAFETY: not null, and the driver wrote it.
            unsafe { *free = left.min(*free + idle) };
            // An engine that takes a share of the whole takes it of the budget.
            // SAFETY: null, or the driver wrote it.
            if let Some(total) = unsafe { total.as_mut() } {
                *total = budget.min(*total);
            }
        }
        code
    }

    fn cuMemAllocManaged(out: *mut u64, bytes: usize, flags: c_uint) {
        // SAFETY: the caller's own arguments.
        let code = in_driver(|| unsafe { real::cuMemAllocManaged(out, bytes, flags) });
        if code == SUCCESS {
            MANAGED.fetch_add(1, Ordering::Relaxed);
            tell();
        }
        code
    }

    fn cuCtxEnablePeerAccess(peer: Context, flags: c_uint) {
        let _inside = process::enabled().then(gate::pass);
        // SAFETY: the caller's own arguments.
        let code = unsafe { real::cuCtxEnablePeerAccess(peer, flags) };
        let devices = driver::current_device().zip(driver::device_of(peer));
        match devices.filter(|_| code == SUCCESS && process::enabled()) {
            Some((who, whose)) => registry::lock().let_reach(who, whose).err().unwrap_or(SUCCESS),
            None => code,
        }
    }

    fn cuIpcGetMemHandle(out: *mut c_void, address: u64) {
        if process::enabled() && registry::lock().region_at(address).is_some() {
            IPC_REFUSED.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's own arguments.
        unsafe { real::cuIpcGetMemHandle(out, address) }
    }

    fn cuIpcOpenMemHandle_v2(out: *mut u64, handle: IpcHandle, flags: c_uint) {
        // SAFETY: the caller's own arguments.
        let code = unsafe { real::cuIpcOpenMemHandle_v2(out, handle, flags) };
        if code == SUCCESS {
            note_import();
        }
        code
    }
}
