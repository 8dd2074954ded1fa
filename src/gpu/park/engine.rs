//! One process that can be parked: its connection and what the pool holds of it.

use std::collections::BTreeSet;
use std::time::Instant;

use super::book::{Entered, Owner};
use super::call::{Moved, ParkedProcess};
use super::ledger::{Copies, Ledger, blocks};
use super::link::Link;
use super::pool::Pool;
use super::wire::{Entry, Place};
use crate::gpu::digest::Digest;
use crate::gpu::protocol::Refusal;

/// A process, and its part of the pool.
#[derive(Debug)]
pub(super) struct Process {
    /// The connection.
    pub(super) link: Link,
    /// Under which name its copies are entered in the book.
    owner: Owner,
    /// What the pool holds.
    pub(super) ledger: Ledger,
    /// Whether memory is away: its copies are the only ones.
    pub(super) away: bool,
    /// When it was last moved: the copies of what moved longest ago are given up first.
    pub(super) moved: Instant,
}

impl Process {
    /// A process that has connected, with what an earlier server has left of it.
    pub(super) fn new(link: Link, owner: Owner, ledger: Ledger) -> Self {
        Self { link, owner, ledger, away: false, moved: Instant::now() }
    }

    /// Learns where the memory is of one that has just connected. What is away has been given up only after all of it
    /// was copied: of its blocks those without a copy are zero.
    ///
    /// # Errors
    /// If the process does not answer.
    pub(super) fn meet(&mut self, pool: &Pool, zero: Digest) -> Result<(), Refusal> {
        let away: Vec<u64> =
            self.chunks(pool)?.iter().filter(|it| it.place == Place::Away).map(|it| it.number).collect();
        for number in away {
            if let Some(copies) = self.ledger.get_mut(&number) {
                copies.rest_is_zero(zero);
            }
        }
        Ok(())
    }

    /// Notes that a block has been copied to its slot.
    pub(super) fn note(&mut self, pool: &Pool, chunk: u64, at: usize, digest: Digest) {
        let block = self.ledger.get_mut(&chunk).and_then(|copies| copies.blocks.get_mut(at));
        if let Some(block) = block {
            block.digest = Some(digest);
            if let Some(slot) = block.slot {
                pool.book.enter(slot, Entered { owner: self.owner, chunk, block: at, digest });
            }
        }
    }

    /// Asks for every chunk, and drops the copies of those that are no more.
    ///
    /// # Errors
    /// If the process does not answer.
    pub(super) fn chunks(&mut self, pool: &Pool) -> Result<Vec<Entry>, Refusal> {
        let (entries, _) = self.link.list()?;
        self.away = entries.iter().any(|entry| entry.place == Place::Away);
        let numbers: BTreeSet<u64> = entries.iter().map(|entry| entry.number).collect();
        self.ledger.retain(|number, copies| {
            let kept = numbers.contains(number);
            if !kept {
                pool.with(|slots| copies.forget(slots));
            }
            kept
        });
        for entry in &entries {
            let copies = self.ledger.entry(entry.number).or_insert_with(|| Copies::of(entry.bytes));
            if copies.blocks.len() != blocks(entry.bytes) {
                pool.with(|slots| copies.fit(entry.bytes, slots));
            }
        }
        Ok(entries)
    }

    /// Gives up every copy. What is away is lost.
    pub(super) fn forget(&mut self, pool: &Pool) {
        pool.with(|slots| self.ledger.values_mut().for_each(|copies| copies.forget(slots)));
    }

    /// Where in the pool its copies are.
    pub(super) fn slots(&self) -> impl Iterator<Item = u32> {
        self.ledger.values().flat_map(|copies| &copies.blocks).filter_map(|block| block.slot)
    }

    /// Bytes of the pool that hold its memory.
    pub(super) fn pool_bytes(&self) -> u64 {
        self.ledger.values().map(Copies::held_bytes).sum()
    }

    /// What can be said of it.
    ///
    /// # Errors
    /// If it does not answer.
    pub(super) fn describe(&self) -> Result<ParkedProcess, Refusal> {
        let (_, [here, away, shared, managed, ipc_refused, imported, pooled]) = self.link.list()?;
        let (pid, pool) = (self.link.pid(), self.pool_bytes());
        Ok(ParkedProcess { pid, here, away, shared, managed, ipc_refused, imported, pooled, pool })
    }
}

/// The course of a move: its phases.
#[derive(Debug)]
pub(super) struct Course {
    /// What it comes to.
    pub(super) moved: Moved,
    last: Instant,
}

impl Course {
    /// A move that begins now.
    pub(super) fn new() -> Self {
        Self { moved: Moved { processes: 1, ..Moved::default() }, last: Instant::now() }
    }

    /// A phase has ended.
    pub(super) fn phase(&mut self, name: &str) {
        let now = Instant::now();
        self.moved.phases.push((name.to_owned(), (now - self.last).as_secs_f64()));
        self.last = now;
    }
}
