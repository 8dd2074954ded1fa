//! Out: digest everything, copy what changed, and only then release.
//!
//! ```text
//!  close ─▶ export, digest ─▶ find room ─▶ copy (all begun at once) ─▶ per group: copied? let go, release
//!    │            │                │                                        │
//!    └────────────┴────────────────┴── refusal: gate open, as before        └── refusal: what is out comes back in
//! ```

use std::time::{Duration, Instant};

use super::call::NO_ROOM;
use super::device::{Mark, Work};
use super::engine::{Course, Process};
use super::ledger::{blocks, stretches};
use super::pool::SEGMENT_SLOTS;
use super::server::{MemoryServer, and_then, in_the_way, invalid};
use super::wire::{Entry, Place};
use crate::gpu::digest::{BLOCK, Digest};
use crate::gpu::protocol::Refusal;

/// Bytes to be copied after which a group of chunks is let go: the device's memory is free while the next group is copied.
const GROUP: u64 = 1 << 30;
/// Bytes that need no copy after which a group is let go: whoever takes part begins while the next group is given up.
const UNCHANGED_GROUP: u64 = 2 << 30;
/// How long to wait for segments of the pool that are being pinned.
const ROOM: Duration = Duration::from_secs(10);

/// A chunk on a workbench, and what is to be done with it.
#[derive(Debug)]
struct Leaving {
    number: u64,
    bytes: u64,
    /// First block on the bench.
    first: usize,
    changed: Vec<usize>,
    digests: Vec<Digest>,
}

impl MemoryServer {
    /// Takes one process's memory out; `wanted` bytes on each GPU, or all. Others may be taking part under `number`.
    ///
    /// # Errors
    /// A refusal; the process has all its memory and goes on, unless it says that it is away: then that could not be
    /// brought back either, or was out before.
    pub(super) fn take_out(
        &self,
        process: &mut Process,
        wanted: Option<u64>,
        rest: Duration,
        number: u64,
    ) -> Result<Course, Refusal> {
        let mut course = Course::new();
        let before = process.away;
        self.pinned(process, rest).inspect_err(|_| self.switches.end(number, false))?;
        process.link.close(rest).inspect_err(|_| self.switches.end(number, false))?;
        course.phase("rest");
        let outcome = self.take_out_closed(process, wanted, number, &mut course);
        process.moved = Instant::now();
        if outcome.is_err() {
            // Whoever has taken of its memory gives it back.
            self.switches.end(number, false);
        }
        match outcome {
            Ok(()) if process.away => Ok(course),
            Ok(()) => process.link.open().map(|_| course),
            // What was out before may not fit; it stays, and so does what has gone to it.
            Err(refusal) if before => Err(refusal),
            Err(refusal) => {
                let back = match process.away {
                    true => self.bring_in(process, false, ROOM, None).map(|_| ()),
                    false => process.link.open().map(|_| ()),
                };
                Err(match back {
                    Ok(()) => refusal,
                    Err(second) => and_then(refusal, "it could not be brought back", &second),
                })
            }
        }
    }

    fn take_out_closed(
        &self,
        process: &mut Process,
        wanted: Option<u64>,
        number: u64,
        course: &mut Course,
    ) -> Result<(), Refusal> {
        let entries = process.chunks(&self.pool)?;
        let stayed: u64 = entries.iter().filter(|it| it.place == Place::Shared).map(|it| it.bytes).sum();
        course.moved.stayed += stayed;
        for (gpu, device) in self.devices.iter().enumerate() {
            let here: Vec<Entry> = entries
                .iter()
                .filter(|it| it.place == Place::Here && it.device == device.bus())
                .copied()
                .collect();
            if !here.is_empty() {
                self.take_out_of(gpu, process, &here, wanted, number, course)?;
            }
        }
        course.moved.pool = process.pool_bytes();
        Ok(())
    }

    fn take_out_of(
        &self,
        gpu: usize,
        process: &mut Process,
        here: &[Entry],
        wanted: Option<u64>,
        number: u64,
        course: &mut Course,
    ) -> Result<(), Refusal> {
        let device = &self.devices[gpu];
        device.enter()?;
        let mut work = device.bench()?;
        let numbers: Vec<u64> = here.iter().map(|entry| entry.number).collect();
        process.link.export(&numbers, |entries, descriptors| {
            for (entry, descriptor) in entries.iter().zip(&descriptors) {
                work.adopt(entry, descriptor)?;
            }
            let fresh = work.grant()?;
            work.digest(fresh)
        })?;
        let digests = work.digests()?;
        course.phase("digest");
        let mut leaving = self.compare(&work, process, &digests);
        if let Some(wanted) = wanted {
            course.moved.stayed += keep_dearest(&mut leaving, wanted, self.zero);
        }
        self.find_room(gpu, process, &leaving)?;
        course.phase("room");
        // What need not be copied goes first: its memory is free at once.
        leaving.sort_by_key(|chunk| !chunk.changed.is_empty());
        let groups = groups(leaving);
        let marks = groups
            .iter()
            .map(|group| self.begin_copies(&mut work, process, group))
            .collect::<Result<Vec<Mark>, Refusal>>()?;
        for (group, mark) in groups.iter().zip(marks) {
            mark.wait()?;
            self.note(process, group);
            let numbers: Vec<u64> = group.iter().map(|chunk| chunk.number).collect();
            process.away = true;
            // The memory is free when both sides have let go of it.
            let link = &process.link;
            let (ours, theirs) = std::thread::scope(|scope| {
                let theirs = scope.spawn(|| link.release(&numbers));
                let ours = work.let_go(&numbers);
                (ours, theirs.join().unwrap_or_else(|_| Err(invalid("a thread of the memory server broke"))))
            });
            theirs.and(ours)?;
            self.switches.freed(number, gpu, group.iter().map(|chunk| chunk.bytes).sum());
            for chunk in group {
                course.moved.bytes += chunk.bytes;
                course.moved.copied += (chunk.changed.len() * BLOCK) as u64;
                let zero = chunk.digests.iter().filter(|digest| **digest == self.zero).count();
                course.moved.zero += (zero * BLOCK) as u64;
            }
        }
        course.phase("copy");
        Ok(())
    }

    /// Which blocks of which chunks have to be copied.
    fn compare(&self, work: &Work, process: &mut Process, digests: &[Digest]) -> Vec<Leaving> {
        let mut leaving = Vec::new();
        for piece in work.pieces() {
            let now = digests[piece.first..piece.first + blocks(piece.bytes)].to_vec();
            let copies = process.ledger.entry(piece.number).or_default();
            self.pool.with(|slots| copies.note_zeros(&now, self.zero, slots));
            let changed = copies.changed(&now, self.zero).collect();
            leaving.push(Leaving {
                number: piece.number,
                bytes: piece.bytes,
                first: piece.first,
                changed,
                digests: now,
            });
        }
        leaving
    }

    /// Gives every changed block a slot, near its GPU where there is one, and none of them a digest until it is copied.
    fn find_room(&self, gpu: usize, process: &mut Process, leaving: &[Leaving]) -> Result<(), Refusal> {
        let mut homeless = Vec::new();
        for chunk in leaving {
            let copies = process.ledger.entry(chunk.number).or_default();
            for &at in &chunk.changed {
                copies.blocks[at].digest = None;
                match copies.blocks[at].slot {
                    Some(slot) => self.pool.book.strike(slot),
                    None => homeless.push((chunk.number, at)),
                }
            }
        }
        let count = homeless.len() as u32;
        let runs = self.room_for(count, gpu, Instant::now() + ROOM).ok_or_else(|| {
            let (bytes, pinned, used, trouble) = self.pool.state();
            let refusal = in_the_way(process.link.pid(), &format!(
                "{} MiB are to go out, and of the pool's {} MiB {} are free ({} pinned){}; give it more in the config",
                (u64::from(count) * BLOCK as u64) >> 20,
                bytes >> 20,
                (pinned - used) >> 20,
                pinned >> 20,
                trouble.map(|trouble| format!(": {trouble}")).unwrap_or_default(),
            ));
            Refusal { name: NO_ROOM.to_owned(), ..refusal }
        })?;
        let slots = runs.iter().flat_map(|run| run.start..run.start + run.length);
        for ((number, at), slot) in homeless.into_iter().zip(slots) {
            if let Some(copies) = process.ledger.get_mut(&number) {
                copies.blocks[at].slot = Some(slot);
            }
        }
        Ok(())
    }

    fn begin_copies(&self, work: &mut Work, process: &Process, group: &[Leaving]) -> Result<Mark, Refusal> {
        for chunk in group {
            let copies =
                process.ledger.get(&chunk.number).ok_or_else(|| invalid("a chunk without a ledger"))?;
            let moves = chunk.changed.iter().filter_map(|&at| Some((at, copies.blocks[at].slot?)));
            for stretch in stretches(moves, SEGMENT_SLOTS) {
                let to = self.pool.address(stretch.slot);
                work.copy_out(chunk.first + stretch.block, to, stretch.length as usize)?;
            }
        }
        work.mark()
    }

    /// Notes that the changed blocks of a group have been copied.
    fn note(&self, process: &mut Process, group: &[Leaving]) {
        for chunk in group {
            chunk
                .changed
                .iter()
                .for_each(|&at| process.note(&self.pool, chunk.number, at, chunk.digests[at]));
        }
    }
}

/// Keeps the chunks that cost most to move, out and back, as long as the others free enough; bytes kept.
fn keep_dearest(leaving: &mut Vec<Leaving>, wanted: u64, zero: Digest) -> u64 {
    // A cache that nobody has used is all zeros and costs nothing; what is unchanged costs its way back. Old chunks before
    // young ones where the cost is the same: weights lie before what is made of them.
    leaving.sort_by_key(|chunk| {
        let back = chunk.digests.iter().filter(|digest| **digest != zero).count();
        ((chunk.changed.len() + back) * BLOCK * 100 / chunk.bytes as usize, chunk.number)
    });
    let mut freed = 0;
    let enough = leaving.iter().position(|chunk| {
        let more = freed < wanted;
        freed += chunk.bytes;
        !more
    });
    leaving.drain(enough.unwrap_or(leaving.len())..).map(|chunk| chunk.bytes).sum()
}

/// Chunks in groups of about [`GROUP`] bytes to be copied, and before them those that need no copy, in groups of about
/// [`UNCHANGED_GROUP`] bytes.
fn groups(leaving: Vec<Leaving>) -> Vec<Vec<Leaving>> {
    let mut groups: Vec<Vec<Leaving>> = Vec::new();
    let (mut bytes, mut copied) = (0, 0);
    for chunk in leaving {
        let copies = (chunk.changed.len() * BLOCK) as u64;
        let full = if copied == 0 { bytes >= UNCHANGED_GROUP || copies > 0 } else { copied >= GROUP };
        if full || groups.is_empty() {
            groups.push(Vec::new());
            (bytes, copied) = (0, 0);
        }
        bytes += chunk.bytes;
        copied += copies;
        if let Some(group) = groups.last_mut() {
            group.push(chunk);
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaving(number: u64, mib: u64, changed: usize) -> Leaving {
        Leaving { number, bytes: mib << 20, first: 0, changed: (0..changed).collect(), digests: Vec::new() }
    }

    #[test]
    fn what_costs_least_to_move_and_bring_back_goes_first() {
        let zero = [0, 0];
        let chunk = |number, changed, digest| Leaving {
            digests: vec![digest; 4],
            ..leaving(number, (4 * BLOCK as u64) >> 20, changed)
        };
        let (weights, cache, unused) = (chunk(1, 0, [1, 1]), chunk(2, 2, [2, 2]), chunk(3, 0, zero));
        let mut chunks = vec![weights, cache, unused];
        assert_eq!(keep_dearest(&mut chunks, 5 * BLOCK as u64, zero), 4 * BLOCK as u64);
        assert_eq!(chunks.iter().map(|chunk| chunk.number).collect::<Vec<_>>(), [3, 1]);
    }

    #[test]
    fn what_needs_no_copy_goes_in_groups_of_its_own_and_first() {
        let unchanged = (0..5).map(|number| leaving(number, 1024, 0));
        let changed = (5..9).map(|number| leaving(number, 1024, 256));
        let groups = groups(unchanged.chain(changed).collect());
        let numbers: Vec<Vec<u64>> =
            groups.iter().map(|group| group.iter().map(|chunk| chunk.number).collect()).collect();
        assert_eq!(numbers, [vec![0, 1], vec![2, 3], vec![4], vec![5, 6], vec![7, 8]]);
    }
}
