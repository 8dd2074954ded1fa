//! The memory that the engine holds: filled by the model's name, checked against it.
//!
//! Each chunk of 1 MiB holds one 32-bit word all over, computed from the model's name and the chunk's number.

use crate::cuda::Cuda;
use crate::cuda_call;
use crate::options::Options;

/// Bytes filled with one word.
const CHUNK: u64 = 1 << 20;

/// An allocation with known contents.
#[derive(Debug)]
struct Block {
    address: u64,
    bytes: u64,
    seed: u32,
}

/// Everything the process holds.
#[derive(Debug)]
pub struct Held {
    weights: Option<Block>,
    cache: Option<Block>,
    cache_bytes: u64,
    seed: u32,
}

/// Whether that share of the GPU is free, as vLLM looks for it before it allocates anything.
pub fn look_for(cuda: &Cuda, share: f64) -> Result<(), String> {
    let (mut free, mut total) = (0usize, 0usize);
    cuda_call!(cuda, cuMemGetInfo_v2(&raw mut free, &raw mut total))?;
    let wanted = (total as f64 * share) as usize;
    if free >= wanted {
        return Ok(());
    }
    Err(format!(
        "free memory on device ({} of {} MiB) is less than desired GPU memory utilization ({share}, {} MiB)",
        free >> 20,
        total >> 20,
        wanted >> 20
    ))
}

impl Held {
    /// Allocates and fills weights and cache.
    pub fn allocate(cuda: &Cuda, options: &Options) -> Result<Self, String> {
        let seed = options
            .model
            .bytes()
            .fold(2_166_136_261, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(16_777_619));
        let weights = Block::allocate(cuda, options.weights, seed, options.managed)?;
        let cache = Block::allocate(cuda, options.cache, seed ^ 0xcac4e, false)?;
        Ok(Self { weights, cache, cache_bytes: options.cache, seed })
    }

    /// Bytes held at present.
    pub fn bytes(&self) -> u64 {
        self.blocks().map(|block| block.bytes).sum()
    }

    /// Gives the cache up.
    pub fn sleep(&mut self, cuda: &Cuda) -> Result<(), String> {
        match self.cache.take() {
            Some(block) => cuda_call!(cuda, cuMemFree_v2(block.address)),
            None => Ok(()),
        }
    }

    /// Takes the cache again.
    pub fn wake(&mut self, cuda: &Cuda) -> Result<(), String> {
        if self.cache.is_none() {
            self.cache = Block::allocate(cuda, self.cache_bytes, self.seed ^ 0xcac4e, false)?;
        }
        Ok(())
    }

    /// Whether the cache has been given up.
    pub fn asleep(&self) -> bool {
        self.cache_bytes > 0 && self.cache.is_none()
    }

    /// Reads words back and compares: one of each chunk, or every one.
    pub fn check(&self, cuda: &Cuda, whole: bool) -> Result<(), String> {
        self.blocks().try_for_each(|block| block.check(cuda, whole))
    }

    /// A word computed from the word in the device's memory at a place chosen by `number`.
    pub fn word(&self, cuda: &Cuda, number: u32) -> Result<u32, String> {
        let Some(block) = self.blocks().next() else { return Ok(number) };
        let at = u64::from(number) * 7919 % (block.bytes / 4);
        let mut word = 0u32;
        cuda_call!(cuda, cuMemcpyDtoH_v2((&raw mut word).cast(), block.address + at * 4, 4))?;
        Ok(word.rotate_left(number % 32).wrapping_add(number))
    }

    fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.weights.iter().chain(&self.cache)
    }
}

impl Block {
    fn allocate(cuda: &Cuda, bytes: u64, seed: u32, managed: bool) -> Result<Option<Self>, String> {
        if bytes == 0 {
            return Ok(None);
        }
        /// `CU_MEM_ATTACH_GLOBAL`.
        const ATTACH_GLOBAL: u32 = 1;
        let mut address = 0;
        if managed {
            cuda_call!(cuda, cuMemAllocManaged(&raw mut address, bytes as usize, ATTACH_GLOBAL))?;
        } else {
            cuda_call!(cuda, cuMemAlloc_v2(&raw mut address, bytes as usize))?;
        }
        let block = Self { address, bytes, seed };
        for (number, at, length) in block.chunks() {
            cuda_call!(cuda, cuMemsetD32_v2(address + at, block.expected(number), (length / 4) as usize))?;
        }
        cuda_call!(cuda, cuCtxSynchronize())?;
        Ok(Some(block))
    }

    fn chunks(&self) -> impl Iterator<Item = (u32, u64, u64)> {
        let bytes = self.bytes;
        (0..bytes.div_ceil(CHUNK))
            .map(move |number| (number as u32, number * CHUNK, CHUNK.min(bytes - number * CHUNK)))
    }

    fn expected(&self, chunk: u32) -> u32 {
        (self.seed ^ chunk.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b)
    }

    fn check(&self, cuda: &Cuda, whole: bool) -> Result<(), String> {
        let mut words = vec![0u32; (CHUNK / 4) as usize];
        for (number, at, length) in self.chunks() {
            let bytes = if whole { length } else { 4 };
            cuda_call!(cuda, cuMemcpyDtoH_v2(words.as_mut_ptr().cast(), self.address + at, bytes as usize))?;
            let expected = self.expected(number);
            if let Some(wrong) = words[..(bytes / 4) as usize].iter().find(|&&word| word != expected) {
                return Err(format!("chunk {number} holds {wrong:08x} instead of {expected:08x}"));
            }
        }
        Ok(())
    }
}
