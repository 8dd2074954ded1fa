//! A test engine driven step by step (`POST /do`), and what its memory must hold.

use serde_json::{Value, json};

use crate::gpu_bench::TestEngine;

pub const MIB: u64 = 1 << 20;

/// One step; its result, or what the engine says went wrong.
pub fn try_step(engine: &TestEngine, step: &Value) -> Result<Value, String> {
    let (status, body) = engine.request("POST", "/do", &step.to_string()).expect("the engine answers");
    if status == 200 { Ok(serde_json::from_str(&body).expect("the answer is JSON")) } else { Err(body) }
}

/// One step that goes well.
pub fn step(engine: &TestEngine, step: Value) -> Value {
    try_step(engine, &step).unwrap_or_else(|error| panic!("{step}: {error}"))
}

/// The number in a step's result.
pub fn number(engine: &TestEngine, asked: Value, key: &str) -> u64 {
    step(engine, asked)[key].as_u64().expect("a number")
}

/// Device memory with what the test has written to it.
#[derive(Debug, Clone)]
pub struct Block {
    pub address: u64,
    pub bytes: Vec<u8>,
}

impl Block {
    /// Plain memory, written to.
    pub fn plain(engine: &TestEngine, bytes: u64, seed: u64) -> Self {
        Self::of(engine, json!({"do": "alloc", "bytes": bytes}), bytes, seed)
    }

    /// What that step allocates, written to.
    pub fn of(engine: &TestEngine, allocation: Value, bytes: u64, seed: u64) -> Self {
        Self::at(engine, number(engine, allocation, "address"), bytes, seed)
    }

    /// Memory that is there, written to.
    pub fn at(engine: &TestEngine, address: u64, bytes: u64, seed: u64) -> Self {
        let mut block = Self { address, bytes: vec![0; bytes as usize] };
        block.write(engine, 0, bytes, seed);
        block
    }

    pub fn write(&mut self, engine: &TestEngine, at: u64, bytes: u64, seed: u64) {
        let address = self.address + at;
        step(engine, json!({"do": "write", "address": address, "bytes": bytes, "seed": seed}));
        self.bytes[at as usize..(at + bytes) as usize].copy_from_slice(&pattern(seed, bytes as usize));
    }

    pub fn zero(&mut self, engine: &TestEngine, at: u64, bytes: u64) {
        step(engine, json!({"do": "zero", "address": self.address + at, "bytes": bytes}));
        self.bytes[at as usize..(at + bytes) as usize].fill(0);
    }

    pub fn flip(&mut self, engine: &TestEngine, at: u64, mask: u8) {
        step(engine, json!({"do": "flip", "address": self.address + at, "mask": mask}));
        self.bytes[at as usize] ^= mask;
    }

    /// Has a kernel add one to every word.
    pub fn add(&mut self, engine: &TestEngine) {
        step(engine, json!({"do": "add", "address": self.address, "words": self.bytes.len() / 4}));
        self.note_added();
    }

    /// A kernel has added one to every word.
    pub fn note_added(&mut self) {
        for word in self.bytes.chunks_exact_mut(4) {
            let more = u32::from_le_bytes(word.try_into().expect("four bytes")).wrapping_add(1);
            word.copy_from_slice(&more.to_le_bytes());
        }
    }

    pub fn free(self, engine: &TestEngine) {
        step(engine, json!({"do": "free", "address": self.address}));
    }

    /// Every byte is what was written.
    pub fn check(&self, engine: &TestEngine) {
        let read = json!({"do": "hash", "address": self.address, "bytes": self.bytes.len()});
        assert_eq!(number(engine, read, "hash"), hash(&self.bytes), "{:x}", self.address);
    }
}

/// The bytes that a seed stands for; the engine has the same function.
fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    let words = bytes.div_ceil(8) as u64;
    let all = (0..words).flat_map(|at| mixed(seed ^ at.wrapping_mul(0x9e37_79b9)).to_le_bytes());
    all.take(bytes).collect()
}

/// What bytes come to; the engine has the same function.
fn hash(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(bytes.len() as u64, |hash, part| {
        let mut word = [0; 8];
        word[..part.len()].copy_from_slice(part);
        mixed(hash ^ u64::from_le_bytes(word))
    })
}

fn mixed(word: u64) -> u64 {
    let word = (word ^ (word >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd).wrapping_add(1);
    word ^ (word >> 29)
}
