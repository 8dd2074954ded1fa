//! The book: what lies in each slot of the pool, written where it outlives a gpu server.
//!
//! A line says whose block a slot holds and with which digest. It is written when the copy has been seen to be whole, and
//! struck out before the slot is used for anything else; so whatever line a server that was killed leaves behind is true.
//! The next server takes the digests' key and the lines from it, and what was out is still to be had.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::gpu::digest::{Digest, Key};

/// Marks a book that has been begun, and its form.
const MAGIC: u64 = 0x5357_4150_424f_4f01;

/// The book.
#[derive(Debug)]
pub(super) struct Book {
    header: &'static Header,
    lines: &'static [Line],
}

#[derive(Debug)]
#[repr(C)]
struct Header {
    magic: AtomicU64,
    slots: AtomicU64,
    key: [AtomicU64; 2],
}

/// One slot. It holds something if `block` is not 0.
#[derive(Debug)]
#[repr(C)]
struct Line {
    /// One more than the block's number in its chunk; written last, struck out first.
    block: AtomicU64,
    pid: AtomicU64,
    born: AtomicU64,
    chunk: AtomicU64,
    digest: [AtomicU64; 2],
}

/// Whose copy it is: a process by its id and its start, since ids come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Owner {
    /// The process's id.
    pub(super) pid: i32,
    /// When it started, in clock ticks since boot.
    pub(super) born: u64,
}

/// What a line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entered {
    /// Whose.
    pub(super) owner: Owner,
    /// The chunk's number.
    pub(super) chunk: u64,
    /// The block's number in it.
    pub(super) block: usize,
    /// Digest of the copy.
    pub(super) digest: Digest,
}

impl Owner {
    /// The process with that id, if it runs.
    pub(super) fn of(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The program's name stands in brackets and may hold anything; see proc_pid_stat(5).
        let mut fields = stat[stat.rfind(')')? + 2..].split(' ');
        match fields.next()? {
            "Z" | "X" => None,
            _ => Some(Self { pid, born: fields.nth(18)?.parse().ok()? }),
        }
    }
}

impl Book {
    /// Opens the book for that many slots; an empty one is begun with `key`.
    ///
    /// # Errors
    /// If its memory cannot be had.
    pub(super) fn open(memory: &OwnedFd, slots: usize, key: Key) -> std::io::Result<Self> {
        let bytes = size_of::<Header>() + slots * size_of::<Line>();
        // SAFETY: the descriptor is open. The file only grows: no mapping loses its pages.
        if unsafe { libc::ftruncate(memory.as_raw_fd(), bytes as libc::off_t) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: a fresh shared mapping of a file that is this long; nothing is replaced.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                memory.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: the mapping is page aligned, long enough for both, never unmapped, and made of atomic integers for
        // which every bit pattern is valid.
        let (header, lines) = unsafe {
            let first = base.cast::<u8>().add(size_of::<Header>()).cast::<Line>();
            (&*base.cast::<Header>(), std::slice::from_raw_parts(first, slots))
        };
        let book = Self { header, lines };
        book.begin(key);
        Ok(book)
    }

    fn begin(&self, key: Key) {
        let slots = self.lines.len() as u64;
        let begun = self.header.magic.load(Ordering::Acquire) == MAGIC;
        if begun && self.header.slots.load(Ordering::Relaxed) == slots {
            return;
        }
        self.lines.iter().for_each(|line| line.block.store(0, Ordering::Release));
        self.header.slots.store(slots, Ordering::Relaxed);
        self.header.key.iter().zip(key).for_each(|(word, key)| word.store(key, Ordering::Relaxed));
        self.header.magic.store(MAGIC, Ordering::Release);
    }

    /// The key of every digest in it.
    pub(super) fn key(&self) -> Key {
        [0, 1].map(|at: usize| self.header.key[at].load(Ordering::Relaxed))
    }

    /// Enters what a slot holds.
    pub(super) fn enter(&self, slot: u32, entered: Entered) {
        let line = &self.lines[slot as usize];
        line.block.store(0, Ordering::Release);
        line.pid.store(u64::from(entered.owner.pid.cast_unsigned()), Ordering::Relaxed);
        line.born.store(entered.owner.born, Ordering::Relaxed);
        line.chunk.store(entered.chunk, Ordering::Relaxed);
        line.digest
            .iter()
            .zip(entered.digest)
            .for_each(|(word, digest)| word.store(digest, Ordering::Relaxed));
        line.block.store(entered.block as u64 + 1, Ordering::Release);
    }

    /// Strikes out what a slot held: it is about to hold something else.
    pub(super) fn strike(&self, slot: u32) {
        self.lines[slot as usize].block.store(0, Ordering::SeqCst);
    }

    /// Every line, by its slot.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u32, Entered)> {
        self.lines.iter().enumerate().filter_map(|(slot, line)| {
            let block = line.block.load(Ordering::Acquire).checked_sub(1)? as usize;
            let pid = (line.pid.load(Ordering::Relaxed) as u32).cast_signed();
            let owner = Owner { pid, born: line.born.load(Ordering::Relaxed) };
            let digest = [0, 1].map(|at: usize| line.digest[at].load(Ordering::Relaxed));
            Some((slot as u32, Entered { owner, chunk: line.chunk.load(Ordering::Relaxed), block, digest }))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::FromRawFd;

    fn memory() -> OwnedFd {
        // SAFETY: a constant name; the descriptor returned is owned by nobody else.
        unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"book".as_ptr(), libc::MFD_CLOEXEC)) }
    }

    #[test]
    fn the_next_server_finds_key_and_lines() {
        let memory = memory();
        let owner = Owner::of(std::process::id().cast_signed()).expect("this process runs");
        let entered = Entered { owner, chunk: 7, block: 0, digest: [3, 4] };
        let book = Book::open(&memory, 10, [1, 2]).unwrap();
        book.enter(4, entered);
        book.enter(9, Entered { block: 5, ..entered });
        book.strike(9);
        let next = Book::open(&memory, 10, [8, 8]).unwrap();
        assert_eq!(next.key(), [1, 2]);
        assert_eq!(next.entries().collect::<Vec<_>>(), [(4, entered)]);
    }

    #[test]
    fn a_pool_of_another_size_begins_anew() {
        let memory = memory();
        let owner = Owner { pid: 1, born: 1 };
        let book = Book::open(&memory, 10, [1, 2]).unwrap();
        book.enter(4, Entered { owner, chunk: 7, block: 0, digest: [3, 4] });
        let next = Book::open(&memory, 20, [8, 8]).unwrap();
        assert_eq!((next.key(), next.entries().count()), ([8, 8], 0));
    }
}
