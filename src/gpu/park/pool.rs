//! The pool's memory: one mapping, pinned segment by segment by several threads while engines start.
//!
//! A segment's slots can be had as soon as it is pinned; those in which an earlier server has left something come first,
//! because engines wait for them, the others in turns over the NUMA nodes. Before a segment is first touched the kernel is
//! asked to take it from its node ([`Division`]). If pinning fails, what is pinned until then is the pool, and the reason is
//! kept.

use std::collections::BTreeSet;
use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::book::Book;
use super::cuda::{check, cuMemHostRegister_v2};
use super::device::Device;
use super::nodes::Division;
use super::slots::{Run, Slots};
use crate::gpu::digest::BLOCK;
use crate::gpu::protocol::Refusal;

/// Bytes pinned at once. A pool is a whole number of them.
pub(super) const SEGMENT: u64 = 256 << 20;
/// Slots of a segment.
pub(super) const SEGMENT_SLOTS: u32 = (SEGMENT / BLOCK as u64) as u32;
/// Threads that pin at most: beyond, the kernel's own locks decide.
const MOST_THREADS: usize = 8;

/// Threads that pin so many segments, or give them back.
pub(super) fn threads(segments: u64) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    cores.min(MOST_THREADS).min(segments as usize)
}

/// The pool.
#[derive(Debug)]
pub(super) struct Pool {
    base: usize,
    bytes: u64,
    division: Division,
    pinned: AtomicU64,
    state: Mutex<State>,
    grown: Condvar,
    /// What lies in its slots.
    pub(super) book: Arc<Book>,
}

#[derive(Debug)]
struct State {
    slots: Slots,
    /// Segments that no thread has pinned or given up yet.
    pending: BTreeSet<u64>,
    /// Segments that are pinned.
    registered: Vec<u64>,
    /// The run is over: nothing more is pinned.
    ending: bool,
    trouble: Option<String>,
}

impl Pool {
    /// Maps the pool's memory and begins to pin it. Slots that are entered in the book are in use from the beginning.
    ///
    /// # Errors
    /// If it cannot be mapped.
    pub(super) fn open(
        memory: &OwnedFd,
        bytes: u64,
        division: Division,
        book: Arc<Book>,
        device: &Arc<Device>,
    ) -> io::Result<Arc<Self>> {
        // SAFETY: a fresh shared mapping of a descriptor that is open; nothing is replaced.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                memory.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        for part in division.parts() {
            let begin = base.wrapping_byte_add(part.segments.start as usize * SEGMENT as usize);
            if let Err(error) = prefer(begin, part.segments.len() * SEGMENT as usize, part.node) {
                // The kernel's default works too.
                eprintln!(
                    "gpu-server: the pool's part on NUMA node {} may lie elsewhere: mbind: {error}",
                    part.node
                );
            }
        }
        let segments = bytes / SEGMENT;
        let order = order(&division.in_turns(), book.entries().map(|(slot, _)| slot));
        let slots = Slots::with_book(SEGMENT_SLOTS, Arc::clone(&book));
        let pool = Arc::new(Self {
            base: base as usize,
            bytes,
            division,
            pinned: AtomicU64::new(0),
            state: Mutex::new(State {
                slots,
                pending: (0..segments).collect(),
                registered: Vec::new(),
                ending: false,
                trouble: None,
            }),
            grown: Condvar::new(),
            book,
        });
        let (order, next) = (Arc::new(order), Arc::new(AtomicUsize::new(0)));
        let nobody = || io::Error::other("no thread to pin it");
        let mut pinning = if segments == 0 { Ok(()) } else { Err(nobody()) };
        for _ in 0..threads(segments) {
            let (pool, device) = (Arc::clone(&pool), Arc::clone(device));
            let (order, next) = (Arc::clone(&order), Arc::clone(&next));
            let pin = move || pool.pin_all(&order, &next, &device);
            let begun = std::thread::Builder::new().name("pin".to_owned()).spawn(pin).map(|_| ());
            // One thread is enough.
            pinning = pinning.or(begun);
        }
        pinning.map(|()| pool)
    }

    fn pin_all(&self, order: &[u64], next: &AtomicUsize, device: &Device) {
        while let Some(&segment) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
            if self.lock().ending {
                return;
            }
            let outcome = device.enter().and_then(|()| self.pin(segment));
            let mut state = self.lock();
            state.pending.remove(&segment);
            match outcome {
                Ok(()) => {
                    self.pinned.fetch_add(SEGMENT, Ordering::Relaxed);
                    state.slots.add_segment(segment as u32);
                    state.registered.push(segment);
                }
                Err(refusal) => state.trouble = Some(refusal.to_string()),
            }
            drop(state);
            self.grown.notify_all();
        }
    }

    /// Takes one segment's memory and registers it with the driver for every context.
    fn pin(&self, segment: u64) -> Result<(), Refusal> {
        /// `CU_MEMHOSTREGISTER_PORTABLE`.
        const PORTABLE: u32 = 1;
        let address = self.segment(segment);
        // SAFETY: a range of the pool's own mapping. Huge pages are a wish; kernels before 5.14 take the memory when
        // the driver pins it.
        unsafe {
            libc::madvise(address, SEGMENT as usize, libc::MADV_HUGEPAGE);
            libc::madvise(address, SEGMENT as usize, libc::MADV_POPULATE_WRITE);
        }
        // SAFETY: as above; the range stays mapped for the life of the process.
        check("cuMemHostRegister", "the pool", unsafe {
            cuMemHostRegister_v2(address, SEGMENT as usize, PORTABLE)
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes it has when it is ready, pinned so far, in use; and why it does not grow to its size.
    pub(super) fn state(&self) -> (u64, u64, u64, Option<String>) {
        let state = self.lock();
        let pinned = self.pinned.load(Ordering::Relaxed);
        let free = u64::from(state.slots.free()) * BLOCK as u64;
        (self.bytes, pinned, pinned - free, state.trouble.clone())
    }

    /// Does something to the slots.
    pub(super) fn with<T>(&self, action: impl FnOnce(&mut Slots) -> T) -> T {
        action(&mut self.lock().slots)
    }

    /// Takes slots for what goes out of a GPU, those of its node first. It waits for segments that are still to be pinned
    /// only as long as not enough are free on all nodes together: a swap-out that waits costs more than a copy that goes
    /// far.
    pub(super) fn take(&self, count: u32, gpu: usize, deadline: Instant) -> Option<Vec<Run>> {
        let near = self.division.near(gpu);
        let near = near.start * SEGMENT_SLOTS..near.end * SEGMENT_SLOTS;
        let mut state = self.lock();
        loop {
            if let Some(runs) = state.slots.take(count, near.clone()) {
                return Some(runs);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.pending.is_empty() || left.is_zero() {
                return None;
            }
            state = self.grown.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the segments of these slots are pinned or given up; false if they are not by then.
    pub(super) fn is_pinned(&self, slots: impl Iterator<Item = u32>, deadline: Instant) -> bool {
        let mut state = self.lock();
        if state.pending.is_empty() {
            return true;
        }
        let mut wanted: BTreeSet<u64> = slots.map(segment_of).collect();
        loop {
            wanted.retain(|segment| state.pending.contains(segment));
            let left = deadline.saturating_duration_since(Instant::now());
            if wanted.is_empty() || left.is_zero() {
                return wanted.is_empty();
            }
            state = self.grown.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Bytes that it has when it is ready.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where a segment begins.
    pub(super) fn segment(&self, segment: u64) -> *mut c_void {
        (self.base + (segment * SEGMENT) as usize) as *mut c_void
    }

    /// A segment that is pinned, to be given back: each once. Nothing more is pinned from the first call on.
    pub(super) fn next_pinned(&self) -> Option<u64> {
        let mut state = self.lock();
        state.ending = true;
        state.registered.pop()
    }

    /// Where a slot lies.
    pub(super) fn address(&self, slot: u32) -> *mut c_void {
        (self.base + slot as usize * BLOCK) as *mut c_void
    }
}

fn segment_of(slot: u32) -> u64 {
    u64::from(slot / SEGMENT_SLOTS)
}

/// The segments in this order, but those with one of these slots first.
fn order(segments: &[u32], slots: impl Iterator<Item = u32>) -> Vec<u64> {
    let first: BTreeSet<u64> = slots.map(segment_of).collect();
    let segments = segments.iter().map(|segment| u64::from(*segment));
    let (mut order, rest): (Vec<u64>, Vec<u64>) = segments.partition(|segment| first.contains(segment));
    order.extend(rest);
    order
}

/// NUMA nodes that a mask has bits for: as many as the kernel can be built with (`MAX_NUMNODES`).
const MASK_BITS: usize = 1024;
/// A mask of NUMA nodes, as the kernel reads it.
type NodeMask = [libc::c_ulong; MASK_BITS / libc::c_ulong::BITS as usize];

/// Asks the kernel to take the range's memory from that NUMA node while it has some, for whoever touches it first.
fn prefer(base: *mut c_void, bytes: usize, node: u32) -> io::Result<()> {
    let (mut nodes, node) = (NodeMask::default(), node as usize);
    let word = nodes.get_mut(node / libc::c_ulong::BITS as usize).ok_or(io::ErrorKind::InvalidInput)?;
    *word = 1 << (node % libc::c_ulong::BITS as usize);
    // SAFETY: a range of the caller's own mapping, and a live mask of one bit less than it says, as the kernel reads it.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            base,
            bytes,
            libc::MPOL_PREFERRED,
            nodes.as_ptr(),
            MASK_BITS + 1,
            0 as libc::c_uint,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::FromRawFd;

    #[test]
    fn what_engines_wait_for_is_pinned_first() {
        let slots = [2 * SEGMENT_SLOTS + 5, 2 * SEGMENT_SLOTS + 7, 4 * SEGMENT_SLOTS - 1];
        assert_eq!(order(&[0, 1, 2, 3, 4], slots.into_iter()), [2, 3, 0, 1, 4]);
        assert_eq!(order(&[0, 3, 1, 4, 2], slots.into_iter()), [3, 2, 0, 1, 4]);
        assert_eq!(order(&[0, 2, 1], std::iter::empty()), [0, 2, 1]);
    }

    /// The policy of the memory at an address, and its nodes; nothing where the kernel does not tell.
    fn policy_at(address: *mut c_void) -> Option<(libc::c_int, NodeMask)> {
        /// `MPOL_F_ADDR`.
        const AT_ADDRESS: libc::c_ulong = 1 << 1;
        let (mut mode, mut nodes) = (0, NodeMask::default());
        // SAFETY: a live integer and a live mask of as many bits as it says; the address is only looked up.
        let told = unsafe {
            libc::syscall(
                libc::SYS_get_mempolicy,
                &raw mut mode,
                nodes.as_mut_ptr(),
                MASK_BITS,
                address,
                AT_ADDRESS,
            )
        };
        (told == 0).then_some((mode, nodes))
    }

    #[test]
    fn a_part_has_its_nodes_policy_and_the_rest_the_default() {
        const PART: usize = 4 << 20;
        // SAFETY: a constant name; the descriptor returned is owned by nobody else.
        let memory = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"pool".as_ptr(), libc::MFD_CLOEXEC)) };
        // SAFETY: the descriptor is open.
        assert_eq!(unsafe { libc::ftruncate(memory.as_raw_fd(), 2 * PART as libc::off_t) }, 0);
        // SAFETY: a fresh shared mapping of a descriptor that is open; nothing is replaced.
        let base = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), 2 * PART, protection, libc::MAP_SHARED, memory.as_raw_fd(), 0)
        };
        assert_ne!(base, libc::MAP_FAILED);
        let second = base.wrapping_byte_add(PART);
        assert!(prefer(second, PART, 1 << 20).is_err(), "there is no such node");
        let Ok(()) = prefer(second, PART, 0) else { return };
        let Some(policy) = policy_at(second) else { return };
        let mut node_0 = NodeMask::default();
        node_0[0] = 1;
        assert_eq!(policy, (libc::MPOL_PREFERRED, node_0));
        assert_eq!(policy_at(base).map(|(mode, _)| mode), Some(libc::MPOL_DEFAULT));
    }
}
