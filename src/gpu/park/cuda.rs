//! The driver's functions that the memory server uses, looked up when first called.
//!
//! Results are plain numbers: a newer driver may return one that no list knows. Contracts: NVIDIA's CUDA driver API
//! manual, chapters *Virtual Memory Management*, *Memory Management*, *Stream Management* and *Event Management*.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use cudarc::driver::sys;

use crate::gpu::protocol::Refusal;

/// A context, stream, event, module or function of the driver's.
pub(super) type Handle = *mut c_void;

/// `CUmemLocation`; kind 1 is a device.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Location {
    pub(super) kind: c_int,
    pub(super) id: c_int,
}

/// `CUmemAccessDesc`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Access {
    pub(super) location: Location,
    pub(super) flags: c_int,
}

/// `CU_MEM_ACCESS_FLAGS_PROT_READWRITE`.
pub(super) const READ_WRITE: c_int = 3;
/// `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR`.
pub(super) const POSIX_DESCRIPTOR: c_int = 1;
/// `CUDA_ERROR_OUT_OF_MEMORY`.
pub(super) const OUT_OF_MEMORY: c_int = 2;
/// `CUDA_ERROR_NOT_FOUND`: also what a function returns that this driver does not have.
const NOT_FOUND: c_int = 500;

macro_rules! driver_functions {
    ($($name:ident($($argument:ident: $kind:ty),* $(,)?);)*) => {
        $(
            #[allow(non_snake_case, reason = "the names are NVIDIA's")]
            #[allow(clippy::too_many_arguments, reason = "the driver's functions have that many")]
            pub(super) unsafe fn $name($($argument: $kind),*) -> c_int {
                static ADDRESS: OnceLock<Option<unsafe extern "C" fn($($kind),*) -> c_int>> = OnceLock::new();
                // SAFETY: the driver is present, as the memory server has seen; the signature is the manual's.
                let function = ADDRESS.get_or_init(|| unsafe {
                    sys::culib().get(concat!(stringify!($name), "\0").as_bytes()).ok().map(|symbol| *symbol)
                });
                // SAFETY: the caller's promise, passed on.
                function.map_or(NOT_FOUND, |function| unsafe { function($($argument),*) })
            }
        )*
    };
}

driver_functions! {
    cuGetErrorName(code: c_int, out: *mut *const c_char);
    cuGetErrorString(code: c_int, out: *mut *const c_char);
    cuDeviceGet(out: *mut c_int, ordinal: c_int);
    cuDeviceGetAttribute(out: *mut c_int, attribute: c_int, device: c_int);
    cuDeviceTotalMem_v2(out: *mut usize, device: c_int);
    cuDevicePrimaryCtxRetain(out: *mut Handle, device: c_int);
    cuCtxSetCurrent(context: Handle);
    cuModuleLoadData(out: *mut Handle, image: *const c_void);
    cuModuleGetFunction(out: *mut Handle, module: Handle, name: *const c_char);
    cuLaunchKernel(
        function: Handle, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint,
        block_z: c_uint, shared: c_uint, stream: Handle, parameters: *mut *mut c_void, extra: *mut *mut c_void,
    );
    cuMemAlloc_v2(out: *mut u64, bytes: usize);
    cuMemFree_v2(address: u64);
    cuMemFreeHost(address: Handle);
    cuMemHostAlloc(out: *mut Handle, bytes: usize, flags: c_uint);
    cuMemHostRegister_v2(address: Handle, bytes: usize, flags: c_uint);
    cuMemHostUnregister(address: Handle);
    cuMemAddressReserve(out: *mut u64, bytes: usize, alignment: usize, wanted: u64, flags: u64);
    cuMemImportFromShareableHandle(out: *mut u64, shareable: *mut c_void, kind: c_int);
    cuMemMap(address: u64, bytes: usize, offset: usize, handle: u64, flags: u64);
    cuMemSetAccess(address: u64, bytes: usize, access: *const Access, count: usize);
    cuMemUnmap(address: u64, bytes: usize);
    cuMemRelease(handle: u64);
    cuStreamDestroy_v2(stream: Handle);
    cuStreamCreate(out: *mut Handle, flags: c_uint);
    cuStreamSynchronize(stream: Handle);
    cuEventCreate(out: *mut Handle, flags: c_uint);
    cuEventRecord(event: Handle, stream: Handle);
    cuEventSynchronize(event: Handle);
    cuEventDestroy_v2(event: Handle);
    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: Handle);
    cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: Handle);
    cuMemsetD8Async(to: u64, value: u8, count: usize, stream: Handle);
}

/// A driver call's result.
///
/// # Errors
/// The refusal, if it is one.
pub(super) fn check(function: &str, on: &str, code: c_int) -> Result<(), Refusal> {
    if code == 0 { Ok(()) } else { Err(refusal(function, on, code)) }
}

/// The refusal with that `CUresult`, named by the driver.
pub(super) fn refusal(function: &str, on: &str, code: c_int) -> Refusal {
    Refusal {
        function: function.to_owned(),
        on: on.to_owned(),
        code,
        name: text(cuGetErrorName, code).unwrap_or_else(|| "unnamed".to_owned()),
        text: text(cuGetErrorString, code).unwrap_or_else(|| "no text".to_owned()),
    }
}

fn text(ask: unsafe fn(c_int, *mut *const c_char) -> c_int, code: c_int) -> Option<String> {
    let mut text = std::ptr::null();
    // SAFETY: the function writes a pointer to a static C string or leaves null.
    unsafe { ask(code, &raw mut text) };
    // SAFETY: not null, so a static C string of the driver.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}
