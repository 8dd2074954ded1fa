//! Functions whose arguments have changed with CUDA's version: found and called as a program of that version does.

use std::ffi::{CStr, CString, c_char, c_int, c_void};

use serde_json::{Value, json};

use crate::cuda::Cuda;

/// What `cuGetProcAddress` hands out for a name to a program of that version: null for nothing.
pub fn found(name: &str, version: c_int) -> Result<*const c_void, String> {
    type Find = unsafe extern "C" fn(*const c_char, *mut *const c_void, c_int, u64) -> c_int;
    let name = CString::new(name).map_err(|error| error.to_string())?;
    // SAFETY: constant C strings; the driver has been loaded. The function of that name has this signature.
    let find: Find = unsafe {
        let library = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW);
        let find = libc::dlsym(library, c"cuGetProcAddress".as_ptr());
        if find.is_null() {
            return Err("the driver has no cuGetProcAddress".to_owned());
        }
        std::mem::transmute::<*mut c_void, Find>(find)
    };
    let mut found = std::ptr::null();
    // SAFETY: a C string and a live local.
    match unsafe { find(name.as_ptr(), &raw mut found, version, 0) } {
        0 if !found.is_null() => Ok(found),
        code => Err(format!("cuGetProcAddress: {name:?} of {version} is not found ({code})")),
    }
}

/// The function that a name stands for: as which symbol, and of which library.
pub fn look_up(name: &str, version: c_int) -> Result<Value, String> {
    let found = found(name, version)?;
    // SAFETY: all zeros is a valid answer, which the call fills; texts in it are C strings or null.
    let (symbol, library) = unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        libc::dladdr(found, &raw mut info);
        [info.dli_sname, info.dli_fname]
            .map(|text| {
                if text.is_null() {
                    String::new()
                } else {
                    CStr::from_ptr(text).to_string_lossy().into_owned()
                }
            })
            .into()
    };
    Ok(json!({"symbol": symbol, "library": library}))
}

/// What memory is bound to a multicast object by.
#[derive(Debug, Clone, Copy)]
pub enum By {
    /// Its handle.
    Handle(u64),
    /// Its address.
    Address(u64),
}

/// Binds memory to a new multicast object, as a program of that version does.
pub fn bind(cuda: &Cuda, by: By, bytes: usize, version: c_int) -> Result<(), String> {
    type Create = unsafe extern "C" fn(*mut u64, *const c_void) -> c_int;
    type ByHandle = unsafe extern "C" fn(u64, usize, u64, usize, usize, u64) -> c_int;
    type ByHandle2 = unsafe extern "C" fn(u64, c_int, usize, u64, usize, usize, u64) -> c_int;
    type ByAddress = unsafe extern "C" fn(u64, usize, u64, usize, u64) -> c_int;
    type ByAddress2 = unsafe extern "C" fn(u64, c_int, usize, u64, usize, u64) -> c_int;
    /// The version of CUDA that has told the device from then on.
    const WITH_DEVICE: c_int = 13010;
    let name = match by {
        By::Handle(_) => "cuMulticastBindMem",
        By::Address(_) => "cuMulticastBindAddr",
    };
    let (create, function) = (found("cuMulticastCreate", version)?, found(name, version)?);
    let mut multicast = 0;
    // SAFETY: functions of these names have these signatures for a program of that version; pointers are to live locals.
    let code = unsafe {
        let properties = [0u64; 4];
        let create = std::mem::transmute::<*const c_void, Create>(create);
        cuda.check("cuMulticastCreate", create(&raw mut multicast, properties.as_ptr().cast()))?;
        match by {
            By::Handle(handle) if version < WITH_DEVICE => {
                std::mem::transmute::<*const c_void, ByHandle>(function)(multicast, 0, handle, 0, bytes, 0)
            }
            By::Handle(handle) => std::mem::transmute::<*const c_void, ByHandle2>(function)(
                multicast, 0, 0, handle, 0, bytes, 0,
            ),
            By::Address(address) if version < WITH_DEVICE => {
                std::mem::transmute::<*const c_void, ByAddress>(function)(multicast, 0, address, bytes, 0)
            }
            By::Address(address) => {
                std::mem::transmute::<*const c_void, ByAddress2>(function)(multicast, 0, 0, address, bytes, 0)
            }
        }
    };
    cuda.check(name, code)
}
