//! The end of the pool: its memory is given back by several threads before the process ends.
//!
//! What is left to the kernel's own clean-up of a process is given back page by page by one thread: tens of GiB take it
//! more than ten seconds, in which the process is dead and cannot be waited for in a job's last seconds.

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use super::cuda::cuMemHostUnregister;
use super::device::Device;
use super::pool::{Pool, SEGMENT, threads};

/// What giving back anything may take.
const LEAST: Duration = Duration::from_millis(500);
/// Bytes given back in a millisecond, as hoped of several threads: one thread of the kernel was seen to manage half of that.
const BYTES_A_MS: u64 = 8 << 20;

/// How long giving back a pool of so many bytes may take. Beyond, whatever is left is left to the kernel.
pub fn limit(bytes: u64) -> Duration {
    if bytes == 0 { Duration::ZERO } else { LEAST + Duration::from_millis(bytes / BYTES_A_MS) }
}

impl Pool {
    /// Gives the pool's memory back to the node: nobody wants it any more. Segments that are being pinned just now are
    /// left to the kernel, and so is the rest when the time is over: a driver that hangs must not keep the process.
    pub(super) fn give_back(self: &Arc<Self>, device: &Arc<Device>) {
        let deadline = Instant::now() + limit(self.bytes());
        let (tell, told) = mpsc::channel::<()>();
        for _ in 0..threads(self.bytes() / SEGMENT) {
            let (pool, device, tell) = (Arc::clone(self), Arc::clone(device), tell.clone());
            let unpin = move || {
                if device.enter().is_ok() {
                    while let Some(segment) = pool.next_pinned() {
                        pool.unpin(segment);
                    }
                }
                drop(tell);
            };
            // Without a thread the kernel does it.
            let _ = std::thread::Builder::new().name("unpin".to_owned()).spawn(unpin);
        }
        drop(tell);
        // Nobody says anything: until every thread is done, or the time is over.
        let _ = told.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }

    fn unpin(&self, segment: u64) {
        let address = self.segment(segment);
        // SAFETY: registered by this process, once. A call may still be copying: the mapping stays, and nobody wants what it
        // copies, since the run is over.
        unsafe { cuMemHostUnregister(address) };
        // SAFETY: a range of the pool's own mapping, of which nothing is used any more. The daemon has the file open too:
        // without this its pages would go one by one when that closes it. A refusal leaves them to the kernel.
        unsafe { libc::madvise(address, SEGMENT as usize, libc::MADV_REMOVE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_larger_pool_may_take_longer() {
        assert_eq!(limit(0), Duration::ZERO);
        assert_eq!(limit(256 << 20), Duration::from_millis(532));
        assert_eq!(limit(64 << 30), Duration::from_millis(500 + 8192));
    }
}
