//! The memory server: the pool, the GPUs, and the processes that have connected.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::book::{Book, Owner};
use super::call::{Beside, Moved, PINNING, ParkAnswer, ParkCall, ParkedProcess, PoolState};
use super::device::Device;
use super::engine::{Course, Process};
use super::ledger::{Block, Ledger};
use super::link::Link;
use super::nodes::Division;
use super::pool::{Pool, SEGMENT};
use super::slots::Run;
use super::switch::{Share, Switches};
use crate::gpu::digest::{BLOCK, Digest, Key, digest};
use crate::gpu::protocol::Refusal;
use rustix::{net, process::geteuid};

/// How long processes may take to find this server after an earlier one: they look five times a second.
const REUNION: Duration = Duration::from_secs(10);

/// The memory server.
#[derive(Debug)]
pub struct MemoryServer {
    pub(super) devices: Vec<Arc<Device>>,
    pub(super) pool: Arc<Pool>,
    pub(super) zero: Digest,
    pub(super) switches: Switches,
    processes: Mutex<BTreeMap<i32, Arc<Known>>>,
    /// Copies that an earlier server has left, of processes that have not connected to this one yet; nothing of one that
    /// is being met.
    left: Mutex<BTreeMap<Owner, Option<Ledger>>>,
    /// Processes whose preload library is of another version.
    other_versions: Mutex<BTreeSet<i32>>,
}

/// A process that has connected.
#[derive(Debug)]
struct Known {
    process: Mutex<Process>,
    /// What was last said of it: it is not asked in the middle of a move, nor while it is stopped.
    seen: Mutex<ParkedProcess>,
}

/// What the daemon hands over.
#[derive(Debug)]
pub struct Handover {
    /// The pool's memory.
    pub pool: OwnedFd,
    /// The book's: what lies in the pool.
    pub book: OwnedFd,
    /// Where preload libraries connect.
    pub listener: OwnedFd,
    /// Bytes of the pool.
    pub bytes: u64,
    /// Which of it is next to which GPU.
    pub division: Division,
}

impl MemoryServer {
    /// Opens the GPUs, begins to pin the pool and to take connections. The driver must be there.
    ///
    /// # Errors
    /// The driver's refusal, or why the pool cannot be mapped.
    pub fn start(handover: Handover, gpus: u32) -> Result<Arc<Self>, Refusal> {
        let slots = (handover.bytes / SEGMENT * SEGMENT) as usize / BLOCK;
        let book = Book::open(&handover.book, slots, random_key()?)
            .map_err(|error| invalid(&format!("the pool's book cannot be opened: {error}")))?;
        let key = book.key();
        let left = inheritance(&book);
        let devices: Vec<_> =
            (0..gpus).map(|ordinal| Device::open(ordinal, key).map(Arc::new)).collect::<Result<_, _>>()?;
        for device in &devices {
            // The workbenches for a swap, out and in at the same time, are made here and not in it.
            device.enter()?;
            drop((device.bench()?, device.bench()?));
        }
        let first = devices.first().ok_or_else(|| invalid("there is no GPU"))?;
        let pool = Pool::open(&handover.pool, handover.bytes, handover.division, Arc::new(book), first)
            .map_err(|error| invalid(&format!("the pool cannot be mapped: {error}")))?;
        let zero = digest(&vec![0; BLOCK], key);
        let ends: Vec<_> = left.keys().filter_map(|owner| Some((owner.pid, end_of(owner.pid)?))).collect();
        let left = Mutex::new(left.into_iter().map(|(owner, ledger)| (owner, Some(ledger))).collect());
        let processes = Mutex::default();
        let switches = Switches::default();
        let other_versions = Mutex::default();
        let server = Arc::new(Self { devices, pool, zero, switches, processes, left, other_versions });
        let watcher = Arc::clone(&server);
        std::thread::Builder::new()
            .name("park door".to_owned())
            .spawn(move || watcher.watch(&handover.listener, ends))
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
            ParkCall::Out { pids, wanted, rest_ms, number } => {
                let rest = Duration::from_millis(u64::from(rest_ms));
                self.switches.begin(number);
                let met = self.reunion(&pids);
                let outcome = met.and_then(|()| self.out(&pids, wanted, rest, number));
                self.switches.end(number, outcome.is_ok());
                outcome.map(ParkAnswer::Moved)
            }
            ParkCall::In { pids, verify, wait_ms, beside } => {
                let wait = Duration::from_millis(u64::from(wait_ms));
                self.reunion(&pids)?;
                self.back(&pids, verify, wait, beside.as_ref()).map(ParkAnswer::Moved)
            }
        }
    }

    /// Gives the pool's memory back: the run is over. See [`super::unpin`].
    pub fn end(&self) {
        if let Some(device) = self.devices.first() {
            self.pool.give_back(device);
        }
    }

    /// Waits for processes whose memory an earlier server has taken out: half an engine must not come back, nor must one be
    /// taken for resident because nobody here knows it yet.
    fn reunion(&self, pids: &[i32]) -> Result<(), Refusal> {
        let deadline = Instant::now() + REUNION;
        loop {
            let missing = lock(&self.left).keys().map(|owner| owner.pid).find(|pid| pids.contains(pid));
            match missing {
                None => return Ok(()),
                Some(pid) if Instant::now() > deadline => {
                    return Err(in_the_way(
                        pid,
                        "it does not come back to the memory server that was started anew",
                    ));
                }
                Some(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn look(&self) -> PoolState {
        let known: Vec<_> = self.known().values().cloned().collect();
        let processes = std::thread::scope(|scope| {
            let asked: Vec<_> = known.iter().map(|known| scope.spawn(|| known.describe())).collect();
            asked.into_iter().filter_map(|thread| thread.join().ok().flatten()).collect()
        });
        let (bytes, pinned, used, trouble) = self.pool.state();
        let other_versions = lock(&self.other_versions).iter().copied().collect();
        PoolState { bytes, pinned, used, trouble, processes, other_versions }
    }

    /// Brings processes back, all of them or none.
    fn back(
        &self,
        pids: &[i32],
        verify: bool,
        wait: Duration,
        beside: Option<&Beside>,
    ) -> Result<Moved, Refusal> {
        let share = beside.map(|beside| Share::new(&self.switches, beside));
        let (came, moved) =
            self.move_all(pids, |process| self.bring_in(process, verify, wait, share.as_ref()));
        moved.map_err(|refusal| {
            let (_, again) = self.move_all(&came, |process| self.take_out(process, None, wait, 0));
            match again {
                Ok(_) => refusal,
                Err(second) => and_then(refusal, "another process stayed in", &second),
            }
        })
    }

    /// Takes processes out, all of them or none.
    fn out(&self, pids: &[i32], wanted: Option<u64>, rest: Duration, number: u64) -> Result<Moved, Refusal> {
        let (went, moved) = self.move_all(pids, |process| self.take_out(process, wanted, rest, number));
        moved.map_err(|refusal| {
            self.switches.end(number, false);
            let (_, back) = self.move_all(&went, |process| self.bring_in(process, false, rest, None));
            match back {
                Ok(_) => refusal,
                Err(second) => and_then(refusal, "another process could not be brought back", &second),
            }
        })
    }

    /// Moves processes, all at the same time: those that are on the other side now, and what was moved in all.
    fn move_all(
        &self,
        pids: &[i32],
        work: impl Fn(&mut Process) -> Result<Course, Refusal> + Sync,
    ) -> (Vec<i32>, Result<Moved, Refusal>) {
        let outcomes = self.each(pids, |process| {
            let before = process.away;
            work(process).map(|course| (course, process.away != before))
        });
        let crossed =
            outcomes.iter().filter(|(_, outcome)| outcome.as_ref().is_ok_and(|(_, crossed)| *crossed));
        let crossed = crossed.map(|(pid, _)| *pid).collect();
        (crossed, sum(outcomes.into_iter().map(|(_, outcome)| outcome.map(|(course, _)| course))))
    }

    /// Does something to processes, all at the same time.
    fn each<T: Send>(
        &self,
        pids: &[i32],
        work: impl Fn(&mut Process) -> Result<T, Refusal> + Sync,
    ) -> Vec<(i32, Result<T, Refusal>)> {
        let known = self.known().clone();
        let processes: Vec<_> = pids.iter().filter_map(|pid| Some((*pid, known.get(pid)?))).collect();
        std::thread::scope(|scope| {
            let running: Vec<_> = processes
                .iter()
                .map(|(pid, known)| (*pid, scope.spawn(|| work(&mut lock(&known.process)))))
                .collect();
            let broke = |_| Err(invalid("a thread of the memory server broke"));
            running.into_iter().map(|(pid, thread)| (pid, thread.join().unwrap_or_else(broke))).collect()
        })
    }

    /// Slots for blocks that go out of a GPU: free ones, those being pinned, and those of copies that engines on the GPUs
    /// can do without, longest unmoved first; always the GPU's node before others, and no copy is given up for that.
    pub(super) fn room_for(&self, count: u32, gpu: usize, deadline: Instant) -> Option<Vec<Run>> {
        if let Some(runs) = self.pool.take(count, gpu, deadline) {
            return Some(runs);
        }
        // One that is being moved keeps what it has.
        let known: Vec<_> = self.known().values().cloned().collect();
        let mut resident: Vec<_> =
            known.iter().filter_map(|known| known.process.try_lock().ok()).filter(|it| !it.away).collect();
        resident.sort_by_key(|process| process.moved);
        for mut process in resident {
            process.forget(&self.pool);
            if let Some(runs) = self.pool.take(count, gpu, Instant::now()) {
                return Some(runs);
            }
        }
        None
    }

    /// Waits until what an earlier server has left of a process is pinned: the driver refuses copies from and to memory
    /// that is half so.
    ///
    /// # Errors
    /// A refusal that says how far it is, after which it can be tried again.
    pub(super) fn pinned(&self, process: &Process, wait: Duration) -> Result<(), Refusal> {
        if self.pool.is_pinned(process.slots(), Instant::now() + wait) {
            return Ok(());
        }
        let (bytes, pinned, ..) = self.pool.state();
        let text = format!(
            "the memory server was started anew and still pins its pool: {} MiB of {}; what is out lies there",
            pinned >> 20,
            bytes >> 20
        );
        Err(Refusal { name: PINNING.to_owned(), ..in_the_way(process.link.pid(), &text) })
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<i32, Arc<Known>>> {
        lock(&self.processes)
    }

    /// Takes connections, and forgets processes that have ended.
    fn watch(self: &Arc<Self>, listener: &OwnedFd, mut ends: Vec<(i32, OwnedFd)>) {
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

    /// A process has connected: a new one, one whose connection was broken, or one that an earlier server knew.
    fn meet(self: &Arc<Self>, socket: OwnedFd, pid: i32) {
        let link = match Link::greet(socket, pid) {
            Ok(link) => link,
            Err(error) => {
                // It comes again and again; once is enough to be told.
                let other = error.kind() == std::io::ErrorKind::Unsupported;
                if !other || lock(&self.other_versions).insert(pid) {
                    eprintln!("gpu-server: process {pid} cannot be parked: {error}");
                }
                return;
            }
        };
        lock(&self.other_versions).remove(&pid);
        let known = self.known().get(&pid).cloned();
        if let Some(known) = known {
            lock(&known.process).link = link;
            return;
        }
        let Some(owner) = Owner::of(pid) else { return };
        let left = lock(&self.left).get_mut(&owner).and_then(Option::take);
        let mut process = Process::new(link, owner, left.unwrap_or_default());
        // Until it is known what is away, nothing of it may be given up: it is not let in before.
        match process.meet(&self.pool, self.zero) {
            Ok(()) => {
                let known = Known { process: Mutex::new(process), seen: Mutex::default() };
                self.known().insert(pid, Arc::new(known));
                lock(&self.left).remove(&owner);
            }
            // It connects anew.
            Err(_) => {
                lock(&self.left).insert(owner, Some(process.ledger));
            }
        }
        if Owner::of(pid) != Some(owner) {
            // It ended before there was anything to forget.
            self.forget(pid);
        }
    }

    fn forget(self: &Arc<Self>, pid: i32) {
        let gone = self.known().remove(&pid);
        lock(&self.other_versions).remove(&pid);
        let server = Arc::clone(self);
        // A move of it may still be failing.
        std::thread::spawn(move || {
            if let Some(known) = gone {
                lock(&known.process).forget(&server.pool);
            }
            lock(&server.left).retain(|owner, ledger| {
                let ended = owner.pid == pid && ledger.is_some();
                for ledger in ledger.iter_mut().filter(|_| ended) {
                    server.pool.with(|slots| ledger.values_mut().for_each(|copies| copies.forget(slots)));
                }
                !ended
            });
        });
    }
}

impl Known {
    /// What can be said of it; nothing of one that does not answer: it cannot be parked.
    fn describe(&self) -> Option<ParkedProcess> {
        let process = match self.process.try_lock() {
            Ok(process) => process,
            Err(_) => return Some(lock(&self.seen).clone()).filter(|seen| seen.pid != 0),
        };
        let mut seen = lock(&self.seen);
        if seen.pid == 0 || !stopped(seen.pid) {
            match process.describe() {
                Ok(now) => *seen = now,
                // Stopped meanwhile: it connects anew when it goes on.
                Err(_) if seen.pid != 0 && stopped(seen.pid) => {}
                Err(_) => return None,
            }
        }
        Some(seen.clone())
    }
}

/// What the book says, by owner; lines of processes that have ended are struck out.
fn inheritance(book: &Book) -> BTreeMap<Owner, Ledger> {
    let mut left: BTreeMap<Owner, Ledger> = BTreeMap::new();
    for (slot, entered) in book.entries() {
        if Owner::of(entered.owner.pid) != Some(entered.owner) {
            book.strike(slot);
            continue;
        }
        let copies = left.entry(entered.owner).or_default().entry(entered.chunk).or_default();
        copies.inherit(entered.block, Block { digest: Some(entered.digest), slot: Some(slot) });
    }
    left
}

/// The sum of what several moves did, or the first refusal.
fn sum(outcomes: impl Iterator<Item = Result<Course, Refusal>>) -> Result<Moved, Refusal> {
    let mut moved = Moved::default();
    for outcome in outcomes {
        moved.join(&outcome?.moved);
    }
    Ok(moved)
}

/// A refusal after which something else failed too.
pub(super) fn and_then(refusal: Refusal, what: &str, second: &Refusal) -> Refusal {
    let text = format!("{}; then {what}: {second}", refusal.text);
    Refusal { text, ..refusal }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a process is stopped (`SIGSTOP`, the freezer of a debugger): it would not answer.
fn stopped(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rfind(')').and_then(|end| stat.get(end + 2..end + 3));
    matches!(state, Some("T" | "t"))
}

/// The next connection of this user's, with its process.
fn accept(listener: &OwnedFd) -> Option<(OwnedFd, i32)> {
    let socket = net::accept_with(listener, net::SocketFlags::CLOEXEC).ok()?;
    let peer = net::sockopt::socket_peercred(&socket).ok()?;
    (peer.uid == geteuid()).then(|| (socket, peer.pid.as_raw_nonzero().get()))
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
