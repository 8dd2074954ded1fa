//! The driver's functions that this engine uses, from `libcuda.so.1`.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

macro_rules! functions {
    ($($name:ident($($kind:ty),*);)*) => {
        /// Addresses of the driver's functions; each may be missing.
        #[allow(non_snake_case, reason = "the names are NVIDIA's")]
        #[derive(Debug)]
        pub struct Cuda { $(pub $name: Option<unsafe extern "C" fn($($kind),*) -> c_int>,)* }

        impl Cuda {
            fn look_up(library: *mut c_void) -> Self {
                // SAFETY: each name is looked up in a loaded library with the signature of the driver's manual;
                // a null address is None for an optional function pointer.
                unsafe {
                    Self { $($name: std::mem::transmute::<*mut c_void, Option<unsafe extern "C" fn($($kind),*) -> c_int>>(
                        libc::dlsym(library, concat!(stringify!($name), "\0").as_ptr().cast()),
                    ),)* }
                }
            }
        }
    };
}

functions! {
    cuInit(c_uint);
    cuGetErrorName(c_int, *mut *const c_char);
    cuDeviceGet(*mut c_int, c_int);
    cuDevicePrimaryCtxRetain(*mut *mut c_void, c_int);
    cuCtxSetCurrent(*mut c_void);
    cuCtxSynchronize();
    cuMemAlloc_v2(*mut u64, usize);
    cuMemAllocManaged(*mut u64, usize, c_uint);
    cuMemFree_v2(u64);
    cuMemsetD32_v2(u64, c_uint, usize);
    cuMemHostAlloc(*mut *mut c_void, usize, c_uint);
    cuMemcpyHtoD_v2(u64, *const c_void, usize);
    cuMemcpyDtoH_v2(*mut c_void, u64, usize);
    cuMemCreate(*mut u64, usize, *const AllocationProperties, u64);
    cuMemAddressReserve(*mut u64, usize, usize, u64, u64);
    cuMemMap(u64, usize, usize, u64, u64);
    cuMemSetAccess(u64, usize, *const Access, usize);
    cuMemExportToShareableHandle(*mut c_int, u64, c_int, u64);
    cuMemImportFromShareableHandle(*mut u64, *mut c_void, c_int);
    cuIpcGetMemHandle(*mut [u8; 64], u64);
    cuIpcOpenMemHandle_v2(*mut u64, [u8; 64], c_uint);
}

/// `CUmemLocation`: kind 1 is a device.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Location {
    pub kind: c_int,
    pub id: c_int,
}

/// `CUmemAllocationProp`.
#[derive(Debug)]
#[repr(C)]
pub struct AllocationProperties {
    pub kind: c_int,
    pub handle_types: c_int,
    pub location: Location,
    pub win32: *mut c_void,
    pub flags: [u8; 8],
}

/// `CUmemAccessDesc`.
#[derive(Debug)]
#[repr(C)]
pub struct Access {
    pub location: Location,
    pub flags: c_int,
}

/// Calls a function of the driver; the error says which and why.
#[macro_export]
macro_rules! cuda_call {
    ($cuda:expr, $name:ident($($argument:expr),* $(,)?)) => {
        match $cuda.$name {
            // SAFETY: the arguments are those of the driver's manual; pointers are to live values.
            Some(function) => $cuda.check(stringify!($name), unsafe { function($($argument),*) }),
            None => Err(format!("{}: not in this driver", stringify!($name))),
        }
    };
}

impl Cuda {
    /// Loads the driver and calls `cuInit`.
    pub fn load() -> Result<Self, String> {
        // SAFETY: a constant C string; loading the driver runs its initialisers, as in every CUDA program.
        let library = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        if library.is_null() {
            return Err("libcuda.so.1 cannot be loaded".to_owned());
        }
        let cuda = Self::look_up(library);
        cuda_call!(cuda, cuInit(0))?;
        Ok(cuda)
    }

    /// Makes the primary context of device `ordinal` the thread's current one.
    pub fn use_device(&self, ordinal: c_int) -> Result<(), String> {
        let (mut device, mut context) = (0, std::ptr::null_mut());
        cuda_call!(self, cuDeviceGet(&raw mut device, ordinal))?;
        cuda_call!(self, cuDevicePrimaryCtxRetain(&raw mut context, device))?;
        cuda_call!(self, cuCtxSetCurrent(context))
    }

    /// A result as an error text.
    pub fn check(&self, name: &str, code: c_int) -> Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        let mut text = std::ptr::null();
        if let Some(function) = self.cuGetErrorName {
            // SAFETY: the function writes a pointer to a static C string or leaves null.
            unsafe { function(code, &raw mut text) };
        }
        // SAFETY: not null, so a static C string of the driver.
        let text = (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy());
        Err(format!("{name}: {} ({code})", text.as_deref().unwrap_or("unnamed")))
    }
}
