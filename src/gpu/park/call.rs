//! What the daemon asks of the memory server, as part of the gpu server's protocol.

use super::cuda::OUT_OF_MEMORY;
use crate::gpu::protocol::Refusal;
use serde::{Deserialize, Serialize};

/// A call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParkCall {
    /// The pool, and which processes can be parked.
    Look,
    /// Takes the device memory of these processes out, all of them or none. Processes that the memory server does
    /// not know are left alone.
    Out {
        /// An engine's processes.
        pids: Vec<i32>,
        /// Bytes to free on each GPU at least, what costs least first; nothing for all of it.
        wanted: Option<u64>,
        /// How long the processes may take to come to rest.
        rest_ms: u32,
        /// Number by which others can take part ([`Beside::outs`]); 0 if nobody is to. Later ones are larger.
        #[serde(default)]
        number: u64,
    },
    /// Brings it back.
    In {
        /// An engine's processes.
        pids: Vec<i32>,
        /// Compare every block with what went out.
        verify: bool,
        /// How long to wait for free device memory.
        wait_ms: u32,
        /// To take memory that is being freed: the gate opens when none of those swap-outs can fail any more, and if one
        /// does, what was taken is given back and the call refused.
        #[serde(default)]
        beside: Option<Beside>,
    },
}

/// Swap-outs that make the room for a swap-in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beside {
    /// Their numbers.
    pub outs: Vec<u64>,
    /// Bytes that are free on each GPU, by its ordinal, before any of them has freed anything.
    pub room: Vec<u64>,
}

impl ParkCall {
    /// Its name in messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Look => "look at the pool",
            Self::Out { .. } => "park",
            Self::In { .. } => "unpark",
        }
    }
}

/// Name of the memory server's own refusals for want of room in the pool.
pub(super) const NO_ROOM: &str = "no room";

/// Name of its refusals while what an earlier server has left is not pinned yet.
pub(super) const PINNING: &str = "pinning";

impl Refusal {
    /// From the memory server: whether it only has not pinned its pool yet, which goes on.
    pub fn is_pinning(&self) -> bool {
        self.name == PINNING
    }

    /// From the memory server: whether all that was missing is memory, of a GPU or of the pool.
    pub fn is_shortage(&self) -> bool {
        self.code == OUT_OF_MEMORY || self.name == NO_ROOM
    }
}

/// The answer to a call that went well.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParkAnswer {
    /// To [`ParkCall::Look`].
    Pool(PoolState),
    /// To [`ParkCall::Out`] and [`ParkCall::In`].
    Moved(Moved),
}

/// The pool and its users.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolState {
    /// Bytes it has when it is ready.
    pub bytes: u64,
    /// Bytes pinned so far.
    pub pinned: u64,
    /// Bytes in use, copies of engines that are resident included.
    pub used: u64,
    /// Why it cannot grow to its size, if so.
    pub trouble: Option<String>,
    /// Processes that can be parked.
    pub processes: Vec<ParkedProcess>,
    /// Processes whose preload library is of another version than the memory server.
    #[serde(default)]
    pub other_versions: Vec<i32>,
}

/// One process with the preload library.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParkedProcess {
    /// Its id.
    pub pid: i32,
    /// Bytes on GPUs that can be parked.
    pub here: u64,
    /// Bytes that are out.
    pub away: u64,
    /// Bytes that it shares with others: they stay.
    pub shared: u64,
    /// Managed allocations it has made: they stay.
    pub managed: u64,
    /// Legacy IPC handles it wanted of parkable memory, in vain.
    pub ipc_refused: u64,
    /// Memory of other processes that it has opened.
    pub imported: u64,
    /// Allocations it has made from pools whose memory stays.
    #[serde(default)]
    pub pooled: u64,
    /// Bytes of the pool that hold copies of its memory.
    pub pool: u64,
}

/// What a move did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Moved {
    /// Processes moved.
    pub processes: u32,
    /// Bytes freed or taken on GPUs.
    pub bytes: u64,
    /// Bytes that crossed the bus.
    pub copied: u64,
    /// Bytes of blocks that are all zero.
    pub zero: u64,
    /// Bytes left on GPUs because they are shared, or were not needed.
    pub stayed: u64,
    /// Bytes of the pool that hold the engine's memory.
    pub pool: u64,
    /// Seconds of each phase, of the slowest process.
    pub phases: Vec<(String, f64)>,
}

impl Moved {
    /// Adds what another process's move did at the same time.
    pub(super) fn join(&mut self, other: &Self) {
        self.processes += other.processes;
        self.bytes += other.bytes;
        self.copied += other.copied;
        self.zero += other.zero;
        self.stayed += other.stayed;
        self.pool += other.pool;
        for (name, seconds) in &other.phases {
            match self.phases.iter_mut().find(|(known, _)| known == name) {
                Some((_, known)) => *known = known.max(*seconds),
                None => self.phases.push((name.clone(), *seconds)),
            }
        }
    }
}
