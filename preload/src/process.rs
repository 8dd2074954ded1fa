//! Whether this process takes part.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering};

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

/// Descriptors that only this process may have: physical memory lives as long as anybody holds one to it.
static OWN: [AtomicI32; 96] = [const { AtomicI32::new(NONE) }; 96];
const NONE: RawFd = -1;

/// A descriptor that is closed in children, whether or not they execute another program.
#[derive(Debug)]
pub(crate) struct Own(OwnedFd);

impl Own {
    /// Keeps it from children.
    pub(crate) fn new(descriptor: OwnedFd) -> Self {
        let number = descriptor.as_raw_fd();
        // SAFETY: an open descriptor of this process.
        unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        // If every place is taken, it is kept only from children that execute another program.
        let free = |place: &&AtomicI32| {
            place.compare_exchange(NONE, number, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        OWN.iter().find(free);
        Self(descriptor)
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    pub(crate) fn number(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // Before it is closed: its number may be another descriptor's right afterwards.
        let ours = |place: &&AtomicI32| {
            place.compare_exchange(self.number(), NONE, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        OWN.iter().find(ours);
    }
}

/// From now on a forked child goes straight to the driver: it has neither the control thread nor a usable context.
pub(crate) fn leave_children_alone() {
    extern "C" fn in_child() {
        STATE.store(OFF, Ordering::Relaxed);
        for number in OWN.iter().map(|place| place.swap(NONE, Ordering::Relaxed)).filter(|&it| it != NONE) {
            // SAFETY: the child's copy of a descriptor that only the parent uses; close is async-signal-safe.
            unsafe { libc::close(number) };
        }
    }
    if !WATCHED.swap(true, Ordering::SeqCst) {
        // SAFETY: the handler stores to atomics and closes descriptors, and nothing else.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    }
}
