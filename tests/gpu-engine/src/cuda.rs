//! The driver's functions that this engine uses, from `libcuda.so.1`.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};

use crate::driver_functions;

macro_rules! functions {
    ($($name:ident($($kind:ty),*);)*) => {
        /// Addresses of the driver's functions; each may be missing.
        #[allow(non_snake_case, reason = "the names are NVIDIA's")]
        #[derive(Debug)]
        pub struct Cuda { $(pub $name: Option<unsafe extern "C" fn($($kind),*) -> c_int>,)* }

        impl Cuda {
            fn look_up(find: impl Fn(&CStr) -> *const c_void) -> Self {
                let find = |name: &'static str| find(CStr::from_bytes_with_nul(name.as_bytes()).expect("a zero at its end"));
                // SAFETY: each name is looked up with the signature of the driver's manual; a null address is None for
                // an optional function pointer.
                unsafe {
                    Self { $($name: std::mem::transmute::<*const c_void, Option<unsafe extern "C" fn($($kind),*) -> c_int>>(
                        find(concat!(stringify!($name), "\0")),
                    ),)* }
                }
            }
        }
    };
}

driver_functions!(functions);

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

/// `CUmemPoolProps`.
#[derive(Debug)]
#[repr(C)]
pub struct PoolProperties {
    pub kind: c_int,
    pub handle_types: c_int,
    pub location: Location,
    pub win32: *mut c_void,
    pub largest: usize,
    pub reserved: [u8; 56],
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
    /// Loads the driver, takes its functions' addresses as `reach` says, and calls `cuInit`.
    pub fn load(reach: Reach) -> Result<Self, String> {
        // SAFETY: a constant C string; loading the driver runs its initialisers, as in every CUDA program.
        let library = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        if library.is_null() {
            return Err("libcuda.so.1 cannot be loaded".to_owned());
        }
        // SAFETY: a loaded library and a C string.
        let dlsym = |name: &CStr| unsafe { libc::dlsym(library, name.as_ptr()) }.cast_const();
        let cuda = match reach {
            Reach::Dlsym => Self::look_up(dlsym),
            Reach::Address => {
                let find = dlsym(c"cuGetProcAddress");
                Self::look_up(|name| proc_address(find, None, name))
            }
            Reach::AddressV2 => {
                let find = dlsym(c"cuGetProcAddress_v2");
                Self::look_up(|name| proc_address(find, Some(0), name))
            }
            Reach::Linked => {
                let find = in_linked(c"linked_function", 0)?;
                // SAFETY: takes a C string.
                Self::look_up(|name| unsafe { find(name.as_ptr()) })
            }
            Reach::DeepBind => {
                let find = in_linked(c"looked_up_function", libc::RTLD_DEEPBIND)?;
                // SAFETY: takes a C string.
                Self::look_up(|name| unsafe { find(name.as_ptr()) })
            }
        };
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

/// How the driver's functions are found.
#[derive(Debug, Clone, Copy, Default)]
pub enum Reach {
    /// `dlsym` in the driver's library.
    #[default]
    Dlsym,
    /// `cuGetProcAddress`.
    Address,
    /// `cuGetProcAddress_v2`.
    AddressV2,
    /// A library that is linked to the driver.
    Linked,
    /// A library opened with `RTLD_DEEPBIND`, whose `dlsym` nothing can be put before.
    DeepBind,
}

impl Reach {
    /// By its name on the command line.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "dlsym" => Self::Dlsym,
            "address" => Self::Address,
            "address-v2" => Self::AddressV2,
            "linked" => Self::Linked,
            "deepbind" => Self::DeepBind,
            _ => return None,
        })
    }
}

/// Asks `cuGetProcAddress` (or, with a `status`, its second version) for what CUDA 12.8 calls by that name.
fn proc_address(find: *const c_void, status: Option<c_int>, name: &CStr) -> *const c_void {
    type First = unsafe extern "C" fn(*const c_char, *mut *const c_void, c_int, u64) -> c_int;
    type Second = unsafe extern "C" fn(*const c_char, *mut *const c_void, c_int, u64, *mut c_int) -> c_int;
    const CUDA: c_int = 12080;
    if find.is_null() {
        return find;
    }
    let text = name.to_string_lossy();
    let plain = CString::new(text.strip_suffix("_v2").unwrap_or(&text)).expect("no zero in a name");
    let mut found = std::ptr::null();
    // SAFETY: the address is that of the function with this signature; pointers are to live values.
    unsafe {
        match status {
            None => {
                std::mem::transmute::<*const c_void, First>(find)(plain.as_ptr(), &raw mut found, CUDA, 0)
            }
            Some(mut status) => std::mem::transmute::<*const c_void, Second>(find)(
                plain.as_ptr(),
                &raw mut found,
                CUDA,
                0,
                &raw mut status,
            ),
        }
    };
    found
}

/// A function of the library beside this program.
fn in_linked(
    name: &CStr,
    flags: c_int,
) -> Result<unsafe extern "C" fn(*const c_char) -> *const c_void, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let path = program.with_file_name("libgpu_engine_linked.so");
    let text = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|error| error.to_string())?;
    // SAFETY: two C strings. The library has no initialisers of its own, and stays open.
    let found = unsafe { libc::dlsym(libc::dlopen(text.as_ptr(), libc::RTLD_NOW | flags), name.as_ptr()) };
    if found.is_null() {
        return Err(format!("{} cannot be loaded", path.display()));
    }
    // SAFETY: the library's function of that name has this signature.
    Ok(unsafe {
        std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*const c_char) -> *const c_void>(found)
    })
}
