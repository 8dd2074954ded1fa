//! The digest of a block of device memory, in Rust: what the kernel in `digest.cu` computes, word for word.
//!
//! A block is cut into 256 lanes of 16-byte words, word `i` to lane `i mod 256`. Each lane runs two 64-bit chains,
//! started from the key; a chain's step is a bijection of its state for every word and of the word for every state,
//! so that a change confined to one lane always shows. The lanes' final states, mixed with their number, are added
//! up: two sums of 64 bits.

/// Bytes of a block.
pub const BLOCK: usize = 2 << 20;
/// Lanes of a block, threads of the kernel's thread block.
pub const LANES: usize = 256;

pub(super) const A: u64 = 0x9e37_79b1_85eb_ca87;
pub(super) const B: u64 = 0xc2b2_ae3d_27d4_eb4f;
pub(super) const C: u64 = 0x1656_67b1_9e37_79f9;
pub(super) const D: u64 = 0x27d4_eb2f_1656_67c5;

/// The 128-bit key of a run.
pub type Key = [u64; 2];
/// A block's digest.
pub type Digest = [u64; 2];

/// Digest of `block`, which has [`BLOCK`] bytes.
pub fn digest(block: &[u8], key: Key) -> Digest {
    let mut state = [[0u64; 2]; LANES];
    for (lane, state) in state.iter_mut().enumerate() {
        let number = lane as u64 + 1;
        *state = [key[0] ^ number.wrapping_mul(C), key[1].wrapping_add(number.wrapping_mul(D))];
    }
    for row in block.chunks_exact(LANES * 16) {
        for (state, word) in state.iter_mut().zip(row.chunks_exact(16)) {
            let (low, high) = halves(word);
            let a = (state[0] ^ low).wrapping_mul(A).rotate_left(31).wrapping_add(state[1]);
            let b = (state[1] ^ high).wrapping_mul(B).rotate_left(29).wrapping_add(a);
            *state = [a, b];
        }
    }
    let mut sum = [0u64; 2];
    for (lane, state) in state.iter().enumerate() {
        let number = lane as u64 + 1;
        sum[0] = sum[0].wrapping_add(mix(state[0] ^ number.wrapping_mul(B) ^ key[1]));
        sum[1] = sum[1].wrapping_add(mix(state[1] ^ number.wrapping_mul(A) ^ key[0]));
    }
    sum
}

fn halves(word: &[u8]) -> (u64, u64) {
    let mut halves = [[0u8; 8]; 2];
    halves[0].copy_from_slice(&word[..8]);
    halves[1].copy_from_slice(&word[8..]);
    (u64::from_le_bytes(halves[0]), u64::from_le_bytes(halves[1]))
}

/// The 64-bit finaliser of MurmurHash3: a bijection in which every input bit reaches every output bit.
fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    word = (word ^ (word >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    word ^ (word >> 33)
}
