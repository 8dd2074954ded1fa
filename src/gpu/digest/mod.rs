//! The digest by which blocks of device memory are compared: on the GPU (`digest.cu`, compiled to `digest.ptx` by
//! `scripts/build-ptx`) and, word for word the same, in Rust ([`reference`]).

pub mod reference;

pub use reference::{BLOCK, Digest, Key, LANES, digest};

/// The kernel's source.
#[cfg(test)]
const SOURCE: &str = include_str!("digest.cu");
/// The compiled kernel, with the zero at its end that the driver wants.
pub const PTX: &str = concat!(include_str!("digest.ptx"), "\0");
/// Its name in the module: `(base, digests, key0, key1)`, one thread block of [`LANES`] threads a block of memory.
pub const KERNEL: &std::ffi::CStr = c"swapserve_digest";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sha2::{Digest as _, Sha256};

    fn sha256(text: &str) -> String {
        Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_compiled_kernel_is_that_of_the_source() {
        let (first, lines) = PTX.trim_end_matches('\0').split_once('\n').expect("more than one line");
        let says = format!("// scripts/build-ptx: source {}, lines below {}", sha256(SOURCE), sha256(lines));
        assert_eq!(first, says, "digest.cu or digest.ptx has changed alone: run scripts/build-ptx");
    }

    #[test]
    fn the_source_has_the_constants_of_the_reference() {
        for (name, value) in
            [("A", reference::A), ("B", reference::B), ("C", reference::C), ("D", reference::D)]
        {
            assert!(SOURCE.contains(&format!("#define {name} {value:#x}ull")), "{name}");
        }
        assert!(SOURCE.contains(&format!("#define LANES {LANES}")));
        assert!(PTX.contains(&format!(".maxntid {LANES}, 1, 1")));
    }

    #[test]
    fn any_single_change_shows() {
        let key = [1, 2];
        let mut block = vec![0u8; BLOCK];
        let zero = digest(&block, key);
        let mut seen = std::collections::BTreeSet::from([zero]);
        for at in [0, 1, 15, 16, 4095, 4096, BLOCK / 2, BLOCK - 1] {
            block[at] = 0x80;
            assert!(seen.insert(digest(&block, key)), "byte {at}");
            block[at] = 0;
        }
        assert_ne!(digest(&block, [1, 3]), zero);
    }

    /// A block as memory looks: all zero, random, or one word all over.
    fn block() -> impl Strategy<Value = Vec<u8>> {
        (0u8..3, any::<u64>()).prop_map(|(kind, seed)| {
            let mut word = seed | 1;
            let mut next = || {
                word ^= word << 13;
                word ^= word >> 7;
                word ^= word << 17;
                [0, word, seed][usize::from(kind)]
            };
            (0..BLOCK / 8).flat_map(|_| next().to_le_bytes()).collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, max_shrink_iters: 0, ..ProptestConfig::default() })]

        #[test]
        fn no_change_is_taken_for_none(
            block in block(),
            key in any::<Key>(),
            at in 0..BLOCK,
            bit in 0u32..8,
            to in 0..BLOCK / 16,
            rows in 1..BLOCK / (16 * LANES),
        ) {
            let before = digest(&block, key);
            let changed = |change: &dyn Fn(&mut Vec<u8>)| {
                let mut now = block.clone();
                change(&mut now);
                (now != block).then(|| digest(&now, key))
            };
            // A bit, a byte, a word that moves to another place, and one that is cleared.
            let from = at / 16;
            for (what, now) in [
                ("bit", changed(&|now| now[at] ^= 1 << bit)),
                ("byte", changed(&|now| now[at] = now[at].wrapping_add(1))),
                ("words exchanged", changed(&|now| (0..16).for_each(|byte| now.swap(from * 16 + byte, to * 16 + byte)))),
                ("rows turned", changed(&|now| now.rotate_left(rows * 16 * LANES))),
                ("lanes turned", changed(&|now| now.rotate_left(16))),
                ("word cleared", changed(&|now| now[from * 16..from * 16 + 16].fill(0))),
                ("all cleared", changed(&|now| now.fill(0))),
            ] {
                prop_assert_ne!(now, Some(before), "{}", what);
            }
        }
    }
}
