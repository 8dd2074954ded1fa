//! A hooked function: its name, its replacement, and the driver's own.

use std::ffi::{CStr, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::front;
use crate::hold;
use crate::process;

/// A driver function, looked up when it is first needed.
#[derive(Debug)]
pub(crate) struct Real {
    name: &'static CStr,
    address: AtomicPtr<c_void>,
}

impl Real {
    pub(crate) const fn new(name: &'static CStr) -> Self {
        Self { name, address: AtomicPtr::new(std::ptr::null_mut()) }
    }

    /// Its address in the driver; null if this driver does not have it.
    pub(crate) fn address(&self) -> *mut c_void {
        let known = self.address.load(Ordering::Acquire);
        if !known.is_null() {
            return known;
        }
        let found = front::in_driver(self.name);
        self.learn(found);
        found
    }

    /// Notes the address, unless one is known.
    pub(crate) fn learn(&self, address: *mut c_void) {
        let _ =
            self.address.compare_exchange(std::ptr::null_mut(), address, Ordering::AcqRel, Ordering::Acquire);
    }
}

/// A hooked function.
#[derive(Debug)]
pub(crate) struct Hook {
    pub(crate) name: &'static CStr,
    pub(crate) replacement: *const c_void,
    pub(crate) real: &'static Real,
}

// SAFETY: the replacement is the address of a function; it is never written through.
unsafe impl Sync for Hook {}

/// Every module's hooks; first those that lead to a process's first use of the driver.
static TABLES: &[&[Hook]] = &[
    crate::hold::HOOKS,
    crate::lookup::HOOKS,
    crate::memory::HOOKS,
    crate::pool::HOOKS,
    crate::pools::HOOKS,
    crate::virtual_memory::HOOKS,
    crate::capture::HOOKS,
    crate::submit::HOOKS,
];

/// Of [`TABLES`]: all that a process needs that is held and not to be parked.
const TO_HOLD: usize = 2;

/// Whether any hook acts in this process; if not they are not handed out.
pub(crate) fn any() -> bool {
    process::enabled() || hold::asked()
}

/// The hooks that act in this process.
pub(crate) fn all() -> impl Iterator<Item = &'static Hook> {
    let tables = match (process::enabled(), hold::asked()) {
        (true, _) => TABLES,
        (false, true) => &TABLES[..TO_HOLD],
        (false, false) => &[],
    };
    tables.iter().copied().flatten()
}

/// The hook of a function, by its exported name.
pub(crate) fn named(name: &CStr) -> Option<&'static Hook> {
    all().find(|hook| hook.name == name)
}

/// Whether there is a hook of that name, acting or not.
#[cfg(test)]
pub(crate) fn exists(name: &CStr) -> bool {
    TABLES.iter().copied().flatten().any(|hook| hook.name == name)
}

/// `CUDA_ERROR_NOT_FOUND`: what a call to a function returns that this driver does not have.
pub(crate) const NOT_FOUND: i32 = 500;

/// Declares `module::NAME(…)` that call the driver's own functions.
macro_rules! real_functions {
    ($($name:ident($($argument:ident: $kind:ty),* $(,)?);)*) => {
        $(
            pub(crate) unsafe fn $name($($argument: $kind),*) -> i32 {
                let address = reals::$name.address();
                if address.is_null() {
                    return $crate::hook::NOT_FOUND;
                }
                // SAFETY: the address of the driver's function of this name; the signature is the manual's.
                let function: unsafe extern "C" fn($($kind),*) -> i32 = unsafe { std::mem::transmute(address) };
                // SAFETY: the caller's promise, passed on.
                unsafe { function($($argument),*) }
            }
        )*

        #[allow(non_upper_case_globals, reason = "named as the functions")]
        pub(crate) mod reals {
            $(pub(crate) static $name: $crate::hook::Real = {
                const NAME: &std::ffi::CStr = match std::ffi::CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                    Ok(name) => name,
                    Err(_) => panic!("a name without zeros"),
                };
                $crate::hook::Real::new(NAME)
            };)*
        }
    };
}
pub(crate) use real_functions;

/// Declares replacements, their `real` functions, and the module's `HOOKS`.
macro_rules! hooks {
    ($($(#[$meta:meta])* fn $name:ident($($argument:ident: $kind:ty),* $(,)?) $body:block)*) => {
        /// The driver's own.
        pub(crate) mod real {
            #[allow(unused_imports, reason = "not every module's functions take these")]
            use super::*;
            $crate::hook::real_functions! { $($name($($argument: $kind),*);)* }
        }

        $(
            $(#[$meta])*
            #[cfg_attr(not(test), unsafe(no_mangle))]
            pub unsafe extern "C" fn $name($($argument: $kind),*) -> i32 $body
        )*

        /// This module's hooks.
        pub(crate) static HOOKS: &[$crate::hook::Hook] = &[$($crate::hook::Hook {
            name: match std::ffi::CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                Ok(name) => name,
                Err(_) => panic!("a name without zeros"),
            },
            replacement: $name as *const std::ffi::c_void,
            real: &real::reals::$name,
        }),*];
    };
}
pub(crate) use hooks;
