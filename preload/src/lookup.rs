//! `cuGetProcAddress`: both versions, and every function they hand out that is hooked.

use std::ffi::{CStr, CString, c_char, c_int, c_void};

use crate::driver::SUCCESS;
use crate::hook::{self, Hook, hooks};

/// `CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM`.
const PER_THREAD: u64 = 2;

hooks! {
    fn cuGetProcAddress(name: *const c_char, out: *mut *mut c_void, version: c_int, flags: u64) {
        // SAFETY: the caller's own arguments.
        let code = unsafe { real::cuGetProcAddress(name, out, version, flags) };
        // SAFETY: the driver has accepted them.
        unsafe { substitute(code, name, out, flags) };
        code
    }

    fn cuGetProcAddress_v2(
        name: *const c_char,
        out: *mut *mut c_void,
        version: c_int,
        flags: u64,
        status: *mut c_int,
    ) {
        // SAFETY: the caller's own arguments.
        let code = unsafe { real::cuGetProcAddress_v2(name, out, version, flags, status) };
        // SAFETY: the driver has accepted them.
        unsafe { substitute(code, name, out, flags) };
        code
    }
}

/// Puts the hook in the place of the driver's function that was found.
///
/// # Safety
/// The name is a C string and `out` points to what the driver wrote.
unsafe fn substitute(code: c_int, name: *const c_char, out: *mut *mut c_void, flags: u64) {
    if code != SUCCESS || !hook::any() || name.is_null() || out.is_null() {
        return;
    }
    // SAFETY: not null, and the driver wrote it.
    let found = unsafe { *out };
    if found.is_null() {
        return;
    }
    // SAFETY: not null, so a C string.
    let name = unsafe { CStr::from_ptr(name) };
    if let Some(hook) = by_address(found).or_else(|| by_name(name, flags)) {
        hook.real.learn(found);
        // SAFETY: as above.
        unsafe { *out = hook.replacement.cast_mut() };
    }
}

fn by_address(found: *mut c_void) -> Option<&'static Hook> {
    hook::all().find(|hook| std::ptr::eq(hook.real.address(), found))
}

/// The newest variant of the name that is hooked, for a driver that hands out other addresses than it exports.
fn by_name(name: &CStr, flags: u64) -> Option<&'static Hook> {
    let name = name.to_str().ok()?;
    let threads: &[&str] = if flags & PER_THREAD != 0 { &["_ptsz", "_ptds", ""] } else { &[""] };
    threads
        .iter()
        .flat_map(|thread| ["_v2", ""].map(|version| format!("{name}{version}{thread}")))
        .find_map(|variant| hook::named(&CString::new(variant).ok()?))
}
