//! The gate that calls pass which submit GPU work.
//!
//! ```text
//!  open ──close()──▶ closing (calls inside go on, new ones wait) ──none inside──▶ closed ──open()──▶ open
//!                        └──── deadline passed ──▶ open, the call that closes is told
//! ```
//!
//! Passing costs two atomic additions, 9 ns (`benches/gate.rs`), and neither locks nor allocates. While a stream is being captured the gate does not begin to close: a capture
//! that stops in the middle cannot be told from one that hangs.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const CLOSED: u32 = 1 << 31;

/// Calls inside, and [`CLOSED`].
static WORD: AtomicU32 = AtomicU32::new(0);
/// Changes with each opening: what those outside wait for.
static OPENINGS: AtomicU32 = AtomicU32::new(0);
/// Captures under way.
static CAPTURES: AtomicU32 = AtomicU32::new(0);

/// A call inside the gate.
#[derive(Debug)]
pub(crate) struct Inside(());

/// Passes, waiting while the gate is closed.
pub(crate) fn pass() -> Inside {
    loop {
        if WORD.fetch_add(1, Ordering::AcqRel) & CLOSED == 0 {
            return Inside(());
        }
        drop(Inside(()));
        // Before the word: if it is opened after this, the wait ends at once.
        let openings = OPENINGS.load(Ordering::Acquire);
        if WORD.load(Ordering::Acquire) & CLOSED != 0 {
            wait(&OPENINGS, openings, None);
        }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        if WORD.fetch_sub(1, Ordering::AcqRel) == CLOSED | 1 {
            wake(&WORD);
        }
    }
}

/// Closes the gate and waits until nobody is inside; false, and the gate is open again, if that takes too long.
pub(crate) fn close(deadline: Instant) -> bool {
    loop {
        let captures = CAPTURES.load(Ordering::Acquire);
        if captures > 0 {
            if !wait_until(&CAPTURES, captures, deadline) {
                return false;
            }
            continue;
        }
        if !close_now(deadline) {
            return false;
        }
        // One that began meanwhile was counted inside the gate.
        if !capturing() {
            return true;
        }
        open();
    }
}

fn close_now(deadline: Instant) -> bool {
    WORD.fetch_or(CLOSED, Ordering::AcqRel);
    loop {
        let word = WORD.load(Ordering::Acquire);
        if word == CLOSED {
            return true;
        }
        if !wait_until(&WORD, word, deadline) {
            open();
            return false;
        }
    }
}

/// Opens the gate.
pub(crate) fn open() {
    WORD.fetch_and(!CLOSED, Ordering::AcqRel);
    OPENINGS.fetch_add(1, Ordering::AcqRel);
    wake(&OPENINGS);
}

/// Whether the gate is closed or closing.
pub(crate) fn is_closed() -> bool {
    WORD.load(Ordering::Acquire) & CLOSED != 0
}

/// A stream begins to be captured.
pub(crate) fn capture_begins() {
    CAPTURES.fetch_add(1, Ordering::AcqRel);
}

/// A capture has ended.
pub(crate) fn capture_ends() {
    // One begun before this library was watching must not take the count below zero.
    let _ = CAPTURES.fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| count.checked_sub(1));
    wake(&CAPTURES);
}

/// Whether a stream is being captured.
pub(crate) fn capturing() -> bool {
    CAPTURES.load(Ordering::Acquire) > 0
}

fn wait_until(word: &AtomicU32, seen: u32, deadline: Instant) -> bool {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return false;
    }
    wait(word, seen, Some(left));
    true
}

fn wait(word: &AtomicU32, seen: u32, limit: Option<Duration>) {
    let limit = limit.map(|limit| libc::timespec {
        tv_sec: limit.as_secs() as libc::time_t,
        tv_nsec: limit.subsec_nanos() as libc::c_long,
    });
    let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the word and the time live through the call; the kernel only reads them.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            seen,
            limit,
        )
    };
}

fn wake(word: &AtomicU32) {
    // SAFETY: only the address is used.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, i32::MAX)
    };
}
