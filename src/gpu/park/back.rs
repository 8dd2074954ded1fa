//! In: memory made anew by the process, filled from the pool, and only then the gate opened.
//!
//! The pool keeps its copies: what has not changed by the next time need not be copied again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cuda::OUT_OF_MEMORY;
use super::device::{Device, Work};
use super::engine::{Course, Process};
use super::ledger::{Ledger, blocks, stretches, zero_stretches};
use super::pool::SEGMENT_SLOTS;
use super::server::{MemoryServer, and_then, in_the_way, invalid};
use super::wire::Place;
use crate::gpu::digest::BLOCK;
use crate::gpu::protocol::Refusal;

/// Between two attempts to get memory that another process is giving up.
const RETRY: Duration = Duration::from_millis(2);

impl MemoryServer {
    /// Brings one process's memory back, waiting at most `wait` for free device memory.
    ///
    /// # Errors
    /// A refusal; what is not back is still in the pool, and the process waits.
    pub(super) fn bring_in(
        &self,
        process: &mut Process,
        verify: bool,
        wait: Duration,
    ) -> Result<Course, Refusal> {
        // After an earlier server: copies from memory that is half pinned are refused.
        self.pool.inherited_is_pinned();
        let mut course = Course::new();
        let deadline = Instant::now() + wait;
        let mut used = Vec::new();
        loop {
            match self.bring_in_once(process, verify, &mut course, &mut used) {
                Err(refusal) if refusal.code == OUT_OF_MEMORY && Instant::now() < deadline => {
                    std::thread::sleep(RETRY);
                }
                Err(refusal) => return Err(refusal),
                Ok(()) => break,
            }
        }
        course.phase("copy");
        process.link.open()?;
        process.away = false;
        process.moved = Instant::now();
        course.moved.pool = process.pool_bytes();
        course.phase("open");
        // The engine runs; what the server had mapped of its memory need not be gone for that.
        used.into_iter().for_each(Work::clear_away);
        Ok(course)
    }

    fn bring_in_once(
        &self,
        process: &mut Process,
        verify: bool,
        course: &mut Course,
        used: &mut Vec<Work>,
    ) -> Result<(), Refusal> {
        let entries = process.chunks(&self.pool)?;
        for device in &self.devices {
            let away: Vec<u64> = entries
                .iter()
                .filter(|it| it.place == Place::Away && it.device == device.bus())
                .map(|it| it.number)
                .collect();
            if away.is_empty() {
                continue;
            }
            if let Some(lost) = away.iter().find(|number| !held(&process.ledger, **number)) {
                let text = format!("chunk {lost} is away and the pool has no whole copy of it");
                return Err(in_the_way(process.link.pid(), &text));
            }
            device.enter()?;
            used.push(self.bring_in_to(device, process, &away, verify, course)?);
        }
        Ok(())
    }

    fn bring_in_to(
        &self,
        device: &Arc<Device>,
        process: &Process,
        away: &[u64],
        verify: bool,
        course: &mut Course,
    ) -> Result<Work, Refusal> {
        let mut work = device.bench()?;
        let mut begun = Vec::new();
        let restored = process.link.restore(away, |entries, descriptors| {
            let first = work.pieces().len();
            for (entry, descriptor) in entries.iter().zip(&descriptors) {
                work.adopt(entry, descriptor)?;
            }
            let fresh = work.grant()?;
            let filling = (first..work.pieces().len())
                .map(|at| self.begin_fill(&mut work, at, &process.ledger))
                .collect::<Result<Vec<Filling>, Refusal>>()?;
            if verify {
                work.finish()?;
                work.digest(fresh)?;
            }
            // Only now: a chunk whose copies have not all been begun must never be taken for filled.
            begun.extend(filling);
            Ok(())
        });
        let seen = work.finish().and_then(|()| match verify {
            true => compare(&work, &begun, &process.ledger),
            false => Ok(()),
        });
        // Chunks before a refusal of the driver are back for good.
        let numbers: Vec<u64> = begun.iter().map(|it| it.number).collect();
        let kept = seen.and_then(|()| process.link.filled(&numbers));
        if kept.is_ok() {
            begun.iter().for_each(|it| it.count(course));
        }
        let Err(refusal) = kept.and(restored) else { return Ok(work) };
        // What was made and not filled is free when both sides have let go of it.
        drop(work);
        Err(match give_up_unfilled(process) {
            Ok(()) => refusal,
            Err(second) => and_then(refusal, "what was made for it could not be given up", &second),
        })
    }

    fn begin_fill(&self, work: &mut Work, at: usize, ledger: &Ledger) -> Result<Filling, Refusal> {
        let piece = work.pieces()[at];
        let copies = ledger.get(&piece.number).ok_or_else(|| invalid("a chunk without a ledger"))?;
        let mut filling = Filling { number: piece.number, bytes: piece.bytes, ..Filling::default() };
        let moves = copies.blocks.iter().enumerate().filter_map(|(at, block)| Some((at, block.slot?)));
        for stretch in stretches(moves, SEGMENT_SLOTS) {
            let from = self.pool.address(stretch.slot);
            work.copy_in(piece.first + stretch.block, from, stretch.length as usize)?;
            filling.copied += u64::from(stretch.length) * BLOCK as u64;
        }
        for (block, count) in zero_stretches(copies) {
            work.clear(piece.first + block, count)?;
            filling.zero += (count * BLOCK) as u64;
        }
        Ok(filling)
    }
}

/// A chunk that is being filled.
#[derive(Debug, Default)]
struct Filling {
    number: u64,
    bytes: u64,
    copied: u64,
    zero: u64,
}

impl Filling {
    fn count(&self, course: &mut Course) {
        course.moved.bytes += self.bytes;
        course.moved.copied += self.copied;
        course.moved.zero += self.zero;
    }
}

/// Has the process give up what was made for chunks and not filled: the pool still has it.
fn give_up_unfilled(process: &Process) -> Result<(), Refusal> {
    let (entries, _) = process.link.list()?;
    let unfilled: Vec<u64> =
        entries.iter().filter(|it| it.place == Place::Away).map(|it| it.number).collect();
    process.link.release(&unfilled)
}

fn held(ledger: &Ledger, number: u64) -> bool {
    ledger.get(&number).is_some_and(super::ledger::Copies::complete)
}

/// Compares chunks on the bench with what went out.
fn compare(work: &Work, filled: &[Filling], ledger: &Ledger) -> Result<(), Refusal> {
    let digests = work.digests()?;
    // Pieces are filled in their order.
    for piece in &work.pieces()[..filled.len()] {
        let now = &digests[piece.first..piece.first + blocks(piece.bytes)];
        let copies = ledger.get(&piece.number).ok_or_else(|| invalid("a chunk without a ledger"))?;
        let differs = copies.blocks.iter().zip(now).position(|(block, now)| block.digest != Some(*now));
        if let Some(at) = differs {
            return Err(invalid(&format!("block {at} of chunk {} came back changed", piece.number)));
        }
    }
    Ok(())
}
