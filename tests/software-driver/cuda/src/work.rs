//! Work that is not done when the call returns: kernels that wait. Whoever waits for a stream, an event or a context waits
//! for those of them that came before; other work does not.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A kernel that is running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Running {
    number: u64,
    /// Number of its context.
    context: usize,
    stream: usize,
}

#[derive(Debug)]
struct State {
    last: u64,
    running: BTreeSet<Running>,
}

static STATE: Mutex<State> = Mutex::new(State { last: 0, running: BTreeSet::new() });
static DONE: Condvar = Condvar::new();

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has a thread do something as the work of a stream.
pub(crate) fn begin(context: usize, stream: usize, work: impl FnOnce() + Send + 'static) {
    let mut state = state();
    state.last += 1;
    let running = Running { number: state.last, context, stream };
    state.running.insert(running);
    drop(state);
    std::thread::spawn(move || {
        work();
        self::state().running.remove(&running);
        DONE.notify_all();
    });
}

/// What runs in a stream, for [`wait`].
pub(crate) fn in_stream(context: usize, stream: usize) -> Vec<u64> {
    let here = |it: &&Running| it.context == context && it.stream == stream;
    state().running.iter().filter(here).map(|it| it.number).collect()
}

/// What runs in contexts, for [`wait`].
pub(crate) fn in_contexts(which: impl Fn(usize) -> bool) -> Vec<u64> {
    state().running.iter().filter(|it| which(it.context)).map(|it| it.number).collect()
}

/// Waits until none of these runs.
pub(crate) fn wait(numbers: &[u64]) {
    let mut state = state();
    while state.running.iter().any(|it| numbers.contains(&it.number)) {
        state = DONE.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}
