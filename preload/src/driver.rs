//! The driver's functions that are called but not hooked, and the structs they take.

use std::ffi::{c_int, c_uint, c_void};

use crate::hook::real_functions;

/// `CUcontext`.
pub(crate) type Context = *mut c_void;
/// `CUstream` or `CUevent`.
pub(crate) type Handle = *mut c_void;

/// `CUDA_SUCCESS`.
pub(crate) const SUCCESS: c_int = 0;
/// `CUDA_ERROR_INVALID_VALUE`.
pub(crate) const INVALID_VALUE: c_int = 1;
/// `CUDA_ERROR_OUT_OF_MEMORY`.
pub(crate) const OUT_OF_MEMORY: c_int = 2;
/// `CUDA_ERROR_INVALID_HANDLE`.
pub(crate) const INVALID_HANDLE: c_int = 400;
/// `CUDA_ERROR_NOT_SUPPORTED`.
pub(crate) const NOT_SUPPORTED: c_int = 801;

/// `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR`.
pub(crate) const POSIX_DESCRIPTOR: c_int = 1;
/// `CU_MEM_ACCESS_FLAGS_PROT_READWRITE`.
const READ_WRITE: c_int = 3;
/// `CU_MEM_LOCATION_TYPE_DEVICE`, and `CU_MEM_ALLOCATION_TYPE_PINNED`.
const ONE: c_int = 1;

/// `CUmemLocation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Location {
    pub(crate) kind: c_int,
    pub(crate) id: c_int,
}

impl Location {
    pub(crate) fn device(id: c_int) -> Self {
        Self { kind: ONE, id }
    }

    pub(crate) fn is_device(self) -> bool {
        self.kind == ONE
    }
}

/// `CUmemAllocationProp`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Properties {
    pub(crate) kind: c_int,
    pub(crate) handle_types: c_int,
    pub(crate) location: Location,
    pub(crate) win32: *mut c_void,
    pub(crate) flags: [u8; 8],
}

// SAFETY: the pointer is for another system and always null; it is never followed.
unsafe impl Send for Properties {}

impl Properties {
    /// Plain device memory that can be handed out as a descriptor.
    pub(crate) fn on_device(device: c_int) -> Self {
        Self {
            kind: ONE,
            handle_types: POSIX_DESCRIPTOR,
            location: Location::device(device),
            win32: std::ptr::null_mut(),
            flags: [0; 8],
        }
    }
}

/// `CUmemAccessDesc`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Access {
    pub(crate) location: Location,
    pub(crate) flags: c_int,
}

impl Access {
    pub(crate) fn full(device: c_int) -> Self {
        Self { location: Location::device(device), flags: READ_WRITE }
    }

    pub(crate) fn may_write(&self) -> bool {
        self.flags == READ_WRITE
    }
}

real_functions! {
    cuCtxGetCurrent(out: *mut Context);
    cuCtxSetCurrent(context: Context);
    cuCtxPushCurrent_v2(context: Context);
    cuCtxPopCurrent_v2(out: *mut Context);
    cuCtxGetDevice(out: *mut c_int);
    cuCtxSynchronize();
    cuDeviceGetAttribute(out: *mut c_int, attribute: c_int, device: c_int);
    cuMemAddressReserve(out: *mut u64, bytes: usize, alignment: usize, wanted: u64, flags: u64);
    cuMemAddressFree(address: u64, bytes: usize);
    cuStreamIsCapturing(stream: Handle, status: *mut c_int);
    cuEventCreate(out: *mut Handle, flags: c_uint);
    cuEventRecord(event: Handle, stream: Handle);
    cuEventSynchronize(event: Handle);
    cuEventQuery(event: Handle);
    cuEventDestroy_v2(event: Handle);
    cuStreamWaitEvent(stream: Handle, event: Handle, flags: c_uint);
    cuStreamGetCtx(stream: Handle, out: *mut Context);
    cuThreadExchangeStreamCaptureMode(mode: *mut c_int);
}

/// The current context of this thread, if it has one.
pub(crate) fn current_context() -> Option<Context> {
    let mut context = std::ptr::null_mut();
    // SAFETY: the pointer is to a live local.
    let code = unsafe { cuCtxGetCurrent(&raw mut context) };
    (code == SUCCESS && !context.is_null()).then_some(context)
}

/// The device of the current context, if its memory can be backed by chunks.
pub(crate) fn current_device() -> Option<c_int> {
    device().filter(|device| can_back(*device))
}

/// The context that a stream belongs to; the current one for those that every context has.
pub(crate) fn context_of(stream: Handle) -> Option<Context> {
    let mut context = std::ptr::null_mut();
    // SAFETY: the pointer is to a live local; the driver refuses a stream that is none.
    let code = unsafe { cuStreamGetCtx(stream, &raw mut context) };
    (code == SUCCESS && !context.is_null()).then_some(context)
}

/// Does something with that context current; nothing if it is gone.
pub(crate) fn within<T>(context: Context, action: impl FnOnce() -> T) -> Option<T> {
    // SAFETY: the driver refuses a context that is none.
    if unsafe { cuCtxPushCurrent_v2(context) } != SUCCESS {
        return None;
    }
    let done = action();
    let mut popped = std::ptr::null_mut();
    // SAFETY: the pointer is to a live local.
    unsafe { cuCtxPopCurrent_v2(&raw mut popped) };
    Some(done)
}

/// Does something that no capture of this thread's forbids, and that is no part of one.
pub(crate) fn apart_from_captures<T>(action: impl FnOnce() -> T) -> T {
    /// `CU_STREAM_CAPTURE_MODE_RELAXED`.
    const RELAXED: c_int = 2;
    let mut mode = RELAXED;
    // SAFETY: the pointer is to a live local, which gets the mode that was.
    let changed = unsafe { cuThreadExchangeStreamCaptureMode(&raw mut mode) } == SUCCESS;
    let done = action();
    if changed {
        // SAFETY: as above.
        unsafe { cuThreadExchangeStreamCaptureMode(&raw mut mode) };
    }
    done
}

/// The device of the thread's current context.
pub(crate) fn device() -> Option<c_int> {
    let mut device = 0;
    // SAFETY: the pointer is to a live local.
    (unsafe { cuCtxGetDevice(&raw mut device) } == SUCCESS).then_some(device)
}

/// The device of a context.
pub(crate) fn device_of(context: Context) -> Option<c_int> {
    within(context, device).flatten()
}

/// Whether a device's memory can be backed by chunks.
pub(crate) fn can_back(device: c_int) -> bool {
    /// `CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED`.
    const VIRTUAL_MEMORY: c_int = 102;
    /// `CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED`.
    const DESCRIPTORS: c_int = 103;
    [VIRTUAL_MEMORY, DESCRIPTORS].into_iter().all(|attribute| {
        let mut value = 0;
        // SAFETY: the pointer is to a live local.
        unsafe { cuDeviceGetAttribute(&raw mut value, attribute, device) == SUCCESS && value != 0 }
    })
}

/// A device's place on the bus, 8 bits each: domain, bus, slot.
pub(crate) fn bus(device: c_int) -> u32 {
    // CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID, _BUS_ID, _DEVICE_ID.
    [50, 33, 34].into_iter().fold(0, |place, attribute| {
        let mut value = 0;
        // SAFETY: the pointer is to a live local; a refusal leaves zero.
        unsafe { cuDeviceGetAttribute(&raw mut value, attribute, device) };
        place << 8 | value.cast_unsigned() & 0xff
    })
}
