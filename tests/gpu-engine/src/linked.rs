//! A library that reaches the driver in two ways that a program's own code does not: linked to it directly, and (opened
//! with `RTLD_DEEPBIND`) by a `dlsym` that is not the program's.
#![allow(non_snake_case, reason = "exported names are NVIDIA's")]

use std::ffi::{CStr, c_char, c_void};

mod functions;

macro_rules! linked {
    ($($name:ident($($kind:ty),*);)*) => {
        mod driver {
            unsafe extern "C" { $(pub fn $name();)* }
        }

        /// Address of a driver function as the dynamic linker has bound it; null for one that is not linked.
        ///
        /// # Safety
        /// The name is a C string.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn linked_function(name: *const c_char) -> *const c_void {
            // SAFETY: the caller's promise.
            match unsafe { CStr::from_ptr(name) }.to_bytes() {
                $(name if name == stringify!($name).as_bytes() => driver::$name as *const c_void,)*
                _ => std::ptr::null(),
            }
        }
    };
}

driver_functions!(linked);

/// Address of a driver function by this library's own `dlsym`.
///
/// # Safety
/// The name is a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn looked_up_function(name: *const c_char) -> *const c_void {
    // SAFETY: constant C strings and the caller's own; the library stays open.
    unsafe { libc::dlsym(libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW), name) }
}
