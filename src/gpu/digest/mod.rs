//! The digest by which blocks of device memory are compared: on the GPU (`digest.cu`, compiled to `digest.ptx` by
//! `scripts/build-ptx`) and, word for word the same, in Rust ([`reference`]).

pub mod reference;

pub use reference::{BLOCK, Digest, Key, LANES, digest};

/// The compiled kernel, with the zero at its end that the driver wants.
pub const PTX: &str = concat!(include_str!("digest.ptx"), "\0");
/// Its name in the module: `(base, digests, key0, key1)`, one thread block of [`LANES`] threads a block of memory.
pub const KERNEL: &std::ffi::CStr = c"swapserve_digest";

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn order_matters() {
        let mut block = vec![0u8; BLOCK];
        block[0] = 1;
        let first = digest(&block, [1, 2]);
        block[0] = 0;
        block[16] = 1;
        assert_ne!(digest(&block, [1, 2]), first);
    }
}
