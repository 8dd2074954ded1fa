//! In: memory made anew by the process, filled from the pool, and only then the gate opened.
//!
//! The pool keeps its copies: what has not changed by the next time need not be copied again, and what came back in a
//! swap-in that fails before the gate opens can be given up again at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::client::LONGEST_OUT;
use super::cuda::OUT_OF_MEMORY;
use super::device::{Device, Work};
use super::engine::{Course, Process};
use super::ledger::{Ledger, blocks, stretches, zero_stretches};
use super::pool::SEGMENT_SLOTS;
use super::server::{MemoryServer, and_then, in_the_way, invalid};
use super::switch::{Given, Share};
use super::wire::{Entry, Place};
use crate::gpu::digest::BLOCK;
use crate::gpu::protocol::Refusal;

/// Between two attempts to get memory that another process is giving up.
const RETRY: Duration = Duration::from_millis(2);

/// What a swap-in has done so far.
#[derive(Debug, Default)]
struct Visit {
    /// The workbench on each GPU.
    benches: BTreeMap<usize, Work>,
    /// Chunks that are back, with the GPU and the bytes of each.
    back: Vec<(u64, usize, u64)>,
}

impl MemoryServer {
    /// Brings one process's memory back, waiting at most `wait` for free device memory, and as long before that for the
    /// pool; with a `share` only as fast as that becomes free, and on condition that none of those swap-outs fails.
    ///
    /// # Errors
    /// A refusal; the process waits, and nothing is back: nobody has reserved room for a part of it.
    pub(super) fn bring_in(
        &self,
        process: &mut Process,
        verify: bool,
        wait: Duration,
        share: Option<&Share>,
    ) -> Result<Course, Refusal> {
        if process.away {
            self.pinned(process, wait)?;
        }
        let (mut course, mut visit) = (Course::new(), Visit::default());
        let filled = match share {
            None => self.fill(process, verify, Instant::now() + wait, &mut course, &mut visit),
            Some(share) => self.fill_beside(process, verify, wait, share, &mut course, &mut visit),
        };
        if let Err(refusal) = filled {
            return Err(give_up(process, visit, share, refusal));
        }
        course.phase("copy");
        process.link.open()?;
        process.away = false;
        process.moved = Instant::now();
        course.moved.pool = process.pool_bytes();
        course.phase("open");
        // The engine runs; what the server had mapped of its memory need not be gone for that.
        visit.benches.into_values().for_each(Work::clear_away);
        Ok(course)
    }

    /// Fills all that is away; the device's memory is free, or will be in a moment.
    fn fill(
        &self,
        process: &mut Process,
        verify: bool,
        deadline: Instant,
        course: &mut Course,
        visit: &mut Visit,
    ) -> Result<(), Refusal> {
        loop {
            match self.bring_in_once(process, verify, None, course, visit) {
                Err(refusal) if refusal.code == OUT_OF_MEMORY && Instant::now() < deadline => {
                    std::thread::sleep(RETRY);
                }
                outcome => return outcome.map(|_| ()),
            }
        }
    }

    /// Fills all that is away as memory becomes free, and waits until nobody can want that memory back.
    fn fill_beside(
        &self,
        process: &mut Process,
        verify: bool,
        wait: Duration,
        share: &Share,
        course: &mut Course,
        visit: &mut Visit,
    ) -> Result<(), Refusal> {
        let begun = Instant::now();
        let (pid, mut gone_at) = (process.link.pid(), None);
        loop {
            let given = share.look();
            let refused = |text: &str| Err(in_the_way(pid, text));
            if given.failed {
                return refused("the swap-out that was to make its room failed");
            }
            if given.gone {
                gone_at.get_or_insert_with(Instant::now);
            }
            let deadline = match gone_at {
                Some(gone) => gone + wait,
                None if given.begun => begun + LONGEST_OUT,
                None => begun + wait,
            };
            let outcome = self.bring_in_once(process, verify, Some((share, &given)), course, visit);
            let late = Instant::now() >= deadline;
            match outcome {
                Ok(true) if given.gone => return Ok(()),
                Ok(false) if given.gone => return refused("less was freed than it needs"),
                Ok(_) if late => return refused("the swap-out that is to make its room takes too long"),
                Ok(_) => share.wait(&given, deadline),
                Err(refusal) if refusal.code == OUT_OF_MEMORY && !late => std::thread::sleep(RETRY),
                Err(refusal) => return Err(refusal),
            }
        }
    }

    /// Brings back what is away, or what of it may be taken; whether that was all.
    fn bring_in_once(
        &self,
        process: &mut Process,
        verify: bool,
        share: Option<(&Share, &Given)>,
        course: &mut Course,
        visit: &mut Visit,
    ) -> Result<bool, Refusal> {
        let entries = process.chunks(&self.pool)?;
        let mut all = true;
        for (gpu, device) in self.devices.iter().enumerate() {
            let mut away: Vec<Entry> = entries
                .iter()
                .filter(|it| it.place == Place::Away && it.device == device.bus())
                .copied()
                .collect();
            if let Some(lost) = away.iter().find(|entry| !held(&process.ledger, entry.number)) {
                let text = format!("chunk {} is away and the pool has no whole copy of it", lost.number);
                return Err(in_the_way(process.link.pid(), &text));
            }
            let wanted = away.len();
            if let Some((share, given)) = share {
                away.retain(|entry| share.take(given, gpu, entry.bytes));
            }
            all &= away.len() == wanted;
            if away.is_empty() {
                continue;
            }
            let before = visit.back.len();
            let outcome = device
                .enter()
                .and_then(|()| self.bring_in_to(gpu, device, process, &away, verify, course, visit));
            if let Some((share, _)) = share {
                let taken: u64 = away.iter().map(|entry| entry.bytes).sum();
                let used: u64 = visit.back[before..].iter().map(|(_, _, bytes)| bytes).sum();
                share.give_back(gpu, taken.saturating_sub(used));
            }
            outcome?;
        }
        Ok(all)
    }

    #[allow(clippy::too_many_arguments, reason = "one place, one process, and what has been done of it")]
    fn bring_in_to(
        &self,
        gpu: usize,
        device: &Arc<Device>,
        process: &Process,
        away: &[Entry],
        verify: bool,
        course: &mut Course,
        visit: &mut Visit,
    ) -> Result<(), Refusal> {
        let mut work = match visit.benches.remove(&gpu) {
            Some(work) => work,
            None => device.bench()?,
        };
        let earlier = work.pieces().len();
        let mut begun = Vec::new();
        let numbers: Vec<u64> = away.iter().map(|entry| entry.number).collect();
        let restored = process.link.restore(&numbers, |entries, descriptors| {
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
            true => compare(&work, earlier, &begun, &process.ledger),
            false => Ok(()),
        });
        // Chunks before a refusal of the driver are back for good.
        let numbers: Vec<u64> = begun.iter().map(|it| it.number).collect();
        let kept = seen.and_then(|()| process.link.filled(&numbers));
        if kept.is_ok() {
            begun.iter().for_each(|it| it.count(course));
            visit.back.extend(begun.iter().map(|it| (it.number, gpu, it.bytes)));
        }
        let Err(refusal) = kept.and(restored) else {
            visit.benches.insert(gpu, work);
            return Ok(());
        };
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

/// Has the process give up what came back: nothing has run since, so the pool still has it.
fn give_up(process: &mut Process, visit: Visit, share: Option<&Share>, refusal: Refusal) -> Refusal {
    if visit.back.is_empty() {
        return refusal;
    }
    // Both sides have to let go.
    drop(visit.benches);
    // Its copies are the only ones again, or may be.
    process.away = true;
    let numbers: Vec<u64> = visit.back.iter().map(|(number, _, _)| *number).collect();
    match process.link.release(&numbers) {
        Ok(()) => {
            if let Some(share) = share {
                visit.back.iter().for_each(|(_, gpu, bytes)| share.give_back(*gpu, *bytes));
            }
            refusal
        }
        Err(second) => and_then(refusal, "what had come back could not be given up", &second),
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

/// Compares chunks on the bench, those after `earlier` ones, with what went out.
fn compare(work: &Work, earlier: usize, filled: &[Filling], ledger: &Ledger) -> Result<(), Refusal> {
    let digests = work.digests()?;
    // Pieces are filled in their order.
    for piece in &work.pieces()[earlier..earlier + filled.len()] {
        let now = &digests[piece.first..piece.first + blocks(piece.bytes)];
        let copies = ledger.get(&piece.number).ok_or_else(|| invalid("a chunk without a ledger"))?;
        let differs = copies.blocks.iter().zip(now).position(|(block, now)| block.digest != Some(*now));
        if let Some(at) = differs {
            return Err(invalid(&format!("block {at} of chunk {} came back changed", piece.number)));
        }
    }
    Ok(())
}
