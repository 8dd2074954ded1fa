//! What reads bytes that others wrote, for a second each: the committed corpus, then small changes to it, the same ones each
//! time. `scripts/fuzz` runs the same targets for as long as one likes, guided by what the bytes reach.

#[path = "../fuzz/targets/mod.rs"]
mod targets;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

/// How long each target runs.
const TIME: Duration = Duration::from_secs(1);

/// Bytes that mean something to one target or another.
const WORDS: [&[u8]; 16] = [
    b"\r\n",
    b"\r\n\r\n",
    b"model",
    b"\"",
    b"\\",
    b"{",
    b"}",
    b":",
    b"=",
    b"--X",
    b"chunked",
    b"content-length: ",
    b"/..",
    b"%2f",
    b"\0",
    b"\xff",
];

fn run(name: &str) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut files: Vec<_> = fs::read_dir(&corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let inputs: Vec<_> = files.iter().map(|path| fs::read(path).unwrap()).collect();
    assert!(inputs.len() >= 5, "{} has too little to begin with", corpus.display());
    let (_, target) = targets::TARGETS.iter().find(|(known, _)| *known == name).unwrap();
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    for (path, input) in files.iter().zip(&inputs) {
        println!("{}", path.display());
        target(input);
    }
    let (begun, mut count) = (Instant::now(), inputs.len());
    while begun.elapsed() < TIME {
        let input = &inputs[random.below(inputs.len())];
        let other = &inputs[random.below(inputs.len())];
        target(&changed(input, other, &mut random));
        count += 1;
    }
    println!("{name}: {count} inputs");
}

/// The same numbers in each run (Marsaglia's xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

/// A few changes of the kinds that fuzzers make.
fn changed(input: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..1 + random.below(4) {
        let at = random.below(bytes.len() + 1);
        let end = at + random.below(bytes.len().min(at + 16) - at + 1);
        match random.below(6) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => bytes.insert(at, random.below(256) as u8),
            3 => drop(bytes.splice(at..at, WORDS[random.below(WORDS.len())].iter().copied())),
            4 => {
                let piece = bytes[at..end].to_vec();
                drop(bytes.splice(at..at, piece));
            }
            _ => {
                let from = random.below(other.len() + 1);
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
    bytes
}

macro_rules! each {
    ($($name:ident),+) => {
        $(#[test]
        fn $name() {
            run(stringify!($name));
        })+

        #[test]
        fn every_target_is_run() {
            assert_eq!(targets::TARGETS.map(|(name, _)| name), [$(stringify!($name)),+]);
        }
    };
}

each!(peek, multipart, request, stream, config, slurm, proc, frames);
