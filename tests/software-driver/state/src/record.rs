//! What is known of one process that uses the software driver.

use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use crate::MAX_GPUS;

/// State of a process, numbered as the driver's `CUprocessState`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum State {
    /// Its API calls run.
    Running = 0,
    /// Its API calls wait.
    Locked = 1,
    /// Its GPU memory is in host memory.
    Checkpointed = 2,
    /// A restore went wrong: the process is lost.
    Failed = 3,
}

impl State {
    /// The state with that number.
    pub fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Running,
            1 => Self::Locked,
            2 => Self::Checkpointed,
            _ => Self::Failed,
        }
    }
}

/// What another process asks of a process's restore thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Request {
    /// Move the GPU memory to the host.
    Checkpoint = 1,
    /// Move it back.
    Restore = 2,
}

impl Request {
    /// The word that asks this after `previous` was asked: never the same word twice in a row.
    pub fn after(self, previous: u32) -> u32 {
        ((previous >> 2).wrapping_add(1) << 2) | self as u32
    }

    /// What a word asks.
    pub fn from_number(word: u32) -> Self {
        if word & 3 == Self::Checkpoint as u32 { Self::Checkpoint } else { Self::Restore }
    }
}

/// Value of [`Record::answer`] while the restore thread has not answered.
pub const UNANSWERED: u32 = u32::MAX;

/// One process. Every field is atomic because the record lives in a file that all processes map; bytes and states
/// change only under the table's lock.
#[derive(Debug)]
#[repr(C)]
pub struct Record {
    /// Process id; 0: the slot is free.
    pub pid: AtomicI32,
    /// Thread id of the restore thread.
    pub restore_thread: AtomicI32,
    /// When the process started, in clock ticks since boot: tells a recycled pid.
    pub born: AtomicU64,
    /// A [`State`]; waited on by gated API calls.
    pub state: AtomicU32,
    /// API calls that are inside the driver.
    pub in_flight: AtomicU32,
    /// The last [`Request`] and its number in the row, 0 before the first; waited on by the restore thread.
    pub request: AtomicU32,
    /// The restore thread's answer, a `CUresult`, or [`UNANSWERED`].
    pub answer: AtomicU32,
    /// Live managed allocations (UVM): a checkpoint is refused.
    pub managed: AtomicU32,
    /// Live imported shareable handles: a checkpoint passes, the restore fails.
    pub imported: AtomicU32,
    /// Live mappings of other processes' memory by legacy IPC: the same.
    pub ipc: AtomicU32,
    spare: AtomicU32,
    /// Bytes on each GPU.
    pub held: [AtomicU64; MAX_GPUS],
    /// Bytes of each GPU that a checkpoint keeps in host memory.
    pub host: [AtomicU64; MAX_GPUS],
    /// Bytes that NVML still shows on each GPU though they are free.
    pub ghost: [AtomicU64; MAX_GPUS],
    /// Until when it does, in nanoseconds of the monotonic clock.
    pub ghost_until: AtomicU64,
}

impl Record {
    /// The process's state.
    pub fn state(&self) -> State {
        State::from_number(self.state.load(Ordering::SeqCst))
    }

    /// Sets the state and wakes who waits for it.
    pub fn set_state(&self, state: State) {
        self.state.store(state as u32, Ordering::SeqCst);
        crate::futex::wake(&self.state);
    }

    /// The pid, if the slot is in use.
    pub fn pid(&self) -> Option<i32> {
        Some(self.pid.load(Ordering::SeqCst)).filter(|&pid| pid != 0)
    }

    /// Whether the process of this record still runs (a zombie does not).
    pub fn alive(&self) -> bool {
        self.pid().is_some_and(|pid| started(pid) == Some(self.born.load(Ordering::SeqCst)))
    }

    /// Whether its restore thread has been asked for something that it has not done yet.
    pub fn moves(&self) -> bool {
        self.request.load(Ordering::SeqCst) != 0 && self.answer.load(Ordering::SeqCst) == UNANSWERED
    }

    /// Bytes held on `gpu`, as NVML tells them at this moment.
    pub fn seen_by_nvml(&self, gpu: usize) -> u64 {
        let ghost = if now() < self.ghost_until.load(Ordering::SeqCst) {
            self.ghost[gpu].load(Ordering::SeqCst)
        } else {
            0
        };
        self.held[gpu].load(Ordering::SeqCst) + ghost
    }

    pub(crate) fn clear(&self) {
        for bytes in self.held.iter().chain(&self.host).chain(&self.ghost) {
            bytes.store(0, Ordering::SeqCst);
        }
        for word in [&self.in_flight, &self.request, &self.managed, &self.imported, &self.ipc, &self.spare] {
            word.store(0, Ordering::SeqCst);
        }
        self.answer.store(UNANSWERED, Ordering::SeqCst);
        self.state.store(State::Running as u32, Ordering::SeqCst);
        self.restore_thread.store(0, Ordering::SeqCst);
        self.ghost_until.store(0, Ordering::SeqCst);
        self.pid.store(0, Ordering::SeqCst);
    }
}

/// Whether process `pid` is stopped (`SIGSTOP`).
pub fn stopped(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rfind(')').is_some_and(|end| stat[end..].starts_with(") T"))
}

/// When process `pid` started, in clock ticks since boot (`/proc/PID/stat`, field 22), or `None` if it does not
/// run or is a zombie.
pub fn started(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat[stat.rfind(')')? + 2..].split(' ');
    match fields.next()? {
        "Z" | "X" => None,
        _ => fields.nth(18)?.parse().ok(),
    }
}

/// Nanoseconds of the monotonic clock, the same in every process.
pub fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
