//! Multicast objects, as far as memory is bound to them: what is bound must be there. Nothing is ever sent to one.

use std::ffi::{c_int, c_ulonglong, c_void};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::api::{driver_api, put};
use crate::error::{Error, Outcome};
use crate::session;
use crate::vmm::{handle_is_known, is_mapped};

/// Handle of the first object.
const FIRST: u64 = 0x6000_0001;
static NEXT: AtomicU64 = AtomicU64::new(FIRST);

fn known(multicast: u64) -> Outcome {
    if (FIRST..NEXT.load(Ordering::Relaxed)).contains(&multicast) {
        Ok(())
    } else {
        Err(Error::INVALID_VALUE)
    }
}

fn bind(multicast: u64, at: usize, bytes: usize, is_there: bool) -> Outcome {
    known(multicast)?;
    // The smallest part of an object is a granule of its memory.
    let whole = bytes > 0 && bytes.is_multiple_of(2 << 20) && at.is_multiple_of(2 << 20);
    if whole && is_there { Ok(()) } else { Err(Error::INVALID_VALUE) }
}

driver_api! {
    gated fn cuMulticastCreate(out: *mut u64, _properties: *const c_void) {
        put(out, NEXT.fetch_add(1, Ordering::Relaxed))
    }

    gated fn cuMulticastBindMem(
        multicast: u64,
        at: usize,
        handle: u64,
        _offset: usize,
        bytes: usize,
        _flags: c_ulonglong,
    ) {
        bind(multicast, at, bytes, handle_is_known(handle))
    }

    gated fn cuMulticastBindMem_v2(
        multicast: u64,
        device: c_int,
        at: usize,
        handle: u64,
        _offset: usize,
        bytes: usize,
        _flags: c_ulonglong,
    ) {
        session::gpu(device)?;
        bind(multicast, at, bytes, handle_is_known(handle))
    }

    gated fn cuMulticastBindAddr(multicast: u64, at: usize, address: u64, bytes: usize, _flags: c_ulonglong) {
        bind(multicast, at, bytes, is_mapped(address, bytes))
    }

    gated fn cuMulticastBindAddr_v2(
        multicast: u64,
        device: c_int,
        at: usize,
        address: u64,
        bytes: usize,
        _flags: c_ulonglong,
    ) {
        session::gpu(device)?;
        bind(multicast, at, bytes, is_mapped(address, bytes))
    }
}
