//! `cuGetProcAddress`: both versions, and every function they hand out that is hooked.
//!
//! A name can stand for several functions with other arguments each: which one is meant, the version of CUDA says that the
//! program asks for. So what the driver hands out is known by its address first, and by its name only where the address
//! is none that the driver exports.

use std::ffi::{CStr, CString, c_char, c_int, c_void};

use crate::driver::SUCCESS;
use crate::hook::{self, Hook, hooks};

/// `CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM`.
const PER_THREAD: u64 = 2;
/// Names that stand for functions with other arguments each: those that are meant from a version of CUDA on, newest first.
const CHANGED: &[(&str, c_int, &str)] = &[
    ("cuGetProcAddress", 12000, "cuGetProcAddress_v2"),
    ("cuGetProcAddress", 0, "cuGetProcAddress"),
    ("cuStreamBeginCapture", 10010, "cuStreamBeginCapture_v2"),
    ("cuStreamBeginCapture", 0, "cuStreamBeginCapture"),
    ("cuGraphInstantiate", 12000, "cuGraphInstantiateWithFlags"),
    ("cuGraphInstantiate", 11000, "cuGraphInstantiate_v2"),
    ("cuGraphInstantiate", 0, "cuGraphInstantiate"),
    ("cuGraphExecUpdate", 12000, "cuGraphExecUpdate_v2"),
    ("cuGraphExecUpdate", 0, "cuGraphExecUpdate"),
    ("cuGraphAddNode", 12030, "cuGraphAddNode_v2"),
    ("cuGraphAddNode", 0, "cuGraphAddNode"),
    ("cuMemcpyBatchAsync", 13000, "cuMemcpyBatchAsync_v2"),
    ("cuMemcpyBatchAsync", 0, "cuMemcpyBatchAsync"),
    ("cuMemcpy3DBatchAsync", 13000, "cuMemcpy3DBatchAsync_v2"),
    ("cuMemcpy3DBatchAsync", 0, "cuMemcpy3DBatchAsync"),
    ("cuMulticastBindMem", 13010, "cuMulticastBindMem_v2"),
    ("cuMulticastBindMem", 0, "cuMulticastBindMem"),
    ("cuMulticastBindAddr", 13010, "cuMulticastBindAddr_v2"),
    ("cuMulticastBindAddr", 0, "cuMulticastBindAddr"),
];

hooks! {
    fn cuGetProcAddress(name: *const c_char, out: *mut *mut c_void, version: c_int, flags: u64) {
        // SAFETY: the caller's own arguments.
        let code = unsafe { real::cuGetProcAddress(name, out, version, flags) };
        // SAFETY: the driver has accepted them.
        unsafe { substitute(code, name, out, version, flags) };
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
        unsafe { substitute(code, name, out, version, flags) };
        code
    }
}

/// Puts the hook in the place of the driver's function that was found.
///
/// # Safety
/// The name is a C string and `out` points to what the driver wrote.
unsafe fn substitute(code: c_int, name: *const c_char, out: *mut *mut c_void, version: c_int, flags: u64) {
    if code != SUCCESS || !hook::any() || name.is_null() || out.is_null() {
        return;
    }
    // SAFETY: not null, and the driver wrote it.
    let found = unsafe { *out };
    if found.is_null() {
        return;
    }
    let by_name = || {
        // SAFETY: not null, so a C string.
        let name = unsafe { CStr::from_ptr(name) };
        if exported(found) { None } else { by_name(name, version, flags) }
    };
    if let Some(hook) = by_address(found).or_else(by_name) {
        hook.real.learn(found);
        // SAFETY: as above.
        unsafe { *out = hook.replacement.cast_mut() };
    }
}

fn by_address(found: *mut c_void) -> Option<&'static Hook> {
    hook::all().find(|hook| std::ptr::eq(hook.real.address(), found))
}

/// Whether an address is that of a function that its library exports: then it is known what it is, and it is not hooked.
fn exported(found: *mut c_void) -> bool {
    // SAFETY: all zeros is a valid answer, which the call fills; it takes any address.
    let symbol = unsafe {
        let mut symbol: libc::Dl_info = std::mem::zeroed();
        libc::dladdr(found, &raw mut symbol);
        symbol
    };
    std::ptr::eq(symbol.dli_saddr, found)
}

/// The variant of the name that is meant, for a driver that hands out other addresses than it exports.
fn by_name(name: &CStr, version: c_int, flags: u64) -> Option<&'static Hook> {
    variants(name.to_str().ok()?, version, flags).find_map(|variant| hook::named(&variant))
}

/// What may be meant by a name, what is likeliest first.
fn variants(name: &str, version: c_int, flags: u64) -> impl Iterator<Item = CString> {
    let threads: &[&str] = if flags & PER_THREAD != 0 { &["_ptsz", "_ptds", ""] } else { &[""] };
    let variants = match CHANGED.iter().find(|changed| changed.0 == name && version >= changed.1) {
        Some((_, _, meant)) => vec![(*meant).to_owned()],
        None => vec![format!("{name}_v2"), name.to_owned()],
    };
    threads
        .iter()
        .flat_map(move |thread| {
            variants.iter().map(|variant| format!("{variant}{thread}")).collect::<Vec<_>>()
        })
        .filter_map(|variant| CString::new(variant).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_means_what_the_version_says() {
        let meant = |name: &str, version, flags| {
            let hooked = variants(name, version, flags).find(|variant| hook::exists(variant));
            hooked.map(|variant| variant.into_string().expect("letters")).unwrap_or_default()
        };
        assert_eq!(meant("cuMemAlloc", 11000, 0), "cuMemAlloc_v2");
        assert_eq!(meant("cuMemcpyAsync", 11000, 0), "cuMemcpyAsync");
        assert_eq!(meant("cuMemcpyAsync", 11000, PER_THREAD), "cuMemcpyAsync_ptsz");
        // The first variant takes four arguments, and is not hooked.
        assert_eq!(meant("cuGraphExecUpdate", 10020, 0), "");
        assert_eq!(meant("cuGraphExecUpdate", 12000, 0), "cuGraphExecUpdate_v2");
        assert_eq!(meant("cuMulticastBindMem", 12010, 0), "cuMulticastBindMem");
        assert_eq!(meant("cuMulticastBindMem", 13010, 0), "cuMulticastBindMem_v2");
        assert_eq!(meant("cuMemcpyBatchAsync", 12080, PER_THREAD), "cuMemcpyBatchAsync_ptsz");
        assert_eq!(meant("cuStreamBeginCapture", 10000, 0), "cuStreamBeginCapture");
        assert_eq!(meant("cuStreamBeginCapture", 10000, PER_THREAD), "cuStreamBeginCapture_ptsz");
        assert_eq!(meant("cuStreamBeginCapture", 10010, PER_THREAD), "cuStreamBeginCapture_v2_ptsz");
        assert_eq!(meant("cuGraphInstantiate", 10000, 0), "cuGraphInstantiate");
        assert_eq!(meant("cuGraphInstantiate", 11040, 0), "cuGraphInstantiate_v2");
        // Three arguments.
        assert_eq!(meant("cuGraphInstantiate", 12000, PER_THREAD), "cuGraphInstantiateWithFlags");
        assert_eq!(meant("cuGetProcAddress", 11030, 0), "cuGetProcAddress");
        assert_eq!(meant("cuGetProcAddress", 12000, 0), "cuGetProcAddress_v2");
    }
}
