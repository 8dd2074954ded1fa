//! Whether this process takes part.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// Where the memory server listens: a path, or an abstract name behind `@`.
pub(crate) const SOCKET: &std::ffi::CStr = c"SWAPSERVE_PARK_SOCKET";

const UNKNOWN: u8 = 0;
const ON: u8 = 1;
const OFF: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(UNKNOWN);
static WATCHED: AtomicBool = AtomicBool::new(false);

/// Whether hooks act; if not they only call the driver.
pub(crate) fn enabled() -> bool {
    match STATE.load(Ordering::Relaxed) {
        UNKNOWN => {
            // SAFETY: a constant C string; the value is only compared with null.
            let on = !unsafe { libc::getenv(SOCKET.as_ptr()) }.is_null();
            STATE.store(if on { ON } else { OFF }, Ordering::Relaxed);
            on
        }
        state => state == ON,
    }
}

/// From now on a forked child goes straight to the driver: it has neither the control thread nor a usable context.
pub(crate) fn leave_children_alone() {
    extern "C" fn in_child() {
        STATE.store(OFF, Ordering::Relaxed);
    }
    if !WATCHED.swap(true, Ordering::SeqCst) {
        // SAFETY: the handler stores to an atomic and nothing else.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    }
}
