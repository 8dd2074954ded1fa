//! Stream-ordered allocations, from a device's current pool and from pools that the engine names ([`crate::pools`]).
//!
//! A freed region is kept, with an event on its stream, for the next allocation of about its size, whose stream waits for
//! the event. Kept regions are given back before the engine is parked, when memory runs out, when the engine trims a
//! pool, and, once their last use is over, beyond what [`KEPT`] or a pool's release threshold allows. Allocations inside a
//! stream capture, and those from a pool that can be exported or is of a limited size, stay with the driver.

use std::ffi::c_int;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::driver::{self, Context, Handle, INVALID_HANDLE, SUCCESS};
use crate::gate;
use crate::hook::hooks;
use crate::memory;
use crate::pools;
use crate::process;
use crate::registry::{self, GRANULE, SMALLEST};

/// Bytes that are kept on each device whatever the release threshold: a mapping costs more than the driver's own pools
/// take for the same.
const KEPT: usize = 256 << 20;

/// A freed region.
#[derive(Debug)]
struct Idle {
    address: u64,
    reserved: usize,
    device: c_int,
    stream: usize,
    /// Recorded in the stream when the region was freed.
    event: usize,
    /// The event's.
    context: usize,
}

static IDLE: Mutex<Vec<Idle>> = Mutex::new(Vec::new());

fn idle() -> MutexGuard<'static, Vec<Idle>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes of a device that are kept for the next allocation.
pub(crate) fn idle_bytes(device: c_int) -> usize {
    bytes_on(device, &idle())
}

fn bytes_on(device: c_int, kept: &[Idle]) -> usize {
    kept.iter().filter(|region| region.device == device).map(|region| region.reserved).sum()
}

/// Gives every kept region back once its last use is over; false if there was none.
pub(crate) fn drop_idle() -> bool {
    let kept = std::mem::take(&mut *idle());
    give_back(&kept);
    !kept.is_empty()
}

/// Gives back what is kept of a device beyond what its pools may keep, as far as its last use is over.
fn give_surplus_back(device: c_int) {
    give_back_beyond(device, pools::threshold(device).max(KEPT), Idle::is_over);
}

/// Gives back what is kept of a device beyond so many bytes.
pub(crate) fn trim(device: c_int, keep: usize) {
    give_back_beyond(device, keep, |_| true);
}

/// Gives kept regions of a device back, longest unused first of those that may go, until no more than `keep` bytes are kept.
fn give_back_beyond(device: c_int, keep: usize, may_go: impl Fn(&Idle) -> bool) {
    let mut kept = idle();
    let mut surplus = bytes_on(device, &kept).saturating_sub(keep);
    let over = |region: &mut Idle| {
        let gone = surplus > 0 && region.device == device && may_go(region);
        surplus = surplus.saturating_sub(if gone { region.reserved } else { 0 });
        gone
    };
    let gone: Vec<Idle> = kept.extract_if(.., over).collect();
    drop(kept);
    give_back(&gone);
}

impl Idle {
    /// Whether its last use is over.
    fn is_over(&self) -> bool {
        // SAFETY: the event is forgotten only when the region is.
        let ask = || driver::apart_from_captures(|| unsafe { driver::cuEventQuery(self.event as Handle) });
        driver::within(self.context as Context, ask) == Some(SUCCESS)
    }
}

fn give_back(kept: &[Idle]) {
    for region in kept {
        let event = region.event as Handle;
        // Its last use came before the event, in whatever stream. If the wait is refused or the context gone, so is the
        // work.
        // SAFETY: the event was made when the region was freed, and is forgotten here.
        driver::within(region.context as Context, || unsafe {
            driver::apart_from_captures(|| driver::cuEventSynchronize(event));
            driver::cuEventDestroy_v2(event);
        });
        // What cannot be given back stays.
        let _ = registry::lock().free(region.address);
    }
}

/// `CU_STREAM_PER_THREAD`: a stream of the calling thread's own.
const PER_THREAD: usize = 2;

/// The stream that no stream stands for in a program with a default stream per thread.
pub(crate) fn own(stream: Handle) -> Handle {
    if stream.is_null() { PER_THREAD as Handle } else { stream }
}

/// Whether a stream is being captured.
pub(crate) fn captured(stream: Handle) -> bool {
    let mut status = 0;
    // SAFETY: the pointer is to a live local.
    let code = unsafe { driver::cuStreamIsCapturing(stream, &raw mut status) };
    code == SUCCESS && status != 0
}

/// A kept region of that size or up to a quarter more, ready for use in the stream.
fn again(bytes: usize, device: c_int, stream: Handle) -> Option<u64> {
    let reserved = bytes.next_multiple_of(GRANULE);
    let mut kept = idle();
    let fits = |region: &Idle| {
        region.device == device && (reserved..=reserved + reserved / 4).contains(&region.reserved)
    };
    let (at, _) = kept
        .iter()
        .enumerate()
        .filter(|(_, region)| fits(region))
        .min_by_key(|(_, region)| (region.reserved, region.stream != stream as usize))?;
    let region = &kept[at];
    // Also in what seems to be the same stream: threads' own ones share a handle, and a handle may be a new stream's.
    // SAFETY: the event was recorded when the region was freed.
    let code = unsafe { driver::cuStreamWaitEvent(stream, region.event as Handle, 0) };
    (code == SUCCESS).then_some(())?;
    let region = kept.remove(at);
    // SAFETY: as above; the driver keeps what a stream still waits for.
    driver::within(region.context as Context, || unsafe {
        driver::cuEventDestroy_v2(region.event as Handle)
    });
    registry::lock().resize(region.address, bytes);
    Some(region.address)
}

/// Where an allocation comes from.
#[derive(Debug, Clone, Copy)]
enum From {
    /// The current pool of the stream's device.
    Stream,
    /// That pool.
    Pool(Handle),
}

impl From {
    /// The pool that is meant, in a stream of that device; nothing where it is the default one.
    fn pool(self, device: c_int) -> Option<Handle> {
        match self {
            Self::Stream => pools::current(device),
            Self::Pool(pool) => Some(pool),
        }
    }
}

fn allocate(
    out: *mut u64,
    bytes: usize,
    from: From,
    stream: Handle,
    mut otherwise: impl FnMut() -> c_int,
) -> c_int {
    if !process::enabled() {
        return otherwise();
    }
    let _inside = gate::pass();
    if bytes < SMALLEST || out.is_null() || captured(stream) {
        return memory::or_without_idle(otherwise);
    }
    // The stream need not be one of the caller's current context, and the memory is for its device.
    let context = driver::context_of(stream).or_else(driver::current_context);
    let Some((context, device)) = context.and_then(|it| Some((it, driver::device_of(it)?))) else {
        return memory::or_without_idle(otherwise);
    };
    let pool = from.pool(device);
    let device = match pool {
        None => Some(device).filter(|device| driver::can_back(*device)),
        Some(pool) => pools::device_of(pool),
    };
    let Some(device) = device else {
        let code = memory::or_without_idle(otherwise);
        if code == SUCCESS && pool.is_some_and(pools::stays) {
            memory::note_pooled();
        }
        return code;
    };
    let fresh =
        || driver::within(context, || memory::on_device(bytes, device)).unwrap_or(Err(INVALID_HANDLE));
    match again(bytes, device, stream).map_or_else(fresh, Ok) {
        Ok(address) => {
            // SAFETY: not null, and the driver's contract has the caller pass room for an address.
            unsafe { out.write(address) };
            SUCCESS
        }
        Err(code) => code,
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
    if captured(stream) {
        // In a graph only what it has allocated itself is freed: the driver says so.
        return otherwise();
    }
    // The stream need not be one of the caller's current context, and an event is of use in its own only.
    let context = driver::context_of(stream).or_else(driver::current_context);
    let Some(context) = context else { return INVALID_HANDLE };
    let mut event = std::ptr::null_mut();
    // SAFETY: the pointer is to a live local; the event just made, on the caller's stream.
    let recorded = driver::within(context, || unsafe {
        let mut code = driver::cuEventCreate(&raw mut event, NO_TIMING);
        if code == SUCCESS {
            code = driver::cuEventRecord(event, stream);
            if code != SUCCESS {
                driver::cuEventDestroy_v2(event);
            }
        }
        code
    });
    let code = recorded.unwrap_or(INVALID_HANDLE);
    if code == SUCCESS {
        idle().push(Idle {
            address,
            reserved: region.reserved,
            device: region.device,
            stream: stream as usize,
            event: event as usize,
            context: context as usize,
        });
        give_surplus_back(region.device);
    }
    code
}

hooks! {
    fn cuMemAllocAsync(out: *mut u64, bytes: usize, stream: Handle) {
        // SAFETY: the caller's own arguments.
        allocate(out, bytes, From::Stream, stream, || unsafe { real::cuMemAllocAsync(out, bytes, stream) })
    }

    fn cuMemAllocAsync_ptsz(out: *mut u64, bytes: usize, stream: Handle) {
        // SAFETY: the caller's own arguments.
        allocate(out, bytes, From::Stream, own(stream), || unsafe { real::cuMemAllocAsync_ptsz(out, bytes, stream) })
    }

    fn cuMemFreeAsync(address: u64, stream: Handle) {
        // SAFETY: the caller's own arguments.
        free(address, stream, || unsafe { real::cuMemFreeAsync(address, stream) })
    }

    fn cuMemFreeAsync_ptsz(address: u64, stream: Handle) {
        // SAFETY: the caller's own arguments.
        free(address, own(stream), || unsafe { real::cuMemFreeAsync_ptsz(address, stream) })
    }

    fn cuMemAllocFromPoolAsync(out: *mut u64, bytes: usize, pool: Handle, stream: Handle) {
        // SAFETY: the caller's own arguments.
        allocate(out, bytes, From::Pool(pool), stream, || unsafe {
            real::cuMemAllocFromPoolAsync(out, bytes, pool, stream)
        })
    }

    fn cuMemAllocFromPoolAsync_ptsz(out: *mut u64, bytes: usize, pool: Handle, stream: Handle) {
        // SAFETY: the caller's own arguments.
        allocate(out, bytes, From::Pool(pool), own(stream), || unsafe {
            real::cuMemAllocFromPoolAsync_ptsz(out, bytes, pool, stream)
        })
    }
}
