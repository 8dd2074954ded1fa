//! `dlsym`, as every program calls it.
//!
//! The front is a jump: it asks [`replacement`] and, for all but the hooked names, goes on to the C library's own
//! with registers and return address untouched, so that `RTLD_NEXT` means what its caller meant. Until the real
//! pointer is known nothing is allocated, locked or written.

use std::ffi::{CStr, c_char, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::hook;

type Dlsym = unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void;

/// The C library's `dlsym`; set before the front jumps to it.
static REAL: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());

/// The interposed `dlsym`.
#[cfg(not(test))]
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "C" fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void {
    std::arch::naked_asm!(
        "push rdi",
        "push rsi",
        "sub rsp, 8",
        "call {replacement}",
        "add rsp, 8",
        "pop rsi",
        "pop rdi",
        "test rax, rax",
        "jne 2f",
        "mov rax, qword ptr [rip + {real}]",
        "jmp rax",
        "2:",
        "ret",
        replacement = sym replacement,
        real = sym REAL,
    )
}

/// The hook for a name, or null for the real function to be asked. [`REAL`] is set afterwards.
unsafe extern "C" fn replacement(handle: *mut c_void, name: *const c_char) -> *const c_void {
    let dlsym = real();
    // SAFETY: a name that is not null is a C string; the bytes are looked at one by one up to its zero.
    let hooked = !name.is_null() && unsafe { *name == b'c' as c_char && *name.add(1) == b'u' as c_char };
    if !hooked || !hook::any() {
        return std::ptr::null();
    }
    // SAFETY: as above.
    let Some(hook) = hook::named(unsafe { CStr::from_ptr(name) }) else { return std::ptr::null() };
    // SAFETY: the caller's own arguments.
    let found = unsafe { dlsym(handle, name) };
    if found.is_null() {
        return std::ptr::null();
    }
    if !std::ptr::eq(found, hook.replacement) {
        hook.real.learn(found);
    }
    hook.replacement
}

/// The C library's `dlsym`, which only `dlvsym` can find from here.
fn real() -> Dlsym {
    let mut address = REAL.load(Ordering::Acquire);
    if address.is_null() {
        for version in [c"GLIBC_2.34", c"GLIBC_2.2.5"] {
            // SAFETY: constant C strings.
            address = unsafe { libc::dlvsym(libc::RTLD_NEXT, c"dlsym".as_ptr(), version.as_ptr()) };
            if !address.is_null() {
                break;
            }
        }
        if address.is_null() {
            address = none as *const c_void as *mut c_void;
        }
        REAL.store(address, Ordering::Release);
    }
    // SAFETY: the address of a function of this type.
    unsafe { std::mem::transmute(address) }
}

/// In the place of a `dlsym` that cannot be found: a C library other than glibc.
unsafe extern "C" fn none(_handle: *mut c_void, _name: *const c_char) -> *mut c_void {
    std::ptr::null_mut()
}

/// A function of `libcuda.so.1` itself; null if there is none.
pub(crate) fn in_driver(name: &CStr) -> *mut c_void {
    // SAFETY: a constant C string; whoever calls a driver function has loaded the driver, and it is found by name.
    let library = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_LAZY) };
    if library.is_null() {
        return std::ptr::null_mut();
    }
    // SAFETY: an open library and a C string. The library is never closed: one more reference does no harm.
    unsafe { real()(library, name.as_ptr()) }
}
