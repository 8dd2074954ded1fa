//! The memory server: the pool, the GPUs, and the processes that have connected.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::call::{Moved, ParkAnswer, ParkCall, PoolState};
use super::device::Device;
use super::engine::{Course, Process};
use super::link::Link;
use super::pool::Pool;
use super::slots::Run;
use crate::gpu::digest::{BLOCK, Digest, Key, digest};
use crate::gpu::protocol::Refusal;

/// The memory server.
#[derive(Debug)]
pub struct MemoryServer {
    pub(super) devices: Vec<Arc<Device>>,
    pub(super) pool: Arc<Pool>,
    pub(super) zero: Digest,
    processes: Mutex<BTreeMap<i32, Arc<Mutex<Process>>>>,
}

/// What the daemon hands over.
#[derive(Debug)]
pub struct Handover {
    /// The pool's memory.
    pub pool: OwnedFd,
    /// Where preload libraries connect.
    pub listener: OwnedFd,
    /// Bytes of the pool.
    pub bytes: u64,
    /// NUMA node to take it from.
    pub node: Option<u32>,
}

impl MemoryServer {
    /// Opens the GPUs, begins to pin the pool and to take connections. The driver must be there.
    ///
    /// # Errors
    /// The driver's refusal, or why the pool cannot be mapped.
    pub fn start(handover: Handover, gpus: u32) -> Result<Arc<Self>, Refusal> {
        let key = random_key()?;
        let devices: Vec<_> =
            (0..gpus).map(|ordinal| Device::open(ordinal, key).map(Arc::new)).collect::<Result<_, _>>()?;
        for device in &devices {
            // The first workbench is made here and not in a swap.
            device.enter()?;
            drop(device.bench()?);
        }
        let first = devices.first().ok_or_else(|| invalid("there is no GPU"))?;
        let pool = Pool::open(&handover.pool, handover.bytes, handover.node, first)
            .map_err(|error| invalid(&format!("the pool cannot be mapped: {error}")))?;
        let zero = digest(&vec![0; BLOCK], key);
        let server = Arc::new(Self { devices, pool, zero, processes: Mutex::default() });
        let watcher = Arc::clone(&server);
        std::thread::Builder::new()
            .name("park door".to_owned())
            .spawn(move || watcher.watch(&handover.listener))
            .map_err(|error| invalid(&format!("no thread for the listening socket: {error}")))?;
        Ok(server)
    }

    /// Does what the daemon asks.
    ///
    /// # Errors
    /// A refusal; see [`ParkCall`] for the state it leaves.
    pub fn answer(&self, call: ParkCall) -> Result<ParkAnswer, Refusal> {
        match call {
            ParkCall::Look => Ok(ParkAnswer::Pool(self.look())),
            ParkCall::Out { pids, wanted, rest_ms } => {
                let rest = Duration::from_millis(u64::from(rest_ms));
                self.each(&pids, |process| self.take_out(process, wanted, rest)).map(ParkAnswer::Moved)
            }
            ParkCall::In { pids, verify, wait_ms } => {
                let wait = Duration::from_millis(u64::from(wait_ms));
                self.each(&pids, |process| self.bring_in(process, verify, wait)).map(ParkAnswer::Moved)
            }
        }
    }

    fn look(&self) -> PoolState {
        let (bytes, pinned, used, trouble) = self.pool.state();
        let known: Vec<_> = self.known().values().cloned().collect();
        // One that does not answer cannot be parked.
        let processes = known.iter().filter_map(|process| lock(process).describe().ok()).collect();
        PoolState { bytes, pinned, used, trouble, processes }
    }

    /// Moves processes at the same time. If one refuses, the others stay where they have come to.
    fn each(
        &self,
        pids: &[i32],
        work: impl Fn(&mut Process) -> Result<Course, Refusal> + Sync,
    ) -> Result<Moved, Refusal> {
        let known = self.known().clone();
        let processes: Vec<_> = pids.iter().filter_map(|pid| known.get(pid)).collect();
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let running: Vec<_> =
                processes.iter().map(|process| scope.spawn(|| work(&mut lock(process)))).collect();
            running.into_iter().map(|thread| thread.join()).collect()
        });
        let mut moved = Moved::default();
        for outcome in outcomes {
            let outcome = outcome.map_err(|_| invalid("a thread of the memory server broke"))?;
            moved.join(&outcome?.moved);
        }
        Ok(moved)
    }

    /// Slots for blocks that go out: free ones, those being pinned, and those of copies that engines on the GPUs can do
    /// without, longest unmoved first.
    pub(super) fn room_for(&self, count: u32, deadline: Instant) -> Option<Vec<Run>> {
        if let Some(runs) = self.pool.take(count, deadline) {
            return Some(runs);
        }
        // One that is being moved keeps what it has.
        let known: Vec<_> = self.known().values().cloned().collect();
        let mut resident: Vec<_> =
            known.iter().filter_map(|process| process.try_lock().ok()).filter(|it| !it.away).collect();
        resident.sort_by_key(|process| process.moved);
        for mut process in resident {
            process.forget(&self.pool);
            if let Some(runs) = self.pool.take(count, Instant::now()) {
                return Some(runs);
            }
        }
        None
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<i32, Arc<Mutex<Process>>>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes connections, and forgets processes that have ended.
    fn watch(self: &Arc<Self>, listener: &OwnedFd) {
        let mut ends: Vec<(i32, OwnedFd)> = Vec::new();
        loop {
            let mut polled: Vec<libc::pollfd> = std::iter::once(listener.as_raw_fd())
                .chain(ends.iter().map(|(_, end)| end.as_raw_fd()))
                .map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 })
                .collect();
            // SAFETY: as many live entries as it says.
            if unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, -1) } < 0 {
                continue;
            }
            let mut ready = polled.iter().map(|it| it.revents != 0);
            let called = ready.next().unwrap_or(false);
            for pid in ends.extract_if(.., |_| ready.next().unwrap_or(false)).map(|(pid, _)| pid) {
                self.forget(pid);
            }
            if called && let Some((socket, pid)) = accept(listener) {
                if !ends.iter().any(|(known, _)| *known == pid) {
                    ends.extend(end_of(pid).map(|end| (pid, end)));
                }
                let server = Arc::clone(self);
                std::thread::spawn(move || server.meet(socket, pid));
            }
        }
    }

    /// A process has connected: a new one, or one whose connection was broken.
    fn meet(&self, socket: OwnedFd, pid: i32) {
        let link = match Link::greet(socket, pid) {
            Ok(link) => link,
            Err(error) => {
                eprintln!("gpu-server: process {pid} cannot be parked: {error}");
                return;
            }
        };
        let known = self.known().get(&pid).cloned();
        match known {
            Some(process) => lock(&process).link = link,
            None => {
                self.known().insert(pid, Arc::new(Mutex::new(Process::new(link))));
            }
        }
    }

    fn forget(self: &Arc<Self>, pid: i32) {
        let gone = self.known().remove(&pid);
        if let Some(process) = gone {
            // A move of it may still be failing.
            let server = Arc::clone(self);
            std::thread::spawn(move || lock(&process).forget(&server.pool));
        }
    }
}

fn lock(process: &Mutex<Process>) -> MutexGuard<'_, Process> {
    process.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The next connection of this user's, with its process.
fn accept(listener: &OwnedFd) -> Option<(OwnedFd, i32)> {
    // SAFETY: an open listening socket; no address is wanted.
    let socket = unsafe {
        libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC)
    };
    if socket < 0 {
        return None;
    }
    // SAFETY: just opened, as seen.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: an open socket and a live struct of the length given.
    let failed = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    } != 0;
    // SAFETY: geteuid cannot fail.
    let stranger = peer.uid != unsafe { libc::geteuid() };
    (!failed && !stranger).then_some((socket, peer.pid))
}

/// A descriptor that is readable when the process has ended.
fn end_of(pid: i32) -> Option<OwnedFd> {
    // SAFETY: plain numbers.
    let end = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    // SAFETY: just opened, as seen, and owned by nobody else.
    (end >= 0).then(|| unsafe { OwnedFd::from_raw_fd(end as i32) })
}

fn random_key() -> Result<Key, Refusal> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).map_err(|error| invalid(&format!("no random key: {error}")))?;
    let whole = u128::from_le_bytes(bytes);
    Ok([whole as u64, (whole >> 64) as u64])
}

/// A refusal that is not the driver's.
pub(super) fn invalid(text: &str) -> Refusal {
    Refusal {
        function: "park".to_owned(),
        on: "the memory server".to_owned(),
        code: 0,
        name: "invalid".to_owned(),
        text: text.to_owned(),
    }
}

/// A refusal because of something that a person can change.
pub(super) fn in_the_way(pid: i32, text: &str) -> Refusal {
    Refusal { on: format!("process {pid}"), name: "in the way".to_owned(), ..invalid(text) }
}
