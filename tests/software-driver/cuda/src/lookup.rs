//! `cuGetProcAddress`: every exported function by its name without a version.

use std::ffi::{CStr, c_char, c_int, c_void};

use crate::api::{Symbol, driver_api, put};
use crate::error::{Error, Outcome};

/// The functions of every module.
static TABLES: &[&[Symbol]] = &[
    crate::init::SYMBOLS,
    crate::device::SYMBOLS,
    crate::context::SYMBOLS,
    crate::memory::SYMBOLS,
    crate::vmm::SYMBOLS,
    crate::multicast::SYMBOLS,
    crate::stream::SYMBOLS,
    crate::module::SYMBOLS,
    crate::pool::SYMBOLS,
    crate::graph::SYMBOLS,
    crate::checkpoint::SYMBOLS,
    SYMBOLS,
];

/// Names with a variant that a program gets only if it asks for at least this version of CUDA, newest first; of others
/// the second variant is as old as the name, for any program that there still is.
const NEWER: &[(&str, c_int, &str)] = &[
    ("cuCtxCreate", 13000, "cuCtxCreate_v4"),
    ("cuGetProcAddress", 12000, "cuGetProcAddress_v2"),
    ("cuGetProcAddress", 0, "cuGetProcAddress"),
    ("cuStreamBeginCapture", 10010, "cuStreamBeginCapture_v2"),
    ("cuStreamBeginCapture", 0, "cuStreamBeginCapture"),
    ("cuGraphInstantiate", 12000, "cuGraphInstantiateWithFlags"),
    ("cuGraphInstantiate", 11000, "cuGraphInstantiate_v2"),
    ("cuGraphInstantiate", 0, "cuGraphInstantiate"),
    ("cuGraphExecUpdate", 12000, "cuGraphExecUpdate_v2"),
    ("cuGraphExecUpdate", 0, "cuGraphExecUpdate"),
    ("cuMulticastBindMem", 13010, "cuMulticastBindMem_v2"),
    ("cuMulticastBindMem", 0, "cuMulticastBindMem"),
    ("cuMulticastBindAddr", 13010, "cuMulticastBindAddr_v2"),
    ("cuMulticastBindAddr", 0, "cuMulticastBindAddr"),
];

fn find(name: &str) -> Option<*const c_void> {
    TABLES
        .iter()
        .flat_map(|table| table.iter())
        .find(|symbol| symbol.name == name)
        .map(|symbol| symbol.address)
}

fn resolve(name: &str, version: c_int) -> Option<*const c_void> {
    NEWER
        .iter()
        .find(|newer| newer.0 == name && version >= newer.1)
        .and_then(|newer| find(newer.2))
        .or_else(|| find(&format!("{name}_v2")))
        .or_else(|| find(name))
}

fn look_up(name: *const c_char, out: *mut *const c_void, version: c_int) -> Outcome {
    if name.is_null() {
        return Err(Error::INVALID_VALUE);
    }
    // SAFETY: not null, and the driver's contract has the caller pass a C string.
    let name = unsafe { CStr::from_ptr(name) }.to_str().map_err(|_| Error::INVALID_VALUE)?;
    match resolve(name, version) {
        Some(address) => put(out, address),
        None => {
            put(out, std::ptr::null())?;
            Err(Error::NOT_FOUND)
        }
    }
}

driver_api! {
    early fn cuGetProcAddress(name: *const c_char, out: *mut *const c_void, version: c_int, _flags: u64) {
        look_up(name, out, version)
    }

    early fn cuGetProcAddress_v2(
        name: *const c_char,
        out: *mut *const c_void,
        version: c_int,
        _flags: u64,
        status: *mut c_int,
    ) {
        let outcome = look_up(name, out, version);
        if !status.is_null() {
            // 0: found; 1: no such symbol.
            put(status, c_int::from(outcome.is_err()))?;
        }
        outcome
    }
}
