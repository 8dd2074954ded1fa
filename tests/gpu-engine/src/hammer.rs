//! Threads that allocate, free, copy and launch without end, and check every byte that they read.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use crate::cuda::{Cuda, Reach};
use crate::cuda_call;
use crate::script::add_one;

/// Sizes of blocks: below and above what is parked, whole granules and not.
const SIZES: [usize; 6] = [64 << 10, 1 << 20, (1 << 20) + 4096, 2 << 20, 5 << 20, 6 << 20];
/// Blocks that a thread holds at most.
const MOST: usize = 4;

/// Running threads.
#[derive(Debug)]
pub struct Hammer {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<(), String>>>,
}

/// A block whose words all have one value.
#[derive(Debug)]
struct Block {
    address: u64,
    bytes: usize,
    value: u32,
    stream_ordered: bool,
}

impl Hammer {
    /// Starts so many threads.
    pub fn start(threads: usize) -> Result<Self, String> {
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let threads = (0..threads)
            .map(|number| {
                let (stop, rounds) = (Arc::clone(&stop), Arc::clone(&rounds));
                std::thread::Builder::new()
                    .spawn(move || strike(number as u64, &stop, &rounds))
                    .map_err(|error| error.to_string())
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { stop, rounds, threads })
    }

    /// Rounds so far, or what went wrong.
    pub fn rounds(&self) -> Result<u64, String> {
        match self.threads.iter().any(JoinHandle::is_finished) {
            true => Err("a thread has ended".to_owned()),
            false => Ok(self.rounds.load(Ordering::Relaxed)),
        }
    }

    /// Ends the threads; rounds in all, or what went wrong.
    pub fn stop(self) -> Result<u64, String> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().map_err(|_| "a thread broke".to_owned())??;
        }
        Ok(self.rounds.load(Ordering::Relaxed))
    }
}

fn strike(number: u64, stop: &AtomicBool, rounds: &AtomicU64) -> Result<(), String> {
    let cuda = Cuda::load(Reach::Dlsym)?;
    cuda.use_device(0)?;
    let mut blocks: Vec<Block> = Vec::new();
    let mut random = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 20) as usize % below
    };
    while !stop.load(Ordering::Relaxed) {
        match next(4) {
            0 if blocks.len() < MOST => {
                blocks.push(Block::allocate(
                    &cuda,
                    SIZES[next(SIZES.len())],
                    next(1 << 20) as u32,
                    next(2) == 1,
                )?);
            }
            1 if !blocks.is_empty() => blocks.swap_remove(next(blocks.len())).free(&cuda)?,
            2 if !blocks.is_empty() => {
                let at = next(blocks.len());
                blocks[at].check(&cuda)?;
            }
            _ if !blocks.is_empty() => {
                let at = next(blocks.len());
                let block = &mut blocks[at];
                add_one(&cuda, block.address, block.bytes as u64 / 4, std::ptr::null_mut())?;
                block.value = block.value.wrapping_add(1);
            }
            _ => {}
        }
        rounds.fetch_add(1, Ordering::Relaxed);
    }
    blocks.into_iter().try_for_each(|block| block.free(&cuda))
}

impl Block {
    fn allocate(cuda: &Cuda, bytes: usize, value: u32, stream_ordered: bool) -> Result<Self, String> {
        let mut address = 0;
        if stream_ordered {
            cuda_call!(cuda, cuMemAllocAsync(&raw mut address, bytes, std::ptr::null_mut()))?;
        } else {
            cuda_call!(cuda, cuMemAlloc_v2(&raw mut address, bytes))?;
        }
        cuda_call!(cuda, cuMemsetD32_v2(address, value, bytes / 4))?;
        Ok(Self { address, bytes, value, stream_ordered })
    }

    fn check(&self, cuda: &Cuda) -> Result<(), String> {
        let mut words = vec![0u32; self.bytes / 4];
        cuda_call!(cuda, cuMemcpyDtoH_v2(words.as_mut_ptr().cast(), self.address, self.bytes))?;
        match words.iter().position(|word| *word != self.value) {
            None => Ok(()),
            Some(at) => Err(format!(
                "word {at} of {} bytes is {:x} instead of {:x}",
                self.bytes, words[at], self.value
            )),
        }
    }

    fn free(self, cuda: &Cuda) -> Result<(), String> {
        self.check(cuda)?;
        if self.stream_ordered {
            cuda_call!(cuda, cuMemFreeAsync(self.address, std::ptr::null_mut()))
        } else {
            cuda_call!(cuda, cuMemFree_v2(self.address))
        }
    }
}
