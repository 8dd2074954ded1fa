//! GPUs made of host memory, shared by every process of a test.
//!
//! The software `libcuda.so.1` and `libnvidia-ml.so.1` are two views of one folder, named by
//! [`DIRECTORY_VARIABLE`]:
//!
//! | file | what it holds |
//! | --- | --- |
//! | `gpus` | the machine: one line a GPU, context size, speeds ([`config`]) |
//! | `processes` | one mapped record a process that called `cuInit` ([`record`]) |
//! | `lock` | taken by whoever changes bytes or states ([`table`]) |
//! | `faults` | what to break, and how often ([`faults`]) |
//!
//! So any process can lock, checkpoint and restore any other, as with the real driver, and a test can look at
//! both sides. [`lab`] is for tests: it makes such a folder, builds the two libraries and hands out the
//! environment that loads them.
//!
//! A process's states, as the driver's manual has them:
//!
//! ```text
//!            lock                 checkpoint
//! Running ──────────▶ Locked ───────────────────▶ Checkpointed
//!    ▲                │    ▲                          │
//!    └──── unlock ────┘    └───────── restore ────────┤
//!                                                     ▼ restore that fails
//!                                                   Failed   (lost for good)
//! ```

pub mod config;
pub mod faults;
pub mod futex;
pub mod lab;
pub mod record;
pub mod table;

/// Environment variable that names the folder shared by the software libraries. Without it they report that no
/// GPU is there.
pub const DIRECTORY_VARIABLE: &str = "SOFTWARE_GPU_DIR";

/// GPUs that one machine of host memory may have.
pub const MAX_GPUS: usize = 8;

/// The 16 bytes of GPU `index`'s UUID: the same in `cuDeviceGetUuid` and in NVML.
pub fn uuid(index: usize) -> [u8; 16] {
    let mut bytes = *b"\x50\xf7\x9a\x2e\x11\x20\x4c\x0d\x9b\x00swgpu\x00";
    bytes[15] = index as u8;
    bytes
}

/// A UUID as NVML and `CUDA_VISIBLE_DEVICES` write it: `GPU-50f79a2e-1120-…`.
pub fn uuid_text(bytes: [u8; 16]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("GPU-{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// GPU `index`'s place on the bus, `domain:bus:device.function`.
pub fn pci_bus_id(index: usize) -> String {
    format!("0000:{:02x}:00.0", index + 1)
}
