//! The engine's own use of virtual memory management (PyTorch's expandable segments, the pools of vLLM and
//! llama.cpp): handles are this library's, so that they outlive a swap.
//!
//! Memory that the engine exports or binds to a multicast object is another process's too: it stays where it is.

use std::ffi::{c_int, c_void};

use crate::control;
use crate::driver::{Access, INVALID_VALUE, OUT_OF_MEMORY, POSIX_DESCRIPTOR, Properties, SUCCESS};
use crate::gate;
use crate::hook::hooks;
use crate::memory;
use crate::pool;
use crate::process;
use crate::registry::{self, chunk_of, handle_of};

/// The chunk behind a handle, if it is one of this library's.
fn ours(handle: u64) -> Option<u64> {
    if process::enabled() { chunk_of(handle) } else { None }
}

/// Does something with the driver's handle that makes a chunk another process's too: if it succeeds, the chunk stays
/// where it is from now on. The caller is inside the gate.
fn share(chunk: u64, action: impl FnOnce(u64) -> c_int) -> c_int {
    let mut registry = registry::lock();
    let Some(chunk) = registry.chunk(chunk) else { return INVALID_VALUE };
    let Some(real) = chunk.real else { return INVALID_VALUE };
    let code = action(real);
    chunk.stays |= code == SUCCESS;
    code
}

/// The same with a range of addresses.
fn share_range(address: u64, bytes: usize, action: impl FnOnce() -> c_int) -> c_int {
    if !process::enabled() {
        return action();
    }
    let _inside = gate::pass();
    let code = action();
    if code == SUCCESS {
        registry::lock().let_stay(address, bytes);
    }
    code
}

/// Binds memory to a multicast object by its handle.
fn bind(handle: u64, action: impl FnOnce(u64) -> c_int) -> c_int {
    let _inside = process::enabled().then(gate::pass);
    match ours(handle) {
        Some(chunk) => share(chunk, action),
        None => action(handle),
    }
}

fn code(result: Result<(), c_int>) -> c_int {
    result.err().unwrap_or(SUCCESS)
}

hooks! {
    fn cuMemCreate(out: *mut u64, bytes: usize, properties: *const Properties, flags: u64) {
        // SAFETY: the driver's contract: null, or the properties.
        let wanted = unsafe { properties.as_ref() };
        // Kinds other than a descriptor (fabric handles) are for sharing between nodes.
        let parkable = |it: &&Properties| {
            it.location.is_device() && (it.handle_types & !POSIX_DESCRIPTOR) == 0 && flags == 0
        };
        let _inside = process::enabled().then(gate::pass);
        let Some(wanted) = wanted.filter(parkable).filter(|_| process::enabled() && !out.is_null()) else {
            // SAFETY: the caller's own arguments.
            return memory::or_without_idle(|| unsafe { real::cuMemCreate(out, bytes, properties, flags) });
        };
        let mut created = registry::lock().create(bytes, *wanted, 1);
        if created == Err(OUT_OF_MEMORY) && pool::drop_idle() {
            created = registry::lock().create(bytes, *wanted, 1);
        }
        registry::lock().note_context();
        control::start();
        match created {
            Ok(chunk) => {
                // SAFETY: not null, and the driver's contract has the caller pass room for a handle.
                unsafe { out.write(handle_of(chunk)) };
                SUCCESS
            }
            Err(code) => code,
        }
    }

    fn cuMemRelease(handle: u64) {
        match ours(handle) {
            Some(chunk) => code(registry::lock().release(chunk)),
            // SAFETY: the caller's own argument.
            None => unsafe { real::cuMemRelease(handle) },
        }
    }

    fn cuMemMap(address: u64, bytes: usize, offset: usize, handle: u64, flags: u64) {
        let Some(chunk) = ours(handle) else {
            // SAFETY: the caller's own arguments.
            return unsafe { real::cuMemMap(address, bytes, offset, handle, flags) };
        };
        // The driver has no offsets either.
        if offset != 0 || flags != 0 {
            return INVALID_VALUE;
        }
        let _inside = gate::pass();
        code(registry::lock().map(address, bytes, chunk))
    }

    fn cuMemUnmap(address: u64, bytes: usize) {
        if process::enabled() {
            let mut registry = registry::lock();
            if registry.has_mappings(address, bytes) {
                return code(registry.unmap(address, bytes));
            }
        }
        // SAFETY: the caller's own arguments.
        unsafe { real::cuMemUnmap(address, bytes) }
    }

    fn cuMemSetAccess(address: u64, bytes: usize, access: *const Access, count: usize) {
        if process::enabled() && !access.is_null() {
            let _inside = gate::pass();
            let mut registry = registry::lock();
            if registry.has_mappings(address, bytes) {
                // SAFETY: not null, and the driver's contract has the caller pass `count` of them.
                let access = unsafe { std::slice::from_raw_parts(access, count) };
                return code(registry.grant(address, bytes, access));
            }
        }
        // SAFETY: the caller's own arguments.
        unsafe { real::cuMemSetAccess(address, bytes, access, count) }
    }

    fn cuMemRetainAllocationHandle(out: *mut u64, address: *mut c_void) {
        if process::enabled() && !out.is_null() {
            let mut registry = registry::lock();
            if let Some(chunk) = registry.chunk_at(address as u64) {
                registry.retain(chunk);
                // SAFETY: not null, and the driver's contract has the caller pass room for a handle.
                unsafe { out.write(handle_of(chunk)) };
                return SUCCESS;
            }
        }
        // SAFETY: the caller's own arguments.
        unsafe { real::cuMemRetainAllocationHandle(out, address) }
    }

    fn cuMemGetAllocationPropertiesFromHandle(out: *mut Properties, handle: u64) {
        let Some(chunk) = ours(handle) else {
            // SAFETY: the caller's own arguments.
            return unsafe { real::cuMemGetAllocationPropertiesFromHandle(out, handle) };
        };
        match registry::lock().chunk(chunk) {
            Some(chunk) if !out.is_null() => {
                // SAFETY: not null, and the driver's contract has the caller pass room for the properties.
                unsafe { out.write(Properties { handle_types: chunk.wanted_types, ..chunk.properties }) };
                SUCCESS
            }
            _ => INVALID_VALUE,
        }
    }

    fn cuMemExportToShareableHandle(out: *mut c_void, handle: u64, kind: c_int, flags: u64) {
        let _inside = process::enabled().then(gate::pass);
        // SAFETY: the caller's own arguments, with the driver's handle in the place of this library's.
        let export = |handle| unsafe { real::cuMemExportToShareableHandle(out, handle, kind, flags) };
        match ours(handle) {
            Some(chunk) => share(chunk, export),
            None => export(handle),
        }
    }

    fn cuMemImportFromShareableHandle(out: *mut u64, shareable: *mut c_void, kind: c_int) {
        // SAFETY: the caller's own arguments.
        let code = unsafe { real::cuMemImportFromShareableHandle(out, shareable, kind) };
        if code == SUCCESS {
            memory::note_import();
        }
        code
    }

    fn cuMulticastBindMem(multicast: u64, at: usize, handle: u64, offset: usize, bytes: usize, flags: u64) {
        bind(handle, |handle| {
            // SAFETY: the caller's own arguments, with the driver's handle in the place of this library's.
            unsafe { real::cuMulticastBindMem(multicast, at, handle, offset, bytes, flags) }
        })
    }

    fn cuMulticastBindMem_v2(
        multicast: u64,
        device: c_int,
        at: usize,
        handle: u64,
        offset: usize,
        bytes: usize,
        flags: u64,
    ) {
        bind(handle, |handle| {
            // SAFETY: as above.
            unsafe { real::cuMulticastBindMem_v2(multicast, device, at, handle, offset, bytes, flags) }
        })
    }

    fn cuMulticastBindAddr(multicast: u64, at: usize, address: u64, bytes: usize, flags: u64) {
        // SAFETY: the caller's own arguments.
        share_range(address, bytes, || unsafe { real::cuMulticastBindAddr(multicast, at, address, bytes, flags) })
    }

    fn cuMulticastBindAddr_v2(
        multicast: u64,
        device: c_int,
        at: usize,
        address: u64,
        bytes: usize,
        flags: u64,
    ) {
        // SAFETY: the caller's own arguments.
        share_range(address, bytes, || unsafe {
            real::cuMulticastBindAddr_v2(multicast, device, at, address, bytes, flags)
        })
    }

    fn cuMemGetHandleForAddressRange(out: *mut c_void, address: u64, bytes: usize, kind: c_int, flags: u64) {
        // A descriptor by which other devices reach the memory (RDMA).
        // SAFETY: the caller's own arguments.
        share_range(address, bytes, || unsafe {
            real::cuMemGetHandleForAddressRange(out, address, bytes, kind, flags)
        })
    }

    fn cuMemGetAccess(out: *mut u64, location: *const c_void, address: u64) {
        let _inside = process::enabled().then(gate::pass);
        // SAFETY: the caller's own arguments.
        unsafe { real::cuMemGetAccess(out, location, address) }
    }
}
