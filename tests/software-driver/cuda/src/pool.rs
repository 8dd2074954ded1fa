//! Stream-ordered allocations and their pools. Work in streams is done at once, so an allocation is a plain one.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::api::{driver_api, put};
use crate::error::{Error, Outcome};
use crate::memory::{allocate, free};
use crate::session;
use crate::vmm::Location;

/// A `CUstream` or `CUmemoryPool`: never dereferenced.
type Handle = *mut c_void;

/// Handles of the pools that come with the devices; those of others are above.
const DEFAULT: usize = 0x900;
const OWN: usize = DEFAULT + 0x100;
static NEXT: AtomicUsize = AtomicUsize::new(OWN);

/// Current pools of devices, where they are not the default ones.
static CURRENT: Mutex<BTreeMap<c_int, usize>> = Mutex::new(BTreeMap::new());

fn current() -> MutexGuard<'static, BTreeMap<c_int, usize>> {
    CURRENT.lock().unwrap_or_else(PoisonError::into_inner)
}

fn default_pool(out: *mut Handle, device: c_int) -> Outcome {
    session::gpu(device)?;
    put(out, (DEFAULT + device as usize) as Handle)
}

fn current_pool(out: *mut Handle, device: c_int) -> Outcome {
    let set = current().get(&device).copied();
    set.map_or_else(|| default_pool(out, device), |pool| put(out, pool as Handle))
}

fn set_current(device: c_int, pool: Handle) -> Outcome {
    session::gpu(device)?;
    known(pool)?;
    current().insert(device, pool as usize);
    Ok(())
}

/// The device of a location of plain memory.
fn device(location: *const Location, kind: c_int) -> Result<c_int, Error> {
    // SAFETY: the driver's contract: null, or a location.
    let location = unsafe { location.as_ref() };
    location.filter(|it| it.kind == 1 && kind == 1).map(|it| it.id).ok_or(Error::INVALID_VALUE)
}

fn known(pool: Handle) -> Result<(), Error> {
    if (DEFAULT..NEXT.load(Ordering::Relaxed)).contains(&(pool as usize)) {
        Ok(())
    } else {
        Err(Error::INVALID_VALUE)
    }
}

driver_api! {
    gated fn cuMemAllocAsync(out: *mut u64, bytes: usize, _stream: Handle) { allocate(out, bytes, false) }

    gated fn cuMemFreeAsync(pointer: u64, _stream: Handle) { free(pointer) }

    gated fn cuMemAllocFromPoolAsync(out: *mut u64, bytes: usize, pool: Handle, _stream: Handle) {
        known(pool)?;
        allocate(out, bytes, false)
    }

    gated fn cuDeviceGetDefaultMemPool(out: *mut Handle, device: c_int) { default_pool(out, device) }

    gated fn cuDeviceGetMemPool(out: *mut Handle, device: c_int) { current_pool(out, device) }

    gated fn cuDeviceSetMemPool(device: c_int, pool: Handle) { set_current(device, pool) }

    gated fn cuMemGetDefaultMemPool(out: *mut Handle, location: *const Location, kind: c_int) {
        default_pool(out, device(location, kind)?)
    }

    gated fn cuMemGetMemPool(out: *mut Handle, location: *const Location, kind: c_int) {
        current_pool(out, device(location, kind)?)
    }

    gated fn cuMemSetMemPool(location: *const Location, kind: c_int, pool: Handle) {
        set_current(device(location, kind)?, pool)
    }

    gated fn cuMemPoolCreate(out: *mut Handle, properties: *const c_void) {
        if properties.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        put(out, NEXT.fetch_add(1, Ordering::Relaxed) as Handle)
    }

    gated fn cuMemPoolDestroy(pool: Handle) {
        known(pool)?;
        if (pool as usize) < OWN {
            return Err(Error::INVALID_VALUE);
        }
        current().retain(|_, current| *current != pool as usize);
        Ok(())
    }

    gated fn cuMemPoolSetAttribute(pool: Handle, _attribute: c_int, value: *mut c_void) {
        known(pool)?;
        if value.is_null() { Err(Error::INVALID_VALUE) } else { Ok(()) }
    }

    gated fn cuMemPoolSetAccess(pool: Handle, access: *const c_void, _count: usize) {
        known(pool)?;
        if access.is_null() { Err(Error::INVALID_VALUE) } else { Ok(()) }
    }

    gated fn cuMemPoolTrimTo(pool: Handle, _keep: usize) { known(pool) }
}
