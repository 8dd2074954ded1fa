//! The speed of the bus: pinned host memory to the device and back, as `--bus` prints it.

use std::time::Instant;

use crate::cuda::Cuda;
use crate::cuda_call;

/// Bytes of one copy.
const BYTES: usize = 256 << 20;
/// Copies each way; the fastest counts.
const ROUNDS: usize = 5;

/// Prints `{"to_device_gib_s": …, "to_host_gib_s": …}`.
pub fn measure(cuda: &Cuda) -> Result<(), String> {
    let (mut host, mut device) = (std::ptr::null_mut(), 0);
    cuda_call!(cuda, cuMemHostAlloc(&raw mut host, BYTES, 0))?;
    cuda_call!(cuda, cuMemAlloc_v2(&raw mut device, BYTES))?;
    cuda_call!(cuda, cuMemsetD32_v2(device, 1, BYTES / 4))?;
    let gib = BYTES as f64 / (1u64 << 30) as f64;
    let (mut to_device, mut to_host) = (0f64, 0f64);
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        cuda_call!(cuda, cuMemcpyDtoH_v2(host, device, BYTES))?;
        to_host = to_host.max(gib / begun.elapsed().as_secs_f64());
        let begun = Instant::now();
        cuda_call!(cuda, cuMemcpyHtoD_v2(device, host.cast_const(), BYTES))?;
        to_device = to_device.max(gib / begun.elapsed().as_secs_f64());
    }
    println!("{}", serde_json::json!({"to_device_gib_s": to_device, "to_host_gib_s": to_host}));
    Ok(())
}
