//! In: memory made anew by the process, filled from the pool, and only then the gate opened.
//!
//! The pool keeps its copies: what has not changed by the next time need not be copied again.

use std::time::{Duration, Instant};

use super::cuda::OUT_OF_MEMORY;
use super::device::{Device, Work};
use super::engine::{Course, Process};
use super::ledger::{Ledger, blocks, stretches, zero_stretches};
use super::pool::SEGMENT_SLOTS;
use super::server::{MemoryServer, in_the_way, invalid};
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
        let mut course = Course::new();
        let deadline = Instant::now() + wait;
        loop {
            match self.bring_in_once(process, verify, &mut course) {
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
        Ok(course)
    }

    fn bring_in_once(&self, process: &mut Process, verify: bool, course: &mut Course) -> Result<(), Refusal> {
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
            self.bring_in_to(device, process, &away, verify, course)?;
        }
        Ok(())
    }

    fn bring_in_to(
        &self,
        device: &Device,
        process: &Process,
        away: &[u64],
        verify: bool,
        course: &mut Course,
    ) -> Result<(), Refusal> {
        let mut work = device.bench()?;
        let restored = process.link.restore(away, |entries, descriptors| {
            let first = work.pieces().len();
            for (entry, descriptor) in entries.iter().zip(&descriptors) {
                work.adopt(entry, descriptor)?;
            }
            let fresh = work.grant()?;
            for at in first..work.pieces().len() {
                self.begin_fill(&mut work, at, &process.ledger, course)?;
            }
            if verify {
                work.finish()?;
                work.digest(fresh)?;
            }
            Ok(())
        });
        let numbers: Vec<u64> = work.pieces().iter().map(|piece| piece.number).collect();
        let filled =
            work.finish().and_then(|()| if verify { compare(&work, &process.ledger) } else { Ok(()) });
        work.let_go(&numbers)?;
        // Chunks before a refusal of the driver in the process are back for good.
        let kept = filled.and_then(|()| process.link.filled(&numbers));
        let outcome = kept.and(restored);
        if outcome.is_err() {
            // What was made and not filled goes away again: the pool still has it.
            let unfilled: Vec<u64> = process
                .link
                .list()?
                .0
                .iter()
                .filter(|it| it.place == Place::Away)
                .map(|it| it.number)
                .collect();
            process.link.release(&unfilled)?;
        }
        outcome
    }

    fn begin_fill(
        &self,
        work: &mut Work,
        at: usize,
        ledger: &Ledger,
        course: &mut Course,
    ) -> Result<(), Refusal> {
        let piece = work.pieces()[at];
        let copies = ledger.get(&piece.number).ok_or_else(|| invalid("a chunk without a ledger"))?;
        let moves = copies.blocks.iter().enumerate().filter_map(|(at, block)| Some((at, block.slot?)));
        for stretch in stretches(moves, SEGMENT_SLOTS) {
            let from = self.pool.address(stretch.slot);
            work.copy_in(piece.first + stretch.block, from, stretch.length as usize)?;
            course.moved.copied += u64::from(stretch.length) * BLOCK as u64;
        }
        for (block, count) in zero_stretches(copies) {
            work.clear(piece.first + block, count)?;
            course.moved.zero += (count * BLOCK) as u64;
        }
        course.moved.bytes += piece.bytes;
        Ok(())
    }
}

fn held(ledger: &Ledger, number: u64) -> bool {
    ledger.get(&number).is_some_and(super::ledger::Copies::complete)
}

/// Compares what is on the bench with what went out.
fn compare(work: &Work, ledger: &Ledger) -> Result<(), Refusal> {
    let digests = work.digests()?;
    for piece in work.pieces() {
        let now = &digests[piece.first..piece.first + blocks(piece.bytes)];
        let copies = ledger.get(&piece.number).ok_or_else(|| invalid("a chunk without a ledger"))?;
        let differs = copies.blocks.iter().zip(now).position(|(block, now)| block.digest != Some(*now));
        if let Some(at) = differs {
            return Err(invalid(&format!("block {at} of chunk {} came back changed", piece.number)));
        }
    }
    Ok(())
}
