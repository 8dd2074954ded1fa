//! What the pool holds of one engine: for each block of each chunk its digest and its slot.
//!
//! ```text
//!  block    unknown ──out: copied──▶ held (digest, slot) ──out: equal──▶ held, nothing copied
//!              ▲                        │ out: all zero                      │
//!              └── copy begun ──────────┴────────▶ zero (digest, no slot) ◀──┘
//! ```
//!
//! A block is unknown from the moment its copy begins until it is done, so that a copy that is cut off is never
//! taken for one.

use std::collections::BTreeMap;

use super::slots::{Run, Slots};
use crate::gpu::digest::{BLOCK, Digest};

/// What is held of one block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Block {
    /// Digest of the copy; nothing while there is no whole copy.
    pub(super) digest: Option<Digest>,
    /// Where the copy is; nothing for a block of zeros.
    pub(super) slot: Option<u32>,
}

/// What is held of one chunk.
#[derive(Debug, Default)]
pub(super) struct Copies {
    /// Its blocks.
    pub(super) blocks: Vec<Block>,
}

impl Copies {
    /// Nothing of a chunk of that many bytes.
    pub(super) fn of(bytes: u64) -> Self {
        Self { blocks: vec![Block::default(); blocks(bytes)] }
    }

    /// Blocks whose contents are not what the pool has, given their digests now.
    pub(super) fn changed<'a>(&'a self, now: &'a [Digest], zero: Digest) -> impl Iterator<Item = usize> + 'a {
        let known =
            move |(block, digest): (&Block, &Digest)| block.digest == Some(*digest) || *digest == zero;
        self.blocks.iter().zip(now).enumerate().filter(move |(_, pair)| !known(*pair)).map(|(at, _)| at)
    }

    /// Notes blocks that are all zero and gives their slots back.
    pub(super) fn note_zeros(&mut self, now: &[Digest], zero: Digest, slots: &mut Slots) {
        for (block, _) in self.blocks.iter_mut().zip(now).filter(|(_, digest)| **digest == zero) {
            block.digest = Some(zero);
            give_back(block, slots);
        }
    }

    /// Whether all of it can be had back.
    pub(super) fn complete(&self) -> bool {
        self.blocks.iter().all(|block| block.digest.is_some())
    }

    /// Bytes that coming back moves.
    pub(super) fn held_bytes(&self) -> u64 {
        self.blocks.iter().filter(|block| block.slot.is_some()).count() as u64 * BLOCK as u64
    }

    /// Takes over what the book says of a block.
    pub(super) fn inherit(&mut self, at: usize, block: Block) {
        if self.blocks.len() <= at {
            self.blocks.resize(at + 1, Block::default());
        }
        self.blocks[at] = block;
    }

    /// Makes it as long as a chunk of that many bytes.
    pub(super) fn fit(&mut self, bytes: u64, slots: &mut Slots) {
        let wanted = blocks(bytes);
        self.blocks.iter_mut().skip(wanted).for_each(|block| give_back(block, slots));
        self.blocks.resize(wanted, Block::default());
    }

    /// Notes that blocks without a copy are zero.
    pub(super) fn rest_is_zero(&mut self, zero: Digest) {
        for block in self.blocks.iter_mut().filter(|block| block.digest.is_none() && block.slot.is_none()) {
            block.digest = Some(zero);
        }
    }

    /// Gives every slot back.
    pub(super) fn forget(&mut self, slots: &mut Slots) {
        for block in &mut self.blocks {
            block.digest = None;
            give_back(block, slots);
        }
    }
}

fn give_back(block: &mut Block, slots: &mut Slots) {
    if let Some(start) = block.slot.take() {
        slots.give(Run { start, length: 1 });
    }
}

/// Blocks of so many bytes.
pub(super) fn blocks(bytes: u64) -> usize {
    bytes as usize / BLOCK
}

/// One copy: neighbouring blocks whose slots are neighbours too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stretch {
    /// First block, counted from the chunk's beginning.
    pub(super) block: usize,
    /// First slot.
    pub(super) slot: u32,
    /// How many.
    pub(super) length: u32,
}

/// The copies that move these blocks, in order, cut where a segment of the pool ends.
pub(super) fn stretches(blocks: impl Iterator<Item = (usize, u32)>, segment: u32) -> Vec<Stretch> {
    let mut found: Vec<Stretch> = Vec::new();
    for (block, slot) in blocks {
        match found.last_mut() {
            Some(last)
                if last.block + last.length as usize == block
                    && last.slot + last.length == slot
                    && !slot.is_multiple_of(segment) =>
            {
                last.length += 1;
            }
            _ => found.push(Stretch { block, slot, length: 1 }),
        }
    }
    found
}

/// Neighbouring blocks of zeros: first block and how many.
pub(super) fn zero_stretches(copies: &Copies) -> Vec<(usize, usize)> {
    let mut found: Vec<(usize, usize)> = Vec::new();
    for (at, _) in copies.blocks.iter().enumerate().filter(|(_, block)| block.slot.is_none()) {
        match found.last_mut() {
            Some((first, length)) if *first + *length == at => *length += 1,
            _ => found.push((at, 1)),
        }
    }
    found
}

/// The copies of every chunk of one engine, by the chunk's number.
pub(super) type Ledger = BTreeMap<u64, Copies>;

#[cfg(test)]
mod tests {
    use super::*;

    const ZERO: Digest = [0, 0];

    #[test]
    fn only_what_differs_is_changed() {
        let mut copies = Copies::of(4 * BLOCK as u64);
        copies.blocks[0] = Block { digest: Some([1, 1]), slot: Some(7) };
        copies.blocks[1] = Block { digest: Some([2, 2]), slot: Some(8) };
        let now = [[1, 1], [3, 3], ZERO, [4, 4]];
        assert_eq!(copies.changed(&now, ZERO).collect::<Vec<_>>(), [1, 3]);
    }

    #[test]
    fn a_block_that_became_zero_gives_its_slot_back() {
        let mut slots = Slots::new(16);
        let mut copies = Copies::of(BLOCK as u64);
        copies.blocks[0] = Block { digest: Some([1, 1]), slot: Some(3) };
        copies.note_zeros(&[ZERO], ZERO, &mut slots);
        assert_eq!((copies.blocks[0].slot, slots.free()), (None, 1));
        assert!(copies.complete());
    }

    #[test]
    fn stretches_join_neighbours_and_end_with_the_segment() {
        let joined = stretches([(0, 14), (1, 15), (2, 16), (4, 17), (5, 18)].into_iter(), 16);
        let lengths: Vec<_> = joined.iter().map(|it| (it.block, it.slot, it.length)).collect();
        assert_eq!(lengths, [(0, 14, 2), (2, 16, 1), (4, 17, 2)]);
    }
}
