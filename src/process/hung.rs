//! Processes that even KILL did not end: they hang in the kernel, and what they hold is no engine's any more.

use super::stat::ProcId;
use std::sync::{Mutex, PoisonError};

/// All that this program has seen. One that does end after all is found by nobody again.
static HUNG: Mutex<Vec<ProcId>> = Mutex::new(Vec::new());

/// Notes one.
pub(super) fn note(id: ProcId) {
    let mut hung = HUNG.lock().unwrap_or_else(PoisonError::into_inner);
    if !hung.contains(&id) {
        hung.push(id);
    }
}

/// Whether the process was killed in vain.
pub fn hangs(id: ProcId) -> bool {
    HUNG.lock().unwrap_or_else(PoisonError::into_inner).contains(&id)
}

/// Notes one in a test: no test can make a process that hangs in the kernel.
#[cfg(test)]
pub(crate) fn pretend(id: ProcId) {
    note(id);
}
