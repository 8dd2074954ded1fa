//! Waiting on a word of the shared mapping, across processes.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Waits until `word` may have changed from `seen`, a wake-up arrives, or `at_most` has passed. Returns early at
/// will: callers check their condition again.
pub fn wait(word: &AtomicU32, seen: u32, at_most: Duration) {
    if word.load(Ordering::SeqCst) != seen {
        return;
    }
    let limit = libc::timespec {
        tv_sec: at_most.as_secs() as libc::time_t,
        tv_nsec: i64::from(at_most.subsec_nanos()) as _,
    };
    // SAFETY: the word is mapped for as long as the reference lives and the timespec outlives the call; without
    // FUTEX_PRIVATE_FLAG the kernel finds the word by its page, which is shared between processes.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, seen, &raw const limit, 0, 0);
    }
}

/// Wakes everyone who waits on `word`.
pub fn wake(word: &AtomicU32) {
    // SAFETY: FUTEX_WAKE reads nothing but the address of a mapped word.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX, 0, 0, 0);
    }
}
