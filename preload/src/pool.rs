//! Stream-ordered allocations.
//!
//! A freed region is kept, with an event on its stream, for the next allocation of its size: in the same stream at
//! once, in another behind the event. Kept regions are given back before the engine is parked and when memory runs
//! out. Allocations inside a stream capture, and those from a pool that the engine made, stay with the driver.

use std::ffi::c_int;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::driver::{self, Handle, SUCCESS};
use crate::gate;
use crate::hook::hooks;
use crate::memory;
use crate::process;
use crate::registry::{self, GRANULE, SMALLEST};

/// A freed region.
#[derive(Debug)]
struct Idle {
    address: u64,
    reserved: usize,
    device: c_int,
    stream: usize,
    event: usize,
}

static IDLE: Mutex<Vec<Idle>> = Mutex::new(Vec::new());

fn idle() -> MutexGuard<'static, Vec<Idle>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives every kept region back; false if there was none. The device must be idle, or the current context's be waited
/// for here.
pub(crate) fn drop_idle() -> bool {
    let kept = std::mem::take(&mut *idle());
    for region in &kept {
        // SAFETY: the event was made when the region was freed.
        unsafe { driver::cuEventDestroy_v2(region.event as Handle) };
        // What cannot be given back stays: the driver has said why to whoever asked before.
        memory::free_region(region.address);
    }
    !kept.is_empty()
}

fn captured(stream: Handle) -> bool {
    let mut status = 0;
    // SAFETY: the pointer is to a live local.
    let code = unsafe { driver::cuStreamIsCapturing(stream, &raw mut status) };
    code == SUCCESS && status != 0
}

/// A kept region of that size, ready for use in the stream.
fn again(bytes: usize, stream: Handle) -> Option<u64> {
    let (reserved, device) = (bytes.next_multiple_of(GRANULE), driver::current_device()?);
    let mut kept = idle();
    let fits = |region: &Idle| region.reserved == reserved && region.device == device;
    let at = kept.iter().position(|region| fits(region) && region.stream == stream as usize);
    let at = at.or_else(|| kept.iter().position(fits))?;
    let region = &kept[at];
    if region.stream != stream as usize {
        // SAFETY: the event was recorded when the region was freed.
        let code = unsafe { driver::cuStreamWaitEvent(stream, region.event as Handle, 0) };
        (code == SUCCESS).then_some(())?;
    }
    let region = kept.swap_remove(at);
    // SAFETY: as above; the driver keeps what a stream still waits for.
    unsafe { driver::cuEventDestroy_v2(region.event as Handle) };
    Some(region.address)
}

fn allocate(out: *mut u64, bytes: usize, stream: Handle, otherwise: impl FnOnce() -> c_int) -> c_int {
    if !process::enabled() || bytes < SMALLEST || out.is_null() || captured(stream) {
        return otherwise();
    }
    let _inside = gate::pass();
    let known = again(bytes, stream);
    drop(_inside);
    match known.map(Ok).or_else(|| memory::in_chunks(bytes)) {
        Some(Ok(address)) => {
            // SAFETY: not null, and the driver's contract has the caller pass room for an address.
            unsafe { out.write(address) };
            SUCCESS
        }
        Some(Err(code)) => code,
        None => otherwise(),
    }
}

fn free(address: u64, stream: Handle, otherwise: impl FnOnce() -> c_int) -> c_int {
    /// `CU_EVENT_DISABLE_TIMING`.
    const NO_TIMING: u32 = 2;
    if !process::enabled() {
        return otherwise();
    }
    let region = registry::lock().region_at(address).filter(|(start, _)| *start == address);
    let Some((_, region)) = region else { return otherwise() };
    let _inside = gate::pass();
    let mut event = std::ptr::null_mut();
    // SAFETY: the pointer is to a live local.
    let mut code = unsafe { driver::cuEventCreate(&raw mut event, NO_TIMING) };
    if code == SUCCESS {
        // SAFETY: the event just made, on the caller's stream.
        code = unsafe { driver::cuEventRecord(event, stream) };
    }
    if code == SUCCESS {
        idle().push(Idle {
            address,
            reserved: region.reserved,
            device: region.device,
            stream: stream as usize,
            event: event as usize,
        });
    }
    code
}

hooks! {
    fn cuMemAllocAsync(out: *mut u64, bytes: usize, stream: Handle) {
        // SAFETY: the caller's own arguments.
        allocate(out, bytes, stream, || unsafe { real::cuMemAllocAsync(out, bytes, stream) })
    }

    fn cuMemAllocAsync_ptsz(out: *mut u64, bytes: usize, stream: Handle) {
        // SAFETY: the caller's own arguments.
        allocate(out, bytes, stream, || unsafe { real::cuMemAllocAsync_ptsz(out, bytes, stream) })
    }

    fn cuMemFreeAsync(address: u64, stream: Handle) {
        // SAFETY: the caller's own arguments.
        free(address, stream, || unsafe { real::cuMemFreeAsync(address, stream) })
    }

    fn cuMemFreeAsync_ptsz(address: u64, stream: Handle) {
        // SAFETY: the caller's own arguments.
        free(address, stream, || unsafe { real::cuMemFreeAsync_ptsz(address, stream) })
    }
}
