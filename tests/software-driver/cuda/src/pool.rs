//! Stream-ordered allocations and their pools. Work in streams is done at once, so an allocation is a plain one.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::api::{driver_api, put};
use crate::error::Error;
use crate::memory::{allocate, free};
use crate::session;

/// A `CUstream` or `CUmemoryPool`: never dereferenced.
type Handle = *mut c_void;

/// Handles of the pools that come with the devices; those of others are above.
const DEFAULT: usize = 0x900;
static NEXT: AtomicUsize = AtomicUsize::new(DEFAULT + 0x100);

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

    gated fn cuDeviceGetDefaultMemPool(out: *mut Handle, device: c_int) {
        session::gpu(device)?;
        put(out, (DEFAULT + device as usize) as Handle)
    }

    gated fn cuMemPoolCreate(out: *mut Handle, properties: *const c_void) {
        if properties.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        put(out, NEXT.fetch_add(1, Ordering::Relaxed) as Handle)
    }

    gated fn cuMemPoolDestroy(pool: Handle) { known(pool) }

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
