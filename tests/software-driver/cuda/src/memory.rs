//! Plain allocations, managed ones, and copies: device memory is an anonymous mapping of the process that
//! allocates it, charged to its record.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_uint, c_void};
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use crate::api::{account, driver_api, put};
use crate::context::{current_gpu, ordinal_of};
use crate::error::{Error, Outcome};

/// Allocations are charged in steps of this many bytes, as the driver's smallest page.
const GRANULE: usize = 2 << 20;

#[derive(Debug, Clone, Copy)]
struct Allocation {
    bytes: usize,
    gpu: usize,
    managed: bool,
}

static ALLOCATIONS: Mutex<BTreeMap<u64, Allocation>> = Mutex::new(BTreeMap::new());

fn with<T>(action: impl FnOnce(&mut BTreeMap<u64, Allocation>) -> T) -> T {
    action(&mut ALLOCATIONS.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
}

pub(crate) fn allocate(out: *mut u64, bytes: usize, managed: bool) -> Outcome {
    if bytes == 0 {
        return Err(Error::INVALID_VALUE);
    }
    let gpu = current_gpu()?;
    let (table, record) = account()?;
    let charged = bytes.next_multiple_of(GRANULE);
    if !table.charge(record, gpu, charged as u64) {
        return Err(Error::OUT_OF_MEMORY);
    }
    // SAFETY: a fresh anonymous mapping; nothing is replaced.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            charged,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if address == libc::MAP_FAILED {
        table.refund(record, gpu, charged as u64);
        return Err(Error::OUT_OF_MEMORY);
    }
    if managed {
        record.managed.fetch_add(1, Ordering::SeqCst);
    }
    with(|allocations| allocations.insert(address as u64, Allocation { bytes: charged, gpu, managed }));
    put(out, address as u64)
}

pub(crate) fn free(pointer: u64) -> Outcome {
    if pointer == 0 {
        return Ok(());
    }
    let allocation = with(|allocations| allocations.remove(&pointer)).ok_or(Error::INVALID_VALUE)?;
    // SAFETY: the mapping was made by `allocate` with this address and length and is forgotten above.
    unsafe { libc::munmap(pointer as *mut c_void, allocation.bytes) };
    let (table, record) = account()?;
    table.refund(record, allocation.gpu, allocation.bytes as u64);
    if allocation.managed {
        record.managed.fetch_sub(1, Ordering::SeqCst);
    }
    Ok(())
}

pub(crate) fn copy(to: u64, from: u64, bytes: usize) -> Outcome {
    if bytes > 0 && (to == 0 || from == 0) {
        return Err(Error::INVALID_VALUE);
    }
    // SAFETY: device addresses are addresses of this process, and the driver's contract has the caller name
    // ranges that it owns; `copy` allows them to overlap.
    unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
    Ok(())
}

pub(crate) fn fill<T: Copy>(to: u64, value: T, count: usize) -> Outcome {
    if to == 0 || !(to as usize).is_multiple_of(align_of::<T>()) {
        return Err(Error::INVALID_VALUE);
    }
    // SAFETY: as in `copy`; the address is aligned for T.
    unsafe { std::slice::from_raw_parts_mut(to as *mut T, count) }.fill(value);
    Ok(())
}

driver_api! {
    gated fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        let gpu = current_gpu()?;
        let (table, _) = account()?;
        put(free, table.free(gpu) as usize)?;
        put(total, table.machine().gpus[gpu].bytes as usize)
    }

    gated fn cuMemAlloc_v2(out: *mut u64, bytes: usize) { allocate(out, bytes, false) }

    gated fn cuMemAllocPitch_v2(
        out: *mut u64,
        pitch: *mut usize,
        width: usize,
        height: usize,
        _element: c_uint,
    ) {
        let row = width.next_multiple_of(512);
        put(pitch, row)?;
        allocate(out, row * height, false)
    }

    gated fn cuMemAllocManaged(out: *mut u64, bytes: usize, _flags: c_uint) { allocate(out, bytes, true) }

    gated fn cuMemFree_v2(pointer: u64) {
        // For work on the memory's own device, whichever is current.
        if let Some(gpu) = with(|allocations| allocations.get(&pointer).map(|it| it.gpu)) {
            let there = |context| {
                ordinal_of(context).is_some_and(|ordinal| crate::session::gpu(ordinal) == Ok(gpu))
            };
            crate::work::wait(&crate::work::in_contexts(there));
        }
        free(pointer)
    }

    gated fn cuMemGetAddressRange_v2(base: *mut u64, bytes: *mut usize, pointer: u64) {
        let (start, allocation) = with(|allocations| {
            allocations.range(..=pointer).next_back().map(|(&start, &it)| (start, it))
        })
        .filter(|(start, it)| pointer < start + it.bytes as u64)
        .ok_or(Error::INVALID_VALUE)?;
        put(base, start)?;
        put(bytes, allocation.bytes)
    }

    gated fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize) { copy(to, from as u64, bytes) }

    gated fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize) { copy(to as u64, from, bytes) }

    gated fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) { copy(to, from, bytes) }

    gated fn cuMemcpy(to: u64, from: u64, bytes: usize) { copy(to, from, bytes) }

    gated fn cuMemsetD8_v2(to: u64, value: u8, count: usize) { fill(to, value, count) }

    gated fn cuMemsetD16_v2(to: u64, value: u16, count: usize) { fill(to, value, count) }

    gated fn cuMemsetD32_v2(to: u64, value: c_uint, count: usize) { fill(to, value, count) }

    gated fn cuMemHostAlloc(out: *mut *mut c_void, bytes: usize, _flags: c_uint) {
        // SAFETY: a fresh anonymous mapping; nothing is replaced.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if bytes == 0 || address == libc::MAP_FAILED {
            return Err(Error::OUT_OF_MEMORY);
        }
        PINNED.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(address as u64, bytes);
        put(out, address)
    }

    gated fn cuMemFreeHost(pointer: *mut c_void) {
        let mut pinned = PINNED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let bytes = pinned.remove(&(pointer as u64)).ok_or(Error::INVALID_VALUE)?;
        // SAFETY: the mapping was made by cuMemHostAlloc with this length and is forgotten above.
        unsafe { libc::munmap(pointer, bytes) };
        Ok(())
    }

    gated fn cuMemHostRegister_v2(_pointer: *mut c_void, _bytes: usize, _flags: c_uint) { Ok(()) }

    gated fn cuMemHostUnregister(_pointer: *mut c_void) { Ok(()) }

    open fn cuPointerGetAttribute(value: *mut c_void, attribute: c_int, pointer: u64) {
        /// `CU_POINTER_ATTRIBUTE_IS_MANAGED`.
        const IS_MANAGED: c_int = 8;
        let allocation = with(|allocations| allocations.get(&pointer).copied()).ok_or(Error::INVALID_VALUE)?;
        if attribute != IS_MANAGED {
            return Err(Error::NOT_SUPPORTED);
        }
        put(value.cast::<c_uint>(), c_uint::from(allocation.managed))
    }
}

static PINNED: Mutex<BTreeMap<u64, usize>> = Mutex::new(BTreeMap::new());
